"""The class that alone counts as a success, for each image its own."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from .. import draws
from ..attacks.goal import chosen_targets, target_seeds
from ..search import MAJORITY_OF, Verifier
from .inspection import PROBE, Inspection
from .request import Request


def goals_of(request: Request, known: Inspection) -> Int64[Tensor, " n"]:
    """The goals, on the CPU; −1 throughout where any mistake is a success.

    Cost: one forward pass an image where they are chosen by the model's answers or at random; of a
    random model, as many as decide its verdicts.
    """
    if request.targets is None:
        return torch.full_like(request.labels, -1)
    if isinstance(request.targets, Tensor):
        return request.targets
    verifier = Verifier(request.model, MAJORITY_OF if known.random else 1)
    parts = []
    for rows in torch.arange(len(request.images)).split(PROBE):
        seeds = draws.item_seeds(request.seed, "clean", rows)
        logits = verifier.predict(request.images[rows].to(request.device), seeds).logits.cpu()
        chosen_by = request.targets, logits.nan_to_num(0.0), request.labels[rows]
        parts.append(chosen_targets(*chosen_by, target_seeds(request.seed, rows)))
    return torch.cat(parts)
