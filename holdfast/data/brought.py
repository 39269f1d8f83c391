"""Images of a data set brought to another shape: one channel, or another size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..errors import InputError
from .base import DataSet, Split
from .images import IN_MEMORY, ImageArray, LazyImages

LARGEST_SIDE = 7_000  # pixels to which images can be brought
_LUMA = np.array([19595, 38470, 7471], np.uint32)  # BT.601 in 65536ths, as Pillow has it


@dataclass(frozen=True)
class Remembered:
    """What a model's card says of the images that it was trained on.

    Attributes:
        size: height and width, where both are the same; None: unknown.
        channels: 1 or 3; None: unknown.
        fitted: its own images were brought to that size.
    """

    size: int | None = None
    channels: int | None = None
    fitted: bool = False

    @classmethod
    def of(cls, images: Mapping[str, Any] | None) -> Remembered:
        """From the card's `images`, which may be anybody's."""
        held = images or {}
        height, width, channels = (held.get(key) for key in ("height", "width", "channels"))
        side = type(height) is int and height == width and 1 <= height <= LARGEST_SIDE
        how = held.get("brought")
        fitted = isinstance(how, dict) and "size" in how
        return cls(height if side else None, channels if channels in (1, 3) else None, fitted)

    def wanted(self, shape: tuple[int, ...]) -> int | None:
        """The size to which images are brought of which the first has the shape (C, H, W); None
        where they may stay as they are."""
        return self.size if self.fitted or shape[1:] != (self.size, self.size) else None

    def apply(self, dataset: DataSet) -> DataSet:
        """Images of one's own in the size of the model, with a line that says so."""
        made = to_size(dataset, self.size)
        if made is dataset or self.size is None:
            return dataset
        return replace(made, told=(*made.told, self.line(self.size)))

    @staticmethod
    def line(size: int) -> str:
        """What is said where images were brought to a model's size."""
        return (
            f"images are brought to {size}×{size} (centre cut and resized), the size that the model"
            " was trained at"
        )


def grey(image: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "1 h w"]:
    """One channel by ITU-R BT.601 luma, as Pillow's mode L.

    Example:
        >>> grey(np.full((3, 1, 1), 77, np.uint8)).tolist()
        [[[77]]]
    """
    levels = np.tensordot(_LUMA, image.astype(np.uint32), 1) + 0x8000 >> 16
    return levels[None].astype(np.uint8)


def square(image: UInt8[np.ndarray, "c h w"], size: int) -> UInt8[np.ndarray, "c s s"]:
    """The centre cut to a square, and brought to that height and width (bicubic)."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    made = np.asarray(cut(Image.fromarray(np.ascontiguousarray(pixels)), size))
    return made[None] if made.ndim == 2 else made.transpose(2, 0, 1)


def cut(picture: Image.Image, size: int) -> Image.Image:
    """The same of a picture of Pillow's."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    # Cut before resizing, or what is cut off would still blend into the border.
    centre = picture.crop((left, top, left + side, top + side))
    return centre.resize((size, size), Image.Resampling.BICUBIC)


def check_size(size: int | None) -> None:
    """InputError where no image can be of that size."""
    if size is not None and (type(size) is not int or not 1 <= size <= LARGEST_SIDE):
        raise InputError(f"size must be 1 to {LARGEST_SIDE} pixels, not {size!r}")


def to_grey(dataset: DataSet) -> DataSet:
    """The data set with images of one channel; the same where they have one already."""
    channels, height, width = dataset.shape
    if channels == 1:
        return dataset
    if channels != 3:
        raise InputError(f"--grey: images of {dataset.name} have {channels} channels, not 3")
    changed = _changed(dataset, grey, (1, height, width), "grey (BT.601 luma)")
    return replace(changed, brought={**dataset.brought, "grey": True})


def to_size(dataset: DataSet, size: int | None) -> DataSet:
    """The data set with square images; the same where they are of that size already.

    Raises:
        InputError: a size that no image can have.
    """
    check_size(size)
    channels, height, width = dataset.shape
    if size is None or (height, width) == (size, size):
        return dataset
    shape = (channels, size, size)
    said = f"{size}×{size}, centre cut and resized"
    changed = _changed(dataset, lambda image: square(image, size), shape, said)
    return replace(changed, brought={**dataset.brought, "size": size})


Change = Callable[[np.ndarray], np.ndarray]


def _changed(dataset: DataSet, change: Change, shape: tuple[int, int, int], said: str) -> DataSet:
    """Every image changed; lazily where images are lazy, or more than memory should hold."""

    def of(split: Split) -> Split:
        images = split.images
        changed: ImageArray = LazyImages(lambda row: change(images[row]), len(split), shape)
        if changed.nbytes <= IN_MEMORY and isinstance(images, np.ndarray):
            changed = np.asarray(changed)
        return replace(split, images=changed, pixels=f"{split.pixels}; {said}")

    whole = dataset.everything
    return replace(
        dataset,
        train=of(dataset.train),
        validation=of(dataset.validation),
        test=of(dataset.test),
        everything=None if whole is None else of(whole),
    )
