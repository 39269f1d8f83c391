"""TrivialAugment: one random operation of random strength an image, a whole batch at once.

Müller & Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", ICCV 2021,
with its smaller ranges (those of RandAugment).

Torchvision's `TrivialAugmentWide` draws one operation for a whole batch, from torch's global
generator. Here each image has an operation of its own, which its seed decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from .. import draws
from ..threat import per_item
from ..types import Images

# (images, strength in [0, 1], sign ±1) → images, which need not lie in [0, 1]
Operation = Callable[[Images, Float[Tensor, " n"], Float[Tensor, " n"]], Images]

LUMA = (0.299, 0.587, 0.114)


def _warp(images: Images, matrix: Float[Tensor, "n 2 3"]) -> Images:
    """Each image through an affine map in coordinates −1..1; what comes from outside is black."""
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)


def _affine(images: Images, **entries: Tensor) -> Images:
    matrix = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    for place, value in entries.items():
        matrix[:, int(place[1]), int(place[2])] = value
    return _warp(images, matrix)


def shear_x(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """Rows are shifted in proportion to their height: by up to 0.3 pixels a pixel."""
    return _affine(images, m01=sign * 0.3 * strength)


def shear_y(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """Columns are shifted in proportion to their place: by up to 0.3 pixels a pixel."""
    return _affine(images, m10=sign * 0.3 * strength)


def translate_x(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """Shifted sideways by up to 0.3 of the width."""
    return _affine(images, m02=sign * 0.6 * strength)  # the width is 2


def translate_y(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """Shifted up or down by up to 0.3 of the height."""
    return _affine(images, m12=sign * 0.6 * strength)


def rotate(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """Turned about the centre by up to 30°."""
    angle = sign * strength * (torch.pi / 6)
    return _affine(images, m00=angle.cos(), m01=-angle.sin(), m10=angle.sin(), m11=angle.cos())


def _blend(images: Images, towards: Tensor, strength: Tensor, sign: Tensor) -> Images:
    """0.1 to 1.9 times the way from `towards` to the image."""
    return towards + per_item(1 + 0.9 * sign * strength, images) * (images - towards)


def _grey(images: Images) -> Float[Tensor, "n 1 h w"]:
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def brightness(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """0.1 to 1.9 times as bright."""
    return _blend(images, torch.zeros_like(images), strength, sign)


def colour(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """0.1 to 1.9 times as far from grey."""
    return _blend(images, _grey(images).expand_as(images), strength, sign)


def contrast(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """0.1 to 1.9 times as far from the image's mean grey."""
    return _blend(images, _grey(images).mean((2, 3), keepdim=True), strength, sign)


def sharpness(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """0.1 to 1.9 times as far from the softened image."""
    channels = images.shape[1]
    kernel = images.new_ones(3, 3)
    kernel[1, 1] = 5
    kernel = (kernel / 13).expand(channels, 1, 3, 3)
    soft = F.conv2d(F.pad(images, (1, 1, 1, 1), "replicate"), kernel, groups=channels)
    return _blend(images, soft, strength, sign)


def posterise(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """8 bits a channel down to 4."""
    step = per_item(2.0 ** (4 * strength).round(), images)
    return ((images * 255).round() / step).floor() * step / 255


def solarise(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """What is brighter than the threshold becomes its negative."""
    return torch.where(images > per_item(1 - strength, images), 1 - images, images)


def autocontrast(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """Each channel's darkest value becomes 0 and its brightest 1."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


def equalise(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """Each of 256 grey levels becomes the share of the channel's pixels that lie below it."""
    n, channels = images.shape[:2]
    levels = (images * 255).round().long().view(n, channels, -1)
    counts = torch.zeros(n, channels, 256, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels, dtype=counts.dtype))
    below = counts.cumsum(2) - counts
    # The darkest level that occurs becomes 0 and the brightest 1.
    brightest = below.gather(2, levels.amax(2, keepdim=True))
    mapped = below.gather(2, levels) / brightest.clamp_min(1)
    flat = brightest == 0  # one level only
    return torch.where(flat, images.view(n, channels, -1), mapped).view_as(images)


def identity(images: Images, strength: Tensor, sign: Tensor) -> Images:
    """Nothing is changed."""
    return images


OPERATIONS: tuple[Operation, ...] = (
    identity,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
    brightness,
    colour,
    contrast,
    sharpness,
    posterise,
    solarise,
    autocontrast,
    equalise,
)


def trivial_augment(images: Images, seeds: Int64[Tensor, " n"], view: int = 0) -> Images:
    """One random operation on each image.

    Args:
        images: in [0, 1], on any device.
        seeds: one an image: what is drawn depends on it and on `view` alone.
        view: which of several augmentations of the same image this is.

    Returns:
        Images in [0, 1], in the layout of the images given.
    """
    draw = draws.uniform(seeds, 1_000_000 + view, (3,))  # far from what attacks draw
    choice = (draw[:, 0] * len(OPERATIONS)).long()
    strength, sign = draw[:, 1], torch.where(draw[:, 2] < 0.5, -1.0, 1.0)
    return operated(images, OPERATIONS, choice, strength, sign)


def operated(
    images: Images,
    operations: Sequence[Operation],
    choice: Int64[Tensor, " n"],
    strength: Float[Tensor, " n"],
    sign: Float[Tensor, " n"],
) -> Images:
    """Each image after the operation that `choice` numbers; −1 leaves it as it is.

    Returns:
        Images in [0, 1], in the layout of the images given.
    """
    out = images.clone()
    for number, operation in enumerate(operations):
        rows = (choice == number).nonzero().squeeze(1)
        if len(rows):
            made = operation(images[rows].contiguous(), strength[rows], sign[rows])
            out[rows] = made.clamp(0, 1)
    return out
