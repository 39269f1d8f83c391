"""What somebody hands over beside the data: ready-made adversarial images, and target classes.

Files come from anybody. Headers are read first, and an array is loaded only where its shape is what
is wanted, so that no small file fills the memory; nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from torch import Tensor

from ..errors import InputError
from ..parsing import nearest
from ..runs.files import check_regular, read_text
from ..stored import TOGETHER, Made, ModelImages, NotInMemory, exceeds_memory, part
from .arrays import (
    Header,
    Wrong,
    check_unpacked,
    loaded,
    member,
    opened,
    place,
    read_content,
    read_header,
)
from .images import LazyImages
from .names import natural
from .pictures import read_image

Shape = tuple[int, ...]

# What people call these arrays, the clearest name first; case, `-` and `_` do not matter.
ADVERSARIAL_NAMES = (
    "adversarial", "adversarialimages", "adversarialexamples", "adversarials", "xadv", "advx",
    "adv", "advimages", "imagesadv", "advs", "advcomplete", "perturbed", "perturbedimages",
    "images", "image", "x", "xtest", "inputs", "data", "arr0",
)  # fmt: skip
INDEX_NAMES = ("index", "indices", "indexes", "idx", "ids")
LABEL_NAMES = ("labels", "label", "y", "ytrue", "truelabels", "ytest")
TARGET_NAMES = ("targets", "target", "ytarget", "targetlabels", "targetclass")
EXAMPLES = "examples.safetensors"  # what a run folder of ours holds
PICTURES = (".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")  # without loss; .jpg changes pixels
LARGE = 2.0  # values beyond it belong to no image in [0, 1], however badly it was clamped


@dataclass(frozen=True)
class Given:
    """Images that somebody hands over.

    Attributes:
        images: float32 (N, C, H, W); in [0, 1] if they are what they should be. More than 512 MiB
            of them are not in memory, but read when they are indexed.
        index: int64 (N,), which image of the data each belongs to; None: they stand in its order.
        labels: int64 (N,), the true classes as the file has them; None where it has none.
        told: one line each on what was taken, and how.
    """

    images: ModelImages
    index: Int64[Tensor, " n"] | None = None
    labels: Int64[Tensor, " n"] | None = None
    told: tuple[str, ...] = ()

    def first(self, count: int, limit: int | None = None) -> Given:
        """Those of the first `count` images, where somebody set that limit."""
        kept = torch.arange(len(self.images)) if self.index is None else self.index
        rows = (kept < count).nonzero().squeeze(1)
        if limit is None or len(rows) == len(kept):
            return self
        if not len(rows):
            raise InputError(f"no adversarial image belongs to one of the first {count} images")
        return Given(
            part(self.images, rows),
            None if self.index is None else self.index[rows],
            None if self.labels is None else self.labels[rows],
            (*self.told, f"only those of the first {count} images"),
        )


@dataclass(frozen=True)
class _Array:
    """An array of a file that is not loaded yet."""

    shape: Shape
    load: Callable[[], Any]
    wrong: str = ""  # why it cannot be loaded
    unread: Callable[[], Any] | None = None  # the same, whose rows are read when it is indexed


class _RowsOfFile:
    """An array in a file, whose rows are read when it is indexed by their numbers.

    Args:
        offset: bytes of the file before the array, which is in C order.
    """

    def __init__(self, path: Path, dtype: np.dtype, offset: int, shape: Shape):
        self.path, self.dtype, self.offset, self.shape = path, dtype, offset, shape

    def __getitem__(self, rows: Int64[np.ndarray, " m"]) -> np.ndarray:
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with opened(self.path) as file:
            for place, row in zip(found, rows.tolist(), strict=True):
                file.seek(self.offset + row * size)
                if file.readinto(memoryview(place).cast("B")) != size:  # type: ignore[attr-defined]
                    raise Wrong("the file ends too early")
        return found


def read_given(path: Path | str, shape: Shape, most: int) -> Given:
    """Adversarial images from a file or a folder.

    Args:
        path: an `.npz`, `.npy` or `.safetensors` file; a folder of pictures, whose numbers are the
            index; or an evaluation's run folder, whose examples are taken.
        shape: (C, H, W) of the data.
        most: how many images the data has.

    Raises:
        InputError: nothing there; damaged, pickled or packed beyond reason; no array that fits, an
            index out of range or with repetitions. One line that names the file.
    """
    path = Path(path)
    run = path if os.path.isdir(path) and os.path.isfile(path / EXAMPLES) else None
    if run is not None:
        path = run / EXAMPLES
    if os.path.isdir(path):
        return _pictures(path, shape, most)
    with _arrays(path) as arrays:
        name = _named_images(path, arrays, shape)
        count = arrays[name].shape[0]
        if not 0 < count <= most:
            raise InputError(
                f"{path}: {_quoted(name)} holds {count} images; the data has {most}"
                + (": an index says which image each belongs to" if count else "")
            )
        others = [other for other in arrays if other != name]
        told = [f"{path.name}: {_quoted(name)} of shape {_written(arrays[name].shape)} taken"]
        if others:
            told[0] += f"; beside it: {', '.join(sorted(others)[:8])}"
        array = arrays[name]
        load = array.unread if array.unread and exceeds_memory(array.shape) else array.load
        given = taken(load(), shape, f"{path}: {_quoted(name)}")
        if run is not None:
            told += _examples_told(run, count)
        rows: dict[str, Tensor | None] = {}
        for what, names in (("index", INDEX_NAMES), ("labels", LABEL_NAMES)):
            found = _called(arrays, names)
            rows[what] = None
            if found is not None and what == "labels" and len(arrays[found].shape) > 1:
                shape_of = _written(arrays[found].shape)
                told.append(f"{path.name}: {_quoted(found)} of shape {shape_of} not read")
            elif found is not None and found != name:
                rows[what] = _numbers(path, found, arrays[found], count)
                told.append(f"{path.name}: {_quoted(found)} taken as {_MEANT[what]}")
    if rows["index"] is not None:
        check_index(rows["index"], most, f"{path}: ")
    return Given(given.images, rows["index"], rows["labels"], (*told, *given.told))


def _examples_told(run: Path, count: int) -> list[str]:
    """That the examples of a run are no sample of its images, if they are not all."""
    table = run / "verdicts.csv"
    judged = len(read_text(table).splitlines()) - 1 if table.is_file() else 0
    if judged <= count:
        return []
    return [
        f"{count} examples, which were chosen, of {judged} images that {run.name} judged, so "
        "shares of them are no estimate: `holdfast export RUN --to FILE.npz` writes all"
    ]


_MEANT = {
    "index": "the index of the image that each belongs to",
    "labels": "the true classes",
}


def check_index(index: Int64[Tensor, " n"], most: int, where: str = "") -> None:
    """InputError where an index names an image that there is not, or one twice."""
    outside = (index < 0) | (index >= most)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise InputError(
            f"{where}index[{row}] is {int(index[row])}, out of range; the data has {most} images"
        )
    values, counts = index.unique(return_counts=True)
    if bool((counts > 1).any()):
        raise InputError(
            f"{where}the index names image {int(values[counts > 1][0])} "
            f"{int(counts[counts > 1][0])} times: one adversarial image each is wanted"
        )


def taken(values: Any, shape: Shape, what: str = "the adversarial images") -> Given:
    """Images as float32 (N, C, H, W), from 0 to 1 where they are right; nothing is clamped.

    Args:
        values: floats, or whole numbers from 0 to 255; (N, C, H, W) or (N, H, W, C), and for one
            channel (N, H, W). A tensor, an array, lists; or what has a `shape` and is indexed by
            numbers of rows. More than 512 MiB, as float32, stay where they are.
        shape: (C, H, W) of the data.

    Raises:
        InputError: another shape, or no numbers.

    Example:
        >>> given = taken(np.full((2, 4, 4, 3), 255, np.uint8), (3, 4, 4))
        >>> tuple(given.images.shape), given.told
        ((2, 3, 4, 4), ('N×H×W×C, turned to N×C×H×W', 'uint8, divided by 255'))
    """
    try:
        source = values.detach().cpu() if isinstance(values, Tensor) else _indexed(values)
        channels_first, told = _layout(tuple(source.shape), tuple(shape), what)
        count = len(source.shape) and source.shape[0]

        def read(rows: Int64[Tensor, " m"]) -> Tensor:
            found = source[rows] if isinstance(source, Tensor) else source[rows.numpy()]
            return channels_first(
                found if isinstance(found, Tensor) else torch.from_numpy(_plain(found))
            )

        first = read(torch.arange(1))
    except (TypeError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(f"{what}: no array of numbers ({said})") from None
    parts = (read(rows) for rows in torch.arange(count).split(TOGETHER))
    kind, divided = str(first.dtype).removeprefix("torch."), True
    if first.is_floating_point():
        if kind != "float32":
            told.append(f"{kind}, as float32")
        highest = _highest_of_bytes(parts)
        divided = highest is not None
        if divided:
            told.append(f"values up to {highest:g}: taken as 0 to 255, divided by 255")
    elif first.dtype == torch.bool or first.is_complex():
        raise InputError(f"{what}: {first.dtype} are no pixels; give floats in [0, 1], or uint8")
    else:
        ends = [(int(piece.min()), int(piece.max())) for piece in parts]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        if low < 0 or high > 255:
            raise InputError(f"{what}: whole numbers from {low} to {high}; pixels are 0 to 255")
        told.append(f"{kind}, divided by 255")

    def pixels(found: Tensor) -> Float[Tensor, "m c h w"]:
        return (found.float() / 255 if divided else found.float()).contiguous()

    wanted = (count, *shape)
    if exceeds_memory(wanted) and not (isinstance(source, Tensor) and kind == "float32"):
        return Given(Made(lambda rows: pixels(read(rows)), wanted), told=tuple(told))
    whole = channels_first(source) if isinstance(source, Tensor) else read(torch.arange(count))
    return Given(pixels(whole), told=tuple(told))


def _indexed(values: Any) -> Any:
    """What has a shape and is indexed by numbers of rows: a tensor, an array, or what is not in
    memory."""
    if isinstance(values, _RowsOfFile | LazyImages | NotInMemory):
        return values
    if isinstance(values, np.ndarray) and exceeds_memory(values.shape):
        return values
    return torch.from_numpy(_plain(values))


def _highest_of_bytes(parts: Iterable[Tensor]) -> float | None:
    """The highest value of floats that seem to be from 0 to 255; None of those from 0 to 1."""
    finite = beyond = 0
    low, high = math.inf, -math.inf
    for piece in parts:
        some = piece.float()
        some = some[torch.isfinite(some)]
        if some.numel():
            finite, beyond = finite + some.numel(), beyond + int((some > LARGE).sum())
            low, high = min(low, float(some.min())), max(high, float(some.max()))
    if not finite or beyond <= 0.1 * finite or low < 0:
        return None
    return high


def _plain(values: Any) -> np.ndarray:
    """An array in the machine's byte order, of a kind that torch knows."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{array.dtype}")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return np.array(array, dtype=array.dtype.newbyteorder("="))


