"""RayS: which way to go is a sign vector, found block by block from decisions alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .base import Oracle
from .minimum_norm import MinimumNorm, MinimumNormState
from .state import Items, pick

# What the next query of an item serves.
CHECK, BISECT = range(2)
BOX = 1.0  # no ray is longer: every value has reached its wall


@dataclass(frozen=True, kw_only=True, eq=False)
class RaySState(MinimumNormState):
    """What RayS remembers."""

    phase: Int64[Tensor, " n"]  # CHECK or BISECT
    signs: Float[Tensor, "n c h w"]  # ±1, the direction of the shortest ray so far
    tried: Float[Tensor, "n c h w"]  # ±1, the direction that is tried
    radius: Float[Tensor, " n"]  # length of the shortest ray so far, image units
    low: Float[Tensor, " n"]  # of the direction that is tried: a length that fools nobody
    high: Float[Tensor, " n"]  # one that fools the model
    level: Int64[Tensor, " n"]  # the image is cut into 2^level blocks
    block: Int64[Tensor, " n"]  # the one whose signs are flipped; −1 before any was


class RayS(MinimumNorm[RaySState]):
    """The shortest ray along a sign vector, from predicted classes alone; for L∞.

    Chen & Gu, "RayS: a ray searching method for hard-label adversarial attack", KDD 2020. In L∞ a
    closest point lies at a corner of a cube around the image, x + r · s with signs s = ±1. The
    signs are searched in blocks, halves first, then quarters, down to single values: the signs of
    a block are flipped, one query says whether the shortest radius so far still fools the model,
    and if so bisection finds the shorter one. After the finest blocks it begins with halves again.
    The first signs are all +1, or where one class is to be reached those of the way to an image of
    it.

    Args:
        queries: in all. A few hundred often suffice.
        tolerance: at which a bisection ends, image units.
        stop_inside: see `MinimumNorm`.

    Cost: `queries` forwards, no backwards.

    Raises:
        InputError: a setting outside its range.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> threat = Threat("linf", 0.1)
        >>> points = RayS(queries=100, stop_inside=False)(model, images, labels, threat)
        >>> round(float(threat.distance(points, images)), 2)  # the hyperplane is 0.05 away
        0.05
    """

    name = "rays"
    norms = frozenset({"linf"})
    needs_gradient = False
    decisions = True

    def __init__(self, *, queries: int = 10_000, tolerance: float = 1e-3, stop_inside: bool = True):
        if queries < 1:
            raise InputError(f"queries must be at least 1, not {queries}")
        if not 0 < tolerance < BOX:
            raise InputError(f"tolerance must be in (0, {BOX:g}), not {tolerance}")
        super().__init__(queries=queries, tolerance=tolerance, stop_inside=stop_inside)
        self.tolerance, self.iterations = tolerance, queries

    def first_point(self, items: Items, threat: Threat) -> Images:
        return (items.images + BOX * _toward_start(items)).clamp(0, 1)

    def begin(self, items: Items, point: Images, threat: Threat) -> RaySState:
        ahead, zeros = _toward_start(items), torch.zeros_like(items.labels)
        return RaySState.begin(
            items,
            point,
            phase=torch.full_like(items.labels, CHECK),
            signs=ahead,
            tried=ahead,
            radius=torch.full_like(items.eps, BOX),
            low=torch.zeros_like(items.eps),
            high=torch.zeros_like(items.eps),
            level=zeros,
            block=zeros - 1,
        )

    def step(self, oracle: Oracle, state: RaySState, threat: Threat) -> RaySState:
        checks, bisects = state.phase == CHECK, state.phase == BISECT
        middle = (state.low + state.high) / 2
        state, fooled = self.record(state, oracle.logits(state.point), threat)

        # A direction in which the radius so far fools the model too is bisected.
        better = checks & fooled
        low = torch.where(better, 0.0, torch.where(bisects & ~fooled, middle, state.low))
        high = torch.where(better, state.radius, torch.where(bisects & fooled, middle, state.high))
        arrived = bisects & (high - low <= self.tolerance)
        over = arrived | (checks & ~fooled)  # the next block's turn
        signs = pick(arrived, state.tried, state.signs)
        level, block = self._following(state, over)
        state = state.replace(
            iteration=state.iteration + 1,
            phase=torch.where(better, BISECT, torch.where(over, CHECK, state.phase)),
            signs=signs,
            tried=pick(over, _flipped(signs, level, block), state.tried),
            radius=torch.where(arrived, high, state.radius),
            low=low,
            high=high,
            level=level,
            block=block,
        )
        length = torch.where(state.phase == CHECK, state.radius, (low + high) / 2)
        point = state.images + per_item(length, state.images) * state.tried
        return state.replace(point=point.clamp(0, 1))

    def _following(self, state: RaySState, over: Tensor) -> tuple[Tensor, Tensor]:
        """Level and block of the next flip, where one is over."""
        size = state.images[0].numel()
        block = state.block + over
        width = _width(size, state.level)
        done = block * width >= size
        finest = done & (width <= 1)
        level = torch.where(finest, 0, torch.where(done, state.level + 1, state.level))
        return level, torch.where(done, 0, block)


def _toward_start(items: Items) -> Images:
    """The signs of the way to where the search begins; +1 where it begins at the image."""
    return torch.where(items.start < items.images, -1.0, 1.0)


def _width(size: int, level: Tensor) -> Tensor:
    """Values in a block, where `size` of them are cut into 2^level blocks."""
    parts = 2 ** level.clamp_max(62)
    return (size + parts - 1) // parts


def _flipped(signs: Images, level: Tensor, block: Tensor) -> Images:
    """The signs with those of a block turned round."""
    flat = signs.flatten(1)
    width = _width(flat.shape[1], level)[:, None]
    place = torch.arange(flat.shape[1], device=signs.device)
    first = block[:, None] * width
    inside = (place >= first) & (place < first + width)
    return torch.where(inside, -flat, flat).view_as(signs)
