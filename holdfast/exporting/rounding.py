"""Adversarial points as 8-bit images that still fool the model.

A point that was found in floating point lies close behind the model's decision boundary, and
rounding may carry it back. A few roundings inside the ball are tried, then a few steps on the grid
of 8-bit images, with the gradient taken at the rounded point (straight through the rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from ..draws import fixed_draws
from ..search import Verifier, succeeded
from ..spatial import transformed
from ..threat import SPATIAL, Threat
from ..types import Images

LEVELS = 255
FACTORS = (1.0, 0.99, 0.98, 0.96, 0.93, 0.9, 0.85, 0.8, 0.7, 0.5)  # of δ, so that it fits the ball
STEPS = 40  # on the grid, for a point that no plain rounding keeps
STEP = 0.15  # length of a step, in ε; at least one level

PLAIN, MENDED, LOST = 0, 1, 2


@dataclass(frozen=True)
class Rounded:
    """8-bit images of N adversarial points.

    Attributes:
        levels: uint8 (N, C, H, W).
        how: int64 (N,): `PLAIN` where the nearest 8-bit image fools the model inside the ball,
            `MENDED` where another one had to be found, `LOST` where none was.
        prediction: int64 (N,), the model's, on the 8-bit image.
    """

    levels: UInt8[Tensor, "n c h w"]
    how: Int64[Tensor, " n"]
    prediction: Int64[Tensor, " n"]


def as_images(levels: Tensor) -> Images:
    """8-bit levels as models see them, in [0, 1]; just as a PNG is read."""
    return levels.float().div(LEVELS)


def rounded(
    verifier: Verifier,
    threat: Threat,
    images: Images,
    adversarial: Images,
    witness: Float[Tensor, "n p"],
    labels: Int64[Tensor, " n"],
    seeds: Int64[Tensor, " n"],
    goals: Int64[Tensor, " n"] | None = None,
) -> Rounded:
    """8-bit images that fool the model within the threat model, where they are found.

    Args:
        images: clean, (N, C, H, W).
        adversarial: the points, which fool the model.
        witness: of a spatial threat model.
        seeds: of what a random model draws.
        goals: the class that alone counts as a success; −1 where any mistake does, as by default.

    Cost: a forward, and for each image that the plain rounding loses, up to 3 + 2 · `STEPS` more.
    """
    goals = torch.full_like(labels, -1) if goals is None else goals
    nearest = _levels(adversarial)
    found = Rounded(
        nearest.to(torch.uint8),
        torch.full_like(labels, LOST),
        torch.full_like(labels, -1),
    )
    open_rows = torch.arange(len(labels), device=labels.device)
    fits = _fitting(threat, witness)
    for number, candidate in enumerate(
        _candidates(verifier, threat, images, adversarial, labels, goals, fits)
    ):
        levels = candidate(open_rows)
        if levels is None:  # there is no gradient to go by
            break
        prediction = verifier.predict(as_images(levels), seeds[open_rows.cpu()]).prediction
        inside = fits(as_images(levels), images, open_rows)
        if number == 0:
            found.prediction[open_rows] = prediction
        good = inside & succeeded(prediction, labels[open_rows], goals[open_rows])
        rows = open_rows[good]
        found.levels[rows] = levels[good].to(torch.uint8)
        found.prediction[rows] = prediction[good]
        found.how[rows] = PLAIN if number == 0 else MENDED
        open_rows = open_rows[~good]
        if not len(open_rows):
            break
    return found


def _levels(point: Images) -> Tensor:
    return (point * LEVELS).round().clamp(0, LEVELS)


Fits = Callable[[Images, Images, Tensor], Bool[Tensor, " n"]]
Candidate = Callable[[Tensor], Tensor | None]  # from the rows that are open to levels for them


def _fitting(threat: Threat, witness: Tensor) -> Fits:
    """Whether 8-bit points of these rows are allowed. A turned or shifted image is so if it is the
    allowed one, rounded."""

    def fits(point: Images, images: Images, rows: Tensor) -> Bool[Tensor, " n"]:
        if threat.norm != SPATIAL:
            return threat.contains(point, images[rows])
        exact = transformed(images[rows], witness[rows].to(images))
        return (exact - point).flatten(1).abs().amax(1) <= 0.5 / LEVELS + 1e-5

    return fits


def _candidates(
    verifier: Verifier,
    threat: Threat,
    images: Images,
    adversarial: Images,
    labels: Int64[Tensor, " n"],
    goals: Int64[Tensor, " n"],
    fits: Fits,
) -> Iterator[Candidate]:
    """Roundings to try, in this order; each is asked for the rows that are still open."""
    point = adversarial.clone()  # moves on the last steps

    def nearest(rows: Tensor) -> Tensor:
        return _levels(adversarial[rows])

    def along(outwards: bool) -> Candidate:
        def levels(rows: Tensor) -> Tensor:
            exact = adversarial[rows] * LEVELS
            up = (adversarial[rows] > images[rows]) == outwards
            # What lies on a level already stays there: float32 does not hold all of them exactly.
            on_level = (exact - exact.round()).abs() < 1e-3
            raw = torch.where(up, exact.ceil(), exact.floor())
            raw = torch.where(on_level, exact.round(), raw).clamp(0, LEVELS)
            return _into(threat, raw / LEVELS, images, rows, fits)

        return levels

    def fitted(rows: Tensor) -> Tensor:
        return _into(threat, adversarial[rows], images, rows, fits)

    yield nearest
    if threat.norm == SPATIAL:
        return
    yield fitted
    yield along(True)
    yield along(False)
    for _ in range(STEPS):

        def moved(rows: Tensor) -> Tensor | None:
            at = as_images(_into(threat, point[rows], images, rows, fits))
            slope = _slope(verifier, at, labels[rows], goals[rows])
            if slope is None:
                return None
            length = max(STEP * threat.eps, 1 / LEVELS if threat.norm == "linf" else 0.0)
            step = length * threat.table.steepest(slope, at)
            point[rows] = threat.project(at + step, images[rows])
            return _into(threat, point[rows], images, rows, fits)

        yield moved


def _into(threat: Threat, point: Images, images: Images, rows: Tensor, fits: Fits) -> Tensor:
    """Levels inside the ball, near a point: rounded, and where that leads out, drawn to the image
    until it does not."""
    x = images[rows]
    if threat.norm == "linf":
        slack = 1e-3  # of a level: float32 does not hold all of them exactly
        low = ((x - threat.eps) * LEVELS - slack).ceil()
        high = ((x + threat.eps) * LEVELS + slack).floor()
        return _levels(point).maximum(low).minimum(high).clamp(0, LEVELS)
    levels = _levels(point)
    outside = ~fits(as_images(levels), images, rows)
    for factor in FACTORS[1:]:
        if not bool(outside.any()):
            break
        nearer = _levels(x + factor * (point - x))
        levels = torch.where(outside[:, None, None, None], nearer, levels)
        outside = ~fits(as_images(levels), images, rows)
    return levels


def _slope(
    verifier: Verifier, at: Images, labels: Int64[Tensor, " n"], goals: Int64[Tensor, " n"]
) -> Images | None:
    """The direction in which the best other class gains on the label, or the goal on the best other
    class; None without gradients."""
    aimed = goals >= 0
    one = torch.where(aimed, goals, labels)
    with torch.enable_grad(), fixed_draws(0):
        at = at.detach().requires_grad_(True)
        try:
            logits = verifier.model(at).float()
            own = logits.gather(1, one[:, None]).squeeze(1)
            other = logits.scatter(1, one[:, None], -torch.inf).amax(1)
            gain = torch.where(aimed, own - other, other - own)
            (slope,) = torch.autograd.grad(gain.sum(), at)
        except RuntimeError:
            return None
    return slope.nan_to_num()
