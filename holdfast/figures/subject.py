"""A model that a figure asks and attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from .. import draws
from ..attacks import PGD, Attack, Items, Oracle, Square, Suite, run
from ..attacks.base import AT_ONCE
from ..attacks.losses import margin
from ..attacks.state import State
from ..defences import declared, views
from ..distributed import own_device
from ..errors import InputError
from ..evaluation import evaluate, health
from ..evaluation.request import device_of
from ..evaluation.result import Flag
from ..inputs import checked_device
from ..models.black_box import assume_classes
from ..models.modes import evaluating
from ..models.wrapper import NO_PREDICTION, standard_defaults, wrapped
from ..search import MAJORITY_OF, Predictions, Verifier
from ..threat import Threat
from ..types import Images, Logits, Model

STEPS = 100
FEW_STEPS = 20  # where an image is still looked for
QUERIES = 1000  # of a model that shows no gradients
SAMPLES = 10  # draws of a random model that a gradient averages over
ALONE = "alone"  # an attack that was asked for
REPAIRING = "swift"  # for models that hide their gradients
OF_NORM = {"l0": "sigma-zero"}  # the suite where PGD does not know the norm

# Told how a search goes: the share that is done, None where nobody knows, and a word on it.
Told = Callable[[float | None, str], None]


class Answer(NamedTuple):
    """What a model says of an image.

    Attributes:
        label: the class, from 0; −1 where the model answers nothing.
        confidence: its softmax probability, 0 to 1; of a random model, of the mean logits; NaN of a
            model that shows labels only.
    """

    label: int
    confidence: float


class Subject:
    """A model that a figure asks and attacks.

    By default it is attacked so that its mistakes become as confident as they can: PGD on the
    margin that goes on after its first success, through every backward pass that a defence offers,
    averaged over draws where the model is random. A model without gradients is searched by Square,
    and one that shows labels only by RayS or HopSkipJump.

    Args:
        model: images → logits, defences included.
        suite: in place of that, as `holdfast.evaluate` takes it.
        attack: in place of that, run alone, with nothing before it and to its end.
        device: where to work; by default where the model is.
        first: the number of the first image in its data set, to which random draws belong.
        classes: how many there are, for a model that shows labels only.
    """

    def __init__(
        self,
        model: Model,
        threat: Threat,
        seed: int,
        suite: str | Suite | None = None,
        device: str | torch.device | None = None,
        first: int = 0,
        classes: int = 2,
        attack: Attack[Any] | None = None,
    ):
        self.model = wrapped(model)
        assume_classes(self.model, max(2, classes))
        self.threat, self.seed, self.first = threat, seed, first
        self.attack = attack
        self.suite = suite or (OF_NORM.get(threat.norm) if attack is None else None)
        self.random = declared(self.model).random
        self.verifier = Verifier(self.model, MAJORITY_OF if self.random else 1)
        self.home = device_of(self.model)
        self.device = self.home if device is None else checked_device(own_device(device))
        self._means: str | None = None
        self._gradients: bool | None = None

    def answers(
        self, images: Images, rows: Int64[Tensor, " n"], purpose: str = "figure"
    ) -> Predictions:
        """What it says of images, on the CPU.

        Args:
            rows: the images' numbers, counted from the first.
        """
        parts = [
            self.verifier.predict(
                images[part].to(self.device),
                draws.item_seeds(self.seed, purpose, self.first + rows[part]),
            )
            for part in torch.arange(len(images)).split(AT_ONCE)
        ]
        prediction, confidence, logits, drawn = (
            torch.cat([getattr(each, name).cpu() for each in parts])
            for name in ("prediction", "confidence", "logits", "draws")
        )
        if not self.random and bool(_one_hot(logits).all()):  # labels, which have no confidence
            confidence = torch.full_like(confidence, torch.nan)
        return Predictions(prediction, confidence, logits, drawn)

    def attacked(
        self,
        images: Images,
        labels: Tensor,
        rows: Int64[Tensor, " n"],
        steps: int = STEPS,
        *,
        goals: Int64[Tensor, " n"] | None = None,
        told: Told | None = None,
    ) -> Images:
        """For each image the strongest point that was found, on the CPU.

        Args:
            rows: the images' numbers, counted from the first.
            steps: of PGD, where that is the attack.
            goals: the classes that alone count as a success; by default any mistake does.
            told: called as the search goes; what it raises ends the search.

        Raises:
            InputError: an attack that needs gradients, on a model that shows none.
        """
        x, y = images.to(self.device), labels.to(self.device)
        means = self.means(x, y)
        if means not in ("pgd", "square", ALONE):
            with _counted(self.model, means, told):
                found = evaluate(
                    self.model,
                    x,
                    y,
                    self.threat,
                    self.suite or means,
                    seed=self.seed,
                    goal="untargeted" if goals is None else "target",
                    targets=goals,
                    precision="auto" if told is None else "original",  # which can be counted
                )
            return found.adversarial[:]
        attack: Attack[Any]
        if means == ALONE:
            assert self.attack is not None
            attack = self.attack.tuned(self.threat)
        else:
            attack = PGD(steps=steps, loss="margin") if means == "pgd" else Square(queries=QUERIES)
        searched = self.searched(attack, images, labels, rows, goals=goals, told=told)
        points = [state.best.cpu() for state in searched]
        lacks = [self._lacks(point, labels, rows, goals) for point in points]
        best = torch.stack(lacks).argmin(0)
        return torch.stack(points)[best, torch.arange(len(rows))]

    def searched(
        self,
        attack: Attack[Any],
        images: Images,
        labels: Tensor,
        rows: Int64[Tensor, " n"],
        *,
        goals: Int64[Tensor, " n"] | None = None,
        told: Told | None = None,
    ) -> list[State]:
        """An attack run alone, to its end: its state for each backward pass that is offered, the
        model's own first.

        Args:
            rows, goals, told: as `attacked`.
        """
        x, y = images.to(self.device), labels.to(self.device)
        none = torch.full_like(y, -1)
        aim = none if goals is None else goals.to(self.device)
        items = Items(
            images=x,
            labels=y,
            targets=self._strongest(x, y) if attack.targeted and goals is None else aim,
            eps=self.threat.radii(x),
            seeds=draws.item_seeds(self.seed, "figure", self.first + rows).to(x.device),
            goals=aim,
        )
        passes = [self.model, *(views(self.model).values() if attack.needs_gradient else ())]
        return [
            run(
                attack,
                _Watched(view, self.samples, attack, told, number / len(passes), len(passes)),
                items,
                self.threat,
                steps=attack.iterations,
            )
            for number, view in enumerate(passes)
        ]

    @property
    def samples(self) -> int:
        """Draws that a gradient averages over."""
        return SAMPLES if self.random else 1

    def _strongest(self, images: Images, labels: Tensor) -> Tensor:
        """The most likely wrong class of each image, (N,)."""
        with torch.no_grad():
            logits = self.model(images).float()
        return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)

    def _lacks(self, points: Images, labels: Tensor, rows: Tensor, goals: Tensor | None) -> Tensor:
        """The margin that is left at each point, (N,)."""
        logits = self.answers(points, rows, "figure passes").logits
        return margin(logits, labels.cpu(), None if goals is None else goals.cpu())

    def means(self, images: Images, labels: Tensor) -> str:
        """How it is attacked: `pgd`, `square`, `alone`, or the name of a suite."""
        if self.suite is not None:
            return self.suite if isinstance(self.suite, str) else self.suite.name
        if self._means is None and self.attack is not None and not self.attack.needs_gradient:
            self._means = ALONE
        if self._means is None:
            found = self._gradients_at(images, labels)
            if self.attack is not None:
                if not self._gradients:
                    raise InputError(
                        f"{self.attack.name} needs gradients, and the model shows none: take "
                        "square, hop-skip-jump or rays"
                    )
                self._means = ALONE
            elif not self._gradients:
                with torch.no_grad():
                    decides = bool(_one_hot(self.model(images[:8])).all())
                of_labels = "rays" if self.threat.norm == "linf" else "hop-skip-jump"
                self._means = of_labels if decides else "square"
            else:
                self._means = REPAIRING if found.fired else "pgd"
        return self._means

    def differentiable(self, images: Images, labels: Tensor) -> bool:
        """Whether the model shows gradients, at these images."""
        if self._gradients is None:
            self._gradients_at(images, labels)
        return bool(self._gradients)

    def _gradients_at(self, images: Images, labels: Tensor) -> Flag:
        with draws.fixed_draws(0):
            found = health.gradients(self.model, images[:8], labels[:8])
        self._gradients = health.differentiable(found)
        return found

    def in_words(self, steps: int = STEPS) -> str:
        """The attack, for a caption; known once it has run.

        Args:
            steps: of PGD, where that was the attack.
        """
        means = self._means or (self.suite if isinstance(self.suite, str) else "")
        if isinstance(self.suite, Suite):
            means = self.suite.name
        if means == "pgd":
            averaged = f", over {SAMPLES} draws each" if self.random else ""
            return f"PGD on the margin, {steps} steps{averaged}"
        if means == ALONE:
            assert self.attack is not None
            settings = self.attack.settings
            budget = [f"{settings[key]:,} {key}" for key in ("steps", "queries") if key in settings]
            return ", ".join([self.attack.name, *budget])
        if means == "square":
            return f"Square, {QUERIES:,} queries"
        return f"suite {means}"


class _Watched(Oracle):
    """An oracle that tells how far a search is, before each of its steps."""

    def __init__(
        self,
        model: Model,
        samples: int,
        attack: Attack[Any],
        told: Told | None,
        before: float,
        searches: int,
    ):
        super().__init__(model, samples, attack.decisions)
        self.attack, self.told, self.before, self.searches = attack, told, before, searches

    def prepare(self, state: State) -> None:
        super().prepare(state)
        if self.told is not None and len(state):
            done = int(state.iteration.min())
            share = self.before + done / max(1, self.attack.iterations) / self.searches
            self.told(min(1.0, share), f"{self.attack.name}, step {done + 1:,}")


@contextmanager
def _counted(model: nn.Module, what: str, told: Told | None) -> Iterator[None]:
    """Inside, every call of the model is told of: how many there will be, nobody knows."""
    if told is None:
        yield
        return
    asked = 0

    def count(module: nn.Module, images: tuple[Any, ...]) -> None:
        nonlocal asked
        asked += len(images[0])
        told(None, f"{what}, {asked:,} queries")

    handle = model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def ready(subjects: Sequence[Subject]) -> Iterator[None]:
    """Inside, the models are where they work and in eval mode; afterwards as they were."""
    moved = [each for each in subjects if each.device != each.home]
    try:
        for each in moved:
            each.model.to(each.device)
        with standard_defaults(), evaluating(*(each.model for each in subjects)):
            yield
    finally:
        for each in moved:
            each.model.to(each.home)


def _one_hot(logits: Logits) -> Bool[Tensor, " n"]:
    """Which rows are one-hot: the answer of a model that shows labels only."""
    return ((logits == 0) | (logits == 1)).all(1) & (logits.sum(1) == 1)


def answer_at(predictions: Predictions, row: int) -> Answer:
    """One row of them."""
    return Answer(int(predictions.prediction[row]), float(predictions.confidence[row]))


def naming(classes: Sequence[str] | None) -> Callable[[int], str]:
    """The name of a class by its number; the number itself where it has none."""
    names = list(classes or ())

    def name(label: int) -> str:
        if label == NO_PREDICTION:
            return "no answer"
        return str(names[label]) if label < len(names) else str(label)

    return name


def percent(confidence: float) -> str:
    """A confidence as it stands under an image: never rounded to certainty.

    Example:
        >>> percent(0.9823), percent(0.99999), percent(0.0)
        ('98.2\u00a0%', '>\u00a099.9\u00a0%', '<\u00a00.1\u00a0%')
    """
    if math.isnan(confidence):
        return "label only"
    if confidence > 0.9994:
        return ">\u00a099.9\u00a0%"
    if confidence < 0.0005:
        return "<\u00a00.1\u00a0%"
    return f"{100 * confidence:.1f}\u00a0%"


def radius(threat: Threat) -> str:
    """ε as people write it.

    Example:
        >>> radius(Threat("linf", 8 / 255)), radius(Threat("l2", 0.5))
        ('8/255', '0.5')
    """
    return str(threat).partition(" ")[2]
