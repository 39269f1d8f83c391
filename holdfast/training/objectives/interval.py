"""Certified training by interval bound propagation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...certification.bounds import layers, margin_bounds, verified
from ...errors import InputError
from ...threat import Threat
from ...types import Images
from .base import Batch, Loss, Network, Objective, inside


@dataclass(kw_only=True, eq=False)
class IntervalBounds(Objective):
    """κ × clean cross-entropy + (1 − κ) × that of the worst logits that the bounds allow.

    Gowal et al., "On the effectiveness of interval bound propagation for training verifiably
    robust models", 2018. Needs an architecture that intervals can be carried through, such as
    `interval-cnn`, and the norm L∞. ε rises linearly from 0 to the recipe's radius, and κ falls
    from 1 to `clean_share`, between `warmup` and `ramp` of the schedule: at once at full strength
    it learns a constant. Weights are kept by accuracy plus verified accuracy.

    Args:
        clean_share: κ at the end, 0 to 1.
        warmup: share of the schedule with clean images alone.
        ramp: share of the schedule after which both are at their end.
    """

    chosen_by = ("validation_accuracy", "validation_verified_accuracy")
    only_answers = False
    mixes = False  # the bounds are of one label's margins

    clean_share: float = 0.5
    warmup: float = 0.05
    ramp: float = 0.6

    def __post_init__(self) -> None:
        if not (self.clean_share <= 1 and self.warmup < self.ramp <= 1):
            raise InputError(
                "objective 'interval': clean_share must be at most 1, and warmup below ramp, "
                f"which is at most 1, not {self.clean_share!r}, {self.warmup!r} and {self.ramp!r}"
            )
        self.eps = 0.0  # at the present point of the schedule

    @property
    def strength(self) -> float:
        """How far ε and κ have come, 0 to 1."""
        return min(max((self.progress - self.warmup) / (self.ramp - self.warmup), 0.0), 1.0)

    def points(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        if threat.norm != "linf":
            raise InputError(f"objective 'interval' knows the norm linf, not {threat.norm}")
        layers(inside(model))  # an InputError where there are no rules for this kind of network
        self.eps = self.strength * threat.eps
        return batch.images

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        logits = model(points).float()
        clean = batch.cross_entropy(logits)
        share = 1 - self.strength * (1 - self.clean_share)
        if share == 1:
            return Loss(clean, logits.detach())
        assert isinstance(model, nn.Module)
        bounds = margin_bounds(inside(model), points, batch.labels, self.eps).float()
        worst = batch.cross_entropy(-bounds)
        return Loss(share * clean + (1 - share) * worst, logits.detach())

    def held_out(self, model: nn.Module, batch: Batch, threat: Threat) -> dict[str, float]:
        sure = verified(model, batch.images, batch.labels, threat.eps)
        return {"validation_verified_accuracy": float(sure.float().mean())}
