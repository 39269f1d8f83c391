"""What is known about a model before it is attacked."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..attacks import Stage, Suite, adaptive, black_box
from ..attacks.black_box import NAME as BLACK_BOX
from ..attacks.suite import REPAIRED, UNDEFENDED
from ..defences import declared, steps, undefended, views, with_network
from ..draws import fixed_draws, repeated_draws
from ..errors import HoldfastError, InputError
from ..inputs import check_labels, check_logits
from ..models.black_box import innermost
from ..models.http import HttpModel
from ..models.metered import about
from ..models.mixture import Mixture
from ..models.wrapper import predicted, unwrapped
from ..repair import Diagnosis, repaired
from ..runs.identity import digest, settings_digest, weights_digest
from ..search import FastCopy, Level
from ..search.fast_copies import SLOPES, Asked, levels_of, original
from ..types import Model
from . import health
from .classes import logits_without_images
from .request import Request
from .result import Flag
from .spending import Spending

PROBE = 64  # images that fast copies are compared and health is checked on

Levels = list[Level]


class Inspection:
    """All that is known about a model before it is attacked, in one place.

    Each fact is measured when it is first asked for, and once.

    Attributes:
        model: as it is evaluated.
        images, labels: the probe, the first `PROBE` images, on the model's device.
        weights: SHA-256 of its weights and buffers, defences included; None for a bare function.
        logits: float32 (P, K), its answers to the probe.
        classes: flag: the model answers more classes than the data has.
        log: why something faster than the model is not searched on.
        spending: where the time of the evaluation goes.

    Raises:
        InputError: the model's logits are not finite on the probe, not (N, K), or fewer than the
            classes; a label that the model has no logit for.
    """

    def __init__(self, request: Request):
        self.model, self.precision = request.model, request.precision
        self.account, self.queries, self.norm = (
            request.account,
            request.queries,
            request.threat.norm,
        )
        self.repair = request.repair and request.account is None  # a black box shows no graph
        self.images = request.images[:PROBE].to(request.device)
        self.labels = request.labels[:PROBE].to(request.device)
        self.aimed = request.kind is not None
        self.log: list[str] = []
        self.spending = Spending()
        with self.spending.on("inspection"):
            self._look(request)

    def _look(self, request: Request) -> None:
        # Before it is asked anything: a model may change itself.
        self.weights = weights_digest(unwrapped(self.model))
        logits = self._first_logits()
        named = request.described.get("classes")
        self.classes: Flag = logits_without_images(logits.shape[1], request.labels, named)
        self.logits = check_logits(logits, len(self.images), self.labels)
        count, classes = len(request.labels), self.logits.shape[1]
        check_labels(request.labels, count, classes)
        if isinstance(request.targets, Tensor):
            check_labels(request.targets, count, classes, name="targets")

        if self.account is not None and self.random:
            self.account.remembers = False

    def _first_logits(self) -> Tensor:
        """Answers to the probe. With a budget of queries this is the only call: it also says
        whether there are gradients."""
        images = torch.arange(len(self.images))
        seen: list[Tensor] = []
        failed: list[HoldfastError] = []

        def watched(x: Tensor) -> Tensor:
            try:
                seen.append(self.model(x))
            except HoldfastError as error:
                failed.append(error)
                raise
            return seen[-1]

        with about(images, clean=True), fixed_draws(0):
            if self.queries is None:
                with torch.no_grad():
                    watched(self.images)
            else:  # which takes whatever is raised for a model without gradients
                self.gradients = health.gradients(watched, self.images, self.labels)
        if failed:
            raise failed[0]
        return seen[0].detach()

    # -- which model it is ----------------------------------------------------------------

    @cached_property
    def network(self) -> Model | None:
        """The network behind the defences; None without defences, or where it takes no images."""
        network = undefended(self.model)
        if network is self.model:
            return None
        try:
            with self.spending.on("inspection"), torch.no_grad():
                network(self.images[:2])
        except InputError:  # it wants the codes that a defence makes
            return None
        return network

    @cached_property
    def known_by(self) -> str:
        """What the model is known by: its weights, or its logits where it is a function."""
        # The digest of a defended function's defences says nothing of the function.
        plain = innermost(self.network or self.model)
        if isinstance(plain, nn.Module) and self.weights:
            return self.weights
        if isinstance(plain, HttpModel):
            # Another machine may round otherwise from one call to the next.
            classes = () if self.random else (predicted(self.logits),)
            return digest(plain.address, *classes)
        return digest(self.weights or "", self.logits)

    @cached_property
    def settings(self) -> str:
        """SHA-256 of what it computes with besides its weights."""
        return settings_digest(unwrapped(self.model))

    # -- how it answers -------------------------------------------------------------------

    @cached_property
    def changes(self) -> Flag:
        """Whether two calls on the same images differ; not known where queries are counted out."""
        if self.queries is not None:
            return health.not_checked("outputs-change-between-calls")
        with self.spending.on("health checks"):
            return health.outputs_change(self.model, self.images, self._calls)

    @cached_property
    def _calls(self) -> tuple[Tensor, Tensor]:
        """The answers to the probe, and those to it in the reverse order, both in its order: where
        they are the same, two checks are done at once."""
        with torch.no_grad():
            backwards = self.model(self.images.flip(0)).float()
        return self.logits, backwards.flip(0)

    @property
    def random(self) -> bool:
        """Whether it draws random numbers, by its declaration or its answers."""
        return declared(self.model).random or self.changes.fired

    @cached_property
    def gradients(self) -> Flag:
        """Whether gradients vanish, or are not there."""
        with self.spending.on("health checks"):
            return health.gradients_vanish(self._slopes)

    @cached_property
    def _slopes(self) -> Tensor | str:
        """Gradients of the margins on the probe; in words why there are none."""
        return health.input_gradients(self.model, self.images, self.labels)

    @property
    def differentiable(self) -> bool:
        return health.differentiable(self.gradients)

    # -- what it hides --------------------------------------------------------------------

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """What kills the model's gradients, and the model with repaired ones if that helps."""
        if not self.repair:
            return Diagnosis(None, ())
        with self.spending.on("gradient repair"):
            found = repaired(self.model, self.images, self.labels)
        if found.remark:
            self.log.append(found.remark)
        return found

    @property
    def hides(self) -> bool:
        """Whether its gradients are hidden, and could be repaired."""
        return self.diagnosis.model is not None

    def health(self, samples: int) -> list[Flag]:
        """The checks that need no attack; `samples`: draws that an iteration averages over. With a
        budget of queries, those that ask nothing."""
        with self.spending.on("health checks"):
            return self._health(samples)

    def _health(self, samples: int) -> list[Flag]:
        if self.queries is not None:
            return [
                health.outputs_like_probabilities(self.logits, self.labels_only),
                self.classes,
                self.changes,
                self.gradients,
            ]
        return [
            health.outputs_like_probabilities(self.logits, self.labels_only),
            self.classes,
            health.averaged(self.changes, samples),
            health.depends_on_batch(self.model, self.images, self.changes.fired, self._calls),
            health.forward_computes_gradients(self.model, self.images),
            self.gradients,
        ]

    # -- how it may be searched -----------------------------------------------------------

    @cached_property
    def views(self) -> dict[str, Levels]:
        """For each `Stage.view` the levels that a search runs on, the model itself ("") first.

        Fast copies are made of the network behind the defences: defences compute in float32, and
        a random one answers as its fast copy does where both draw the same.
        """
        with self.spending.on("fast copies"):
            return self._views()

    def _views(self) -> dict[str, Levels]:
        model, network, mended = self.model, self.network, self.diagnosis.model
        by_name: dict[str, Model] = {"": model, **views(model)}
        further: dict[str, Levels] = {}
        if mended is not None:
            bare = network is None and not steps(model) and not self.changes.fired
            further[REPAIRED] = (
                levels_of(mended, self.images, self.labels, self.precision)
                if bare
                else [Level(original(mended))]
            )
        if network is None:
            # A traced copy of a defence would lose the backward pass that it declares.
            of = (lambda view: [Level(original(view))]) if steps(model) else self._levels
            return {name: of(view) for name, view in by_name.items()} | further
        of_network = self._levels(network)

        def behind(view: Model) -> Levels:
            # A network that offers backward passes of its own has a fast copy for each of them.
            bare = undefended(view)
            levels = of_network if bare is network else self._levels(bare)
            return [_in_front(view, level) for level in levels]

        further[UNDEFENDED] = of_network
        return {name: behind(view) for name, view in by_name.items()} | further

    def _levels(self, model: Model) -> Levels:
        precision = self._precision
        asked = None
        if model is self.model and precision != "original" and isinstance(self._slopes, Tensor):
            asked = Asked(self.logits, self._slopes[:SLOPES])
        return levels_of(model, self.images, self.labels, precision, self.log.append, asked)

    @cached_property
    def _precision(self) -> str:
        if self.account is not None:
            return "original"
        # Fast copies are compared by their answers: behind defences, by the network's alone.
        changes = self.changes
        if self.network is not None:
            with self.spending.on("health checks"):
                changes = health.outputs_change(self.network, self.images)
        return "original" if changes.fired or not self.differentiable else self.precision

    @cached_property
    def blind(self) -> set[str]:
        """The views that PyTorch cannot differentiate."""
        if self.queries is not None:  # a backward pass that is offered is there
            return set() if self.differentiable else {""}
        models = views(self.model)
        if self.network is not None:
            models[UNDEFENDED] = self.network
        with self.spending.on("health checks"):
            found = {n: health.gradients(v, self.images, self.labels) for n, v in models.items()}
        found[""] = self.gradients
        blind = {name for name, flag in found.items() if not health.differentiable(flag)}
        if self.hides and self.gradients.figures.get("zero", 1.0) > 0.95:
            blind.add("")  # searching by zeros is no search
        return blind

    # -- which suite serves ---------------------------------------------------------------

    def adaptive_suite(self, samples: int, norm: str) -> Suite:
        """The suite `adaptive` for this model."""
        seen = list(views(self.model))
        if self.hides:
            seen.insert(0, REPAIRED)
        if self.network is not None:
            seen.append(UNDEFENDED)
        return adaptive(seen, random=self.random, samples=samples, norm=norm)

    @cached_property
    def labels_only(self) -> bool:
        """Whether the model returns no more than labels: one-hot rows, without a gradient."""
        if self.differentiable:
            return False
        values = self.logits.unique()
        largest = (self.logits == values[-1]).sum(1)
        alike = len(values) == 2 and bool((largest == 1).all())
        return alike and (self.logits.shape[1] > 2 or values.tolist() == [0.0, 1.0])

    def can_run(self, stage: Stage) -> bool:
        """Whether the model shows a stage what it needs."""
        if stage.view in self.blind and stage.attack.needs_gradient:
            return False
        return bool(stage.view) or not (self.labels_only and stage.attack.needs_scores)

    def without_blind(self, suite: Suite) -> Suite:
        """The suite without the stages that need gradients, or scores, of what has none.

        Raises:
            InputError: nothing is left, and no other attack can judge the model in this norm.
        """
        stages = suite.keeping(self.can_run)
        if any(s.attack.needs_gradient for s in stages) or stages == suite.stages:
            return replace(suite, stages=stages)
        if suite.name.partition(",")[0] == BLACK_BOX and stages:
            return replace(suite, stages=stages)
        name = f"{suite.name}, gradient-free part"
        if stages:
            return Suite(name, stages, suite.closest)
        others = black_box(self.queries, self.norm).keeping(
            lambda stage: self.can_run(stage) and (stage.attack.reaches or not self.aimed)
        )
        if not others:
            raise InputError(
                f"the model returns only labels: no attack can judge it by these in {self.norm}"
            )
        return Suite(name, others)


