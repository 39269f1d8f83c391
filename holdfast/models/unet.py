"""A small diffusion model: a U-Net that removes Gaussian noise of any known strength.

The parametrisation is that of Karras et al., "Elucidating the design space of diffusion-based
generative models" (EDM), NeurIPS 2022, table 1; the network is a U-Net (Ronneberger et al., 2015)
as in Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020, without attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..inputs import whole_number
from ..threat import per_item
from ..types import Images
from .layers import Normalise
from .resnet import CIFAR10_MEAN, CIFAR10_STD


class _Block(nn.Module):
    """norm → activation → 3×3 → norm, scaled and shifted by the noise level → 3×3, added."""

    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.modulate = nn.Linear(embedding, 2 * outputs)
        self.norm2 = _norm(outputs)
        self.conv2 = _zero(nn.Conv2d(outputs, outputs, 3, 1, 1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return h + self.shortcut(x)


class DenoisingUNet(nn.Module):
    """D(x, σ): an estimate of the clean image, given x = image + N(0, σ²I).

    Args:
        width: channels at full resolution; lower resolutions have twice as many.
        levels: number of resolutions, each half of the one before: 2 for 8×8 digits, 3 for 32×32.
        blocks: residual blocks of a level, on the way down and again on the way up.
        mean, std: of the images per channel; their length is the number of image channels.
        least_noise, most_noise: the smallest and largest σ of training, in image units.

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> network = DenoisingUNet(width=8, levels=2, mean=[0.3], std=[0.4])
        >>> network(torch.rand(2, 1, 8, 8), torch.tensor([0.1, 0.5])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        *,
        width: int = 32,
        levels: int = 3,
        blocks: int = 1,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        least_noise: float = 0.01,
        most_noise: float = 1.0,
    ):
        super().__init__()
        whole_number("width", width)
        whole_number("levels", levels, 1, 16)
        whole_number("blocks", blocks)
        if not 0 < least_noise < most_noise < math.inf:
            raise InputError(
                "least_noise must be above 0 and below most_noise, "
                f"not {least_noise!r} with {most_noise!r}"
            )
        self.normalise = Normalise(mean, std)
        self.data_std = sum(std) / len(std)
        self.least_noise, self.most_noise = float(least_noise), float(most_noise)
        self.frequencies, embedding = 16, 4 * width
        self.embed = nn.Sequential(
            nn.Linear(2 * self.frequencies, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.stem = nn.Conv2d(len(mean), width, 3, 1, 1)
        widths = [width if level == 0 else 2 * width for level in range(levels)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        channels = width
        for outputs in widths:
            self.down.append(_blocks(channels, outputs, blocks, embedding))
            channels = outputs
        self.middle = _Block(channels, channels, embedding)
        for outputs in reversed(widths):
            self.up.append(_blocks(channels + outputs, outputs, blocks, embedding))
            channels = outputs
        self.norm = _norm(channels)
        self.head = _zero(nn.Conv2d(channels, len(mean), 3, 1, 1))

    def forward(self, images: Images, sigma: Float[Tensor, " n"]) -> Images:
        """The denoised images.

        Args:
            images: noisy, (N, C, H, W).
            sigma: (N,), the standard deviation of each image's noise, in image units.
        """
        s, sigma = self.data_std, per_item(sigma, images)
        total = (sigma**2 + s**2).sqrt()
        centred = images - self.normalise.mean
        shown = self._network(centred / total, sigma.flatten().log() / 4).float()
        denoised = (s / total) ** 2 * centred + sigma * s / total * shown
        return denoised + self.normalise.mean

    def weight(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The weight (N,) of a squared error at noise σ in training, so that all σ count alike."""
        return (sigma**2 + self.data_std**2) / (sigma * self.data_std) ** 2

    def _network(self, x: Tensor, level: Float[Tensor, " n"]) -> Tensor:
        rates = 2 ** torch.linspace(-2, 5, self.frequencies, device=x.device)
        angles = 2 * level[:, None] * rates
        embedding = F.silu(self.embed(torch.cat([angles.sin(), angles.cos()], 1)))
        h = self.stem(x)
        skips = []
        for depth, blocks in enumerate(self.down):
            if depth:
                h = F.avg_pool2d(h, 2, ceil_mode=True)
            h = _through(blocks, h, embedding)
            skips.append(h)
        h = self.middle(h, embedding)
        for blocks in self.up:
            skip = skips.pop()
            if h.shape[2:] != skip.shape[2:]:
                h = F.interpolate(h, skip.shape[2:])
            h = _through(blocks, torch.cat([h, skip], 1), embedding)
        return self.head(F.silu(self.norm(h)))


def _blocks(inputs: int, outputs: int, count: int, embedding: int) -> nn.ModuleList:
    return nn.ModuleList(
        _Block(inputs if i == 0 else outputs, outputs, embedding) for i in range(count)
    )


def _through(blocks: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    for block in blocks.children():
        h = block(h, embedding)
    return h


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """A block begins as its shortcut, the whole network as a constant (Ho et al.)."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
