"""Images and labels in NumPy's files, `.npz` and `.npy`: one file, or a folder of them.

Arrays are found by their names, as people write them: `x_test` and `y_test`, `train_images` and
`train_labels` (MedMNIST), `images.npy` beside `labels.npy`, `test/images.npy`, `test.npz`. Their
headers are checked before anything is read, and nothing is ever unpickled (`holdfast.data.arrays`).
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import InputError
from .arrays import (
    Header,
    Wrong,
    check_unpacked,
    loaded,
    member,
    opened,
    place,
    read_header,
)
from .base import SPLIT_WORDS, DataSet, Split
from .images import ImageArray, fingerprint
from .label_tables import read_table
from .label_values import MOST_LABELS, Column, column, numbered
from .labelled import assembled, is_grouped
from .pixel_values import images_of, layout

SUFFIXES = (".npz", ".npy")
ARRAY_WORDS = {**SPLIT_WORDS, "tr": "train", "te": "test"}  # the parts of arrays' names
IMAGE_WORDS = (
    "images", "image", "imgs", "img", "x", "data", "inputs", "input", "pixels", "samples",
    "pictures", "features", "arr0",
)  # fmt: skip
LABEL_WORDS = ("labels", "label", "y", "targets", "target", "lbls", "arr1")
NAME_WORDS = ("classes", "classnames", "labelnames", "names", "categories", "labelset")
_MOST_FILES = 1000  # of a folder; more are none of a data set's


@dataclass(frozen=True)
class _Stored:
    """An array that is not read yet.

    Attributes:
        path: its file.
        name: as people see it: the file, and its name in an `.npz`.
        header: its shape and type; None where it cannot be read.
        wrong: why not.
    """

    path: Path
    name: str
    header: Header | None = None
    wrong: str = ""
    info: zipfile.ZipInfo | None = None

    @property
    def where(self) -> str:
        return str(self.path) if self.info is None else f"{self.path}: {self.name!r}"

    def load(self) -> np.ndarray:
        """The array: mapped from its file where that holds it as it is, else in memory."""
        header = self.checked()
        if self.info is not None and self.info.compress_type != zipfile.ZIP_STORED:
            with opened(self.path) as file, zipfile.ZipFile(file) as archive:
                check_unpacked(header, repr(self.name))
                with archive.open(self.info) as stream:
                    read_header(stream, self.info.file_size, repr(self.name))
                    return loaded(stream, header)[0]
        begin = 0 if self.info is None else place(self.path, self.info)
        with opened(self.path):
            count = math.prod(header.shape)
            if not count:
                return np.empty(header.shape, header.dtype)
            # Copy on write: what is done to an array changes no file.
            flat = np.memmap(self.path, header.dtype, "c", begin + header.offset, (count,))
            return np.asarray(flat).reshape(header.shape, order="F" if header.fortran else "C")

    def checked(self) -> Header:
        """Its header; InputError where it cannot be read."""
        if self.header is None:
            raise InputError(f"{self.path}: {self.wrong}")
        return self.header


Pair = tuple[_Stored, _Stored | None]  # images and their labels


@dataclass(frozen=True)
class _Role:
    """What an array is, by its name: `images`, `labels` or `names`; of which split; and whether
    its name says nothing else."""

    kind: str
    split: str | None
    plain: bool


def is_here(path: Path) -> bool:
    """Whether a path is such a file, or a folder of such files."""
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        return os.path.lexists(path)
    if not path.is_dir():
        return False
    return any(_role(_key(path, file)) for file in _files(path) if file.suffix == ".npy") or any(
        file.suffix == ".npz" for file in _files(path)
    )


def _files(folder: Path) -> list[Path]:
    """The files of a folder, and those of its folders that are named for a split."""
    found: list[Path] = []
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                found.append(path)
            elif path.name.lower() in ARRAY_WORDS and path.is_dir():
                found += sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    return found[:_MOST_FILES]


def load(source: str | Path, labels: str | None = None) -> DataSet:
    """Images and labels from `.npz` and `.npy` files.

    Arrays without a split in their names are `test`; beside such that have one, `train`.

    Args:
        source: a file, or a folder that holds them.
        labels: which labels, where there are several: a word of their name, such as `fine`; or a
            file of labels (`holdfast.data.label_tables`) for images without any.

    Returns:
        Images uint8 (N, C, H, W) in the order of the file, which need not fit into memory where it
        holds them as uint8, uncompressed.

    Raises:
        InputError: nothing there; damaged, pickled or packed beyond reason; no images, no labels,
            or not as many; types, shapes or values that images and labels do not have. One line.
    """
    source = Path(source)
    stored = _stored(source)
    told: list[str] = []
    roles = {key: role for key in stored if (role := _role(key)) is not None}
    table = read_table(labels) if labels is not None and os.path.isfile(labels) else None
    if table is not None:
        labels = None
    pairs = _pairs(source, stored, roles, labels, told, alone=table is not None)
    names = _names(stored, roles)
    splits: dict[str, tuple[ImageArray, str]] = {}
    columns: dict[str, Column] = {}
    for split, (x, y) in pairs.items():
        shape = x.checked().shape
        layout(shape, x.where)
        count = shape[0]
        if not count:
            raise InputError(f"{x.where}: holds 0 images")
        if y is not None:
            _check_labels(y, count)
        images, said = images_of(x.load(), x.where)
        if y is not None:
            columns[split] = column(y.load(), count, y.where)
        else:
            assert table is not None
            columns[split] = column(np.array(table.in_order), count, str(table.path))
        told += [*said, *([columns[split].told] if columns[split].told else [])]
        splits[split] = images, x.name
    numbers, classes, named = numbered(columns, names, str(source))
    given = {
        split: _split(images, numbers[split], name)
        for split, (images, name) in splits.items()
        if len(images)
    }
    title = source.stem if source.is_file() else source.resolve().name
    return assembled(
        title, classes, given, list(dict.fromkeys(told)), where=str(source), named=named
    )


def _split(images: ImageArray, labels: np.ndarray, name: str) -> Split:
    stem = name.rpartition("/")[2]
    digits = len(str(len(images)))
    names = np.array([f"{stem}_{i:0{digits}d}" for i in range(len(images))])
    _, height, width = images.shape[1:]
    pixels = f"own images, {height}×{width}, an array (sha256 of the images: {fingerprint(images)})"
    return Split(images, names, labels, pixels, grouped=is_grouped(labels))


# --- what is in the files -------------------------------------------------------------------------


def _key(root: Path, file: Path, name: str = "") -> str:
    """What an array is called by: its folder, its file and its name in it."""
    parts = file.relative_to(root if root.is_dir() else root.parent).with_suffix("").as_posix()
    return f"{parts}/{name}" if name else parts


def _stored(source: Path) -> dict[str, _Stored]:
    """Every array of a file or folder, by its key."""
    if source.is_dir():
        files = _files(source)
    else:
        files = [source]
        if source.suffix.lower() == ".npy":  # its labels stand beside it
            files += [p for p in _files(source.parent) if p != source and _belongs(source, p)]
    found: dict[str, _Stored] = {}
    for file in files:
        with opened(file) as stream:
            if file.suffix.lower() == ".npy":
                found[_key(source, file)] = _of_npy(file, stream)
                continue
            with zipfile.ZipFile(stream) as archive:
                for entry in archive.namelist():
                    name = entry.removesuffix(".npy")
                    if name != entry:
                        key = _key(source, file, name)
                        found[key] = _of_npz(file, archive, name)
    if not found:
        raise InputError(f"{source}: holds no arrays")
    return found


def _belongs(images: Path, other: Path) -> bool:
    """Whether a neighbour holds the labels or the names of a file of images."""
    mine, role = _role(images.stem), _role(other.stem)
    split = mine.split if mine else None
    return role is not None and role.kind != "images" and role.split in (split, None)


def _of_npy(file: Path, stream: IO[bytes]) -> _Stored:
    try:
        return _Stored(file, file.name, read_header(stream, file.stat().st_size, "it"))
    except Wrong as wrong:
        return _Stored(file, file.name, wrong=str(wrong))


def _of_npz(file: Path, archive: zipfile.ZipFile, name: str) -> _Stored:
    try:
        info = member(archive, name)
        with archive.open(info) as stream:
            header = read_header(stream, info.file_size, repr(name))
    except Wrong as wrong:  # pickled, say: bad only if it is one that is wanted
        return _Stored(file, name, wrong=str(wrong))
    return _Stored(file, name, header, info=info)


def _words(name: str) -> list[str]:
    """The words of a name: `x_test`, `testX` and `xtest` are `x` and `test`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.split(r"[\W_]+", spaced.lower().replace("arr_", "arr"))
    kinds = "|".join([*IMAGE_WORDS, *LABEL_WORDS])
    splits = "|".join(sorted(ARRAY_WORDS, key=len, reverse=True))
    out: list[str] = []
    for word in filter(None, words):
        pair = re.fullmatch(f"({kinds})({splits})|({splits})({kinds})", word)
        out += [part for part in pair.groups() if part] if pair else [word]
    joined = "".join(out[-2:])
    return [*out[:-2], joined] if joined in NAME_WORDS else out