def _layout(given: Shape, shape: Shape, what: str) -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """From images of the shape `given` to (N, C, H, W), and a line on what that takes."""
    channels, height, width = shape
    fits, turned = given[1:] == shape, given[1:] == (height, width, channels)
    if len(given) == 4 and given[0] and fits:
        same = "N×C×H×W and N×H×W×C look alike here: taken as N×C×H×W"
        return lambda x: x, [same] if turned and channels > 1 else []
    if len(given) == 4 and given[0] and turned:
        return lambda x: x.permute(0, 3, 1, 2), ["N×H×W×C, turned to N×C×H×W"]
    if len(given) == 3 and given[0] and channels == 1 and given[1:] == (height, width):
        return lambda x: x[:, None], ["N×H×W, of one channel"]
    raise InputError(
        f"{what}: shape {_written(given)} is not N×{channels}×{height}×{width} or "
        f"N×{height}×{width}×{channels}, as the data has it"
    )


# -- files of arrays ------------------------------------------------------------------------------


@contextmanager
def _arrays(path: Path) -> Iterator[dict[str, _Array]]:
    """What a file holds, by name; the one array of an `.npy` is called by the file's name."""
    kind = path.suffix.lower()
    if kind == ".safetensors":
        check_regular(path)
        try:
            with safe_open(path, "pt") as content:
                yield {
                    name: _Array(
                        tuple(content.get_slice(name).get_shape()),
                        lambda name=name: content.get_tensor(name),  # type: ignore[misc]
                        unread=_rows_of_safetensors(path, name),
                    )
                    for name in content.keys()  # noqa: SIM118
                }
        except InputError:
            raise
        except Exception as error:  # of the library's own and of torch's, of many kinds
            said = " ".join(str(error).split())[:120]
            raise InputError(f"{path} is damaged: {said}") from None
    elif kind == ".npz":
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            yield _members(path, archive)
    elif kind == ".npy":
        with opened(path) as file:
            header = read_header(file, path.stat().st_size, "it")
            unread = _RowsOfFile(path, header.dtype, header.offset, header.shape)
            yield {
                path.stem: _Array(
                    header.shape,
                    lambda: loaded(file, header)[0],
                    unread=None if header.fortran else lambda: unread,
                )
            }
    else:
        if not path.exists():
            raise InputError(f"{path}: no such file")
        raise InputError(
            f"{path}: give an .npz, .npy or .safetensors file, or a folder of PNG files"
        )


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, _Array]:
    found = {}
    for entry in archive.namelist():
        name = entry.removesuffix(".npy")
        if name == entry:
            continue
        try:
            info = member(archive, name)
            with archive.open(info) as stream:
                header = read_header(stream, info.file_size, _quoted(name))
            if info.compress_type != zipfile.ZIP_STORED:
                check_unpacked(header, _quoted(name))
        except Wrong as wrong:  # pickled, say: bad only if it is the one that is wanted
            found[name] = _Array((), _raising(wrong), str(wrong))
            continue

        def load(info: zipfile.ZipInfo = info, name: str = name) -> np.ndarray:
            with archive.open(info) as stream:
                return loaded(stream, read_header(stream, info.file_size, _quoted(name)))[0]

        def unread(
            info: zipfile.ZipInfo = info, name: str = name, header: Header = header
        ) -> _RowsOfFile:
            with archive.open(info) as stream:  # to its end, which checks its CRC
                read_content(stream, read_header(stream, info.file_size, _quoted(name)), None)
            offset = place(path, info) + header.offset
            return _RowsOfFile(path, header.dtype, offset, header.shape)

        mapped = info.compress_type == zipfile.ZIP_STORED and not header.fortran
        found[name] = _Array(header.shape, load, unread=unread if mapped else None)
    if not found:
        raise Wrong("holds no arrays")
    return found


