"""σ-zero: few components, by a smooth stand-in for their number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .adam import AdamState, adam, no_moments
from .losses import Logits, Values, margin_loss
from .minimum_norm import MinimumNorm, MinimumNormState
from .schedules import cosine
from .state import Items


@dataclass(frozen=True, kw_only=True, eq=False)
class SigmaZeroState(AdamState, MinimumNormState):
    """What σ-zero remembers."""

    threshold: Float[Tensor, " n"]  # τ: smaller changes are set back, image units


class SigmaZero(MinimumNorm[SigmaZeroState]):
    """The fewest components to change (L0), by a smooth stand-in for their number.

    Cinà et al., "σ-zero: gradient-based optimization of ℓ0-norm adversarial examples", ICLR 2025,
    algorithm 1: Adam on the margin (while the point is not adversarial) plus the mean of δᵢ² / (δᵢ²
    + σ) over the components, gradients scaled to a largest entry of 1. After each step, components
    smaller than a threshold are set back to the image's; the threshold rises after adversarial
    points and falls after others.

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

    Example:
        A model that answers class 0 where a weighted sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> weights = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
        >>> sums = lambda x: (weights * x).sum((1, 2, 3))
        >>> model = lambda x: (sums(x) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> threat = Threat("l0", 1)
        >>> points = SigmaZero(steps=300, stop_inside=False)(model, images, labels, threat)
        >>> int(threat.distance(points, images))  # one black pixel is enough
        1
    """

    name = "sigma-zero"
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
        self.name = "sigma-zero" + "-targeted" * targeted
        self.targeted = targeted
        self.steps, self.length, self.smoothness = steps, length, smoothness
        self.threshold, self.rate = threshold, rate
        self.iterations = steps + 1

    def begin(self, items: Items, point: Images, threat: Threat) -> SigmaZeroState:
        threshold = torch.full_like(items.eps, self.threshold)
        return SigmaZeroState.begin(items, point, threshold=threshold, **no_moments(point))

    def value(self, logits: Logits, state: SigmaZeroState) -> Values:
        return (-state.climbed(margin_loss, logits)).clamp_min(0)

    def move(
        self,
        state: SigmaZeroState,
        gradient: Images,
        value: Values,
        fooled: Bool[Tensor, " n"],
        threat: Threat,
    ) -> SigmaZeroState:
        x, k, sigma = state.images, state.iteration, self.smoothness
        delta = state.point - x
        # d/dδ of the mean of δ² / (δ² + σ).
        shrink = 2 * delta * sigma / (delta.square() + sigma).square()
        gradient = gradient + shrink / x[0].numel()
        largest = gradient.flatten(1).abs().amax(1).clamp_min(1e-12)
        gradient = gradient / per_item(largest, x)

        eta = cosine(k, self.steps, self.length, self.length / 10)
        state, direction = adam(state, gradient, k + 1)
        moved = (state.point - per_item(eta, x) * direction).clamp(0, 1)

        change = torch.where(fooled, self.rate, -self.rate) * eta
        tau = (state.threshold + change).clamp(0, 1)
        kept = (moved - x).abs() >= per_item(tau, x)
        # Components set back must be the image's own, bit for bit.
        return state.replace(threshold=tau, point=torch.where(kept, moved, x))
