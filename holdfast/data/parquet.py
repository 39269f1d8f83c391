"""Images and labels in Parquet, as Hugging Face stores data sets, and in its Arrow files.

A row is an image, whose column holds the bytes of a PNG or JPEG file (`struct<bytes, path>`), and
its label. The names of the classes stand in the schema's metadata. Splits are several files each,
`data/train-00000-of-00002.parquet`, or a folder each, `default/test/0000.parquet`. Pictures are
decoded by Pillow, as any others; pyarrow reads the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import InputError
from .arrays import opened
from .base import SPLIT_WORDS, DataSet, Split, overlaps
from .brought import Remembered, check_size
from .images import IN_MEMORY, ImageArray, LazyImages, fingerprint
from .label_values import Column, checked_numbers, numbered, printable
from .labelled import assembled, is_grouped
from .names import natural, shown
from .pictures import GIVE_A_SIZE, decoded, hw, silence_threads

SUFFIXES = (".parquet", ".arrow")
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category", "cls", "y")
KEPT_GROUPS = 4  # row groups of encoded images that are kept
LARGEST_GROUP = 2 * 2**30  # bytes of encoded images in a row group
READ_WHOLE = 4 * 2**30  # bytes of files that are read once to tell their images apart
_SHARD = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})$")
_DEEPEST = 4


def is_here(path: Path) -> bool:
    """Whether a path is such a file, or a folder that holds some."""
    if path.is_dir():
        return next(_below(path), None) is not None
    return path.suffix.lower() in SUFFIXES


def _below(folder: Path, depth: int = _DEEPEST) -> Iterator[Path]:
    """The files in a folder and further in, hidden ones left out, in the order of their names."""
    try:
        inside = sorted(folder.iterdir(), key=lambda path: natural(path.name))
    except OSError:
        return
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in SUFFIXES and not path.is_dir():
            yield path
        elif depth and path.is_dir():
            yield from _below(path, depth - 1)


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    """pyarrow and its reader of Parquet, which take a while to import."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(
            "Parquet is read by pyarrow, which is not installed: pip install 'holdfast[parquet]'"
        ) from None
    return pyarrow, parquet


def load(
    source: str | Path,
    size: int | None = None,
    like: Remembered | None = None,
    labels: str | None = None,
) -> DataSet:
    """Images and labels from Parquet or Arrow files.

    Files without a split in their names are `test`.

    Args:
        source: a file, or a folder that holds them.
        size: height and width, in pixels, to which images are brought; None: as they are.
        like: what a model was trained on; without `size`, images are brought to its size, if its
            own were, or the first is of another.
        labels: which column holds the labels, where there are several: its name, or a word of it.

    Returns:
        Images uint8 (N, 3, H, W) in the order of the files. Up to 512 MiB of pixels are decoded
        into memory at once; more than that, when they are asked for.

    Raises:
        InputError: pyarrow is not installed; damaged, shards missing, no images, no labels, images
            of several sizes; as `holdfast.data.folder`. One line.
    """
    source = Path(source)
    check_size(size)
    files = list(_below(source)) if source.is_dir() else [source]
    told: list[str] = []
    tables = {
        split: _Table(paths, labels, told) for split, paths in _by_split(source, files).items()
    }
    names = next((table.names for table in tables.values() if table.names), None)
    columns, lacking = _columns(tables, told)
    if not columns:
        raise InputError(f"{source}: {next(iter(lacking.values()), 'holds no images')}")
    numbers, classes, named = numbered(columns, names, str(source))
    first = tables[next(iter(columns))]
    shape = first.decoded(0, size).shape
    if size is None and like is not None and (size := like.wanted(shape)) is not None:
        shape = first.decoded(0, size).shape
        told.append(like.line(size))
    count = sum(map(len, numbers.values()))
    in_memory = count * math.prod(shape) <= IN_MEMORY
    given = {
        split: _split(tables[split], split, values, (shape[0], shape[1], shape[2]), size, in_memory)
        for split, values in numbers.items()
    }
    title = source.stem if source.is_file() else source.resolve().name
    return assembled(
        shown(title),
        classes,
        given,
        list(dict.fromkeys(told)),
        where=str(source),
        named=named,
        overlaps=overlaps(given) if in_memory else (),
        brought={} if size is None else {"size": size},
        why=lacking,
    )


