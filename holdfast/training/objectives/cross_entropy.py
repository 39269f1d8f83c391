"""Cross-entropy: on clean images, and on the end of an attack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...attacks import FGSM, PGD
from ...threat import Threat
from ...types import Images
from .base import Batch, Loss, Network, Objective, perturb


@dataclass(kw_only=True, eq=False)
class Standard(Objective):
    """Cross-entropy on clean images."""

    defends = False

    label_smoothing: float = 0.0

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        logits = model(points)
        value = batch.cross_entropy(logits, self.label_smoothing)
        return Loss(value, logits.detach())


@dataclass(kw_only=True, eq=False)
class NFGSM(Standard):
    """N-FGSM: noise of ±`noise` ε, then one step of `step` ε, nothing clipped to the ball.

    De Jorge et al., "Make some noise: reliable and efficient single-step adversarial training",
    NeurIPS 2022. One extra forward and backward a batch. After a collapse, the step is taken in
    several parts.
    """

    defends = True

    noise: float = 2.0
    step: float = 1.0

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        parts = 1 + self.caution
        attack = FGSM(step=self.step / parts, noise=self.noise, clip=False)
        return perturb(model, batch, attack, threat, parts)


@dataclass(kw_only=True, eq=False)
class PGDTraining(Standard):
    """Madry et al., ICLR 2018: cross-entropy on the end of `steps` PGD steps of `step_size` ε."""

    defends = True

    steps: int = 10
    step_size: float = 0.25

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        attack = PGD(steps=self.steps, step_size=self.step_size)
        return perturb(model, batch, attack, threat, self.steps + 2 * self.caution)
