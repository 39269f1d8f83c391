"""CIFAR-10 from its original files (Krizhevsky, "Learning multiple layers of features from tiny
images", 2009), in every layout that people keep them in.

The splits are always 40,000 train / 10,000 validation / 10,000 test:

    files                                          train  validation    test
    data_batch_1..5, test_batch (as published)     1..4   data_batch_5  test_batch
    data_batch_1..5, val_batch                     1..4   val_batch     data_batch_5
    data_batch_1..4, val_batch, test_batch         1..4   val_batch     test_batch

`train_batch_N` is another name for `data_batch_N`.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .base import DataSet, Split
from .images import fingerprint
from .pickles import parse_pickle, read_file, read_pickle

SUBFOLDER = "cifar-10-batches-py"
META = "batches.meta"
IMAGES_PER_BATCH = 10_000
IMAGE_SHAPE = (3, 32, 32)
CLASSES = 10

PUBLISHED_MD5 = {
    "c99cafc152244af753f735de768cd75f",  # data_batch_1
    "d4bba439e000b95fd0a9bffe97cbabec",  # data_batch_2
    "54ebc095f3ab1f0389bbae665268c751",  # data_batch_3
    "634d18415352ddfa80567beed471001a",  # data_batch_4
    "482c414d41f54cd18b22e5b47cb7c3cb",  # data_batch_5
    "40351d587109b95175f43aff81a1287e",  # test_batch
}

_BATCH = re.compile(r"(data|train)_batch_[1-9][0-9]*|(val|test)_batch")
_LONGEST_NAME = 255


@dataclass(frozen=True)
class _Layout:
    """Which file plays which part; None where it is missing, `rest` for what has no part yet."""

    folder: Path
    train: tuple[str | None, ...]
    validation: str | None
    test: str | None
    meta: str | None
    rest: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """The files that are needed and not there, by their usual names."""
        parts = [(name, f"data_batch_{number}") for number, name in enumerate(self.train, 1)]
        parts.append((self.validation, "data_batch_5"))
        # Without a test batch, one of the rest must be it.
        parts.append((self.test or (self.rest[0] if self.rest else None), "test_batch"))
        parts.append((self.meta, META))
        return [usual_name for name, usual_name in parts if name is None]


@dataclass(frozen=True, eq=False)
class _Batch:
    name: str
    images: np.ndarray
    labels: np.ndarray
    filenames: np.ndarray
    published: bool


def is_file_name(name: str) -> bool:
    """Whether one of CIFAR-10's files may be called so."""
    return name == META or _BATCH.fullmatch(name) is not None


def is_here(folder: Path) -> bool:
    """Whether the folder, or its `cifar-10-batches-py/`, holds any of CIFAR-10's files."""
    return any(_files(place) for place in _places(folder))


def is_complete(folder: Path) -> bool:
    """Whether it holds all files of some layout (their content is not looked at)."""
    return not _find(folder).missing


def how_to_get(folder: Path) -> str:
    """What to do where files are missing, for error messages."""
    return (
        f"`holdfast data --data {shlex.quote(str(folder))} --download` fetches CIFAR-10, or put its"
        f" files for Python (data_batch_1 to 5, test_batch, {META}) in {_places(folder)[-1]}"
    )


def load(folder: str | Path) -> DataSet:
    """CIFAR-10 from a folder that holds any of the layouts above, or from its subfolder.

    Args:
        folder: `DIR`, where the files are in `DIR` or in `DIR/cifar-10-batches-py`.

    Returns:
        Images uint8 (40,000 or 10,000, 3, 32, 32) in the files' order.

    Raises:
        InputError: a file is missing or damaged, holds something else than a CIFAR-10 batch, or
            there are more batches, or fewer different ones, than the three splits need.
    """
    folder = Path(folder)
    layout = _find(folder)
    if layout.missing:
        raise InputError(
            f"{folder}: CIFAR-10 is incomplete, {', '.join(layout.missing)} missing (looked in"
            f" {' and '.join(map(str, _places(folder)))}); {how_to_get(folder)}"
        )

    def read(name: str | None) -> _Batch:
        assert name is not None
        return _read(layout.folder / name)

    classes = _label_names(layout.folder / META)
    train = [read(name) for name in layout.train]
    used = [*train, read(layout.validation)]
    if layout.test:
        used.append(read(layout.test))
    new: list[_Batch] = []
    for name in layout.rest:
        batch = read(name)
        if not any(_same_images(batch, other) for other in used + new):
            new.append(batch)
    if not layout.test and len(new) == 1:
        used.append(new.pop())
    if new:
        raise InputError(
            f"{layout.folder}: more batches than the splits need: {_names(new)} beside"
            f" {_names(used)}; move away what is not meant"
        )
    for first, second in combinations(used, 2):
        if _same_images(first, second):
            raise InputError(
                f"{layout.folder}: {first.name} and {second.name} hold the same images, so the"
                " splits would overlap; put the right files there"
            )
    if len(used) < len(train) + 2:
        raise InputError(
            f"{layout.folder}: test_batch is missing, and {', '.join(layout.rest)} cannot take its"
            " part, for its images are another batch's; put test_batch there"
        )
    *_, validation, test = used
    return DataSet("cifar10", classes, _split(train), _split([validation]), _split([test]))


