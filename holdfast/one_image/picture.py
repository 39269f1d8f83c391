"""A picture file, or pixels, brought to the size and the colours that a model takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from ..data.brought import Remembered, check_size, grey
from ..data.pictures import MOST_BYTES, decoded, silence_threads
from ..errors import InputError
from ..models.adapted import Adapted
from ..models.chain import undefended
from ..models.wrapper import unwrapped
from ..picture_files import MOST_PIXELS
from ..runs.files import read_bytes
from ..types import Model

CIFAR = 32  # height and width of the images of CIFAR-10 and CIFAR-100
MOST_CLASSES_OF_SMALL = 200  # models of more classes look at larger images
LARGE = 224
DIGITS = 8  # height and width of the embedded digits
_HINT = "; give a photograph or a drawing as PNG, JPEG, WebP, GIF, BMP or TIFF"


@dataclass(frozen=True)
class Picture:
    """Pixels before they are brought to a model's size.

    Attributes:
        pixels: uint8 (C, H, W), C of 1 or 3.
        source: what it is called, such as a file's name.
    """

    pixels: UInt8[np.ndarray, "c h w"]
    source: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[2], self.pixels.shape[1]


@dataclass(frozen=True)
class Shape:
    """The images that a model takes.

    Attributes:
        channels, height, width: of an image.
        why: how that is known; empty where the model's card says it.
    """

    channels: int
    height: int
    width: int
    why: str = ""

    def __str__(self) -> str:
        return f"{self.width}×{self.height}"


def read_picture(path: str | Path, most: int = MOST_PIXELS) -> Picture:
    """A picture from a file; its header is checked before any pixel is decoded.

    Args:
        most: pixels that it may have.

    Raises:
        InputError: no such file; no picture, damaged, of more than 8 bits a channel, or too large.
    """
    silence_threads()
    raw = read_bytes(Path(path), MOST_BYTES)
    return Picture(decoded(raw, str(path), None, _HINT, most), Path(path).name)


def drawing_of(
    raw: bytes, source: str, most: int = MOST_PIXELS, *, negative: bool = False
) -> Picture:
    """A drawing from the bytes of its file: what is transparent is white paper.

    Args:
        source: what it is called.
        most: pixels that it may have.
        negative: black and white change places.

    Raises:
        InputError: as `read_picture`.
    """
    pixels = decoded(raw, source, None, _HINT, most, ground=255)
    return Picture(255 - pixels if negative else pixels, source)


def picture_of(image: Any, source: str = "image") -> Picture | Tensor:
    """What `try_image` takes as an image: a picture as it was read, a tensor as float32 (C, H, W).

    Raises:
        InputError: anything else.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        return read_picture(image)
    if isinstance(image, Image.Image):
        colours = np.asarray(image.convert("RGB"))
        return Picture(colours.transpose(2, 0, 1), source)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, Tensor):
        raise InputError(
            f"the image is a {type(image).__name__}: give a file's name, a picture of Pillow's, or "
            "a tensor (C, H, W)"
        )
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"the image has the shape {tuple(image.shape)}: it must be (C, H, W) with C of 1 or 3"
        )
    return image.detach().cpu() / 255 if image.dtype == torch.uint8 else image.detach().cpu()


def shape_of(
    model: Model, size: int | None = None, *, channels: int | None = None, classes: int = 0
) -> Shape:
    """The images that a model takes: as its card says; else as its own preprocessing, its layers
    and its classes tell.

    Args:
        size: height and width, in place of what is found.
        channels: 1 or 3, in place of what is found.
        classes: how many it has, if that is known.

    Raises:
        InputError: a size that no image has.

    Example:
        >>> import holdfast as hf
        >>> str(shape_of(hf.load("cifar10-linf-slim")))
        '32×32'
    """
    check_size(size)
    network = undefended(model)
    card: Mapping[str, Any] = getattr(network, "card", None) or {}
    known = Remembered.of(card.get("images"))
    channels = channels or known.channels or _channels(network)
    if size is not None:
        return Shape(channels, size, size)
    if known.size is not None:
        return Shape(channels, known.size, known.size)
    own = _preprocessed(network)
    if own is not None:
        return Shape(channels, *own, "the size that the model's own preprocessing begins with")
    features = _flat_features(network)
    side = round((features / channels) ** 0.5)
    if features and side * side * channels == features:
        return Shape(channels, side, side, "what its first linear layer takes")
    names = [str(name) for name in card.get("classes") or ()]
    if names == list("0123456789") and channels == 1:
        return Shape(1, DIGITS, DIGITS, "the size of the embedded digits")
    if (len(names) or classes) > MOST_CLASSES_OF_SMALL:
        return Shape(channels, LARGE, LARGE, "usual for so many classes; --image-size changes it")
    if card.get("architecture") in ("preact-resnet", "wide-resnet", "interval-cnn", "resnet"):
        return Shape(channels, CIFAR, CIFAR, "the size of CIFAR's images")
    return Shape(
        channels, CIFAR, CIFAR, "the model does not say its size; --image-size N changes it"
    )