def _role(key: str) -> _Role | None:
    """What an array is; None where its name does not say."""
    *folders, name = key.split("/")
    words = _words(name)
    split_words = [ARRAY_WORDS[word] for word in words if word in ARRAY_WORDS]
    around = [ARRAY_WORDS[w] for part in folders for w in _words(part) if w in ARRAY_WORDS]
    split = next(reversed([*around, *split_words]), None)
    kinds = [
        kind
        for word in words
        for kind, known in (("names", NAME_WORDS), ("images", IMAGE_WORDS), ("labels", LABEL_WORDS))
        if word in known
    ]
    if not kinds:
        return _Role("images", split, False) if split_words and len(words) == 1 else None
    # `image_labels` are labels, and `label_names` names.
    kind = "names" if "names" in kinds else "labels" if "labels" in kinds else "images"
    return _Role(kind, split, len(words) == len(split_words) + len(kinds))


def _pairs(
    source: Path,
    stored: Mapping[str, _Stored],
    roles: Mapping[str, _Role],
    wanted: str | None,
    told: list[str],
    alone: bool = False,
) -> dict[str, Pair]:
    """The images and labels of each split; `alone`: images without labels too, of one split."""
    splits = dict.fromkeys(role.split for role in roles.values() if role.kind != "names")
    pairs: dict[str | None, Pair] = {}
    used: set[str] = set()
    for split in splits or [None]:
        x = _one(source, stored, roles, "images", split)
        y = _one(source, stored, roles, "labels", split, wanted)
        if x is None and split is None:
            x = _only(stored, roles, {key for key, shape in _shapes(stored) if len(shape) >= 3})
        if y is None and x is not None and stored[x].header is not None:
            y = _only_column(stored, roles, stored[x].checked().shape[0])
        if x is not None and y is not None:
            pairs[split] = stored[x], stored[y]
            used |= {x, y}
        elif x is not None and alone and not any(pair[1] is None for pair in pairs.values()):
            pairs[split] = stored[x], None
            used.add(x)
        elif x is not None and split is not None:
            told.append(f"{stored[x].where}: images of {split} without labels are left out")
            used.add(x)
    if not pairs:
        raise InputError(_nothing(source, stored))
    left = [key for key in stored if key not in used and not _is(roles, key, "names")]
    if left:
        more = ", …" if len(left) > 5 else ""
        told.append(f"{source}: not used: {', '.join(left[:5])}{more}")
    return _named_splits(pairs, told, source)


