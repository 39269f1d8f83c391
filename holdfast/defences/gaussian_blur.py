"""Gaussian smoothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..threat import Images
from .base import Defence, Model, fits, real_number


class GaussianBlur(Defence):
    """Convolves every channel with a Gaussian, cut off at four standard deviations.

    The border is continued with its own values.

    Args:
        model: images → logits.
        sigma: standard deviation in pixels, above 0.
    """

    name = "gaussian-blur"

    def __init__(self, model: Model, *, sigma: float = 0.5):
        self.sigma = real_number(self.name, "sigma", sigma, above=0)
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
