"""Colour quantisation."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..inputs import whole_number
from ..types import Images, Model
from .base import Defence

_ROUNDS = 8  # of k-means; the error has all but settled by then
_GOLDEN = (5**0.5 - 1) / 2


class Palette(Defence):
    """Redraws every image with few colours, which k-means in RGB chooses for each image.

    The first colours are spread out as by k-means++ (Arthur & Vassilvitskii, 2007), with an evenly
    spread sequence in place of random draws. Lloyd's iterations then move them.

    Args:
        model: images → logits.
        colours: number of colours of an image, 2 to 256.

    Example:
        >>> images = torch.tensor([[[[0.0, 0.1], [0.9, 1.0]]]])
        >>> Palette(lambda images: images.flatten(1), colours=2)(images)
        tensor([[0.0500, 0.0500, 0.9500, 0.9500]])
    """

    name = "palette"
    backwards = ("identity", "surrogate")

    def __init__(self, model: Model, *, colours: int = 64):
        self.colours = whole_number(f"{self.name}: colours", colours, 2, 256)
        super().__init__(model, colours=colours)

    def palette(self, images: Images) -> Float[Tensor, "n k c"]:
        """The K colours of each image. No gradient flows through their choice."""
        pixels = _pixels(images.detach())
        palette = _spread(pixels, self.colours)
        for _ in range(_ROUNDS):
            nearest = _distances(pixels, palette).argmin(2)
            palette = _means(pixels, nearest, palette)
        return palette

    def transform(self, images: Images) -> Images:
        palette = self.palette(images)
        nearest = _distances(_pixels(images), palette).argmin(2)
        return _images(_pick(palette, nearest), images)

    def surrogate(self, images: Images) -> Images:
        return self.soften(images, self.palette(images))

    def soften(self, images: Images, palette: Float[Tensor, "n k c"]) -> Images:
        """Each pixel as a weighted mean of the palette; nearer colours weigh more.

        The weights are those of a Gaussian around each colour. Its variance is the image's mean
        squared quantisation error.
        """
        distances = _distances(_pixels(images), palette)
        variance = distances.detach().amin(2).mean(1).clamp_min(1e-6) / images.shape[1]
        weights = torch.softmax(-distances / (2 * variance[:, None, None]), 2)
        return _images(weights @ palette, images)


def _pixels(images: Images) -> Float[Tensor, "n p c"]:
    return images.flatten(2).transpose(1, 2)


def _images(pixels: Float[Tensor, "n p c"], like: Images) -> Images:
    return pixels.transpose(1, 2).reshape(like.shape)


def _distances(pixels: Float[Tensor, "n p c"], palette: Float[Tensor, "n k c"]) -> Tensor:
    """Squared distances, (N, P, K)."""
    squares = (pixels**2).sum(2, keepdim=True) + (palette**2).sum(2).unsqueeze(1)
    return torch.baddbmm(squares, pixels, palette.transpose(1, 2), alpha=-2)


def _pick(colours: Float[Tensor, "n k c"], index: Int64[Tensor, "n p"]) -> Tensor:
    return colours.gather(1, index.unsqueeze(2).expand(-1, -1, colours.shape[2]))


def _spread(pixels: Float[Tensor, "n p c"], count: int) -> Float[Tensor, "n k c"]:
    """First colours: the pixel nearest the mean, then pixels that are far from all chosen ones.

    k-means++ draws a pixel with a probability proportional to its squared distance from the nearest
    chosen one. Here the golden-ratio sequence, which fills (0, 1) evenly, takes the place of the
    uniform draws.
    """
    first = ((pixels - pixels.mean(1, keepdim=True)) ** 2).sum(2).argmin(1, keepdim=True)
    chosen = [_pick(pixels, first)]
    farness = torch.full_like(pixels[:, :, 0], torch.inf)
    while len(chosen) < count:
        farness = farness.minimum(((pixels - chosen[-1]) ** 2).sum(2))
        mass = farness.cumsum(1)
        cut = mass[:, -1:] * (len(chosen) * _GOLDEN % 1)
        chosen.append(_pick(pixels, torch.searchsorted(mass, cut)))
    return torch.cat(chosen, 1)


def _means(pixels: Tensor, nearest: Int64[Tensor, "n p"], palette: Tensor) -> Tensor:
    """The mean of each colour's pixels; a colour without any stays where it is."""
    index = nearest.unsqueeze(2).expand_as(pixels)
    sums = torch.zeros_like(palette).scatter_add_(1, index, pixels)
    counts = torch.zeros_like(palette).scatter_add_(1, index, torch.ones_like(pixels))
    return torch.where(counts > 0, sums / counts.clamp_min(1), palette)
