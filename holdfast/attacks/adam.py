"""Adam's moments, per item, for attacks that step with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..threat import per_item
from ..types import Images
from .state import State

BETA_1, BETA_2, TINY = 0.9, 0.999, 1e-8


@dataclass(frozen=True, kw_only=True, eq=False)
class AdamState(State):
    """What Adam remembers; begin with `no_moments`."""

    m: Float[Tensor, "n c h w"]  # the mean of the gradients
    v: Float[Tensor, "n c h w"]  # the mean of their squares


S = TypeVar("S", bound=AdamState)


def no_moments(like: Images) -> dict[str, Images]:
    """m₀ = v₀ = 0, in the shape of an image."""
    return {"m": torch.zeros_like(like), "v": torch.zeros_like(like)}


def adam(state: S, gradient: Images, t: Int64[Tensor, " n"]) -> tuple[S, Float[Tensor, "n c h w"]]:
    """Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.

    Args:
        gradient: (N, C, H, W).
        t: (N,), how many gradients each item has seen, this one included.

    Returns:
        The state with the new moments, and the move along the gradient for a step size of 1.
    """
    m = state.m.lerp(gradient, 1 - BETA_1)
    v = state.v.lerp(gradient.square(), 1 - BETA_2)
    m_hat = m / per_item(1 - BETA_1**t, gradient)
    v_hat = v / per_item(1 - BETA_2**t, gradient)
    return state.replace(m=m, v=v), m_hat / (v_hat.sqrt() + TINY)
