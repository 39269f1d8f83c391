"""MART: misclassified images deserve more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ...attacks import PGD
from ...threat import Threat
from ...types import Images
from .base import Batch, Loss, Network, Objective, perturb


@dataclass(kw_only=True, eq=False)
class MART(Objective):
    """Boosted cross-entropy on attacked images + `beta` × KL(clean ‖ attacked) × (1 − p_y(clean)).

    The boosted cross-entropy is −log p_y − log(1 − max_{j≠y} p_j). Wang et al., "Improving
    adversarial robustness requires revisiting misclassified examples", ICLR 2020. The inner
    attack is PGD on the cross-entropy. There is no label smoothing: the loss is a margin.
    """

    beta: float = 5.0
    steps: int = 10
    step_size: float = 0.25

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        attack = PGD(steps=self.steps, step_size=self.step_size)
        attacked = perturb(model, batch, attack, threat, self.steps + 2 * self.caution)
        return torch.cat([batch.images, attacked])

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        clean, attacked = model(points).float().chunk(2)
        truth = batch.probabilities(clean.shape[1])
        p_clean, p_attacked = clean.softmax(1), attacked.softmax(1)
        best_other = (p_attacked * (1 - truth)).amax(1)
        boosted = batch.cross_entropy(attacked) - batch.mean((1 - best_other + 1e-6).log())
        divergence = F.kl_div(F.log_softmax(attacked, 1), p_clean, reduction="none").sum(1)
        doubt = 1 - (p_clean * truth).sum(1)
        value = boosted + self.beta * batch.mean(divergence * doubt)
        return Loss(value, clean.detach())