_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U8": "u1", "I16": "<i2", "I32": "<i4",
          "I64": "<i8"}  # fmt: skip


def _rows_of_safetensors(path: Path, name: str) -> Callable[[], _RowsOfFile] | None:
    """A tensor of a file whose header the library has checked; None of a type that NumPy lacks."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    if entry["dtype"] not in _KINDS:
        return None
    kind, begin = np.dtype(_KINDS[entry["dtype"]]), 8 + length + entry["data_offsets"][0]
    return lambda: _RowsOfFile(path, kind, begin, tuple(entry["shape"]))


def _raising(wrong: Wrong) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        raise wrong

    return load


def _simple(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _called(arrays: Mapping[str, _Array], names: Sequence[str]) -> str | None:
    """The array of the first of these names that is there."""
    simple = {_simple(name): name for name in arrays}
    return next((simple[name] for name in names if name in simple), None)


def _fits(shape: Shape, wanted: Shape) -> bool:
    channels, height, width = wanted
    usual = len(shape) == 4 and shape[1:] in (wanted, (height, width, channels))
    return usual or (channels == 1 and len(shape) == 3 and shape[1:] == (height, width))


def _named_images(path: Path, arrays: Mapping[str, _Array], shape: Shape) -> str:
    """Which array holds the images: by its name, else the only one that has their shape."""
    fitting = {name: array for name, array in arrays.items() if _fits(array.shape, shape)}
    name = _called(fitting, ADVERSARIAL_NAMES)
    if name is not None:
        return name
    if len(fitting) == 1:
        return next(iter(fitting))
    wrong = next((array.wrong for array in arrays.values() if array.wrong), "")
    if wrong and not fitting:
        raise InputError(f"{path}: {wrong}")
    held = ", ".join(f"{name} {_written(array.shape)}" for name, array in sorted(arrays.items()))
    channels, height, width = shape
    if fitting:
        raise InputError(
            f"{path}: several arrays may be the images ({', '.join(sorted(fitting))}): call one "
            "'adversarial'"
        )
    raise InputError(
        f"{path}: no array of shape N×{channels}×{height}×{width} or "
        f"N×{height}×{width}×{channels}, as the data has it (it holds {held[:200] or 'nothing'})"
    )


def _numbers(path: Path, name: str, array: _Array, count: int) -> Int64[Tensor, " n"]:
    """A column of whole numbers, one an image."""
    shape = array.shape
    if shape not in ((count,), (count, 1)):
        raise InputError(
            f"{path}: {_quoted(name)} has the shape {_written(shape)}; one number for each of the "
            f"{count} images is wanted"
        )
    values = array.load()
    values = values.numpy() if isinstance(values, Tensor) else values
    return whole_numbers(values, f"{path}: {_quoted(name)}")


def whole_numbers(values: np.ndarray, what: str) -> Int64[Tensor, " n"]:
    """A column as int64 (N,); InputError where something in it is no whole number."""
    values = values.reshape(-1)
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == values.round()).all():
        values = values.clip(-(2.0**62), 2.0**62).astype(np.int64)
    if values.dtype.kind not in "iu":
        raise InputError(f"{what} must be whole numbers")
    if values.dtype.kind == "u":
        values = values.clip(0, 2**62)
    return torch.from_numpy(values.astype(np.int64))


def _quoted(name: str) -> str:
    return repr(name[:60])


def _written(shape: Shape) -> str:
    return "×".join(map(str, shape[:8])) or "of a single number"


# -- folders of pictures --------------------------------------------------------------------------


def _pictures(folder: Path, shape: Shape, most: int) -> Given:
    """The pictures of a folder, and of those in it, in the order of their names; numbers in the
    names are the index."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    lossy = [path for path in found if path.suffix.lower() in (".jpg", ".jpeg")]
    files = sorted(
        (path for path in found if path.suffix.lower() in PICTURES),
        key=lambda path: natural(str(path.relative_to(folder))),
    )
    if not files:
        if (folder / "request.json").is_file():
            raise InputError(f"{folder}: a run folder without {EXAMPLES}, which evaluations write")
        hint = ": JPEG changes the pixels; save PNG" if lossy else ""
        raise InputError(f"{folder}: holds no PNG files{hint}")
    if len(files) > most:
        raise InputError(f"{folder}: holds {len(files)} pictures; the data has {most} images")
    channels, height, width = shape
    images: Any = LazyImages(
        lambda i: _picture(files[i], shape), len(files), (channels, height, width)
    )
    if not exceeds_memory(images.shape):
        images = np.stack([_picture(path, shape) for path in files])
    told = [f"{folder.name}: {len(files)} pictures taken, in the order of their names"]
    index = _index_beside(folder, files)
    if index is None:
        index = _index_in(files)
    if index is not None:
        check_index(index, most, f"{folder}: by the files' names, ")
        told.append(f"{folder.name}: the numbers in the names taken as {_MEANT['index']}")
    told += _left_out(folder, len(files))
    given = taken(images, shape, str(folder))
    return Given(given.images, index, None, (*told, *given.told))


