"""Square: random search with squares, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..threat import Norm, Threat, per_item
from ..types import Images
from .base import Attack, Oracle
from .state import Items, State

# From these shares of the queries on, the squares' area is halved once more.
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
TILES = 5  # an L2 or L1 search starts from about 5 × 5 tiles
SMALLEST_WINDOW = 3  # side in L2 and L1


class Square(Attack[State]):
    """Random search on the margin with squares, without gradients.

    Andriushchenko, Croce, Flammarion & Hein, "Square attack: a query-efficient black-box
    adversarial attack via random search", ECCV 2020.

    L∞: starts from vertical stripes of ±ε; each query then sets a random square to ±ε by channel.
    L2: starts from tiles that hold a positive and a negative bump each; each query then adds
    such a pair to one random window and gives it also the norm that a second one had, which is
    cleared. L1 (as released with AutoAttack): the same moves, with the exact projection onto
    ball ∩ box. What a query changes is kept if it lowers the margin.

    Args:
        queries: forward passes an item.
        area: share of the image that the first squares cover, in (0, 1].

    Cost: `queries` + 1 forwards, no backwards.

    Raises:
        InputError: a setting outside its range.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> Square(queries=50)(model, images, labels, Threat("linf", 0.1)).flatten()
        tensor([0.2000, 0.2000, 0.2000, 0.2000])
    """

    name = "square"
    norms = frozenset({"linf", "l2", "l1"})
    needs_gradient = False
    reaches = True

    def __init__(self, *, queries: int = 5000, area: float = 0.8):
        if queries < 1:
            raise InputError(f"queries must be at least 1, not {queries}")
        if not 0 < area <= 1:
            raise InputError(f"area must be in (0, 1], not {area}")
        super().__init__(queries=queries, area=area)
        self.queries, self.area = queries, area
        self.iterations = queries + 1

    def first_point(self, items: Items, threat: Threat) -> Images:
        x, norm = items.images, threat.table
        if threat.norm == "linf":
            start = x + per_item(items.eps, x) * _signs(items.seeds, 0, (x.shape[1], 1, x.shape[3]))
        else:
            start = x + _to_length(_tiles(items.seeds, x, norm), items.eps, norm)
        return threat.project(start, x, items.eps)

    def step(self, oracle: Oracle, state: State, threat: Threat) -> State:
        state = state.observe(oracle.logits(state.point))
        move = self._square if threat.norm == "linf" else self._windows
        return state.replace(
            point=threat.project(move(state, threat.table), state.images, state.eps),
            iteration=state.iteration + 1,
            finished=state.iteration >= self.queries,
        )

    def _side(self, state: State) -> Tensor:
        """The squares' side before rounding, float (N,)."""
        area = torch.full_like(state.eps, self.area)
        for share in HALVINGS:
            area = torch.where(state.iteration > share * self.queries, area / 2, area)
        height, width = state.images.shape[2:]
        return (area * height * width).sqrt()

    def _square(self, state: State, norm: Norm) -> Images:
        """L∞: a random square at ±ε by channel."""
        x, k, seeds = state.images, state.iteration, state.seeds
        height, width = x.shape[2:]
        side = self._side(state).round().long().clamp(1, min(height, width))
        corner = draws.uniform(seeds, 3 * k + 1, (2,))
        _, _, inside = _window(corner, side, height, width)
        signs = _signs(seeds, 3 * k + 2, (x.shape[1], 1, 1))
        # 2ε so that the square ends at ±ε whatever was there before.
        return state.best + torch.where(inside, 2 * per_item(state.eps, x) * signs, 0.0)

    def _windows(self, state: State, norm: Norm) -> Images:
        """L2, L1: bumps into one random window, with the norm of a second one, which is cleared."""
        x, eps, k, seeds = state.images, state.eps, state.iteration, state.seeds
        channels, height, width = x.shape[1:]
        side = self._side(state).round().long().clamp_min(SMALLEST_WINDOW)
        side = (side + (side % 2 == 0)).clamp_max(min(height, width))
        chance = draws.uniform(seeds, 3 * k + 1, (5,))
        row, column, inside = _window(chance[:, 0:2], side, height, width)
        _, _, cleared = _window(chance[:, 2:4], side, height, width)

        delta = state.best - x
        here = torch.where(inside, delta, 0.0)
        both = norm.distance(torch.where(inside | cleared, delta, 0.0))
        spent = norm.distance(delta)
        if norm.name == "l2":
            spare = (eps.square() - spent.square()).clamp_min(0)
            budget = (spare / channels + both.square()).sqrt()
        else:
            budget = (eps - spent).clamp_min(0) / channels + both
        bumps = _bumps(row, column, side, chance[:, 4] < 0.5, norm) * inside
        bumps = bumps * _signs(seeds, 3 * k + 2, (channels, 1, 1))
        fresh = bumps + here / _by_channel(here, norm).clamp_min(1e-12)
        fresh = fresh / _by_channel(fresh, norm).clamp_min(1e-12) * per_item(budget, x)
        delta = torch.where(inside, fresh, torch.where(cleared, 0.0, delta))
        return x + (_to_length(delta, eps, norm) if norm.name == "l2" else delta)


