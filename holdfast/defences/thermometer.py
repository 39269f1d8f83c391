"""Thermometer encoding (Buckman et al., ICLR 2018)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..inputs import whole_number
from ..types import Images, Model
from .base import Defence, replace_backward


class Thermometer(Defence):
    """Encodes every value x as `levels` bits. Bit l = 0, 1, … is 1 where x ≥ (l + ½) / levels.

    A model made for the encoding takes levels × C channels, in which the bits of a channel are
    neighbours. By default, the model gets the mean of the bits, which is x rounded to the nearest
    multiple of 1 / levels, so that the defence suits every model.

    Buckman et al. put their thresholds at l / levels, where the first bit is always 1.

    Args:
        model: images → logits; with `decode=False`, (N, levels × C, H, W) → logits.
        levels: number of bits, 2 to 256.
        decode: whether the model takes images.

    Example:
        >>> images = torch.tensor([[[[0.2, 0.6]]]])
        >>> Thermometer(lambda images: images.flatten(1), levels=4)(images)
        tensor([[0.2500, 0.5000]])
    """

    name = "thermometer"
    backwards = ("identity", "surrogate")

    def __init__(self, model: Model, *, levels: int = 16, decode: bool = True):
        self.levels = whole_number(f"{self.name}: levels", levels, 2, 256)
        self.decode = decode
        super().__init__(model, levels=levels, decode=decode)

    def _excess(self, images: Images) -> Float[Tensor, "n c l h w"]:
        """x minus each threshold, in levels."""
        thresholds = torch.arange(self.levels, device=images.device) + 0.5
        return images.unsqueeze(2) * self.levels - thresholds.view(-1, 1, 1)

    def encode(self, images: Images) -> Float[Tensor, "n c*l h w"]:
        """The bits, as 0.0 and 1.0."""
        return (self._excess(images) >= 0).to(images.dtype).flatten(1, 2)

    def soft_code(self, images: Images) -> Float[Tensor, "n c*l h w"]:
        """The bits, each with a smooth transition of about one level around its threshold."""
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
