"""GAT and NuAT: one-step attacks and losses guided by the change of the model's answer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import draws
from ...attacks import PGD, Items
from ...threat import Threat, per_item
from ...types import Images
from .base import Batch, Loss, Network, Objective, clean_logits, perturb


class _FromCorner(PGD):
    """PGD from half-way to a random corner: for L∞, each component ±ε/2 (Bernoulli noise)."""

    def first_point(self, items: Items, threat: Threat) -> Images:
        draw = draws.uniform(items.seeds, 0, items.images.shape[1:]) - 0.5
        start = items.images + per_item(items.eps / 2, draw) * threat.table.steepest(draw)
        return threat.project(start, items.images, items.eps)


@dataclass(kw_only=True, eq=False)
class _Guided(Objective):
    """Cross-entropy on clean images + λ × how much the attack changes the model's answer.

    The attack climbs cross-entropy + λ × the same change, in one step of ε (after a collapse, in
    several parts). The published programs leave the second term out in every other batch.
    """

    guide: float
    label_smoothing: float = 0.0

    @abstractmethod
    def change(
        self, clean: Tensor, attacked: Tensor, weights: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """Mean change per image, from logits (N, K); each image's is multiplied by its weight."""

    @abstractmethod
    def weight(self) -> float:
        """λ at the present point of the schedule."""

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        clean, weight = clean_logits(model, batch.images), self.weight()

        def climbed(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
            return batch.cross_entropy(logits, reduction="none") + weight * self.change(
                clean, logits
            )

        parts = 1 + self.caution
        attack = _FromCorner(steps=parts, step_size=1 / parts, loss=climbed)
        return torch.cat([batch.images, perturb(model, batch, attack, threat, parts)])

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        clean, attacked = model(points).float().chunk(2)
        value = batch.cross_entropy(clean, self.label_smoothing)
        change = self.change(clean, attacked, batch.weights)
        return Loss(value + self.weight() * change, clean.detach())


@dataclass(kw_only=True, eq=False)
class GAT(_Guided):
    """Guided adversarial training: the change is ‖p(clean) − p(attacked)‖₂² of probabilities.

    Sriramanan et al., "Guided adversarial attack for evaluating and enhancing adversarial
    defenses", NeurIPS 2020. λ is `guide`, and four times that in the last 15 % of the schedule.
    """

    guide: float = 10.0

    def change(
        self, clean: Tensor, attacked: Tensor, weights: Tensor | None = None
    ) -> Float[Tensor, ""]:
        each = (clean.softmax(1) - attacked.softmax(1)).square().sum(1)
        return (each if weights is None else weights * each).mean()

    def weight(self) -> float:
        return self.guide * (4 if self.progress >= 0.85 else 1)


@dataclass(kw_only=True, eq=False)
class NuAT(_Guided):
    """Nuclear-norm adversarial training: the change is ‖z(clean) − z(attacked)‖_* / N of logits.

    Sriramanan et al., "Towards efficient and effective adversarial training", NeurIPS 2021. The
    nuclear norm is of the matrix of the whole batch, one row an image. λ rises linearly from 0
    to `guide` over the first 90 % of the schedule.
    """

    guide: float = 4.5

    def change(
        self, clean: Tensor, attacked: Tensor, weights: Tensor | None = None
    ) -> Float[Tensor, ""]:
        difference = (clean - attacked).float()
        if weights is not None:
            difference = weights[:, None] * difference
        return torch.linalg.matrix_norm(difference, "nuc") / len(difference)

    def weight(self) -> float:
        return self.guide * min(self.progress / 0.9, 1.0)