def _columns(
    tables: dict[str, _Table], told: list[str]
) -> tuple[dict[str, Column], dict[str, str]]:
    """The labels of each split; and why a split has none."""
    columns: dict[str, Column] = {}
    lacking: dict[str, str] = {}
    for split, table in tables.items():
        if not table.count:
            continue
        values = table.labels()
        if values.dtype.kind in "iu" and (values == -1).all():
            why = f"{table.where}: its labels are all -1, which stands for unknown"
            lacking[split] = why
            told.append(why)
            continue
        if values.dtype.kind != "U":
            values = checked_numbers(values, f"{table.where}: {table.label!r}")
        columns[split] = Column(values)
    return columns, lacking


def _by_split(source: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split, by their names or their folders' names, all shards there.

    Raises:
        InputError: a shard is missing, or files without a split stand beside others.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(source).parts if source.is_dir() else (file.name,)
        words = re.split(r"[\W_]+", " ".join(parts).lower())
        found = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
        splits.setdefault(found[-1] if found else "", []).append(file)
    if "" in splits:
        if len(splits) > 1:
            raise InputError(f"{splits[''][0]}: names no split, as the files beside it do")
        splits = {"test": splits[""]}
    if source.is_dir():
        for paths in splits.values():
            _check_shards(paths)
    return splits


def _check_shards(paths: Sequence[Path]) -> None:
    shards: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        match = _SHARD.match(path.stem)
        if match:
            key = (path.parent, match[1], int(match[3]))
            shards.setdefault(key, set()).add(int(match[2]))
    for (folder, name, count), held in shards.items():
        missing = next((number for number in range(count) if number not in held), None)
        if missing is not None:
            raise InputError(f"{folder}: shard {missing:05d} of {count:05d} of {name!r} is missing")


def _split(
    table: _Table,
    split: str,
    labels: np.ndarray,
    shape: tuple[int, int, int],
    size: int | None,
    in_memory: bool,
) -> Split:
    whole = table.bytes <= READ_WHOLE
    digests = table.digests() if whole and not in_memory else None

    def picture(row: int) -> np.ndarray:
        pixels = table.decoded(row, size)
        if pixels.shape != shape:
            raise InputError(
                f"{table.place(row)}: {hw(pixels.shape)} pixels where other images have"
                f" {hw(shape)}; {GIVE_A_SIZE}"
            )
        return pixels

    silence_threads()
    images: ImageArray = LazyImages(picture, table.count, shape, digests=digests)
    if in_memory:
        images = np.asarray(images)
        told = f"sha256 of the images: {fingerprint(images)}"
    elif whole:
        told = f"sha256 of the files: {fingerprint(images)}"
    else:
        told = f"sha256 of names and lengths: {table.name_sum()}"
    how = "as in the files" if size is None else "centre cut and resized"
    return Split(
        images,
        table.filenames(split),
        labels,
        f"own images, {hw(shape)}, {how} ({told})",
        grouped=is_grouped(labels),
    )


# --- files ----------------------------------------------------------------------------------------


class _Table:
    """The rows of one split, from one or more files.

    Attributes:
        image, label: the names of the columns.
        names: of the classes, by the metadata; None where it has none.
        count: rows.
        bytes: of the files.
    """

    def __init__(self, paths: Sequence[Path], wanted: str | None, told: list[str]):
        self.paths = list(paths)
        self.where = str(paths[0]) if len(paths) == 1 else str(paths[0].parent)
        self.shards = [_Shard(path) for path in paths]
        schema = self.shards[0].schema
        self.image = _image_column(self.paths[0], schema)
        self.label = _label_column(self.paths[0], schema, wanted)
        for shard in self.shards:
            for name in (self.image, self.label):
                if name not in shard.schema.names:
                    raise InputError(f"{shard.path}: has no column {name!r}, as others of it do")
        self.names = _class_names(self.paths[0], schema, self.label)
        self.begins = [0]
        for shard in self.shards:
            self.begins.append(self.begins[-1] + shard.count)
        self.count = self.begins[-1]
        self.bytes = sum(path.stat().st_size for path in paths)
        others = [name for name in schema.names if name not in (self.image, self.label)]
        if others:
            told.append(
                f"columns {self.image!r} and {self.label!r} are read, not"
                f" {', '.join(map(shown, others[:5]))}{', …' if len(others) > 5 else ''}"
            )

    def labels(self) -> np.ndarray:
        """int64, another kind of numbers, or str (N,)."""
        parts = [shard.values(self.label) for shard in self.shards]
        kinds = {part.dtype.kind in "US" for part in parts}
        if len(kinds) > 1:
            raise InputError(f"{self.where}: {self.label!r} holds names and numbers")
        return np.concatenate(parts)

    def filenames(self, split: str) -> np.ndarray:
        """What the images were called; else their split and number."""
        width = len(str(self.count))
        held = [name for shard in self.shards for name in shard.file_names(self.image)]
        return np.array(
            [shown(name) if name else f"{split}_{row:0{width}d}" for row, name in enumerate(held)],
            dtype=str,
        )

    def _at(self, row: int) -> tuple[_Shard, int]:
        which = bisect_right(self.begins, row) - 1
        return self.shards[which], row - self.begins[which]

    def place(self, row: int) -> str:
        """Which file and row, for errors."""
        shard, own = self._at(row)
        return f"{shard.path}: row {own}"

    def decoded(self, row: int, size: int | None) -> np.ndarray:
        """An image, uint8 (3, H, W)."""
        shard, own = self._at(row)
        raw = shard.encoded(self.image, own)
        if raw is None:
            raise InputError(
                f"{self.place(row)}: has no bytes of an image; store images inside the file"
            )
        return decoded(raw, self.place(row), size)

    def digests(self) -> list[bytes]:
        """SHA-256 of each image's bytes."""
        return [
            hashlib.sha256(shard.encoded(self.image, row) or b"").digest()
            for shard in self.shards
            for row in range(shard.count)
        ]

    def name_sum(self) -> str:
        """Of the files' names and lengths."""
        told = "".join(f"{path.name}\0{path.stat().st_size}\0" for path in self.paths)
        return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:12]


