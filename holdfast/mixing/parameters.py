"""The parameters of a mixture of two models, chosen on validation images.

A mixture has to be right on clean images and to stay right on attacked ones. Its answer at a point
is a function of both models' logits there, so once these are known, thousands of parameters are
compared without another pass.

As in Bai et al., "MixedNUTS", TMLR 2024, the robust model is attacked first, and wherever that
led, the accurate model is taken to be as wrong as can be. An attacker of the mixture may find other
points still: so the chosen mixture is attacked as one model, the points found are added, and the
choice is made again, until it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..defences.base import real_number, whole_number
from ..errors import InputError
from ..inputs import check_logits, checked_data
from ..models.mixture import Mixture, sharpened
from ..models.modes import evaluating
from ..models.wrapper import standard_defaults, wrapped
from ..types import Images, Model


class Parameters(NamedTuple):
    """Of a `Mixture`: weight, scale, power, shift."""

    weight: float
    scale: float | None = None
    power: float = 1.0
    shift: float = 0.0


ROBUST_ALONE = Parameters(1.0)
ACCURATE_ALONE = Parameters(0.0)

BATCH = 250
CERTAIN = 1000.0  # a logit next to which all others have no probability
WEIGHTS = tuple(round(0.5 + 0.01 * i, 2) for i in range(51))
SCALES = tuple(round(0.02 * 1.5**i, 4) for i in range(14))  # to about 4
POWERS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
SHIFTS = (-1.2, -0.9, -0.6, -0.3, 0.0)


class Figures(NamedTuple):
    """Fractions of the validation images.

    `standard` are right; `standing` are right at every point of theirs that any attack found.
    """

    standard: float
    standing: float


@dataclass(frozen=True)
class Choice:
    """What was chosen and what it achieves on validation images.

    Attributes:
        chosen, robust_alone, accurate_alone: figures; of `accurate_alone`, `standing` is no
            bound, for nothing attacked the accurate model by itself.
        attacks: how many models were attacked on the way.
    """

    parameters: Parameters
    chosen: Figures
    robust_alone: Figures
    accurate_alone: Figures
    n: int
    attacks: int

    @property
    def gains_nothing(self) -> bool:
        """Whether no mixture that was attacked kept within the cost: it is the robust model."""
        return self.parameters == ROBUST_ALONE


class Points:
    """Both models' logits at points of the validation images.

    Args:
        robust, accurate: images → logits.
        images: float32 (N, C, H, W), clean: the first points.
        labels: int64 (N,).

    Raises:
        InputError: the models have different numbers of classes.
    """

    def __init__(self, robust: Model, accurate: Model, images: Images, labels: Int64[Tensor, " n"]):
        self.models, self.labels = (wrapped(robust), wrapped(accurate)), labels
        self.logits: list[tuple[Tensor, Tensor]] = []  # of both models, (N, K), point by point
        self.add(images)

    def add(self, points: Images, *, worst: bool = False) -> None:
        """One more point of each image.

        Args:
            worst: instead of the accurate model's answer there, count with certainty in the
                wrong class that the robust model finds most likely.
        """
        robust, accurate = (self._answers(model, points) for model in self.models)
        if robust.shape != accurate.shape:
            raise InputError(
                f"the robust model knows {robust.shape[1]} classes, "
                f"the accurate one {accurate.shape[1]}: they cannot be mixed"
            )
        if worst:
            others = robust.scatter(1, self.labels[:, None], -torch.inf).argmax(1, keepdim=True)
            accurate = torch.zeros_like(accurate).scatter(1, others, CERTAIN)
        self.logits.append((robust, accurate))

    def _answers(self, model: Model, points: Images) -> Float[Tensor, "n k"]:
        parts = zip(points.split(BATCH), self.labels.split(BATCH), strict=True)
        if not self.logits:  # the images themselves, at which every model has an answer
            return torch.cat([check_logits(model(x), len(x), y).double() for x, y in parts])
        return torch.cat([_wrong_for_certain(model(x), y).double() for x, y in parts])

    def figures(self, parameters: Parameters, weights: Sequence[float]) -> list[Figures]:
        """Of each weight, with the transformation of `parameters`."""
        robust, accurate = (torch.stack(logits) for logits in zip(*self.logits, strict=True))
        if parameters.scale is not None:
            robust = sharpened(robust, parameters.scale, parameters.power, parameters.shift)
        right = _right(robust.softmax(-1), accurate.softmax(-1), self.labels, weights)
        standard = right[0].double().mean(0)
        standing = right.all(0).double().mean(0)
        return [Figures(*pair) for pair in zip(standard.tolist(), standing.tolist(), strict=True)]

    def figures_of(self, parameters: Parameters) -> Figures:
        return self.figures(parameters, [parameters.weight])[0]


def _wrong_for_certain(logits: Tensor, labels: Tensor) -> Float[Tensor, "n k"]:
    """Where a model answers nothing at an attacked point, it counts as certain of a wrong class."""
    other = (labels[:, None] + 1) % logits.shape[1]
    wrong = torch.zeros_like(logits).scatter(1, other, CERTAIN)
    return torch.where(logits.isnan().any(1, keepdim=True), wrong, logits)


def _right(
    robust: Float[Tensor, "p n k"],
    accurate: Float[Tensor, "p n k"],
    labels: Int64[Tensor, " n"],
    weights: Sequence[float],
) -> Bool[Tensor, "p n w"]:
    """Where mixtures are right: (1 − w) a + w r must be above 0 for all differences a and r.

    Linear in w, so the weights at which a point is right are an interval.
    """
    place = labels[None, :, None].expand(len(robust), -1, 1)
    others = torch.ones_like(robust, dtype=torch.bool).scatter(2, place, False)
    r, a = (p.gather(2, place) - p for p in (robust, accurate))
    root = a / (a - r)  # where the difference changes its sign
    low = torch.where(others & (r > a), root, -torch.inf).amax(2)
    high = torch.where(others & (r < a), root, torch.inf).amin(2)
    level = (others & (r == a) & (a <= 0)).any(2)
    w = torch.tensor(weights, dtype=robust.dtype, device=robust.device)
    inside = (w > low.unsqueeze(2)) & (w < high.unsqueeze(2))
    return inside & ~level.unsqueeze(2)


def grid() -> Iterator[Parameters]:
    """The transformations that are compared, each of them with all `WEIGHTS`."""
    for scale, power, shift in product(SCALES, POWERS, SHIFTS):
        yield Parameters(0.5, scale, power, shift)


def choose(
    points: Points, floor: float, candidates: Iterable[Parameters] | None = None
) -> tuple[Parameters, Figures]:
    """The most accurate mixture of which at least the share `floor` stands.

    Ties go to the one that stands more often. The robust model alone is among the candidates.
    """
    best, found = ROBUST_ALONE, points.figures_of(ROBUST_ALONE)
    for transformation in grid() if candidates is None else candidates:
        figures = points.figures(transformation, WEIGHTS)
        for weight, figure in zip(WEIGHTS, figures, strict=True):
            if figure.standing >= floor - 1e-9 and figure > found:
                best, found = transformation._replace(weight=weight), figure
    return best, found


def fit_mixture(
    robust: nn.Module,
    accurate: nn.Module,
    images: Images,
    labels: Int64[Tensor, " n"],
    attack: Callable[[nn.Module], Images],
    *,
    cost: float = 0.01,
    rounds: int = 4,
    report: Callable[[float, str], None] = lambda share, word: None,
) -> Choice:
    """Parameters that make a mixture as accurate as a small loss of robust accuracy allows.

    Args:
        robust, accurate: images → logits over the same classes.
        images: float32 (N, C, H, W) in [0, 1]: validation images, never test images.
        labels: int64 (N,).
        attack: model → one point in the ball of each image, the strongest that was found.
        cost: how much less of the images may stand than of the robust model alone, as a fraction.
        rounds: how many mixtures may be attacked before the best of them is taken.
        report: is told the share of the work that is done.

    Raises:
        InputError: models with different classes; bad images, labels or options.

    Cost: at most 1 + rounds attacks.
    """
    images, labels = checked_data(images, labels)
    labels = labels.to(images.device)
    whole_number("mixture", "rounds", rounds, 1)
    if cost != 0:
        real_number("mixture", "cost", cost, above=0, at_most=1)
    with standard_defaults(), evaluating(robust, accurate), torch.no_grad():
        points = Points(robust, accurate, images, labels)
        attacked = [ROBUST_ALONE]
        report(0.0, "the robust model alone")
        points.add(_found(attack, robust, images), worst=True)
        for number in range(rounds):
            # Each new attack breaks a little more than was known: the later, the more careful.
            careful = cost * (1 - number / rounds)
            chosen, found = choose(points, points.figures_of(ROBUST_ALONE).standing - careful)
            if chosen in attacked:
                break
            attacked.append(chosen)
            report(
                (1 + number) / (1 + rounds),
                f"weight {chosen.weight}: {found.standard:.1%} right, before its own attack",
            )
            points.add(_found(attack, Mixture(robust, accurate, **chosen._asdict()), images))
            if _holds(points, chosen, cost):
                break
        # Only what was attacked by itself may be taken.
        holding = [
            (points.figures_of(parameters), parameters)
            for parameters in attacked
            if _holds(points, parameters, cost)
        ]
        figures, parameters = max(holding, key=lambda pair: pair[0])
        report(1.0, f"weight {parameters.weight}: {figures.standard:.1%} right")
        return Choice(
            parameters=parameters,
            chosen=figures,
            robust_alone=points.figures_of(ROBUST_ALONE),
            accurate_alone=points.figures_of(ACCURATE_ALONE),
            n=len(images),
            attacks=len(attacked),
        )


def _holds(points: Points, parameters: Parameters, cost: float) -> bool:
    alone = points.figures_of(ROBUST_ALONE).standing
    return points.figures_of(parameters).standing >= alone - cost - 1e-9


def _found(attack: Callable[[nn.Module], Images], model: nn.Module, images: Images) -> Images:
    with torch.enable_grad(), evaluating(model):
        found = attack(model)
    if found.shape != images.shape:
        raise InputError(
            f"the attack returned shape {tuple(found.shape)} for images {tuple(images.shape)}"
        )
    return found.detach()
