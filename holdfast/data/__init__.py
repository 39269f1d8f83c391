"""Data sets: CIFAR-10, CIFAR-100 and SVHN in their original files, any folder of images, arrays of
NumPy, and the embedded digits.

Images are stored as uint8 (N, C, H, W); `to_tensor` brings them to the float32 images in [0, 1]
that models and attacks see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..stored import ModelImages, StoredImages, is_large
from . import brought, cifar10, cifar100, digits, folder, numpy_files, parquet, svhn
from .arrangement import has_pictures
from .augment import Augment
from .base import SPLITS, DataSet, Split
from .choosing import choose
from .class_order import in_order
from .contact_sheet import figure
from .download import fetch
from .images import ImageArray, LazyImages

__all__ = [
    "Augment",
    "DataSet",
    "LazyImages",
    "Split",
    "choose",
    "describe",
    "describe_classes",
    "figure",
    "load",
    "model_images",
    "to_tensor",
]


def load(
    source: str | Path | DataSet,
    *,
    download: bool = False,
    size: int | None = None,
    grey: bool = False,
    labels: str | Path | None = None,
    class_order: str | Path | None = None,
    split: str | None = None,
    indices: str | Path | Sequence[int] | None = None,
    limit: int | None = None,
    balanced: bool = False,
    like: Mapping[str, Any] | None = None,
) -> DataSet:
    """A data set by name, file or folder.

    Args:
        source: `digits` for the embedded handwritten digits; a folder with CIFAR-10's original
            files in any of the layouts of `holdfast.data.cifar10`, with CIFAR-100's or SVHN's; an
            `.npz` or `.npy` file, or a folder of them (`holdfast.data.numpy_files`); or images in
            one folder a class (`holdfast.data.folder`); Parquet as Hugging Face stores it
            (`holdfast.data.parquet`). What is loaded already is handed back.
        download: fetch CIFAR-10 into the folder if nothing else is there.
        size: for images of one's own, the height and width in pixels to bring them to.
        grey: bring images to one channel, by ITU-R BT.601 luma.
        labels: which labels, where data have several: `fine` or `coarse` of CIFAR-100, a word of
            an array's name, a column of Parquet; or a file with a label for each image of a flat
            folder (`holdfast.data.label_tables`).
        class_order: a file that says in which order the classes stand
            (`holdfast.data.class_order`).
        split: of which `indices`, `limit` and `balanced` choose; by default `test`, or what there
            is where that holds no images.
        indices, limit, balanced: which images of it (`holdfast.data.choosing.choose`).
        like: `images` of a model's card: what it was trained on. Where nothing else is asked for,
            images of one's own are brought to the same size and number of channels.

    Returns:
        The splits that there are. Images of one's own are decoded when they are asked for where all
        of them have more than 512 MiB of pixels, and else in memory (`holdfast.data.images`).
        CIFAR's and SVHN's images stand in the published order, arrays in their own, and images of
        one's own in an order that knows nothing of classes (`holdfast.data.folder`).

    Raises:
        InputError: nothing there, files missing, unreadable, damaged or of the wrong content.
        HoldfastError: the download failed.

    Example:
        >>> digits = load("digits", limit=20, balanced=True)
        >>> digits.train.images.shape, len(digits.test)
        ((1197, 1, 8, 8), 20)
    """
    remembered = brought.Remembered.of(like)
    dataset = _loaded(source, download, size, labels, remembered)
    if grey or (remembered.channels == 1 and dataset.shape[0] == 3):
        dataset = brought.to_grey(dataset)
    if remembered.channels == 3 and dataset.shape[0] == 1:
        raise InputError(
            f"images of {dataset.name} have 1 channel; the model was trained on 3, so leave --grey"
            " out, or give images in colour"
        )
    if class_order is not None:
        dataset = in_order(dataset, class_order)
    return choose(dataset, dataset.usual(split), indices=indices, limit=limit, balanced=balanced)


def _loaded(
    source: str | Path | DataSet,
    download: bool,
    size: int | None,
    labels: str | Path | None,
    like: brought.Remembered,
) -> DataSet:
    """The data set as its files have it."""
    if isinstance(source, DataSet):
        _no_labels(source.name, labels)
        return _fixed_size(source, size)
    if not isinstance(source, str | Path):
        raise InputError(
            f"a data set is 'digits', a folder or a holdfast.data.DataSet, not"
            f" {type(source).__name__}; arrays go to holdfast.evaluate as images and labels"
        )
    if source == "digits":
        _no_labels("digits", labels)
        return _fixed_size(digits.load(), size)
    if not str(source).strip():
        raise InputError("--data is empty; give a folder or a file, or 'digits'")
    if isinstance(source, str) and "://" in source:
        raise InputError(
            f"--data {source}: an address; download it, and give the folder or the file"
        )
    path, word = Path(source), None if labels is None else str(labels)
    try:
        if cifar10.is_here(path) or (download and not path.is_file()):
            _no_labels("CIFAR-10", labels)
            if download and not cifar10.is_complete(path) and not _is_other(path):
                path = fetch(path)
            if cifar10.is_here(path):
                return _fixed_size(cifar10.load(path), size)
        if cifar100.is_here(path):
            return _fixed_size(cifar100.load(path, word), size)
        if svhn.is_here(path):
            _no_labels("SVHN", labels)
            return _fixed_size(svhn.load(path), size)
        if numpy_files.is_here(path) and not (path.is_dir() and has_pictures(path)):
            return brought.to_size(
                numpy_files.load(path, None if labels is None else str(labels)), size
            )
        if parquet.is_here(path) and not (path.is_dir() and has_pictures(path)):
            return parquet.load(path, size, like, word)
        if folder.is_here(path):
            return folder.load(path, size, like, labels)
        raise InputError(_nothing(path))
    except (OSError, ValueError) as error:  # ValueError: a name that no folder can have
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from None


# What people call data that they think is there.
_NAMES = {
    "digits", "mnist", "fashion-mnist", "fashionmnist", "emnist", "kmnist", "cifar100", "cifar-100",
    "svhn", "imagenet", "tiny-imagenet", "imagenette", "stl10", "food101", "caltech101", "gtsrb",
}  # fmt: skip


def _is_other(path: Path) -> bool:
    """Whether something else than CIFAR-10 is there, which needs no download."""
    kinds = (cifar100, svhn, numpy_files, parquet, folder)
    return not cifar10.is_here(path) and any(kind.is_here(path) for kind in kinds)


def _no_labels(name: str, labels: str | Path | None) -> None:
    if labels is not None:
        raise InputError(f"--labels {labels}: {name} has one kind of labels; leave it out")


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def _nothing(path: Path) -> str:
    """What to say of a path where no data set is."""
    own = "or give a folder that holds images in one folder a class"
    if not path.exists() and path.name.lower() in _NAMES and path.name == str(path):
        if path.name.lower() == "digits":
            return f"{path}: no such folder; did you mean 'digits'?"
        return (
            f"{path}: no such folder; only 'digits' goes by its name; give the folder or file "
            f"that holds {path}"
        )
    if not path.exists():
        return f"{path}: no such folder; {cifar10.how_to_get(path)}; {own}"
    if not path.is_dir():
        return f"{path}: is no folder, .npz, .npy or .parquet file; give the folder of the images"
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if not names:
        return f"{path}: is empty; {cifar10.how_to_get(path)}; {own}"
    return (
        f"{path}: holds no class folders and none of CIFAR-10's files, but {names[0]} and"
        f" the like; images of your own go into one folder a class, {path / 'CLASS'}"
    )


def _fixed_size(dataset: DataSet, size: int | None) -> DataSet:
    own = dataset.shape[1]
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


def model_images(images: ImageArray) -> ModelImages:
    """Images as models see them; those that would fill more than 512 MiB are read when they are
    indexed, and stay as they are until then.

    Args:
        images: uint8 (N, C, H, W).
    """
    return StoredImages(images) if is_large(images) else to_tensor(images)


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
    splits: dict[str, Split] = {name: getattr(dataset, name) for name in SPLITS}
    k = len(dataset.classes)
    counts = [np.bincount(split.labels, minlength=k) for split in splits.values()]
    widest = max(len("class"), *map(len, dataset.classes))
    rows = [("", "class".ljust(widest), *splits)]
    for label, name in enumerate(dataset.classes):
        rows.append((str(label), name.ljust(widest), *(str(count[label]) for count in counts)))
    lines = [
        f"{row[0]:>4}  {row[1]}" + "".join(f"  {cell:>10}" for cell in row[2:]) for row in rows
    ]
    said = [*map(str, dataset.overlaps), *dataset.told, *dataset.lacking.values()]
    said = list(dict.fromkeys(said))
    return "\n".join([*lines, *(f"note: {line}" for line in said)])
