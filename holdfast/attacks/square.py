"""Square: random search with squares, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..threat import Threat, per_item
from .base import Attack, Items, Oracle, State, common_state, observe

# From these shares of the queries on, the squares' area is halved once more.
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


class Square(Attack):
    """Andriushchenko, Croce, Flammarion & Hein, "Square attack: a query-efficient black-box
    adversarial attack via random search", ECCV 2020, on the margin.

    Starts from vertical stripes of ±ε; each query then sets a random square to ±ε by channel and
    is kept if it lowers the margin.

    Args:
        queries: forward passes an item.
        area: share of the image that the first squares cover.

    Cost: `queries` + 1 forwards, no backwards.
    """

    name = "square"
    norms = frozenset({"linf"})
    needs_gradient = False

    def __init__(self, *, queries: int = 5000, area: float = 0.8):
        if queries < 1:
            raise InputError(f"queries must be at least 1, not {queries}")
        if not 0 < area <= 1:
            raise InputError(f"area must be in (0, 1], not {area}")
        super().__init__(queries=queries, area=area)
        self.queries, self.area = queries, area
        self.looks = queries + 1

    def start(self, items: Items, threat: Threat) -> State:
        self.check_norm(threat)
        x = items.images
        stripes = _signs(items.seeds, 0, (x.shape[1], 1, x.shape[3]))
        start = threat.project(x + per_item(items.eps, x) * stripes, x, items.eps)
        return common_state(items, start)

    def step(self, model: Oracle, state: State, threat: Threat) -> State:
        best, score = observe(state, model.logits(state["point"]))
        age = state["age"]
        x, eps, seeds = state["x"], state["eps"], state["seeds"]
        channels, height, width = x.shape[1:]

        area = torch.full_like(eps, self.area)
        for share in HALVINGS:
            area = torch.where(age > share * self.queries, area / 2, area)
        side = (area * height * width).sqrt().round().long().clamp(1, min(height, width))
        corner = draws.uniform(seeds, 3 * age + 1, (2,))
        top = (corner[:, 0] * (height - side + 1)).long()
        left = (corner[:, 1] * (width - side + 1)).long()
        inside = _span(top, side, height)[:, None, :, None] & _span(left, side, width)[:, None, None]
        signs = _signs(seeds, 3 * age + 2, (channels, 1, 1))
        # 2ε so that the square ends at ±ε whatever was there before.
        moved = best + torch.where(inside, 2 * per_item(eps, x) * signs, 0.0)
        return {
            **state,
            "best": best,
            "score": score,
            "point": threat.project(moved, x, eps),
            "age": age + 1,
            "finished": age >= self.queries,
        }


def _signs(seeds: Tensor, counter: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    """±1, (N, *shape)."""
    return (draws.uniform(seeds, counter, shape) < 0.5).float() * 2 - 1


def _span(first: Tensor, length: Tensor, size: int) -> Tensor:
    """bool (N, size): true from `first` on, `length` times."""
    place = torch.arange(size, device=first.device)
    return (place >= first[:, None]) & (place < (first + length)[:, None])
