"""Total-variation minimisation (Guo et al., "Countering adversarial images", ICLR 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import real_number, whole_number
from ..types import Images, Model
from .base import Defence


class TotalVariation(Defence):
    """Replaces each channel x by the u that minimises ½‖u − x‖² + weight · TV(u).

    TV(u) is the sum over pixels of the length of u's gradient (Rudin, Osher & Fatemi, 1992). The
    solver takes a fixed number of projected gradient steps with momentum on the dual problem (Beck
    & Teboulle, "Fast gradient-based algorithms for constrained total variation image denoising",
    2009). Its exact gradient flows through all of them.

    Args:
        model: images → logits.
        weight: of TV(u), in image units, above 0; larger is smoother.
        iterations: steps of the solver, at least 1.

    Example:
        >>> images = torch.tensor([[[[0.4, 0.6]]]])
        >>> TotalVariation(lambda images: images.flatten(1), weight=0.05)(images).round(decimals=3)
        tensor([[0.4500, 0.5500]])
    """

    name = "total-variation"

    def __init__(self, model: Model, *, weight: float = 0.03, iterations: int = 30):
        self.weight = real_number(f"{self.name}: weight", weight, above=0)
        self.iterations = whole_number(f"{self.name}: iterations", iterations, 1)
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
    """Differences to the pixel below and to the right, (2, N, C, H, W); 0 at the border."""
    down = torch.diff(u, dim=2, append=u[:, :, -1:])
    right = torch.diff(u, dim=3, append=u[:, :, :, -1:])
    return torch.stack([down, right])


def _adjoint(p: Tensor) -> Images:
    """The transpose of `_gradient` (minus the divergence)."""
    down = F.pad(p[0, :, :, :-1], (0, 0, 1, 1))
    right = F.pad(p[1, :, :, :, :-1], (1, 1))
    return -torch.diff(down, dim=2) - torch.diff(right, dim=3)