def _in_front(view: Model, level: Level) -> Level:
    """The level of a network, behind the defences of a view."""
    copy = level.fast_copy
    behind = FastCopy(with_network(view, copy.model), copy.name, copy.error)
    return Level(behind, level.near, level.slopes)


def reason(model: Model) -> str:
    """In words, why a model needs the suite `adaptive`; empty where others serve."""
    why = []
    if isinstance(undefended(unwrapped(model)), Mixture):
        why.append("a mixture's gradients follow whichever of its parts is less sure")
    for step in steps(model):
        traits = ["draws random numbers"] if step.random else []
        traits += [] if step.differentiable else ["has no gradient of its own"]
        if traits:
            why.append(f"{step.spec} {' and '.join(traits)}")
    return "; ".join(why)


def frozen(model: Model, samples: int) -> Model:
    """The mean logits over `samples` draws that are the same for every image and every call.

    Health checks and curves search and count on it: they measure what an attack does with more
    steps or in a larger ball, not what it does with luck.
    """

    def mean(images: Tensor) -> Tensor:
        seeds = torch.zeros(len(images), dtype=torch.int64)
        with fixed_draws(seeds), repeated_draws(samples):
            copies = model(images.repeat_interleave(samples, 0)).float()
        return copies.unflatten(0, (len(images), samples)).mean(1)

    return mean
