"""The security curve: accuracy against the radius of the ball."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks import Swift
from ..attacks.base import Attack, Oracle, run
from ..attacks.gradient_ascent import GradientAscent
from ..attacks.losses import margin
from ..attacks.schedules import cosine
from ..attacks.state import Items, State, pick
from ..draws import item_seeds
from ..intervals import clopper_pearson
from ..models.wrapper import predicted
from ..runs.records import Curve, CurvePoint
from ..search import succeeded
from ..threat import Threat, per_item
from ..types import Model

IMAGES = 200
MULTIPLES = (
    *(k / 8 for k in range(1, 16)),
    *(k / 4 for k in range(8, 16)),
    *(4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0),
)
TOGETHER = 128  # images that are searched in one batch
TARGETS = 3  # at most; what decides is the class that is closest
NAME = "swift and steps from the closest point, radius by radius"
FOLLOWED = 3  # rounds in which the margins say which radius is tried, before one that halves


def security_curve(
    model: Model,
    search: Model,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int,
    goals: Tensor,
    distances: Tensor,
    points: Tensor,
) -> Curve:
    """Accuracy from ε = 0 to where it reaches 0, by the radius at which each image falls.

    What the suite found is where it begins: an image that is broken at ε is searched at smaller
    radii only, one that stands at larger ones. So the curve passes through the suite's verdict on
    these images, and falls monotonically. Of an image two radii next to each other are sought, of
    which it stands at the first and is broken at the second.

    Args:
        model: the original, which decides.
        search: what the attack queries.
        images, labels, goals: on the model's device; a goal is −1 where any mistake counts.
        distances: float32 (N,), how far away the suite's adversarial images are: 0 for clean
            mistakes, ∞ for images that stand.
        points: (N, C, H, W), the suite's adversarial images, of images that stand the closest try.
    """
    known, n = distances.cpu(), len(images)
    brackets = _Brackets(search, images, labels, threat, goals, known, points.to(images.device))
    radii = torch.tensor(MULTIPLES) * threat.eps
    attacks = _attacks(threat)
    for number in itertools.count():
        rows = brackets.open.nonzero().squeeze(1)
        if not len(rows):
            break
        for some in rows.split(TOGETHER):
            tried = brackets.guess(some, halving=number % (FOLLOWED + 1) == FOLLOWED)
            at, eps = some.to(images.device), radii[tried].to(images)
            items = Items(
                images=images[at],
                labels=labels[at],
                targets=goals[at],
                eps=eps,
                seeds=item_seeds(seed, "curve", some).to(images.device),
                start=brackets.scaled(some, eps),
                goals=goals[at],
            )
            found = _searched(attacks, search, items, threat)
            with torch.no_grad():
                fooled = succeeded(predicted(model(found.best)), items.labels, items.goals)
            brackets.take(some, tried, found.best, found.score, fooled.cpu())
    right = known > 0
    curve = [_point(0.0, int(right.sum()), n)]
    for number, multiple in enumerate(MULTIPLES):
        standing = int(((brackets.stands >= number) & right).sum())
        curve.append(_point(threat.eps * multiple, standing, n))
        if not standing and multiple >= 1:
            break
    return Curve(attack=NAME, n=n, points=tuple(curve))


class _Brackets:
    """For each image the radii between which it falls, and the points that show it.

    Attributes:
        stands: int64 (N,), the number of the largest radius at which it stands; −1 for none.
        broken: int64 (N,), of the smallest at which it is broken; one more than there are for none.
    """

    def __init__(
        self,
        search: Model,
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        goals: Tensor,
        known: Tensor,
        points: Tensor,
    ):
        fallen, at_eps = known.isfinite(), MULTIPLES.index(1.0)
        self.threat, self.images, self.points, self.known = threat, images, points.clone(), known
        self.stands = torch.where(fallen, -1, at_eps)
        self.broken = torch.where(fallen, self._number(known).clamp_max(at_eps), len(MULTIPLES))
        self.at = torch.where(fallen, known, threat.eps)  # radius of the ball of each point
        # Two radii between which the margin is taken to fall in a line, and the margins there.
        self.radii = torch.stack([torch.zeros_like(known), self.at])
        self.margins = torch.full_like(self.radii, torch.nan)
        for rows in self.open.nonzero().squeeze(1).split(TOGETHER):
            where = rows.to(images.device)
            for number, x in enumerate((images, points)):
                with torch.no_grad():
                    answers = search(x[where]).float()
                left = margin(answers, labels[where], goals[where])
                self.margins[number, rows] = left.cpu()

    def _number(self, radii: Tensor) -> Tensor:
        """Of the smallest radius of the curve whose ball holds a point at each distance."""
        reached = [self.threat.reaches(radii, self.threat.eps * m) for m in MULTIPLES]
        return (~torch.stack(reached)).sum(0)

    @property
    def open(self) -> Tensor:
        """The images of which a radius between the two is still to be tried, bool (N,)."""
        return (self.broken - self.stands > 1) & (self.known > 0)

    def guess(self, rows: Tensor, halving: bool) -> Tensor:
        """The number of the radius to try of each image: the one at which its margin should just be
        gone, by the line through two known ones.

        Args:
            halving: the one in the middle, so that it ends wherever the margins lead.
        """
        (low, high), (above, below) = self.radii[:, rows], self.margins[:, rows]
        middle = (self.stands[rows] + self.broken[rows]) // 2
        crossing = low + (high - low) * above / (above - below)
        number = torch.where(crossing >= 0, self._number(crossing), middle)  # NaN: no line
        if halving:
            number = middle
        return number.minimum(self.broken[rows] - 1).maximum(self.stands[rows] + 1)

    def scaled(self, rows: Tensor, eps: Tensor) -> Tensor:
        """The points of some images, drawn towards these or away from them onto other balls."""
        at = rows.to(self.images.device)
        factor = eps / self.at[rows].to(eps).clamp_min(1e-12)
        delta = self.points[at] - self.images[at]
        return (self.images[at] + delta * per_item(factor, delta)).clamp(0, 1)

    def take(
        self, rows: Tensor, tried: Tensor, points: Tensor, margins: Tensor, fooled: Tensor
    ) -> None:
        """What came of trying a radius of some images: the best points in these balls, and whether
        they fool the model."""
        margins = margins.cpu()
        eps = torch.tensor(MULTIPLES)[tried] * self.threat.eps
        self.broken[rows] = torch.where(fooled, tried, self.broken[rows])
        self.stands[rows] = torch.where(fooled, self.stands[rows], tried)
        never = self.broken[rows] == len(MULTIPLES)  # the line then goes on from the clean image
        for side, moved in ((0, ~fooled & ~never), (1, fooled | never)):
            self.radii[side, rows] = torch.where(moved, eps, self.radii[side, rows])
            self.margins[side, rows] = torch.where(moved, margins, self.margins[side, rows])
        better = fooled | never
        at = rows.to(self.images.device)
        self.points[at] = pick(better.to(at.device), points, self.points[at])
        self.at[rows] = torch.where(better, eps, self.at[rows])


class _FromPoint(GradientAscent[State]):
    """Ascent of the margin from a given point, in steps that fall along a cosine."""

    name = "from the closest point"

    def __init__(self) -> None:
        super().__init__(steps=10, loss="margin")

    def first_point(self, items: Items, threat: Threat) -> Tensor:
        return threat.project(items.start, items.images, items.eps)

    def step_size(self, state: State) -> Tensor:
        return state.eps * cosine(state.iteration, self.steps, 1.0, 0.02)


def _attacks(threat: Threat) -> tuple[Attack[Any], ...]:
    """What searches a ball: first from the closest point that is known in another ball, then the
    short runs of the suite's own search, with fewer targets where it has many. In L1, where the
    components that a run moves settle slowly, one of its long runs too."""
    usual = Swift().tuned(threat).settings
    targets, long_runs = min(TARGETS, usual["targets"]), int(threat.norm == "l1")
    return _FromPoint(), Swift(**{**usual, "targets": targets, "long_runs": long_runs})


def _searched(attacks: Sequence[Attack[Any]], search: Model, items: Items, threat: Threat) -> State:
    """The best points of one attack after the other, on what is not broken yet."""
    best = State.begin(items, items.images)
    for attack in attacks:
        rows = (~(best.score < 0)).nonzero().squeeze(1)
        if not len(rows):
            break
        found = run(attack, Oracle(search), items.select(rows), threat)
        closer = found.score < best.score[rows]
        points = pick(closer, found.best, best.best[rows])
        scores = torch.where(closer, found.score, best.score[rows])
        best = best.replace(
            best=best.best.index_copy(0, rows, points),
            score=best.score.index_copy(0, rows, scores),
        )
    return best


def joined(curves: Sequence[Curve]) -> Curve:
    """One curve of those on several groups of images."""
    n = sum(curve.n or 0 for curve in curves)
    standing: dict[float, int] = {}
    for curve in curves:
        for point in curve.points:  # beyond its end none of its images stands
            here = round(point.robust_accuracy * (curve.n or 0))
            standing[point.eps] = standing.get(point.eps, 0) + here
    points = tuple(_point(eps, standing[eps], n) for eps in sorted(standing))
    return Curve(attack=curves[0].attack, n=n, points=points)


def distance_curve(distances: Tensor, attack: str, threat: Threat) -> Curve:
    """The share of images that stand at each ε: those whose smallest distance is larger.

    Args:
        distances: (N,) of the closest adversarial points; 0 for clean mistakes, ∞ where none was
            found.
        attack: who found them.
        threat: its ε is one of the radii; up to that nothing is left out, beyond it the curve
            ends at the first radius where no image stands.
    """
    n = len(distances)
    points = [_point(0.0, int((distances > 0).sum()), n)]
    for multiple in MULTIPLES:
        radius = threat.eps * multiple
        if threat.norm == "l0":
            radius = float(int(radius))  # so many components, no parts of one
        standing = int((~threat.reaches(distances, radius)).sum())
        if radius > points[-1].eps:
            points.append(_point(radius, standing, n))
        if not standing and multiple >= 1:
            break
    return Curve(attack=attack, n=n, points=tuple(points))


def _point(eps: float, standing: int, n: int) -> CurvePoint:
    return CurvePoint(eps=eps, robust_accuracy=standing / n, interval=clopper_pearson(standing, n))