def _find(folder: Path) -> _Layout:
    """The most complete layout in `folder` or its `cifar-10-batches-py/`."""
    layouts = [_layout(place, _files(place)) for place in _places(folder)]
    return min(layouts, key=lambda layout: len(layout.missing))


def _places(folder: Path) -> list[Path]:
    if folder.name == SUBFOLDER:
        return [folder]
    return [folder, folder / SUBFOLDER]


def _files(place: Path) -> set[str]:
    """The names in a folder that are CIFAR-10's."""
    try:
        names = {path.name for path in place.iterdir()}
    except OSError:
        return set()
    return set(filter(is_file_name, names))


def _numbered(names: set[str], number: int) -> str | None:
    """The file that holds the training batch of that number."""
    candidates = (f"data_batch_{number}", f"train_batch_{number}")
    return next((name for name in candidates if name in names), None)


def _layout(folder: Path, names: set[str]) -> _Layout:
    train = tuple(_numbered(names, number) for number in range(1, 5))
    validation = "val_batch" if "val_batch" in names else _numbered(names, 5)
    test = "test_batch" if "test_batch" in names else None
    meta = META if META in names else None
    rest = sorted(names.difference(filter(None, (*train, validation, test, meta))))
    return _Layout(folder, train, validation, test, meta, tuple(rest))


def _read(path: Path) -> _Batch:
    """One batch, checked."""
    raw = read_file(path)
    content = _dictionary(parse_pickle(raw, path), path, "data", "labels", "filenames")
    data, n = content["data"], IMAGES_PER_BATCH
    shape = (n, int(np.prod(IMAGE_SHAPE)))
    if not isinstance(data, np.ndarray):
        raise InputError(f"{path}: data is no array, so it is no CIFAR-10 file")
    if data.dtype != np.uint8 or data.shape != shape:
        raise InputError(
            f"{path}: data is {data.dtype} {data.shape} where a CIFAR-10 batch has uint8 {shape}"
        )
    md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    return _Batch(
        name=path.name,
        images=np.ascontiguousarray(data).reshape(n, *IMAGE_SHAPE),
        labels=_labels(content["labels"], path),
        filenames=_filenames(content["filenames"], path),
        published=md5 in PUBLISHED_MD5,
    )


def _dictionary(content: Any, path: Path, *keys: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no dictionary, so it is no CIFAR-10 file")
    # A batch that went through Python 3 may have bytes for keys.
    named = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in content.items()}
    for key in keys:
        if key not in named:
            raise InputError(f"{path}: has no {key!r}, so it is no CIFAR-10 file")
    return named


def _sequence(values: Any, path: Path, what: str, n: int) -> list[Any]:
    """A list or one-dimensional array of n items, as a list."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise InputError(f"{path}: {what} are no list")
    if len(values) != n:
        raise InputError(f"{path}: {len(values)} {what} where there must be {n}")
    return list(values)


def _labels(values: Any, path: Path) -> np.ndarray:
    labels = _sequence(values, path, "labels", IMAGES_PER_BATCH)
    for index, label in enumerate(labels):
        is_integer = isinstance(label, int | np.integer) and not isinstance(label, bool)
        if not is_integer or not 0 <= label < CLASSES:
            # A damaged integer may have more digits than Python agrees to print.
            printable = isinstance(label, float) or (is_integer and abs(label) < 2**63)
            raise InputError(
                f"{path}: label {index} is {label if printable else 'out of range'}; labels are"
                f" integers from 0 to {CLASSES - 1}"
            )
    return np.array(labels, np.int64)


def _filenames(values: Any, path: Path) -> np.ndarray:
    return np.array(
        [
            _text(value, path, f"filename {index}")
            for index, value in enumerate(_sequence(values, path, "filenames", IMAGES_PER_BATCH))
        ]
    )


def _label_names(path: Path) -> tuple[str, ...]:
    content = _dictionary(read_pickle(path), path, "label_names")
    values = _sequence(content["label_names"], path, "label names", CLASSES)
    names = tuple(_text(value, path, f"label name {i}") for i, value in enumerate(values))
    if len(set(names)) != CLASSES:
        raise InputError(f"{path}: two label names are the same")
    return names


def _text(value: Any, path: Path, what: str) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_NAME:
        raise InputError(f"{path}: {what} is no text of 1 to {_LONGEST_NAME} characters")
    if text.isprintable():
        return str(text)
    # Names end up in tables and on terminals, where a control character could do harm.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _same_images(first: _Batch, second: _Batch) -> bool:
    # The first image alone settles nearly every case.
    return np.array_equal(first.images[0], second.images[0]) and np.array_equal(
        first.images, second.images
    )


def _names(batches: list[_Batch]) -> str:
    return ", ".join(batch.name for batch in batches)


def _split(batches: list[_Batch]) -> Split:
    images = np.concatenate([batch.images for batch in batches])
    if all(batch.published for batch in batches):
        pixels = "original CIFAR-10 pixels"
    else:
        pixels = f"not the published CIFAR-10 pixels (sha256 of the images: {fingerprint(images)})"
    return Split(
        images,
        np.concatenate([batch.filenames for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
        pixels,
    )
