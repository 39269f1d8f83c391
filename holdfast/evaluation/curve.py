"""The security curve: accuracy against the radius of the ball."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attacks import PGD
from ..attacks.goal import TARGET, UNTARGETED
from ..intervals import clopper_pearson
from ..models.wrapper import predicted
from ..runs.records import Curve, CurvePoint
from ..search import succeeded
from ..threat import Threat
from ..types import Model

IMAGES = 200
STEPS = 20
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
# Where distances are known, a point of the curve costs nothing.
FINE_MULTIPLES = (*(k / 8 for k in range(1, 16)), *(k / 4 for k in range(8, 16)), *MULTIPLES[7:])


def security_curve(
    model: Model,
    search: Model,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    seed: int,
    goals: Tensor,
) -> Curve:
    """Accuracy of the first images from ε = 0 to where it reaches 0, under PGD on the margin.

    An image that is broken at one ε is broken at every larger one: the same adversarial image
    serves, and is not attacked again. So the curve falls monotonically by construction.

    Args:
        model: the original, which decides.
        search: what the attack queries.
        images, labels, goals: on the model's device; a goal is −1 where any mistake counts.
    """
    attack = PGD(steps=STEPS, step_size=0.15, loss="margin")
    images, labels, goals = images[:IMAGES], labels[:IMAGES], goals[:IMAGES]
    n, aimed = len(images), bool((goals >= 0).any())
    with torch.no_grad():
        rows = (~succeeded(predicted(model(images)), labels, goals)).nonzero().squeeze(1)
    points = [_point(0.0, len(rows), n)]
    for multiple in MULTIPLES:
        if not len(rows):
            break
        ball = threat.times(multiple)
        x, y, t = images[rows], labels[rows], goals[rows]
        goal, wanted = (TARGET, t) if aimed else (UNTARGETED, None)
        x_adv = attack(search, x, y, ball, goal=goal, targets=wanted, seed=seed)
        with torch.no_grad():
            stands = ~succeeded(predicted(model(x_adv)), y, t)
        rows = rows[stands]
        points.append(_point(ball.eps, len(rows), n))
    return Curve(attack=f"PGD on the margin, {STEPS} steps", n=n, points=tuple(points))


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
    for multiple in FINE_MULTIPLES:
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