def _picture(path: Path, shape: Shape) -> np.ndarray:
    channels, height, width = shape
    picture = read_image(path, None)
    if picture.shape[1:] != (height, width):
        own = "×".join(map(str, picture.shape[1:]))
        raise InputError(f"{path}: {own} pixels; the data has {height}×{width}")
    if channels == 1:
        return picture[:1]
    if channels != 3:
        raise InputError(f"{path}: pictures have 1 or 3 channels, the data {channels}")
    return picture


def _left_out(folder: Path, count: int) -> list[str]:
    """That `holdfast export` wrote pictures of some images only: of those that fool the model."""
    more = len(_table_beside(folder)) - count
    if more <= 0:
        return []
    return [
        f"index.csv has {more} more images, of which there is no picture, so shares of these are "
        "no estimate"
    ]


def _table_beside(folder: Path) -> list[dict[str, str]]:
    """The rows of a table `index.csv` in the folder, as `holdfast export` writes it."""
    table = folder / "index.csv"
    if not table.is_file():
        return []
    rows = list(csv.DictReader(read_text(table).splitlines()))
    return rows if rows and {"index", "file"} <= rows[0].keys() else []


def _index_beside(folder: Path, files: Sequence[Path]) -> Int64[Tensor, " n"] | None:
    """The index by a table `index.csv` in the folder."""
    of_file = {str(r["file"]): str(r["index"]) for r in _table_beside(folder) if r["file"]}
    if not of_file:
        return None
    names = [path.relative_to(folder).as_posix() for path in files]
    if not all(_is_whole(of_file.get(name, "")) for name in names):
        return None
    return torch.tensor([int(of_file[name]) for name in names])


