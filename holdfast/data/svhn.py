"""SVHN's cropped digits, format 2: `train_32x32.mat` and `test_32x32.mat` (Netzer et al., "Reading
digits in natural images with unsupervised feature learning", 2011)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .base import DataSet, Split
from .images import fingerprint
from .labelled import assembled
from .mat import read_mat

NAME = "svhn"
FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
PLACES = ("", "svhn", "SVHN")


def is_here(folder: Path) -> bool:
    """Whether a folder, or its `svhn/`, holds one of the files."""
    return _place(folder) is not None


def _place(folder: Path) -> Path | None:
    places = [folder / place for place in PLACES]
    return next((p for p in places if any((p / name).is_file() for name in FILES.values())), None)


def load(folder: str | Path) -> DataSet:
    """SVHN from a folder; one of its two files is enough.

    Returns:
        Images uint8 (N, 3, 32, 32) in the published order; the label 10 of the files is the digit
        0. A tenth of each class of the training images becomes validation.

    Raises:
        InputError: a file that is missing, damaged, or none of SVHN's.
    """
    place = _place(Path(folder))
    if place is None:
        raise InputError(f"{folder}: holds neither {' nor '.join(FILES.values())}")
    told = ["SVHN: the label 10 of its files is the digit 0"]
    if (place / "extra_32x32.mat").exists():
        told.append("SVHN: extra_32x32.mat is not read")
    given = {
        split: _read(place / name) for split, name in FILES.items() if (place / name).is_file()
    }
    return assembled(NAME, tuple("0123456789"), given, told, where=str(folder))


def read_images(file: Path) -> np.ndarray:
    """The images of one of the files, uint8 (N, 3, 32, 32)."""
    return _images(file, read_mat(file, {"X"}))


def _images(file: Path, found: dict[str, np.ndarray]) -> np.ndarray:
    x = found.get("X")
    if x is None or x.ndim != 4 or x.shape[:3] != (32, 32, 3) or x.dtype != np.uint8 or not x.size:
        raise InputError(f"{file}: has no uint8 array X (32, 32, 3, N), so it is no SVHN file")
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1))


def _read(file: Path) -> Split:
    found = read_mat(file, {"X", "y"})
    images, y = _images(file, found), found.get("y")
    if y is None or y.size != len(images):
        held = "none" if y is None else f"{y.size}"
        raise InputError(f"{file}: {held} labels y for {len(images)} images X")
    labels = y.reshape(-1)
    wrong = ~np.isin(labels, np.arange(11))
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(f"{file}: label {at} is {labels[at]:g}; SVHN's are 1 to 10")
    names = np.array([f"{file.stem}_{i:05d}" for i in range(len(images))])
    pixels = f"SVHN cropped digits (sha256 of the images: {fingerprint(images)})"
    return Split(images, names, labels.astype(np.int64) % 10, pixels)
