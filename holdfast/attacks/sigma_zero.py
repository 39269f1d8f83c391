"""σ-zero: few components, by a smooth stand-in for their number."""

from __future__ import annotations

import torch

from ..errors import InputError
from ..threat import Threat, per_item
from .adam import adam_move, adam_start
from .base import Items, Oracle, State
from .losses import margin_loss
from .minimum_norm import MinimumNorm, cosine


class SigmaZero(MinimumNorm):
    """Cinà et al., "σ-zero: gradient-based optimization of ℓ0-norm adversarial examples",
    ICLR 2025.

    Adam on the margin (while the point is not adversarial) plus the mean of δᵢ² / (δᵢ² + σ) over
    the components, gradients scaled to a largest entry of 1. After each step, components smaller
    than a threshold are set back to the image's; the threshold rises after adversarial points
    and falls after others.

    Args:
        steps: moves after the start.
        length: of the first step, image units; it falls to a tenth with a cosine.
        smoothness: σ, above 0.
        threshold: the first one, in [0, 1].
        rate: threshold change a step, in units of the step length.
        targeted: approach the boundary between the label and the item's target class; otherwise
            that of the strongest wrong class at each point.
        stop_inside: see `MinimumNorm`.

    Cost: steps + 1 forwards and as many backwards.

    Raises:
        InputError: a setting outside its range.
    """

    norms = frozenset({"l0"})

    def __init__(
        self,
        *,
        steps: int = 1000,
        length: float = 1.0,
        smoothness: float = 1e-3,
        threshold: float = 0.3,
        rate: float = 0.01,
        targeted: bool = False,
        stop_inside: bool = True,
    ):
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        for name, value in (("length", length), ("smoothness", smoothness), ("rate", rate)):
            if value <= 0:
                raise InputError(f"{name} must be above 0, not {value}")
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold must be in [0, 1], not {threshold}")
        super().__init__(
            steps=steps,
            length=length,
            smoothness=smoothness,
            threshold=threshold,
            rate=rate,
            targeted=targeted,
            stop_inside=stop_inside,
        )
        self.name = "sigma-zero-targeted" if targeted else "sigma-zero"
        self.targeted = targeted
        self.steps, self.length, self.smoothness = steps, length, smoothness
        self.threshold, self.rate = threshold, rate
        self.iterations = steps + 1

    def start(self, items: Items, threat: Threat) -> State:
        self.check_norm(threat)
        state = self.begin(items, items.images) | adam_start(items.images)
        return state | {"threshold": torch.full_like(items.eps, self.threshold)}

    def step(self, model: Oracle, state: State, threat: Threat) -> State:
        x, looked, age = state["x"], state["point"], state["age"]
        gradient, logits, _ = model.gradient(
            looked,
            lambda z: (-margin_loss(z, state["labels"], state["targets"])).clamp_min(0),
        )
        state, fooled = self.record(state, logits, threat)
        delta = looked - x
        # d/dδ of the mean of δ² / (δ² + σ).
        shrink = 2 * delta * self.smoothness / (delta.square() + self.smoothness).square()
        gradient = gradient + shrink / x[0].numel()
        largest = gradient.flatten(1).abs().amax(1).clamp_min(1e-12)
        gradient = gradient / per_item(largest, x)

        length = cosine(age, self.steps, self.length, self.length / 10)
        moments, move = adam_move(state, gradient, age + 1)
        moved = (looked - per_item(length, x) * move).clamp(0, 1)

        change = torch.where(fooled, self.rate, -self.rate) * length
        threshold = (state["threshold"] + change).clamp(0, 1)
        kept = (moved - x).abs() >= per_item(threshold, x)
        # Components set back must be the image's own, bit for bit.
        return {
            **state,
            **moments,
            "threshold": threshold,
            "point": torch.where(kept, moved, x),
        }