class _Shard:
    """One file. Of Parquet, a few row groups of encoded images are kept; Arrow's are mapped."""

    def __init__(self, path: Path):
        self.path = path
        self._begin()
        table = self._opened()
        self.schema = table.schema_arrow if self.is_parquet else table.schema
        self.count = int(table.metadata.num_rows if self.is_parquet else table.num_rows)
        groups = range(table.metadata.num_row_groups if self.is_parquet else 0)
        self.begins = [0]
        for group in groups:
            self.begins.append(self.begins[-1] + table.metadata.row_group(group).num_rows)

    def _begin(self) -> None:
        self.table: Any = None
        self.kept: OrderedDict[int, Any] = OrderedDict()
        self.lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["table"], state["kept"], state["lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def is_parquet(self) -> bool:
        return self.path.suffix.lower() == ".parquet"

    def _opened(self) -> Any:
        if self.table is None:
            arrow, parquet = _pyarrow()
            with opened(self.path):
                if self.is_parquet:
                    # Not mapped: a file that is cut off meanwhile would end the whole process.
                    self.table = parquet.ParquetFile(self.path)
                else:
                    self.table = _arrow_table(arrow, self.path)
        return self.table

    def _column(self, name: str) -> Any:
        with opened(self.path):
            table = self._opened()
            if self.is_parquet:
                table = table.read(columns=[name], use_threads=False)
            return table.column(0 if self.is_parquet else name)

    def values(self, name: str) -> np.ndarray:
        """A column of labels."""
        arrow, _ = _pyarrow()
        column = self._column(name)
        if column.null_count:
            row = next(i for i, valid in enumerate(column.is_valid().to_pylist()) if not valid)
            raise InputError(f"{self.path}: row {row} has no {name!r}")
        if arrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
            return np.array([printable(value) for value in column.to_pylist()], dtype=str)
        if not (arrow.types.is_integer(column.type) or arrow.types.is_boolean(column.type)):
            raise InputError(
                f"{self.path}: {name!r} holds {column.type}; whole numbers or names are labels"
            )
        values: np.ndarray = np.array(column.to_pylist(), dtype=object)
        if any(not -(2**63) <= value < 2**63 for value in values):
            raise InputError(f"{self.path}: {name!r} holds numbers that no label is")
        return values.astype(np.int64)

    def file_names(self, image: str) -> list[str | None]:
        """What the images were called, where that is stored."""
        arrow, _ = _pyarrow()
        kind = self.schema.field(image).type
        if not arrow.types.is_struct(kind) or "path" not in [field.name for field in kind]:
            return [None] * self.count
        names = self._column(f"{image}.path" if self.is_parquet else image).to_pylist()
        return [name["path"] if name else None for name in names]

    def encoded(self, image: str, row: int) -> bytes | None:
        """The bytes of an image's file."""
        if not self.is_parquet:
            with opened(self.path):
                value = self._opened().column(image)[row].as_py()
        else:
            group = bisect_right(self.begins, row) - 1
            value = self._group(image, group)[row - self.begins[group]].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        return value if isinstance(value, bytes) else None

    def _group(self, image: str, group: int) -> Any:
        with self.lock:
            if group not in self.kept:
                with opened(self.path):
                    table = self._opened()
                    held = table.metadata.row_group(group)
                    size = sum(
                        held.column(i).total_uncompressed_size
                        for i in range(held.num_columns)
                        if held.column(i).path_in_schema.split(".")[0] == image
                    )
                    if size > LARGEST_GROUP:
                        raise InputError(
                            f"{self.path}: a row group of {size / 2**30:.0f} GiB of images; write"
                            " it with row_group_size=100"
                        )
                    read = table.read_row_group(group, columns=[image], use_threads=False)
                    self.kept[group] = read.column(0)
            self.kept.move_to_end(group)
            while len(self.kept) > KEPT_GROUPS:
                self.kept.popitem(last=False)
            return self.kept[group]


def _arrow_table(arrow: ModuleType, path: Path) -> Any:
    """An Arrow file, of either of its two forms, mapped."""
    source = arrow.memory_map(str(path))
    try:
        return arrow.ipc.open_stream(source).read_all()
    except arrow.ArrowInvalid:
        source.seek(0)
        return arrow.ipc.open_file(source).read_all()


# --- columns --------------------------------------------------------------------------------------


def _image_column(path: Path, schema: Any) -> str:
    """The column of images: by its type, then by its name."""
    arrow, _ = _pyarrow()

    def holds(kind: Any) -> bool:
        if arrow.types.is_struct(kind):
            return "bytes" in [field.name for field in kind]
        return bool(arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind))

    fitting = [name for name in schema.names if holds(schema.field(name).type)]
    known = [name for name in IMAGE_COLUMNS if name in fitting]
    if known:
        return known[0]
    if len(fitting) == 1:
        return str(fitting[0])
    if fitting:
        raise InputError(
            f"{path}: several columns may be the images, {', '.join(map(shown, fitting[:5]))}; call"
            " one of them 'image'"
        )
    held = ", ".join(f"{shown(field.name)} {str(field.type)[:40]}" for field in list(schema)[:8])
    raise InputError(
        f"{path}: no column of images, struct<bytes, path> or binary (it holds {held})"
    )


def _label_column(path: Path, schema: Any, wanted: str | None) -> str:
    held = ", ".join(map(shown, schema.names[:8]))
    if wanted is not None:
        if wanted in schema.names:
            return wanted
        words = [name for name in schema.names if wanted.lower() in re.split(r"\W|_", name.lower())]
        if len(words) == 1:
            return str(words[0])
        raise InputError(f"{path}: has no column of labels {wanted!r} (it holds {held})")
    known = [name for name in LABEL_COLUMNS if name in schema.names]
    if known:
        return known[0]
    marked = [name for name, entry in _features(schema).items() if _is_label(entry)]
    if len(marked) == 1:
        return marked[0]
    raise InputError(f"{path}: no column 'label' (it holds {held}); name it with --labels COLUMN")


def _is_label(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("_type") == "ClassLabel"


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face says of each column, as far as it can be read."""
    try:
        held = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = held["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(path: Path, schema: Any, label: str) -> list[str] | None:
    entry = _features(schema).get(label)
    names = entry.get("names") if entry is not None and _is_label(entry) else None
    if not isinstance(names, list) or not names:
        return None
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise InputError(f"{path}: the names of {label!r} in its metadata are no names of classes")
    return [printable(name) for name in names]
