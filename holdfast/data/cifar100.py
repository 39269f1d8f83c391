"""CIFAR-100 from its original files, `train`, `test` and `meta` (Krizhevsky, "Learning multiple
layers of features from tiny images", 2009)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .base import DataSet, Split
from .images import fingerprint
from .labelled import assembled
from .pickles import parse_pickle, read_file, read_pickle

SUBFOLDER = "cifar-100-python"
META = "meta"
FILES = {"train": "train", "test": "test"}
CLASSES = {"fine": 100, "coarse": 20}
PUBLISHED_MD5 = {
    "16019d7e3df5f24257cddd939b257f8d",  # train
    "f0ef6b0ae62326f3e7ffdfab6717acfc",  # test
}
_LONGEST_NAME = 255


def is_here(folder: Path) -> bool:
    """Whether a folder, or its `cifar-100-python/`, holds CIFAR-100's files."""
    return _place(folder) is not None


def _place(folder: Path) -> Path | None:
    places = [folder] if folder.name == SUBFOLDER else [folder, folder / SUBFOLDER]
    return next((p for p in places if any((p / f).is_file() for f in FILES.values())), None)


def load(folder: str | Path, labels: str | None = None) -> DataSet:
    """CIFAR-100 from a folder or its `cifar-100-python/`; `train` or `test` alone is enough.

    Args:
        labels: `fine`, the 100 classes, or `coarse`, the 20 superclasses.

    Returns:
        Images uint8 (N, 3, 32, 32) in the published order; the last fifth of the training images,
        10,000, are validation.

    Raises:
        InputError: a file that is missing, damaged, or none of CIFAR-100's.
    """
    kind = labels or "fine"
    if kind not in CLASSES:
        raise InputError(f"{folder}: CIFAR-100 has labels fine and coarse, not {kind!r}")
    place = _place(Path(folder))
    if place is None:
        raise InputError(f"{folder}: holds neither train nor test of CIFAR-100")
    told = []
    names = tuple(map(str, range(CLASSES[kind])))
    named = (place / META).is_file()
    if named:
        names = _names(place / META, kind)
    else:
        told.append(f"CIFAR-100: {place / META} is missing, so classes are called by their numbers")
    if kind == "coarse":
        told.append("CIFAR-100: the 20 superclasses are the labels")
    given = {
        split: _read(place / file, kind)
        for split, file in FILES.items()
        if (place / file).is_file()
    }
    fifth = len(given["train"]) // 5 if "train" in given else None
    name = "cifar100" if kind == "fine" else "cifar100-coarse"
    return assembled(name, names, given, told, where=str(folder), held_out=fifth, named=named)


def read_images(file: Path) -> np.ndarray:
    """The images of one of the files, uint8 (N, 3, 32, 32), read as data and never run."""
    return _images(file, _dictionary(file, read_pickle(file)))


def _dictionary(file: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(
            f"{file}: holds no dictionary with uint8 images (N, 3072) or names, so it is no file of"
            " CIFAR-100 for Python"
        )
    return {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in content.items()}


def _images(file: Path, content: dict[str, Any]) -> np.ndarray:
    data = content.get("data")
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != 3072
        or not len(data)
    ):
        raise InputError(
            f"{file}: holds no uint8 images (N, 3072), so it is no file of CIFAR-100 for Python"
        )
    return np.ascontiguousarray(data).reshape(-1, 3, 32, 32)


def _read(file: Path, kind: str) -> Split:
    raw = read_file(file)
    content = _dictionary(file, parse_pickle(raw, file))
    images = _images(file, content)
    held = content.get(f"{kind}_labels")
    if isinstance(held, np.ndarray):
        held = held.tolist()
    if not isinstance(held, list | tuple) or len(held) != len(images):
        count = len(held) if isinstance(held, list | tuple) else "no"
        raise InputError(f"{file}: {count} {kind}_labels for {len(images)} images")
    most = CLASSES[kind]
    for at, label in enumerate(held):
        # A damaged integer may have more digits than Python agrees to print.
        if type(label) not in (int, np.int64) or not 0 <= label < most:
            shown = label if type(label) is int and abs(label) < 2**63 else "out of range"
            raise InputError(f"{file}: {kind}_labels[{at}] is {shown}; they are 0 to {most - 1}")
    names = content.get("filenames")
    if not isinstance(names, list | tuple) or len(names) != len(images):
        names = [f"{file.name}_{i:05d}" for i in range(len(images))]
    published = hashlib.md5(raw, usedforsecurity=False).hexdigest() in PUBLISHED_MD5
    pixels = (
        "original CIFAR-100 pixels"
        if published
        else f"not the published CIFAR-100 pixels (sha256 of the images: {fingerprint(images)})"
    )
    return Split(
        images,
        np.array([_text(name) for name in names]),
        np.array(held, np.int64),
        pixels,
    )


def _names(file: Path, kind: str) -> tuple[str, ...]:
    content = _dictionary(file, read_pickle(file))
    held = content.get(f"{kind}_label_names")
    if not isinstance(held, list | tuple) or len(held) != CLASSES[kind]:
        raise InputError(f"{file}: has no {CLASSES[kind]} {kind}_label_names")
    names = tuple(_text(name) for name in held)
    if len(set(names)) < len(names) or not all(names):
        raise InputError(f"{file}: two {kind}_label_names are the same, or one is empty")
    return names


def _text(value: Any) -> str:
    """A name from a file, on one line and of a length that tables bear."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown[:_LONGEST_NAME]
