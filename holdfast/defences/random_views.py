"""Random views of an image: resized and padded, or cropped.

Xie et al., "Mitigating adversarial effects through randomization", ICLR 2018; Guo et al.,
"Countering adversarial images using input transformations", ICLR 2018.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from .. import draws
from ..draws import repeated_draws
from ..inputs import real_number, whole_number
from ..types import Images, Model
from .base import Defence

# The place of a view in its image: (top, left) and (height, width), in pixels.
Window = tuple[Int64[Tensor, "n 2"], Int64[Tensor, "n 2"]]


def _random_window(seeds: Int64[Tensor, " n"], smallest: float, images: Images) -> Window:
    """A window at a uniformly random place, with a random share in [smallest, 1] of the sides."""
    sides = torch.tensor(images.shape[2:], device=images.device)
    share = 1 - draws.uniform(seeds, 0) * (1 - smallest)
    size = (share[:, None] * sides).round().long().clamp_min(1)
    corner = draws.integers(seeds, 1, sides - size + 1, (2,))
    return corner, size


def _resample(
    images: Images, scale: Float[Tensor, "n 2"], shift: Float[Tensor, "n 2"]
) -> tuple[Images, Float[Tensor, "n h w 2"]]:
    """Bilinear resampling: the output at p is the input at scale · p + shift.

    Coordinates run from −1 to 1 between the image's edges. Scale and shift are in order (y, x).

    Returns:
        the images, and the coordinates (x, y) in the input that they were read at.
    """
    scale, shift = scale.to(images).flip(1), shift.to(images).flip(1)
    theta = torch.cat([torch.diag_embed(scale), shift.unsqueeze(2)], 2)
    places = F.affine_grid(theta, list(images.shape), align_corners=False)
    out = F.grid_sample(images, places, padding_mode="border", align_corners=False)
    return out, places


class ResizePad(Defence):
    """Shrinks each image to a random size and puts it at a random place on black.

    Resampling is bilinear. Each forward pass draws a new size and place for each image.

    Args:
        model: images → logits.
        smallest: the smallest size, as a share of the image's sides, above 0 and at most 1.

    Example:
        >>> ResizePad(lambda images: images.flatten(1))(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3072])
    """

    name = "resize-pad"
    random = True

    def __init__(self, model: Model, *, smallest: float = 0.875):
        self.smallest = real_number(f"{self.name}: smallest", smallest, above=0, at_most=1)
        super().__init__(model, smallest=smallest)

    def transform(self, images: Images) -> Images:
        corner, size = _random_window(self.draw_seeds(images), self.smallest, images)
        sides = torch.tensor(images.shape[2:], device=images.device)
        resized, places = _resample(images, sides / size, (sides - 2 * corner) / size - 1)
        return resized * (places.abs() <= 1).all(3).unsqueeze(1)


class CropEnsemble(Defence):
    """Averages the model's probabilities over random crops, each enlarged to the full image.

    Resampling is bilinear. Each forward pass draws new crops for each image, and returns the
    logarithm of the mean probabilities.

    Args:
        model: images → logits.
        crops: number of crops of an image, at least 1.
        size: side of a crop, as a share of the image's, above 0 and at most 1.

    Cost: a forward pass takes `crops` passes of the model, in one batch.

    Example:
        >>> CropEnsemble(lambda images: images.flatten(1), crops=4)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 64])
    """

    name = "crop-ensemble"
    random = True

    def __init__(self, model: Model, *, crops: int = 10, size: float = 0.875):
        self.crops = whole_number(f"{self.name}: crops", crops, 1)
        self.size = real_number(f"{self.name}: size", size, above=0, at_most=1)
        super().__init__(model, crops=crops, size=size)

    def transform(self, images: Images) -> Images:
        """One random crop of each image."""
        sides = torch.tensor(images.shape[2:], device=images.device)
        size = (self.size * sides).round().long().clamp_min(1).expand(len(images), 2)
        corner = draws.integers(self.draw_seeds(images), 0, sides - size + 1, (2,))
        return _resample(images, size / sides, (2 * corner + size) / sides - 1)[0]

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        with repeated_draws(self.crops):
            logits = super().forward(images.repeat_interleave(self.crops, 0))
        votes = logits.log_softmax(1).unflatten(0, (len(images), self.crops))
        return votes.logsumexp(1) - math.log(self.crops)
