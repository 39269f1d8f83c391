"""Data sets: CIFAR-10 in its original files, any folder of images, and the embedded digits.

Images are stored as uint8 (N, C, H, W); `to_tensor` brings them to the float32 images in [0, 1]
that models and attacks see.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from . import cifar10, digits, folder
from .augment import Augment
from .base import SPLITS, DataSet, Split
from .contact_sheet import figure
from .download import fetch
from .images import ImageArray, LazyImages

__all__ = [
    "Augment",
    "DataSet",
    "LazyImages",
    "Split",
    "describe",
    "describe_classes",
    "figure",
    "load",
    "to_tensor",
]


def load(
    source: str | Path | DataSet, *, download: bool = False, size: int | None = None
) -> DataSet:
    """A data set by name or folder.

    Args:
        source: `digits` for the embedded handwritten digits, or a folder: CIFAR-10's original
            files in any of the layouts of `holdfast.data.cifar10`, directly or in its
            `cifar-10-batches-py`; or images in one folder a class (`holdfast.data.folder`). What
            is loaded already is handed back.
        download: fetch CIFAR-10 into the folder if nothing else is there.
        size: for images of one's own, the height and width in pixels to bring them to.

    Returns:
        The three splits; images of one's own are decoded when they are asked for where all of them
        have more than 1 GiB of pixels, and else in memory (`holdfast.data.images`). CIFAR-10's
        images stand in the published order, and those of one's own in an order that knows nothing
        of classes (`holdfast.data.folder`).

    Raises:
        InputError: nothing there, files missing, unreadable, damaged or of the wrong content.
        HoldfastError: the download failed.

    Example:
        >>> digits = load("digits")
        >>> digits.train.images.shape, len(digits.test)
        ((1197, 1, 8, 8), 300)
    """
    if isinstance(source, DataSet):
        return _fixed_size(source, size)
    if not isinstance(source, str | Path):
        raise InputError(
            f"a data set is 'digits', a folder or a holdfast.data.DataSet, not"
            f" {type(source).__name__}; arrays go to holdfast.evaluate as images and labels"
        )
    if source == "digits":
        return _fixed_size(digits.load(), size)
    path = Path(source)
    try:
        if not cifar10.is_here(path) and folder.is_here(path):
            return folder.load(path, size)
        if download and not cifar10.is_complete(path):
            path = fetch(path)
        if not cifar10.is_here(path):
            raise InputError(_nothing(path))
        return _fixed_size(cifar10.load(path), size)
    except (OSError, ValueError) as error:  # ValueError: a name that no folder can have
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from None


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def _nothing(path: Path) -> str:
    """What to say of a path where no data set is."""
    own = "or give a folder that holds images in one folder a class"
    if not path.exists():
        return f"{path}: no such folder; {cifar10.how_to_get(path)}; {own}"
    if not path.is_dir():
        return f"{path}: is no folder; give the folder that holds the images"
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if not names:
        return f"{path}: is empty; {cifar10.how_to_get(path)}; {own}"
    return (
        f"{path}: holds no class folders and none of CIFAR-10's files, but {names[0]} and"
        f" the like; images of your own go into one folder a class, {path / 'CLASS'}"
    )


def _fixed_size(dataset: DataSet, size: int | None) -> DataSet:
    own = dataset.train.images.shape[2]
    if size not in (None, own):
        raise InputError(
            f"--image-size {size} is for images of your own;"
            f" those of {dataset.name} are {own}×{own}"
        )
    return dataset


def to_tensor(images: ImageArray) -> Float[Tensor, "n c h w"]:
    """Images as models see them, all in memory: float32 in [0, 1], where 255 becomes 1.

    Args:
        images: uint8 (N, C, H, W).

    Raises:
        InputError: images that are not uint8.

    Example:
        >>> float(to_tensor(np.full((1, 3, 2, 2), 255, np.uint8)).max())
        1.0
    """
    if images.dtype != np.uint8:
        raise InputError(f"images must be uint8, not {images.dtype}")
    return torch.from_numpy(np.asarray(images).astype(np.float32, order="C")).div_(255)


def describe(dataset: DataSet) -> str:
    """Ten lines with the shape of every array of the data set."""
    lines = [
        f"{title} {what}:  {array.shape}"
        for title, split in (
            ("Training", dataset.train),
            ("Validation", dataset.validation),
            ("Test", dataset.test),
        )
        for what, array in (
            ("data", split.images),
            ("filenames", split.filenames),
            ("labels", split.labels),
        )
    ]
    return "\n".join([*lines, f"Label names:  ({len(dataset.classes)},)"])


def describe_classes(dataset: DataSet) -> str:
    """The names of the classes, how many images of each a split holds, and what is to be said of
    the images: one line a class."""
    splits = {name: dataset.split(name) for name in SPLITS}
    k = len(dataset.classes)
    counts = [np.bincount(split.labels, minlength=k) for split in splits.values()]
    widest = max(len("class"), *map(len, dataset.classes))
    rows = [("", "class".ljust(widest), *splits)]
    for label, name in enumerate(dataset.classes):
        rows.append((str(label), name.ljust(widest), *(str(count[label]) for count in counts)))
    lines = [
        f"{row[0]:>4}  {row[1]}" + "".join(f"  {cell:>10}" for cell in row[2:]) for row in rows
    ]
    return "\n".join([*lines, *(f"note: {overlap}" for overlap in dataset.overlaps)])
