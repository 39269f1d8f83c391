"""A small convolutional network for 8×8 digits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..inputs import whole_number
from .layers import Normalise


class SmallCNN(nn.Module):
    """Two convolutions with batch norm, an average and a linear layer, for 8×8 digits.

    Args:
        width: channels of the first convolution; the second has twice as many.
        classes: number of classes.
        mean, std: normalisation per channel; their length is the number of image channels.

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> SmallCNN(width=8)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        width: int = 32,
        classes: int = 10,
        mean: Sequence[float] = (0.3053,),
        std: Sequence[float] = (0.3760,),
    ):
        super().__init__()
        whole_number("width", width)
        whole_number("classes", classes)
        self.normalise = Normalise(mean, std)
        self.body = nn.Sequential(
            nn.Conv2d(len(mean), width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveMaxPool2d(2)
        self.linear = nn.Linear(8 * width, classes)

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The input (N, D) of the linear layer."""
        return torch.flatten(self.pool(self.body(self.normalise(images))), 1)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.linear(self.features(images))
