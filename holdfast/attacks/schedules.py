"""How step sizes and rates change in the course of a search."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def cosine(k: Int64[Tensor, " n"], steps: int, first: float, last: float) -> Float[Tensor, " n"]:
    """From `first` at iteration 0 to `last` at iteration `steps` and after, along half a cosine;
    k int64 (N,)."""
    share = (k / steps).clamp_max(1)
    return last + (first - last) * (1 + (torch.pi * share).cos()) / 2
