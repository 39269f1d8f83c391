"""Thermometer encoding (Buckman et al., ICLR 2018)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..threat import Images
from .base import Defence, Model, replace_backward, whole_number


class Thermometer(Defence):
    """Writes every value x as `levels` bits, of which bit l (from 0) says x ≥ (l + ½) / levels.

    A model made for the encoding takes levels × C channels (the bits of a channel stand
    together). Any other model is shown the mean of the bits, which is x rounded to the nearest
    multiple of 1 / levels: by default, so that the defence goes in front of every model.

    Buckman et al. put their thresholds at l / levels, where one bit is always set.

    Args:
        model: images → logits; with `decode=False`, (N, levels × C, H, W) → logits.
        levels: number of bits, 2 to 256.
        decode: whether the model takes images.
    """

    name = "thermometer"
    backwards = ("identity", "surrogate")

    def __init__(self, model: Model, *, levels: int = 16, decode: bool = True):
        self.levels = whole_number(self.name, "levels", levels, 2, 256)
        self.decode = decode
        super().__init__(model, levels=levels, decode=decode)

    def _excess(self, images: Images) -> Float[Tensor, "n c l h w"]:
        """How far x lies above each threshold, in levels."""
        thresholds = torch.arange(self.levels, device=images.device) + 0.5
        return images.unsqueeze(2) * self.levels - thresholds.view(-1, 1, 1)

    def encode(self, images: Images) -> Float[Tensor, "n c*l h w"]:
        """The bits, as 0.0 and 1.0."""
        return (self._excess(images) >= 0).to(images.dtype).flatten(1, 2)

    def soft_code(self, images: Images) -> Float[Tensor, "n c*l h w"]:
        """The bits with a smooth transition, about one level wide, around each threshold."""
        return torch.sigmoid(8 * self._excess(images)).flatten(1, 2)

    def transform(self, images: Images) -> Images:
        return self.encode(images).unflatten(1, (-1, self.levels)).mean(2)

    def surrogate(self, images: Images) -> Images:
        return self.soft_code(images).unflatten(1, (-1, self.levels)).mean(2)

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        if self.decode:
            return super().forward(images)
        if self.backward == "surrogate":
            stand_in = self.soft_code(images)
        else:
            stand_in = images.repeat_interleave(self.levels, 1)
        return self.model(replace_backward(self.encode(images), stand_in))
