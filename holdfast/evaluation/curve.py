"""The security curve: accuracy against the radius of the ball."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attacks import Swift
from ..attacks.base import Oracle, run
from ..attacks.state import Items
from ..draws import item_seeds
from ..intervals import clopper_pearson
from ..models.wrapper import predicted
from ..runs.records import Curve, CurvePoint
from ..search import succeeded
from ..threat import Threat
from ..types import Model

IMAGES = 200
MULTIPLES = (
    *(k / 8 for k in range(1, 16)),
    *(k / 4 for k in range(8, 16)),
    *(4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0),
)
TOGETHER = 128  # images that are searched in one batch
TARGETS = 3  # at most; what decides is the class that is closest


def security_curve(
    model: Model,
    search: Model,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int,
    goals: Tensor,
    distances: Tensor,
) -> Curve:
    """Accuracy from ε = 0 to where it reaches 0, by a bisection for each image.

    What the suite found is where it begins: an image that is broken at ε is searched at smaller
    radii only, one that stands at larger ones. So the curve passes through the suite's verdict on
    these images, and falls monotonically.

    Args:
        model: the original, which decides.
        search: what the attack queries.
        images, labels, goals: on the model's device; a goal is −1 where any mistake counts.
        distances: float32 (N,), how far away the suite's adversarial images are: 0 for clean
            mistakes, ∞ for images that stand.
    """
    radii = torch.tensor(MULTIPLES)
    at_eps = MULTIPLES.index(1.0)
    known = distances.cpu()
    # For each image the largest radius at which it stands, −1 for none, and the smallest at which
    # it is broken, by number.
    stands = torch.where(known.isfinite(), -1, at_eps)
    reached = [threat.reaches(known, threat.eps * multiple) for multiple in MULTIPLES]
    broken = (~torch.stack(reached)).sum(0)
    broken = torch.where(known.isfinite(), broken.clamp_max(at_eps), len(MULTIPLES))
    while bool((open_ := (broken - stands > 1) & (known > 0)).any()):
        for rows in open_.nonzero().squeeze(1).split(TOGETHER):
            tried = (stands[rows] + broken[rows]) // 2
            at = rows.to(images.device)
            found = _found(
                model, search, images[at], labels[at], goals[at], threat, radii[tried], seed, rows
            )
            broken[rows] = torch.where(found, tried, broken[rows])
            stands[rows] = torch.where(found, stands[rows], tried)
    n = len(images)
    points = [_point(0.0, int((known > 0).sum()), n)]
    for number, multiple in enumerate(MULTIPLES):
        standing = int(((stands >= number) & (known > 0)).sum())
        points.append(_point(threat.eps * multiple, standing, n))
        if not standing and multiple >= 1:
            break
    return Curve(attack="swift, by bisection", n=n, points=tuple(points))


def _found(
    model: Model,
    search: Model,
    images: Tensor,
    labels: Tensor,
    goals: Tensor,
    threat: Threat,
    multiples: Tensor,
    seed: int,
    rows: Tensor,
) -> Tensor:
    """Whether each image is broken within its own radius, bool (N,) on the CPU."""
    items = Items(
        images=images,
        labels=labels,
        targets=goals,
        eps=threat.radii(images) * multiples.to(images),
        seeds=item_seeds(seed, "curve", rows).to(images.device),
        goals=goals,
    )
    # The suite's own search, with fewer targets where it has many.
    usual = Swift().tuned(threat)
    attack = Swift(**{**usual.settings, "targets": min(TARGETS, usual.settings["targets"])})
    points = run(attack, Oracle(search), items, threat).best
    with torch.no_grad():
        return succeeded(predicted(model(points)), labels, goals).cpu()


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
