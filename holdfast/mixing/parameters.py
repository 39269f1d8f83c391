"""Choosing a mixture's parameters on validation images.

A mixture has to be right on clean images and stay right on attacked ones. Its logits at a point
are a function of both models' logits there. Once these are known, thousands of parameters are
compared without another pass of the models.

As in Bai et al., "MixedNUTS", TMLR 2024, the robust model is attacked first, and at the points that
this finds, the accurate model is assumed to be certain of a wrong class. Here the chosen mixture is
then attacked as one model, because other points may break it. The points found are added, and
parameters are chosen again, until a mixture stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..errors import InputError
from ..inputs import check_logits, checked_stored_data, real_number, whole_number
from ..models.mixture import Mixture, sharpened
from ..models.modes import evaluating
from ..models.wrapper import standard_defaults, wrapped
from ..stored import ModelImages
from ..types import Model


class Parameters(NamedTuple):
    """The parameters of a `holdfast.models.mixture.Mixture`, which explains them."""

    weight: float
    scale: float | None = None
    power: float = 1.0
    shift: float = 0.0


ROBUST_ALONE = Parameters(1.0)
ACCURATE_ALONE = Parameters(0.0)

BATCH = 250  # images in a pass
CERTAIN = 1000.0  # beside this logit, every other class has probability 0
# The values of each parameter that are compared.
WEIGHTS = tuple(round(0.5 + 0.01 * i, 2) for i in range(51))
SCALES = tuple(round(0.02 * 1.5**i, 4) for i in range(14))  # 0.02 to about 4
POWERS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
SHIFTS = (-1.2, -0.9, -0.6, -0.3, 0.0)


class Figures(NamedTuple):
    """Accuracies on the validation images, 0..1.

    Attributes:
        standard: fraction of right predictions.
        standing: fraction of images whose prediction is right at every point that any attack found.
    """

    standard: float
    standing: float


@dataclass(frozen=True)
class Choice:
    """The chosen parameters, and what they achieve on the validation images.

    Attributes:
        parameters: of the mixture.
        chosen: accuracies of the mixture.
        robust_alone: accuracies of the robust model.
        accurate_alone: accuracies of the accurate model. Nothing attacked it by itself, so its
            `standing` is too high.
        n: number of validation images.
        attacks: number of models that were attacked.
    """

    parameters: Parameters
    chosen: Figures
    robust_alone: Figures
    accurate_alone: Figures
    n: int
    attacks: int

    @property
    def gains_nothing(self) -> bool:
        """Whether the robust model alone was chosen: every attacked mixture costs too much."""
        return self.parameters == ROBUST_ALONE


class Points:
    """Both models' logits at several points of each validation image.

    Args:
        robust, accurate: images → logits.
        images: float32 (N, C, H, W): the clean images, which are the first points.
        labels: int64 (N,).

    Raises:
        InputError: the models have different numbers of classes.
    """

    def __init__(
        self, robust: Model, accurate: Model, images: ModelImages, labels: Int64[Tensor, " n"]
    ):
        self.models, self.labels = (wrapped(robust), wrapped(accurate)), labels
        self.logits: list[tuple[Tensor, Tensor]] = []  # (N, K) of both models, point by point
        self.add(images)

    def add(self, points: ModelImages, *, worst: bool = False) -> None:
        """Add one more point of each image.

        Args:
            points: float32 (N, C, H, W).
            worst: assume that the accurate model is certain of the wrong class that the robust
                model finds most likely.
        """
        robust, accurate = (self._logits(model, points) for model in self.models)
        if robust.shape != accurate.shape:
            raise InputError(
                f"the robust model knows {robust.shape[1]} classes, "
                f"the accurate one {accurate.shape[1]}: they cannot be mixed"
            )
        if worst:
            others = robust.scatter(1, self.labels[:, None], -torch.inf).argmax(1, keepdim=True)
            accurate = torch.zeros_like(accurate).scatter(1, others, CERTAIN)
        self.logits.append((robust, accurate))

    def _logits(self, model: Model, points: ModelImages) -> Float[Tensor, "n k"]:
        rows = torch.arange(len(points)).split(BATCH)
        parts = ((points[some], self.labels[some]) for some in rows)
        if not self.logits:  # on clean images, logits that are not finite are an error
            return torch.cat([check_logits(model(x), len(x), y).double() for x, y in parts])
        return torch.cat([_wrong_where_nan(model(x), y).double() for x, y in parts])

    def figures(self, parameters: Parameters, weights: Sequence[float]) -> list[Figures]:
        """Accuracies with each of these weights, and the other parameters of `parameters`."""
        robust, accurate = (torch.stack(logits) for logits in zip(*self.logits, strict=True))
        if parameters.scale is not None:
            robust = sharpened(robust, parameters.scale, parameters.power, parameters.shift)
        right = _right(robust.softmax(-1), accurate.softmax(-1), self.labels, weights)
        standard = right[0].double().mean(0)
        standing = right.all(0).double().mean(0)
        return [Figures(*pair) for pair in zip(standard.tolist(), standing.tolist(), strict=True)]

    def figures_of(self, parameters: Parameters) -> Figures:
        """Accuracies with these parameters."""
        return self.figures(parameters, [parameters.weight])[0]


def _wrong_where_nan(logits: Tensor, labels: Tensor) -> Float[Tensor, "n k"]:
    """The logits; where a model predicts nothing, those of one that is certain of a wrong class."""
    other = (labels[:, None] + 1) % logits.shape[1]
    wrong = torch.zeros_like(logits).scatter(1, other, CERTAIN)
    return torch.where(logits.isnan().any(1, keepdim=True), wrong, logits)


def _right(
    robust: Float[Tensor, "p n k"],
    accurate: Float[Tensor, "p n k"],
    labels: Int64[Tensor, " n"],
    weights: Sequence[float],
) -> Bool[Tensor, "p n w"]:
    """Whether the mixture of each weight is right, at each point of each image.

    Let a and r be the differences between the label's probability and another class's, by the
    accurate and by the robust model. The mixture is right if (1 − w) a + w r > 0 for all other
    classes. This is linear in w, so the weights at which a point is right form an interval.

    Args:
        robust, accurate: probabilities.
    """
    place = labels[None, :, None].expand(len(robust), -1, 1)
    others = torch.ones_like(robust, dtype=torch.bool).scatter(2, place, False)
    r, a = (p.gather(2, place) - p for p in (robust, accurate))
    root = a / (a - r)  # the weight at which the difference changes its sign
    low = torch.where(others & (r > a), root, -torch.inf).amax(2)
    high = torch.where(others & (r < a), root, torch.inf).amin(2)
    level = (others & (r == a) & (a <= 0)).any(2)
    w = torch.tensor(weights, dtype=robust.dtype, device=robust.device)
    inside = (w > low.unsqueeze(2)) & (w < high.unsqueeze(2))
    return inside & ~level.unsqueeze(2)


def grid() -> Iterator[Parameters]:
    """The scales, powers and shifts that are compared, each of them with all `WEIGHTS`."""
    for scale, power, shift in product(SCALES, POWERS, SHIFTS):
        yield Parameters(0.5, scale, power, shift)


def choose(
    points: Points, floor: float, candidates: Iterable[Parameters] | None = None
) -> tuple[Parameters, Figures]:
    """The mixture with the highest standard accuracy of which at least a fraction `floor` stands.

    Ties go to the one of which more stands. The robust model alone is among the candidates.

    Args:
        points: both models' logits.
        floor: 0..1.
        candidates: scales, powers and shifts to compare; None: those of `grid`.
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
    images: ModelImages,
    labels: Int64[Tensor, " n"],
    attack: Callable[[nn.Module], ModelImages],
    *,
    cost: float = 0.01,
    rounds: int = 4,
    report: Callable[[float, str], None] = lambda share, word: None,
) -> Choice:
    """Choose the parameters that cost little robust accuracy and gain most standard accuracy.

    Args:
        robust, accurate: images → logits over the same classes.
        images: float32 (N, C, H, W) in [0, 1]: validation images, never test images.
        labels: int64 (N,).
        attack: from a model to the strongest point found in the ball of each image,
            (N, C, H, W).
        cost: how much robust accuracy may be lost against the robust model alone, 0..1.
        rounds: how many mixtures may be attacked, at least 1.
        report: called with the share of the work that is done, and a line about it.

    Raises:
        InputError: models with different classes; bad images, labels or options.

    Cost: at most 1 + rounds attacks.

    Example:
        >>> models = [nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) for _ in range(2)]
        >>> images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
        >>> fit_mixture(*models, images, labels, attack=lambda model: images, rounds=1).n
        8
    """
    images, labels = checked_stored_data(images, labels)
    labels = labels.to(images.device)
    whole_number("mixture: rounds", rounds, 1)
    if cost != 0:
        real_number("mixture: cost", cost, above=0, at_most=1)
    with standard_defaults(), evaluating(robust, accurate), torch.no_grad():
        points = Points(robust, accurate, images, labels)
        attacked = [ROBUST_ALONE]
        report(0.0, "the robust model alone")
        points.add(_found(attack, robust, images), worst=True)
        for number in range(rounds):
            # Every attack breaks a few more images, so later rounds allow less of the cost.
            allowed = cost * (1 - number / rounds)
            chosen, found = choose(points, points.figures_of(ROBUST_ALONE).standing - allowed)
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
        # Only a mixture that was attacked itself may be chosen.
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
    """Whether a mixture costs no more robust accuracy than `cost`, at the points found so far."""
    alone = points.figures_of(ROBUST_ALONE).standing
    return points.figures_of(parameters).standing >= alone - cost - 1e-9


def _found(
    attack: Callable[[nn.Module], ModelImages], model: nn.Module, images: ModelImages
) -> ModelImages:
    """The points that an attack finds; InputError where they have another shape."""
    with torch.enable_grad(), evaluating(model):
        found = attack(model)
    if found.shape != images.shape:
        raise InputError(
            f"the attack returned shape {tuple(found.shape)} for images {tuple(images.shape)}"
        )
    return found.detach() if isinstance(found, Tensor) else found
