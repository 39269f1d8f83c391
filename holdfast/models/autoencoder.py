"""A denoising autoencoder (Vincent et al., 2008)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..inputs import whole_number
from ..types import Images


class DenoisingAutoencoder(nn.Module):
    """Two convolutions down to a quarter of each side, and two up again: noisy to clean images.

    Args:
        channels: of the images.
        width: channels of the first convolution; the code has twice as many.

    Raises:
        InputError: an argument that is no whole number of at least 1.

    Example:
        >>> DenoisingAutoencoder(channels=1, width=4)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, *, channels: int = 3, width: int = 32):
        super().__init__()
        whole_number("channels", channels)
        whole_number("width", width)
        self.arguments = {"channels": channels, "width": width}
        self.down1 = nn.Conv2d(channels, width, 3, 2, 1)
        self.down2 = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.up1 = nn.Conv2d(2 * width, width, 3, 1, 1)
        self.up2 = nn.Conv2d(width, channels, 3, 1, 1)

    def forward(self, images: Images) -> Images:
        half = F.relu(self.down1(images))
        code = F.relu(self.down2(half))
        half_again = F.relu(self.up1(F.interpolate(code, half.shape[2:])))
        return torch.sigmoid(self.up2(F.interpolate(half_again, images.shape[2:])))