def _signs(seeds: Tensor, counter: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    """±1, (N, *shape)."""
    return (draws.uniform(seeds, counter, shape) < 0.5).float() * 2 - 1


def _window(corner: Tensor, side: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A square window in each image.

    Args:
        corner: (N, 2) uniform draws that choose its top left corner.
        side: int64 (N,).

    Returns:
        Rows (N, 1, H, 1) and columns (N, 1, 1, W) counted from the corner, and bool (N, 1, H, W):
        which pixels lie inside.
    """
    top = (corner[:, 0] * (height - side + 1)).long()
    left = (corner[:, 1] * (width - side + 1)).long()
    row = torch.arange(height, device=side.device)[:, None] - top.view(-1, 1, 1, 1)
    column = torch.arange(width, device=side.device) - left.view(-1, 1, 1, 1)
    side = side.view(-1, 1, 1, 1)
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return row, column, inside


def _bumps(row: Tensor, column: Tensor, side: Tensor, turned: Tensor, norm: Norm) -> Tensor:
    """A positive bump on the upper half of a window and a negative one on the lower half.

    A bump is a stack of concentric squares, the k-th (from 1) of height 1 / k²; both have norm 1.

    Args:
        row, column: (N, 1, H, 1), (N, 1, 1, W) counted from the window's corner.
        side: int64 (N,) of the window.
        turned: bool (N,): left and right halves instead.

    Returns:
        (N, 1, H, W); meaningless outside the window.
    """
    turned, side = turned.view(-1, 1, 1, 1), side.view(-1, 1, 1, 1)
    row, column = torch.where(turned, column, row), torch.where(turned, row, column)
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    outermost = min(inside.shape[2:]) // 2 + 1
    heights = 1 / torch.arange(1, outermost + 1, device=side.device).float().square()
    below = torch.cat([heights.new_zeros(1), heights.cumsum(0)])  # Σ of the first k heights
    bumps = torch.zeros_like(inside, dtype=torch.float32)
    for first, last, sign in ((0 * side, side // 2, 1.0), (side // 2, side, -1.0)):
        ring = (row - first - (last - first) // 2).abs().maximum((column - side // 2).abs())
        height = below[side // 2 + 1] - below[ring.clamp(0, outermost)]
        half = torch.where(inside & (row >= first) & (row < last), height.clamp_min(0), 0.0)
        bumps = bumps + sign * half / norm.distance(half).clamp_min(1e-12).view(-1, 1, 1, 1)
    return bumps


def _tiles(seeds: Tensor, x: Images, norm: Norm) -> Images:
    """The start of an L2 or L1 search, up to a factor: a pair of bumps in every tile."""
    channels, height, width = x.shape[1:]
    side = max(height // TILES, 1)
    # Shifted so that whole tiles stand in the middle and the cut ones at the border.
    rows = torch.arange(height, device=x.device) + (side * TILES - height) // 2 % side
    columns = torch.arange(width, device=x.device) + (side * TILES - width) // 2 % side
    place = torch.arange(side, device=x.device)
    pair = _bumps(
        place.view(1, 1, -1, 1),
        place.view(1, 1, 1, -1),
        torch.tensor([side, side], device=x.device),
        torch.tensor([False, True], device=x.device),
        norm,
    )[:, 0]
    tiled = pair[:, rows % side][:, :, columns % side]
    rows, columns = rows // side, columns // side
    shape = (int(rows[-1]) + 1, int(columns[-1]) + 1)
    # Counters that are multiples of 3 are left over by the steps.
    turned = draws.uniform(seeds, 0, (1, *shape))[:, :, rows][..., columns] < 0.5
    signs = _signs(seeds, 3, (channels, *shape))[:, :, rows][..., columns]
    return torch.where(turned, tiled[1], tiled[0]) * signs


def _by_channel(delta: Images, norm: Norm) -> Tensor:
    """Each channel's norm, (N, C, 1, 1)."""
    order = 2 if norm.name == "l2" else 1
    return torch.linalg.vector_norm(delta, order, dim=(2, 3), keepdim=True)


def _to_length(delta: Images, eps: Tensor, norm: Norm) -> Images:
    """δ scaled to norm ε."""
    return delta * per_item(eps / norm.distance(delta).clamp_min(1e-12), delta)
