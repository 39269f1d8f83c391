"""The shortest way from a point to a hyperplane inside the box: exact, for each norm."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..threat import NORMS, per_item
from ..types import Images

_PASSES = 30  # Newton's steps; a handful suffices for images
_HUGE = 1e30  # stands for ∞, which would make NaN of 0
_CACHED = 2**17  # components that a CPU works on at once, so that temporaries stay in its cache


def shortest_move(
    x: Images, normal: Images, value: Float[Tensor, " n"], norm: str
) -> Float[Tensor, "n c h w"]:
    """The δ of smallest norm with value + ⟨normal, δ⟩ = 0 and x + δ in [0, 1].

    Where the box ends before the hyperplane is reached, the δ that comes closest to it.

    Args:
        x: (N, C, H, W) in [0, 1].
        normal: (N, C, H, W) gradient of a function that is taken to be linear.
        value: (N,) that function at x.
        norm: `linf`, `l2` or `l1`.
    """
    rows = max(_CACHED // x[0].numel(), 1) if x.device.type == "cpu" else max(len(x), 1)
    parts = zip(
        x.flatten(1).split(rows), normal.flatten(1).split(rows), value.split(rows), strict=True
    )
    return torch.cat([_shortest(*part, norm) for part in parts]).view_as(x)


def _shortest(x: Tensor, normal: Tensor, value: Tensor, norm: str) -> Tensor:
    """`shortest_move` on flat images (N, D)."""
    push = normal * -value.sign()[:, None]
    room = torch.where(push > 0, 1 - x, x).clamp_min(0)
    slope = push.abs()
    # Scaled by the largest entry: the squares of tiny gradients underflow.
    scale = slope.amax(1).clamp_min(1e-38)
    slope, gap = slope / scale[:, None], (value.abs() / scale).clamp_max(_HUGE)
    if norm == "l1":
        length = _steepest_first(slope, room, gap)
    elif norm == "l2":
        length = _level(slope, slope, room, gap)
    else:
        length = _level(slope, torch.ones_like(gap)[:, None], room, gap)
    return push.sign() * length


def _level(slope: Tensor, pace: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """min(λ · pace, room) for the λ at which ⟨slope, ·⟩ = gap.

    The sum is concave and piecewise linear in λ: Newton's method climbs to the root from below
    and ends after finitely many steps, without the sort that other solutions need.

    Args:
        slope, room: (N, D).
        pace: (N, D) or (N, 1).
        gap: (N,).
    """
    rate = slope * pace
    level = gap / rate.sum(1).clamp_min(1)  # the largest slope is 1, or all are 0
    for _ in range(_PASSES):
        length = (level[:, None] * pace).minimum(room)
        missing = gap - torch.linalg.vecdot(slope, length)
        gain = torch.where(length < room, rate, 0.0).sum(1)
        # An item stops on its own account: its result must not depend on the batch.
        active = (missing > 1e-6 * gap) & (gain > 0)
        if not bool(active.any()):
            break
        level = torch.where(active, level + missing / gain, level).clamp_max(_HUGE)
    return length


def _steepest_first(slope: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """Moves in the order of falling slope, each as far as it may, until ⟨slope, ·⟩ = gap."""
    order = slope.argsort(dim=1, descending=True, stable=True)
    slope, room = slope.gather(1, order), room.gather(1, order)
    gain = slope * room
    missing = (gap[:, None] - (gain.cumsum(1) - gain)).clamp_min(0)
    length = (missing / slope.clamp_min(1e-38)).minimum(room)
    return torch.zeros_like(length).scatter_(1, order, length)


def nearest_hyperplane(
    x: Images, normals: Float[Tensor, "n j c h w"], values: Float[Tensor, "n j"], norm: str
) -> tuple[Int64[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """Which of J hyperplanes is reached by the shortest move inside the box, and that move.

    Hyperplanes that the box cuts off count only where it cuts off all of them.
    """
    moves, distances = torch.zeros_like(x), torch.full_like(values[:, 0], torch.inf)
    index = torch.zeros_like(distances, dtype=torch.int64)
    for j in range(values.shape[1]):
        move = shortest_move(x, normals[:, j], values[:, j], norm)
        missed = (values[:, j] + (normals[:, j] * move).flatten(1).sum(1)).abs()
        cut_off = missed > 1e-3 * values[:, j].abs()
        distance = NORMS[norm].distance(move) + torch.where(cut_off, 1e6, 0.0)
        nearer = distance < distances
        moves = torch.where(per_item(nearer, x), move, moves)
        distances = torch.where(nearer, distance, distances)
        index = torch.where(nearer, j, index)
    return index, moves