def _is(roles: Mapping[str, _Role], key: str, kind: str) -> bool:
    return key in roles and roles[key].kind == kind


def _named_splits(
    pairs: Mapping[str | None, Pair], told: list[str], source: Path
) -> dict[str, Pair]:
    named = {split: pair for split, pair in pairs.items() if split is not None}
    if None in pairs:
        split = "test" if not named else next((s for s in ("train", "test") if s not in named), "")
        if not split:
            return named
        named[split] = pairs[None]
        told.append(f"{source}: {pairs[None][0].name!r} names no split: taken as {split}")
    return named


def _one(
    source: Path,
    stored: Mapping[str, _Stored],
    roles: Mapping[str, _Role],
    kind: str,
    split: str | None,
    wanted: str | None = None,
) -> str | None:
    """The array of a kind and a split; the one whose name says nothing else, if there are more."""
    found = [key for key, role in roles.items() if (role.kind, role.split) == (kind, split)]
    if wanted is not None and kind == "labels":
        found = [key for key in found if wanted.lower() in _words(key.rpartition("/")[2])]
        if not found:
            raise InputError(f"{source}: has no labels called {wanted!r}")
    plain = [key for key in found if roles[key].plain]
    chosen = plain if len(plain) == 1 else found
    if len(chosen) > 1:
        hint = "; say which with --labels WORD" if kind == "labels" else "; keep one of them"
        of = f" of {split}" if split else ""
        raise InputError(f"{source}: several may be the {kind}{of}: {', '.join(chosen[:5])}{hint}")
    return chosen[0] if chosen else None


