"""Adam's moments, per item, for attacks that step with it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..threat import Images, per_item
from .base import State

FIRST_DECAY, SECOND_DECAY = 0.9, 0.999


def adam_start(like: Images) -> State:
    """The keys that an attack's state needs for `adam_move`."""
    return {"mean": torch.zeros_like(like), "mean_square": torch.zeros_like(like)}


def adam_move(
    state: State, gradient: Images, count: Int64[Tensor, " n"]
) -> tuple[State, Float[Tensor, "n c h w"]]:
    """Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015.

    Args:
        state: holds the moments.
        gradient: (N, C, H, W).
        count: how many gradients each item has seen, this one included.

    Returns:
        The new moments, and the move along the gradient for a step length of 1.
    """
    mean = state["mean"].lerp(gradient, 1 - FIRST_DECAY)
    mean_square = state["mean_square"].lerp(gradient.square(), 1 - SECOND_DECAY)
    first = per_item(1 - FIRST_DECAY**count, gradient)
    second = per_item(1 - SECOND_DECAY**count, gradient)
    move = (mean / first) / ((mean_square / second).sqrt() + 1e-8)
    return {"mean": mean, "mean_square": mean_square}, move
