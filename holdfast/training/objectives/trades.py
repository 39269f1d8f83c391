"""TRADES, and IKL: its divergence taken apart and improved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...attacks import PGD
from ...threat import Threat
from ...types import Images
from .base import Batch, Loss, Network, Objective, clean_logits, mean_over_processes, perturb


@dataclass(kw_only=True, eq=False)
class TRADES(Objective):
    """Cross-entropy on clean images + `beta` × KL(clean ‖ attacked).

    Zhang et al., "Theoretically principled trade-off between robustness and accuracy", ICML
    2019. The inner attack climbs the same divergence. Clean and attacked images pass through
    the model as one batch, so that batch norm sees the mixture it is evaluated on.

    Args:
        beta: weight of the divergence; at least 0.
        steps: of the attack, PGD.
        step_size: of each step, in units of ε.
        label_smoothing: of the cross-entropy, in [0, 1).
    """

    beta: float = 6.0
    steps: int = 10
    step_size: float = 0.25
    label_smoothing: float = 0.0

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        clean = clean_logits(model, batch.images).softmax(1)

        def divergence(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
            return F.kl_div(F.log_softmax(logits, 1), clean, reduction="none").sum(1)

        attack = PGD(steps=self.steps, step_size=self.step_size, loss=divergence)
        attacked = perturb(model, batch, attack, threat, self.steps + 2 * self.caution)
        return torch.cat([batch.images, attacked])

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        value, clean = self.pair(model, points, batch)
        return Loss(value, clean.detach())

    def pair(self, model: Network, points: Images, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss over clean and attacked images, and the clean logits (N, K), with gradients."""
        clean, attacked = model(points).float().chunk(2)
        value = batch.cross_entropy(clean, self.label_smoothing)
        return value + self.divergence(clean, attacked, batch), clean

    def divergence(self, clean: Tensor, attacked: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """What the attacked logits (N, K) pay for being others than the clean ones."""
        divergences = F.kl_div(
            F.log_softmax(attacked, 1), F.log_softmax(clean, 1), reduction="none", log_target=True
        )
        return self.beta * batch.mean(divergences.sum(1))


def weighted_square_error(
    a: Float[Tensor, "n k"],
    b: Float[Tensor, "n k"],
    weights: Float[Tensor, "n k"],
    over_items: Callable[[Tensor], Tensor] = torch.mean,
) -> Float[Tensor, ""]:
    """Mean over items of ¼ Σⱼₖ wⱼ wₖ ((aⱼ − aₖ) − (bⱼ − bₖ))², for weights that sum to 1.

    The sum over pairs is twice the variance of a − b under w, which takes K terms, not K².
    """
    difference = a - b
    mean = (weights * difference).sum(1, keepdim=True)
    return 0.5 * over_items((weights * (difference - mean).square()).sum(1))


@dataclass(kw_only=True, eq=False)
class IKL(TRADES):
    """Cross-entropy + `alpha` × soft cross-entropy + `beta` × weighted square error of logits.

    Cui et al., "Decoupled Kullback-Leibler divergence loss", NeurIPS 2024. The gradient of
    KL(clean ‖ attacked) is that of a cross-entropy to the fixed clean probabilities, plus that of
    `weighted_square_error` in the clean logits alone, with the clean probabilities for weights.
    IKL lets the second move the attacked logits too, and weights it by the mean probabilities of
    the image's class: a moving average over batches (the publication: over the last epoch).
    """

    MEMORY = 0.99  # of the class means, per step

    alpha: float = 1.0
    beta: float = 15.0

    def __post_init__(self) -> None:
        self.means: Tensor | None = None  # (K, K): row c is the mean probabilities of class c

    def divergence(self, clean: Tensor, attacked: Tensor, batch: Batch) -> Float[Tensor, ""]:
        if self.means is None:
            self.means = torch.full((clean.shape[1],) * 2, 1 / clean.shape[1], device=clean.device)
        fixed = clean.detach().softmax(1)
        soft = batch.mean(-(fixed * F.log_softmax(attacked, 1)).sum(1))
        weights = batch.probabilities(len(self.means)) @ self.means
        error = weighted_square_error(clean, attacked, weights, batch.mean)
        return self.alpha * soft + self.beta * error

    def observe(self, batch: Batch, loss: Loss) -> None:
        assert self.means is not None and loss.logits is not None
        probabilities = loss.logits.softmax(1)
        # Sums and counts together, so that one exchange between processes is enough.
        sums = torch.zeros(len(self.means), len(self.means) + 1, device=probabilities.device)
        ones = probabilities.new_ones(len(probabilities), 1)
        sums += batch.probabilities(len(self.means)).T @ torch.cat([probabilities, ones], 1)
        sums = mean_over_processes(sums)
        seen = sums[:, -1:] > 0
        now = sums[:, :-1] / sums[:, -1:].clamp_min(1e-12)
        self.means = torch.where(seen, torch.lerp(now, self.means, self.MEMORY), self.means)

    def state(self) -> dict[str, Tensor]:
        return {} if self.means is None else {"class_means": self.means}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.means = state.get("class_means")