def _shapes(stored: Mapping[str, _Stored]) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, each.header.shape) for key, each in stored.items() if each.header is not None]


def _only_column(
    stored: Mapping[str, _Stored], roles: Mapping[str, _Role], count: int
) -> str | None:
    fitting = {key for key, shape in _shapes(stored) if shape in ((count,), (count, 1))}
    return _only(stored, roles, fitting)


def _only(
    stored: Mapping[str, _Stored], roles: Mapping[str, _Role], fitting: set[str]
) -> str | None:
    """The only array that fits and has no name that says what it is, if there is one."""
    found = [key for key in stored if key in fitting and key not in roles]
    return found[0] if len(found) == 1 else None


def _nothing(source: Path, stored: Mapping[str, _Stored]) -> str:
    wrong = next((each for each in stored.values() if each.wrong), None)
    if wrong is not None:
        return f"{wrong.path}: {wrong.wrong}"
    held = ", ".join(
        f"{key} {'×'.join(map(str, each.checked().shape))}" for key, each in sorted(stored.items())
    )
    return (
        f"{source}: no images with labels; call them images and labels, or x_test and y_test (it"
        f" holds {held[:200]})"
    )


def _names(stored: Mapping[str, _Stored], roles: Mapping[str, _Role]) -> list[str] | None:
    """The names of the classes, if an array holds them."""
    for key, role in roles.items():
        each = stored[key]
        if role.kind == "names" and each.header is not None:
            header = each.header
            if len(header.shape) == 1 and header.dtype.kind in "US" and header.size < 2**24:
                values = each.load()
                names = [
                    v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values
                ]
                if len(set(names)) < len(names) or not all(names):
                    raise InputError(f"{each.where}: a class is named twice, or not at all")
                return [
                    "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
                    for name in map(str, names)
                ]
    return None


def _check_labels(y: _Stored, count: int) -> None:
    """InputError before labels are read that cannot be those of `count` images."""
    header = y.checked()
    if not header.shape or header.shape[0] != count:
        raise InputError(
            f"{y.where}: {header.shape[0] if header.shape else 1} labels for {count} images"
        )
    if math.prod(header.shape) > MOST_LABELS:
        raise InputError(f"{y.where}: shape {header.shape} is none of labels")
