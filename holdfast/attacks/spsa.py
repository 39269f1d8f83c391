"""SPSA: gradients estimated from pairs of answers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .adam import AdamState, adam, no_moments
from .base import Oracle
from .gradient_ascent import GradientAscent
from .losses import Logits
from .state import Items


class SPSA(GradientAscent[AdamState]):
    """Gradient ascent on the margin without gradients: they are estimated from pairs of queries.

    Uesato, O'Donoghue, van den Oord & Kohli, "Adversarial risk and the dangers of evaluating
    against weak attacks", ICML 2018, with the simultaneous perturbation stochastic approximation of
    Spall (1992). Adam steps inside ball and box, from a random start, along the mean over `samples`
    random sign vectors v of v · (f(x + r·v) − f(x − r·v)) / 2r.

    Args:
        steps: moves after the start.
        samples: pairs of answers a move.
        radius: r, image units.
        length: Adam's step, image units.

    Cost: (steps + 1) × (2 × samples + 1) forwards, no backwards.

    Raises:
        InputError: a setting outside its range.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> points = SPSA(steps=10, samples=8)(model, images, labels, Threat("linf", 0.1))
        >>> model(points).argmax(1)
        tensor([1])
    """

    name = "spsa"
    norms = frozenset({"linf", "l2"})
    needs_gradient = False

    def __init__(
        self, *, steps: int = 100, samples: int = 128, radius: float = 0.01, length: float = 0.01
    ):
        for name, count in (("steps", steps), ("samples", samples)):
            if count < 1:
                raise InputError(f"{name} must be at least 1, not {count}")
        for name, value in (("radius", radius), ("length", length)):
            if value <= 0:
                raise InputError(f"{name} must be above 0, not {value}")
        super().__init__(steps=steps, loss="margin")
        self.settings = {"steps": steps, "samples": samples, "radius": radius, "length": length}
        self.samples, self.radius, self.length = samples, radius, length

    def begin(self, items: Items, point: Images, threat: Threat) -> AdamState:
        return AdamState.begin(items, point, **no_moments(point))

    def gradient(self, oracle: Oracle, state: AdamState) -> tuple[Images, Logits]:
        """Spall's estimate of the margin's gradient."""
        x, r = state.point, self.radius
        logits = oracle.logits(x)
        gradient = torch.zeros_like(x)
        for i in range(self.samples):
            # Counters 0 and 1 belong to the start.
            counter = 2 + state.iteration * self.samples + i
            v = (draws.uniform(state.seeds, counter, x.shape[1:]) < 0.5).float() * 2 - 1
            ahead, behind = (
                self.value(oracle.logits((x + side * r * v).clamp(0, 1)), state) for side in (1, -1)
            )
            slope = (ahead - behind) / (2 * r * self.samples)
            # NaN where the model answers nothing on one side: that says nothing of the slope.
            gradient += per_item(slope.nan_to_num(0.0, 0.0, 0.0), x) * v
        return gradient, logits

    def direction(
        self, gradient: Images, state: AdamState, threat: Threat
    ) -> tuple[Images, AdamState]:
        state, direction = adam(state, gradient, state.iteration + 1)
        return direction, state

    def step_size(self, state: AdamState) -> Float[Tensor, " n"]:
        return torch.full_like(state.eps, self.length)
