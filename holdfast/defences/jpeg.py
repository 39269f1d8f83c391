"""JPEG compression (such as Das et al., 2017; Guo et al., ICLR 2018).

No library's codec serves here. Pillow's works on one image at a time, on the CPU, and has no
surrogate gradient. Differentiable codecs round softly in the forward pass too, so that a model
behind them never gets a real JPEG.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..inputs import whole_number
from ..types import Images, Model
from .base import Defence, smooth_round

# ITU-T T.81, annex K, tables K.1 and K.2
_LUMINANCE = """
16 11 10 16  24  40  51  61    12 12 14 19  26  58  60  55
14 13 16 24  40  57  69  56    14 17 22 29  51  87  80  62
18 22 37 56  68 109 103  77    24 35 55 64  81 104 113  92
49 64 78 87 103 121 120 101    72 92 95 98 112 100 103  99
"""
_CHROMINANCE = """
17 18 24 47  99  99  99  99    18 21 26 66  99  99  99  99
24 26 56 99  99  99  99  99    47 66 99 99  99  99  99  99
99 99 99 99  99  99  99  99    99 99 99 99  99  99  99  99
99 99 99 99  99  99  99  99    99 99 99 99  99  99  99  99
"""
# JFIF 1.02: RGB → Y, Cb, Cr
_TO_YCC = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]

Rounding = Callable[[Tensor], Tensor]


def _table(text: str, quality: int) -> Tensor:
    """The quantisation table (8, 8) of a quality, scaled as the Independent JPEG Group does."""
    base = torch.tensor([int(number) for number in text.split()]).view(8, 8)
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((base * percent + 50) // 100).clamp(1, 255).float()


def _dct() -> Tensor:
    """The orthonormal cosine transform (8, 8) of 8 values: frequencies × places."""
    k, i = torch.arange(8.0)[:, None], torch.arange(8.0)
    scale = torch.where(k == 0, math.sqrt(1 / 8), math.sqrt(2 / 8))
    return scale * torch.cos((2 * i + 1) * k * math.pi / 16)


def _half_away(x: Tensor) -> Tensor:
    """Round halves away from 0, as JPEG encoders do. Exact halves are common in flat blocks."""
    return torch.sign(x) * torch.floor(x.abs() + 0.5 + 1e-4)


class Jpeg(Defence):
    """Compresses each image as a JPEG file and decompresses it.

    This is baseline JPEG with the standard tables and half the chroma resolution (4:2:0), as Pillow
    and libjpeg compress by default: 8-bit pixels, YCbCr, 8×8 cosine transform, quantisation, and
    back with bilinear chroma. Grey images (C = 1) have no chroma.

    The surrogate rounds coefficients with `smooth_round`, and does not round pixels.

    Args:
        model: images → logits.
        quality: 1 (coarse) to 100.

    Raises:
        InputError: at the forward pass, if images have neither 1 nor 3 channels.

    Example:
        >>> Jpeg(lambda images: images.flatten(1), quality=50)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3072])
    """

    name = "jpeg"
    backwards = ("surrogate", "identity")
    dct: Tensor
    luminance: Tensor
    chrominance: Tensor
    to_ycc: Tensor

    def __init__(self, model: Model, *, quality: int = 75):
        whole_number(f"{self.name}: quality", quality, 1, 100)
        super().__init__(model, quality=quality)
        for name, value in (
            ("dct", _dct()),
            ("luminance", _table(_LUMINANCE, quality)),
            ("chrominance", _table(_CHROMINANCE, quality)),
            ("to_ycc", torch.tensor(_TO_YCC)),
        ):
            self.register_buffer(name, value, persistent=False)

    def transform(self, images: Images) -> Images:
        return self._codec(images, torch.round, _half_away)

    def surrogate(self, images: Images) -> Images:
        # Clean pixels are 8-bit numbers, where a smooth staircase has slope 0: leave them alone.
        return self._codec(images, lambda pixels: pixels, smooth_round)

    def _codec(
        self, images: Images, round_pixels: Rounding, round_coefficients: Rounding
    ) -> Images:
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            raise InputError(f"jpeg: images must have 1 or 3 channels, not {channels}")
        unit = 8 if channels == 1 else 16
        pixels = F.pad(images, (0, -width % unit, 0, -height % unit), mode="replicate") * 255
        pixels = round_pixels(pixels)

        def plane(values: Tensor, table: Tensor) -> Tensor:
            return round_pixels(self._blocks(values, table, round_coefficients).clamp(0, 255))

        if channels == 1:
            decoded = plane(pixels, self.luminance)
        else:
            to_ycc = self.to_ycc.to(images)
            centre = torch.tensor([0, 128, 128]).to(images).view(3, 1, 1)
            ycc = round_pixels(torch.einsum("yr,nrhw->nyhw", to_ycc, pixels) + centre)
            luma = plane(ycc[:, :1], self.luminance)
            chroma = plane(round_pixels(F.avg_pool2d(ycc[:, 1:], 2)), self.chrominance)
            chroma = round_pixels(
                F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
            )
            ycc = torch.cat([luma, chroma], 1) - centre
            rgb = torch.einsum("ry,nyhw->nrhw", torch.linalg.inv(to_ycc), ycc)
            decoded = round_pixels(rgb.clamp(0, 255))
        return decoded[:, :, :height, :width] / 255

    def _blocks(self, plane: Images, table: Tensor, round_coefficients: Rounding) -> Images:
        """Quantise the cosine coefficients of every 8×8 block of every channel."""
        dct, table = self.dct.to(plane), table.to(plane).view(8, 1, 8)
        blocks = (plane - 128).unflatten(3, (-1, 8)).unflatten(2, (-1, 8))
        coefficients = torch.einsum("ki,ncyixj,lj->ncykxl", dct, blocks, dct)
        quantised = round_coefficients(coefficients / table) * table
        blocks = torch.einsum("ki,ncykxl,lj->ncyixj", dct, quantised, dct)
        return blocks.flatten(4, 5).flatten(2, 3) + 128
