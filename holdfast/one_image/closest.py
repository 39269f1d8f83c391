"""The smallest ε that breaks one image, as far as a search finds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..attacks import FMN, HopSkipJump
from ..figures.subject import QUERIES, Subject, Told
from ..search.verifier import succeeded
from ..types import Images

STEPS = 100  # of the search for the closest point
HALVINGS = 12  # of the way from the image to a point that breaks it
WHERE = "closest"  # what random draws belong to


class Closest(NamedTuple):
    """The closest point that breaks the image.

    Attributes:
        distance: from the image, in the threat model's norm and in ε's units.
        point: float32 (C, H, W), at which the original model answers something else.
    """

    distance: float
    point: Tensor


def closest(
    subject: Subject,
    image: Images,
    label: Tensor,
    known: Sequence[Images] = (),
    *,
    goals: Tensor | None = None,
    steps: int = STEPS,
    told: Told | None = None,
) -> Closest | None:
    """The closest point that breaks an image, among those that a search finds; None for none.

    FMN searches through every backward pass that is offered, or HopSkipJump where there are no
    gradients. Then the way from the image to each point that breaks it is halved, again and again:
    distances shrink along it in proportion. What is left is shown to the original model.

    Args:
        subject: the model; moved and in eval mode (`holdfast.figures.subject.ready`).
        image, label: (1, C, H, W) and (1,).
        known: further points (1, C, H, W), of attacks that were run before.
        goals: (1,), the class that alone counts as a success.
        steps: of FMN.
    """
    rows = torch.zeros(1, dtype=torch.int64)
    threat, label = subject.threat, label.cpu()
    none = torch.full_like(label, -1)
    aim = none if goals is None else goals.cpu()

    def broken(points: Images) -> Tensor:
        many = points.shape[0]
        said = subject.answers(points, rows.expand(many), WHERE)
        return succeeded(said.prediction, label.expand(many), aim.expand(many))

    if bool(broken(image)):
        return Closest(0.0, image[0])
    points = list(known)
    gradients = subject.differentiable(image.to(subject.device), label.to(subject.device))
    attack = (
        FMN(steps=steps, stop_inside=False)
        if gradients
        else HopSkipJump(queries=QUERIES, stop_inside=False)
    )
    if threat.norm in attack.norms:
        searched = subject.searched(attack, image, label, rows, goals=goals, told=told)
        points += [state.best.cpu() for state in searched]
    found = [point for point in points if bool(broken(point))]
    if threat.norm != "l0":  # a count, which halving does not change
        found = [_nearer(point, image, broken) for point in found]
    far = [(float(threat.distance(point, image)[0]), point) for point in found]
    if not far:
        return None
    distance, point = min(far, key=lambda each: each[0])
    return Closest(distance, point[0])


def _nearer(point: Images, image: Images, broken: Callable[[Images], Tensor]) -> Images:
    """The nearest point on the way from the image to one that breaks it that still does."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if bool(broken(image + middle * (point - image))):
            high = middle
        else:
            low = middle
    return image + high * (point - image) if high < 1 else point
