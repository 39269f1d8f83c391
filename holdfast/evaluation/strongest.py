"""One strong point for each image, from attacks that need no engine."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attacks import APGD
from ..attacks.base import Model
from ..threat import Images, Threat

LOSSES = ("ce", "margin")  # the second on what the first left standing
BATCH = 250


def strongest(
    model: Model,
    images: Images,
    labels: Tensor,
    threat: Threat,
    steps: int,
    seed: int,
    batch_size: int = BATCH,
) -> Images:
    """Of each image the first point by APGD that breaks it, else the one of smallest margin.

    Args:
        model: in eval mode; images → logits.
        steps: of each of the two APGD attacks.
    """
    found = images.clone()
    rows = torch.arange(len(images), device=images.device)
    for loss in LOSSES:
        points = APGD(steps=steps, loss=loss)(
            model, images[rows], labels[rows], threat, seed=seed, batch_size=batch_size
        )
        found[rows] = points
        with torch.no_grad():
            answers = torch.cat([model(part).argmax(1) for part in points.split(batch_size)])
        rows = rows[answers == labels[rows]]
        if not len(rows):
            break
    return found
