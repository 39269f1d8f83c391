"""Total-variation minimisation (Guo et al., "Countering adversarial images", ICLR 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..threat import Images
from .base import Defence, Model, real_number, whole_number


class TotalVariation(Defence):
    """Each channel x becomes the u with the smallest ½‖u − x‖² + weight · TV(u).

    TV(u) is the sum over pixels of the length of u's gradient (Rudin, Osher & Fatemi, 1992).
    Solved by projected gradient steps with momentum on the dual problem (Beck & Teboulle, "Fast
    gradient-based algorithms for constrained total variation image denoising", 2009), a fixed
    number of them, so that exact gradients flow through.

    Args:
        model: images → logits.
        weight: how much smoothness counts, in image units, above 0.
        iterations: steps of the solver, at least 1.
    """

    name = "total-variation"

    def __init__(self, model: Model, *, weight: float = 0.03, iterations: int = 30):
        self.weight = real_number(self.name, "weight", weight, above=0)
        self.iterations = whole_number(self.name, "iterations", iterations, 1)
        super().__init__(model, weight=weight, iterations=iterations)

    def transform(self, images: Images) -> Images:
        dual = ahead = torch.zeros_like(_gradient(images))
        t = 1.0
        for _ in range(self.iterations):
            u = images - self.weight * _adjoint(ahead)
            # 1 / 8 is the largest safe step: ‖gradient‖² ≤ 8 in two dimensions.
            moved = ahead + _gradient(u) / (8 * self.weight)
            # Clamped before the root, whose gradient at 0 is infinite.
            moved = moved / (moved[0] ** 2 + moved[1] ** 2).clamp_min(1).sqrt()
            t_next = (1 + (1 + 4 * t * t) ** 0.5) / 2
            ahead = moved + (t - 1) / t_next * (moved - dual)
            dual, t = moved, t_next
        return (images - self.weight * _adjoint(dual)).clamp(0, 1)


def _gradient(u: Images) -> Tensor:
    """Forward differences down and right, 0 past the border: (2, N, C, H, W)."""
    down = torch.diff(u, dim=2, append=u[:, :, -1:])
    right = torch.diff(u, dim=3, append=u[:, :, :, -1:])
    return torch.stack([down, right])


def _adjoint(p: Tensor) -> Images:
    """The transpose of `_gradient` (minus the divergence)."""
    down = F.pad(p[0, :, :, :-1], (0, 0, 1, 1))
    right = F.pad(p[1, :, :, :, :-1], (1, 1))
    return -torch.diff(down, dim=2) - torch.diff(right, dim=3)
