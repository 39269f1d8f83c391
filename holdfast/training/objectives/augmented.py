"""DAJAT: simple and complex augmentations, each with batch-norm statistics of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...data.trivial_augment import trivial_augment
from ...threat import Threat
from ...types import Images
from ..averaging import frozen_statistics
from .base import Batch, Loss, Network, inside
from .trades import TRADES


@dataclass(kw_only=True, eq=False)
class DAJAT(TRADES):
    """The mean of TRADES over a simple and `views` complex augmentations + `js` × Jensen–Shannon.

    Addepalli, Jain & Babu, "Efficient and effective augmentation strategy for adversarial
    training", NeurIPS 2022. The divergence is between the clean answers to all augmentations of
    an image. Each augmentation passes through the model by itself, so that batch norm normalises
    it by its own statistics, and only the simple one's are kept for evaluation (the publication
    gives the complex ones scales and biases of their own too). The attack's radius rises linearly
    to ε over the schedule.

    Args:
        views: complex augmentations an image (TrivialAugment; the publication: AutoAugment).
        js: weight of the Jensen–Shannon divergence.
    """

    beta: float = 11.0
    js: float = 2.0
    views: int = 1
    steps: int = 2
    step_size: float = 1.0

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        # At progress 0 there would be no ball at all.
        grown = threat.times(max(self.progress, 0.01))
        return super().attacked(model, batch, grown)

    def points(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        complex_ = (
            batch._replace(images=trivial_augment(batch.images, batch.seeds, view))
            for view in range(self.views)
        )
        return torch.cat([self.attacked(model, part, threat) for part in (batch, *complex_)])

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        simple, *others = points.chunk(1 + self.views)
        pairs = [self.pair(model, simple, batch)]
        with frozen_statistics(inside(model)):
            pairs += [self.pair(model, other, batch) for other in others]
        values, cleans = zip(*pairs, strict=True)
        divergence = jensen_shannon(torch.stack(cleans), batch.mean)
        value = torch.stack(values).mean() + self.js * divergence
        return Loss(value, cleans[0].detach())


def jensen_shannon(
    logits: Float[Tensor, "v n k"], mean: Callable[[Tensor], Tensor] = torch.mean
) -> Float[Tensor, ""]:
    """Mean over items of the Jensen–Shannon divergence between `v` answers to each."""
    p = logits.softmax(2)
    mixture = p.mean(0).clamp_min(1e-7).log()
    return mean((p * (F.log_softmax(logits, 2) - mixture)).sum(2).mean(0))