def brought(picture: Picture, shape: Shape) -> tuple[Float[Tensor, "c h w"], str]:
    """A picture as a model takes it, float32 in [0, 1], and in words what was done to it.

    The middle of the model's proportions is cut out, and resized (bicubic).

    Example:
        >>> picture = Picture(np.zeros((3, 480, 640), np.uint8), "photo.jpg")
        >>> image, said = brought(picture, Shape(3, 32, 32))
        >>> tuple(image.shape), said
        ((3, 32, 32), '640×480 pixels: the middle 480×480 cut out, resized to 32×32')
    """
    width, height = picture.size
    said = [f"{width}×{height} pixels"]
    changed = []
    whole = Image.fromarray(np.ascontiguousarray(_rows(picture.pixels)))
    if width * shape.height != height * shape.width:
        box = _middle(width, height, shape)
        whole = whole.crop(box)
        changed.append(f"the middle {box[2] - box[0]}×{box[3] - box[1]} cut out")
    if whole.size != (shape.width, shape.height):
        whole = whole.resize((shape.width, shape.height), Image.Resampling.BICUBIC)
        changed.append(f"resized to {shape}")
    pixels = np.asarray(whole)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if shape.channels == 1 and len(pixels) == 3:
        pixels = grey(pixels)
        changed.append("made grey")
    elif shape.channels == 3 and len(pixels) == 1:
        pixels = np.repeat(pixels, 3, axis=0)
        changed.append("its grey shown in three equal channels")
    if changed:
        said.append(": " + ", ".join(changed))
    if shape.why and changed:
        said.append(f" ({shape.why})")
    return torch.from_numpy(np.array(pixels)).float() / 255, "".join(said)


def _rows(pixels: np.ndarray) -> np.ndarray:
    """(H, W) of one channel, (H, W, C) of more."""
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def _middle(width: int, height: int, shape: Shape) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest middle part with the shape's proportions."""
    wide = min(width, max(1, round(height * shape.width / shape.height)))
    high = min(height, max(1, round(width * shape.height / shape.width)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _channels(network: Any) -> int:
    """By its first convolution or its normalisation; 3 where nothing says."""
    for part in _parts(network):
        if isinstance(part, nn.Conv2d) and part.in_channels in (1, 3):
            return part.in_channels
        if isinstance(part, nn.Conv2d):
            break
    return 3


def _preprocessed(network: Any) -> tuple[int, int] | None:
    """Height and width that a model's own preprocessing resizes to, or cuts out."""
    for part in _parts(network):
        if isinstance(part, Adapted):
            steps = part.prepared.steps
            if isinstance(steps.resize, int):
                return steps.resize, steps.resize
            found = steps.resize or steps.crop
            if found is not None:
                return found
    return None


def _flat_features(network: Any) -> int:
    """What the first linear layer takes, where no convolution stands before it; 0 otherwise."""
    for part in _parts(network):
        if isinstance(part, nn.Conv2d):
            return 0
        if isinstance(part, nn.Linear):
            return part.in_features
    return 0


def _parts(network: Any) -> list[nn.Module]:
    plain = unwrapped(network)
    found = list(network.modules()) if isinstance(network, nn.Module) else []
    return found or (list(plain.modules()) if isinstance(plain, nn.Module) else [])
