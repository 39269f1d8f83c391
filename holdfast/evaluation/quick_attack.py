"""One strong point for each image, from attacks that run alone."""

from __future__ import annotations

from itertools import product
from typing import TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor

from ..attacks import APGD
from ..defences import views
from ..models.wrapper import predicted, wrapped
from ..stored import ModelImages, part, room_for
from ..threat import Threat
from ..types import Model

LOSSES = ("ce", "margin")
BATCH = 250

Points = TypeVar("Points", bound=ModelImages)


def quick_attack(
    model: Model,
    images: Points,
    labels: Tensor,
    threat: Threat,
    steps: int,
    seed: int,
    batch_size: int = BATCH,
    items: Int64[Tensor, " n"] | None = None,
) -> Points:
    """Of each image the first point by APGD that breaks it, else the last that was tried.

    APGD on the cross-entropy, then on the margin; through the model's own gradients, then through
    each other backward pass that is offered inside it: each on what those before left standing.

    Args:
        model: in eval mode; images → logits.
        images: float32 (N, C, H, W) in [0, 1]; where they are not in memory, the points are none
            of them either, but in a temporary file.
        steps: of each APGD attack.
        items: the number of each image in its data set, to which its draws belong; None: 0 … N−1.
    """
    model = wrapped(model)
    threat.check_reach(images)
    found: Points = room_for(images)
    rows = torch.arange(len(images), device=labels.device)
    items = rows.cpu() if items is None else items.cpu()
    backward_passes: list[Model] = [model, *views(model).values()]
    for differentiated, loss in product(backward_passes, LOSSES):
        attack, left = APGD(steps=steps, loss=loss), []
        batches = attack.batches(
            wrapped(differentiated),
            part(images, rows),
            labels[rows],
            threat,
            seed=seed,
            batch_size=batch_size,
            numbers=items[rows.cpu()],
        )
        for own, points in zip(rows.split(batch_size), batches, strict=True):
            found[own] = points
            with torch.no_grad():
                left.append(own[predicted(model(points)) == labels[own]])
        rows = torch.cat(left)
        if not len(rows):
            break
    return found
