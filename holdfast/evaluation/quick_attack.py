"""One strong point for each image, from attacks that run alone."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from ..attacks import APGD
from ..defences import views
from ..models.wrapper import predicted, wrapped
from ..threat import Threat
from ..types import Images, Model

LOSSES = ("ce", "margin")
BATCH = 250


def quick_attack(
    model: Model,
    images: Images,
    labels: Tensor,
    threat: Threat,
    steps: int,
    seed: int,
    batch_size: int = BATCH,
) -> Images:
    """Of each image the first point by APGD that breaks it, else the last that was tried.

    APGD on the cross-entropy, then on the margin; through the model's own gradients, then through
    each other backward pass that is offered inside it: each on what those before left standing.

    Args:
        model: in eval mode; images → logits.
        steps: of each APGD attack.
    """
    model = wrapped(model)
    found = images.clone()
    rows = torch.arange(len(images), device=images.device)
    backward_passes: list[Model] = [model, *views(model).values()]
    for differentiated, loss in product(backward_passes, LOSSES):
        points = APGD(steps=steps, loss=loss)(
            differentiated, images[rows], labels[rows], threat, seed=seed, batch_size=batch_size
        )
        found[rows] = points
        with torch.no_grad():
            answers = torch.cat([predicted(model(part)) for part in points.split(batch_size)])
        rows = rows[answers == labels[rows]]
        if not len(rows):
            break
    return found
