"""Out-of-distribution images: what a classifier was not made for, in the shape that it takes.

Used to ask whether a model notices. No label is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from .. import draws
from ..errors import InputError
from . import cifar10, cifar100, digits, svhn
from .corruptions import plasma
from .images import fingerprint
from .pictures import read_image

Shape = tuple[int, int, int]  # (C, H, W)

CIFAR100 = ("test", "cifar-100-python/test")
SVHN = svhn.FILES["test"]
FITTED = "centre cut to the shape, resized bilinearly with antialiasing, 8 bits"


@dataclass(frozen=True, eq=False)
class OutOfDistribution:
    """Out-of-distribution images in the model's shape.

    Attributes:
        name: short, for tables.
        images: uint8 (N, C, H, W).
        pixels: where they come from, and how they were brought to the shape.
    """

    name: str
    images: UInt8[np.ndarray, "n c h w"]
    pixels: str


# --- generated ----------------------------------------------------------------------------------

# The names of the random streams are those of the first version: images stay what they were.


def _noise(count: int, shape: Shape, seed: int) -> Float[Tensor, "n c h w"]:
    return draws.uniform(draws.item_seeds(seed, "foreign-noise", torch.arange(count)), 0, shape)


def _textures(count: int, shape: Shape, seed: int) -> Float[Tensor, "n c h w"]:
    """Clouds in random colours, on half of the images crossed by stripes: smooth, and of nothing.

    Each image's cloud is rough or smooth at random, and so are the stripes' width and direction.
    """
    c, h, w = shape
    seeds = draws.item_seeds(seed, "foreign-textures", torch.arange(count))
    u = draws.uniform(seeds, 0, (4,)).double()
    rough, smooth = (plasma(seeds, h, w, decay) for decay in (1.3, 3.0))
    mix = u[:, 0].view(-1, 1, 1)
    cloud = mix * rough + (1 - mix) * smooth
    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=torch.float64) / h,
        torch.arange(w, dtype=torch.float64) / w,
        indexing="ij",
    )
    angle, waves = u[:, 1].view(-1, 1, 1) * torch.pi, (1 + 7 * u[:, 2]).view(-1, 1, 1)
    phase = waves * (rows * angle.cos() + columns * angle.sin())
    striped = (u[:, 3] < 0.5).view(-1, 1, 1)
    pattern = torch.where(striped, (cloud + 0.5 + 0.5 * (2 * torch.pi * phase).sin()) / 2, cloud)
    first, second = draws.uniform(seeds, 1, (2, c, 1, 1)).double().unbind(1)
    return first + (second - first) * pattern[:, None]


GENERATED: dict[str, tuple[str, Callable[[int, Shape, int], Tensor]]] = {
    "noise": ("uniform noise, generated", _noise),
    "textures": ("clouds and stripes in random colours, generated", _textures),
}


# --- the shape ----------------------------------------------------------------------------------


def fit(images: UInt8[np.ndarray, "n c h w"], shape: Shape) -> UInt8[np.ndarray, "n c h w"]:
    """Images cut to the shape's proportions around the centre, and resized bilinearly.

    Grey becomes colour by repetition, and colour grey by ITU-R BT.601 luma. Images that have the
    shape already are not touched.
    """
    c, h, w = shape
    if images.shape[1:] == shape:
        return images
    x = torch.from_numpy(np.ascontiguousarray(images)).float()
    if x.shape[1] != c:
        if x.shape[1] == 3:
            x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        x = x[:, :1].expand(-1, c, -1, -1)
    high, wide = x.shape[2:]
    scale = min(high / h, wide / w)
    keep_h, keep_w = max(1, round(scale * h)), max(1, round(scale * w))
    top, left = (high - keep_h) // 2, (wide - keep_w) // 2
    x = x[:, :, top : top + keep_h, left : left + keep_w]
    if (keep_h, keep_w) != (h, w):
        x = F.interpolate(x, (h, w), mode="bilinear", antialias=True, align_corners=False)
    return x.round().clamp(0, 255).byte().numpy()


# --- files --------------------------------------------------------------------------------------


def _image_files(place: Path) -> list[Path]:
    """All files below a folder, hidden ones left out, in the order of their paths."""
    try:
        return sorted(
            path
            for path in place.rglob("*")
            if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(place).parts)
        )
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror})") from None


def _chosen(total: int, count: int, seed: int) -> np.ndarray:
    """`count` of `total` rows at random, in their order; all where there are no more."""
    keys = draws.uniform(draws.item_seeds(seed, "foreign", torch.arange(total)), 0)
    return np.sort(keys.argsort(stable=True)[:count].numpy())


def load(source: str | Path, shape: Shape, count: int, *, seed: int = 0) -> OutOfDistribution:
    """Out-of-distribution images by name or folder.

    Args:
        source: `noise`, `textures` or `digits`; a folder with CIFAR-100's files for Python (`test`
            or `cifar-100-python/test`), with SVHN's `test_32x32.mat`, or with CIFAR-10's files
            (the test split); or any folder of images, however nested.
        shape: (C, H, W) of the model, C 1 or 3.
        count: how many at most, drawn at random by `seed`.

    Raises:
        InputError: nothing there; a file that is damaged, hostile or no image; a shape or count
            that images cannot have.

    Example:
        >>> load("textures", (3, 32, 32), 5).images.shape
        (5, 3, 32, 32)
    """
    if shape[0] not in (1, 3) or count < 1:
        raise InputError(f"images have 1 or 3 channels and count ≥ 1, not {shape}, {count}")
    text = str(source)
    if text in GENERATED:
        what, generate = GENERATED[text]
        made = generate(count, shape, seed)
        return OutOfDistribution(text, (made.clamp(0, 1) * 255).round().byte().numpy(), what)
    if text == "digits":
        return _taken(
            text, np.asarray(digits.load().test.images), shape, count, seed, "scikit-learn's digits"
        )
    place = Path(source)
    if not os.path.isdir(place):  # no error, whatever the name is
        known = ", ".join([*GENERATED, "digits"])
        raise InputError(
            f"out-of-distribution images {text!r}: no such folder, and none of {known}"
        )
    for name in CIFAR100:
        if (place / name).is_file():
            return _taken(
                "CIFAR-100",
                cifar100.read_images(place / name),
                shape,
                count,
                seed,
                "CIFAR-100 test images",
            )
    if (place / SVHN).is_file():
        return _taken(
            "SVHN", svhn.read_images(place / SVHN), shape, count, seed, "SVHN test images"
        )
    if cifar10.is_here(place):
        test = cifar10.load(place).test
        return _taken("CIFAR-10", np.asarray(test.images), shape, count, seed, test.pixels)
    files = _image_files(place)
    if not files:
        raise InputError(f"{place}: holds no files; name a folder of images")
    images = np.concatenate(
        [fit(read_image(files[i], None)[None], shape) for i in _chosen(len(files), count, seed)]
    )
    name = place.resolve().name.encode(errors="replace").decode()
    return OutOfDistribution(
        name, images, f"own images, {FITTED} (sha256 of the images: {fingerprint(images)})"
    )


def _taken(
    name: str, images: np.ndarray, shape: Shape, count: int, seed: int, pixels: str
) -> OutOfDistribution:
    fitted = fit(images[_chosen(len(images), count, seed)], shape)
    how = "" if images.shape[1:] == shape else f", {FITTED}"
    return OutOfDistribution(name, fitted, pixels + how)