def _index_in(files: Sequence[Path]) -> Int64[Tensor, " n"] | None:
    """The one number in each name; None where there is not one in each, where they repeat, or where
    they merely count from 0 or 1."""
    numbers = [re.findall(r"[0-9]+", path.stem) for path in files]
    if any(len(each) != 1 or len(each[0]) > 12 for each in numbers):
        first = [each[:1] for each in numbers]  # `17-cat-3.png`: the first, if it tells them apart
        if any(not each or len(each[0]) > 12 for each in first):
            return None
        numbers = first
    index = [int(each[0]) for each in numbers]
    in_order = list(range(len(index)))
    if len(set(index)) < len(index) or sorted(index) in (in_order, [i + 1 for i in in_order]):
        ordered = [i - min(index) for i in index]
        return (
            None if ordered == in_order or len(set(index)) < len(index) else torch.tensor(ordered)
        )
    return torch.tensor(index)


# -- targets --------------------------------------------------------------------------------------


def read_targets(path: Path | str, count: int, classes: Sequence[str]) -> Int64[Tensor, " n"]:
    """The target class of every image, from a file.

    Args:
        path: `.txt`, a class a line; `.csv`, of one column, or with a header that names `target`
            and perhaps `index`; `.npy` or `.npz`, of whole numbers. Classes are numbers, or names
            as the data has them. Of more rows than images, the first are taken.
        count: how many images there are.
        classes: their names.

    Raises:
        InputError: no such file, damaged, or not a class for every image. One line.
    """
    path = Path(path)
    if path.suffix.lower() in (".npy", ".npz"):
        targets, index = _targets_in_arrays(path)
    elif path.suffix.lower() in (".csv", ".txt", ".tsv"):
        targets, index = _targets_in_text(path, count, classes)
    elif not path.exists():
        raise InputError(
            f"targets {str(path)!r}: neither least-likely, most-likely or random, nor a file"
        )
    else:
        raise InputError(f"{path}: targets are read from .csv, .txt, .npy and .npz files")
    if index is not None:
        placed = torch.full((count,), -1)
        inside = (index >= 0) & (index < count)
        placed[index[inside]] = targets[inside]
        missing = ~torch.isin(torch.arange(count), index)
        if bool(missing.any()):
            raise InputError(f"{path}: no target for image {int(missing.nonzero()[0])}")
        return placed
    if len(targets) < count:
        raise InputError(f"{path}: {len(targets)} targets for {count} images")
    return targets[:count]


