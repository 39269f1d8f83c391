"""Bit-depth reduction (Xu, Evans & Qi, "Feature squeezing", NDSS 2018)."""

from __future__ import annotations

import torch

from ..inputs import whole_number
from ..types import Images, Model
from .base import Defence, smooth_round


class BitDepth(Defence):
    """Rounds every value to the nearest of 2^bits evenly spaced values from 0 to 1.

    Args:
        model: images → logits.
        bits: 1 to 8.

    Example:
        >>> BitDepth(lambda images: images.flatten(1), bits=1)(torch.tensor([[[[0.2, 0.6]]]]))
        tensor([[0., 1.]])
    """

    name = "bit-depth"
    backwards = ("identity", "surrogate")

    def __init__(self, model: Model, *, bits: int = 4):
        self.top = 2 ** whole_number(f"{self.name}: bits", bits, 1, 8) - 1
        super().__init__(model, bits=bits)

    def transform(self, images: Images) -> Images:
        return torch.round(images * self.top) / self.top

    def surrogate(self, images: Images) -> Images:
        """The staircase with rounded edges."""
        return smooth_round(images * self.top) / self.top
