"""Gaussian smoothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..inputs import real_number
from ..types import Images, Model
from .base import Defence, fits


class GaussianBlur(Defence):
    """Convolves every channel with a Gaussian, which is cut off at four standard deviations.

    Beyond the image's border, its outermost values are repeated.

    Args:
        model: images → logits.
        sigma: standard deviation in pixels, above 0.

    Raises:
        InputError: at the forward pass, if the Gaussian is larger than the images.

    Example:
        >>> GaussianBlur(lambda images: images.flatten(1), sigma=1.0)(torch.rand(2, 1, 9, 9)).shape
        torch.Size([2, 81])
    """

    name = "gaussian-blur"

    def __init__(self, model: Model, *, sigma: float = 0.5):
        self.sigma = real_number(f"{self.name}: sigma", sigma, above=0)
        super().__init__(model, sigma=sigma)

    def transform(self, images: Images) -> Images:
        radius = int(4 * self.sigma + 0.5)
        fits(self.name, 2 * radius + 1, images)
        offset = torch.arange(-radius, radius + 1).to(images)
        weights = torch.softmax(-(offset**2) / (2 * self.sigma**2), 0)
        channels = images.shape[1]
        rows = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        padded = F.pad(images, [radius] * 4, mode="replicate")
        blurred = F.conv2d(padded, rows, groups=channels)
        return F.conv2d(blurred, rows.transpose(2, 3), groups=channels)