Columns = tuple[Int64[Tensor, " n"], Int64[Tensor, " n"] | None]


def _targets_in_arrays(path: Path) -> Columns:
    with _arrays(path) as arrays:
        lines = {name: array for name, array in arrays.items() if 1 <= len(array.shape) <= 2}
        wrong = next((array.wrong for array in arrays.values() if array.wrong), "")
        if wrong and not lines:
            raise InputError(f"{path}: {wrong}")
        name = _called(lines, (*TARGET_NAMES, "arr0")) or (
            next(iter(lines)) if len(lines) == 1 else None
        )
        if name is None:
            raise InputError(
                f"{path}: no array 'targets' (it holds {', '.join(sorted(arrays))[:100]})"
            )
        size = arrays[name].shape[0]
        found = _numbers(path, name, arrays[name], size)
        index = _called(lines, INDEX_NAMES)
        return found, None if index is None else _numbers(path, index, arrays[index], size)


def _targets_in_text(path: Path, count: int, classes: Sequence[str]) -> Columns:
    comma = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=comma)]
    if not rows:
        raise InputError(f"{path}: is empty")
    width = len(rows[0])
    ragged = next((i for i, row in enumerate(rows) if len(row) != width), None)
    if ragged is not None:
        raise InputError(f"{path}: line {ragged + 1} has {len(rows[ragged])} cells, not {width}")
    first = rows[0]
    simple = [_simple(cell) for cell in first]
    known = {name: label for label, name in enumerate(classes)}
    headed = any(name in (*TARGET_NAMES, *INDEX_NAMES) for name in simple)
    # Of one column any other first line is a header, unless a target would be missing then.
    named = first[0] in known or _is_whole(first[0])
    headed |= width == 1 and not named and len(rows) > count
    if width > 1 and not any(name in TARGET_NAMES for name in simple):
        raise InputError(f"{path}: no column 'target' (its first line: {', '.join(first)[:100]})")
    at = 0 if width == 1 else next(i for i, name in enumerate(simple) if name in TARGET_NAMES)
    where = next((i for i, name in enumerate(simple) if name in INDEX_NAMES), None)
    body = rows[1:] if headed else rows
    targets, index = [], []
    for number, row in enumerate(body, 2 if headed else 1):
        cell = row[at]
        if cell not in known and not _is_whole(cell):
            hint = nearest(cell, classes)
            raise InputError(f"{path}: line {number}: {cell[:40]!r} is no class{hint}")
        targets.append(known[cell] if cell in known and not _is_whole(cell) else int(cell))
        if where is not None and width > 1:
            if not _is_whole(row[where]):
                raise InputError(
                    f"{path}: line {number}: the index {row[where][:40]!r} is no number"
                )
            index.append(int(row[where]))
    held = torch.tensor(targets, dtype=torch.int64)
    return held, torch.tensor(index, dtype=torch.int64) if index else None


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,15}", text) is not None
