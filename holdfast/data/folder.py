"""Any folder of images with one folder a class.

Images stand in an order that depends on each file's own name and contents and on nothing else, so
the first N of a split are a sample of it, the same on every machine. What is held out is chosen
alike. Where classes are numbered, they are in the order of the numbers.

Pictures become RGB as follows: palettes and grey are spread out, CMYK is converted without a colour
profile, transparency is dropped (the colours under it show), the first picture of a moving or a
many-paged file is taken, and photographs are turned upright as their EXIF entry says. What RGB of
8 bits cannot hold, such as 16 bits a channel, is refused.

Torchvision's `ImageFolder` reads such folders too. It keeps the order of the file system's names,
class after class, holds nothing out, cuts 16 bits to 8 without a word, and fails on a damaged file
in the middle of the work. Decoding itself is Pillow's, there and here.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ..errors import InputError
from .base import DataSet, Split, overlaps
from .brought import Remembered, check_size, cut
from .images import IN_MEMORY, ImageArray, LazyImages, fingerprint
from .pickles import read_file

# Formats that Pillow decodes itself; others (such as EPS) start outside programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 50_000_000  # of one image; a small file can claim far more
MOST_BYTES = 512 * 2**20  # of one file; 50 million pixels have 150 million bytes
HELD_OUT = 0.1  # the share of a class that goes to validation, and again to test
SPLIT_FOLDERS = {"train", "test", "validation", "val"}

# How Pillow calls the layouts of 16 bits a channel that it would cut to 8 without a word.
_DEEP = re.compile(r";1[0-9][BLNS]")

Files = dict[str, list[Path]]  # the image files of each class


def load(folder: str | Path, size: int | None = None, like: Remembered | None = None) -> DataSet:
    """The images of a folder, as RGB.

    Two arrangements are read, hidden files ignored:

    - `DIR/train/CLASS/*`, `DIR/test/CLASS/*`, and `DIR/validation/CLASS/*` or `DIR/val/CLASS/*`;
      without the latter, a tenth of each class in train becomes validation;
    - `DIR/CLASS/*`, of which a tenth of each class is validation and a tenth test.

    What is held out, and the order of the images, depend on each file's own name and contents
    alone (not on its class, nor on the place or the file system of the folder). Up to 1 GiB of
    pixels are decoded into memory at once; more than that, when they are asked for.

    Args:
        folder: `DIR`.
        size: height and width, in pixels, to which images are brought: the centre is cut to a
            square and resized. None takes them as they are, all of one size.
        like: what a model was trained on; without `size`, images are brought to its size, if the
            first is of another.

    Returns:
        Images uint8 (N, 3, H, W), sorted by the SHA-256 of file name and contents, so that the
        first N of a split are a sample of it; file names relative to the folder; classes sorted by
        name, numbers in names as numbers (1, 2, 10). `overlaps` says which images are in more than
        one split, by their pixels; by their files where they are decoded when they are asked for.

    Raises:
        InputError: no such folder; fewer than two classes; a class without images or missing in a
            split; a file that is no image, is larger than 50 million pixels, has more than 8 bits
            a channel, or has another size than the rest. Where images are decoded when they are
            asked for, that is when this is said.
    """
    folder = Path(folder)
    check_size(size)
    digests = _Digests()
    files = _splits(folder, digests)
    classes = tuple(files["train"])
    if len(classes) < 2:
        raise InputError(
            f"{folder}: {len(classes)} class folders ({', '.join(classes) or 'none'}), where a"
            " classifier needs at least 2; put the images of each class in a folder of its own"
        )
    first = files["train"][classes[0]][0]
    shape = read_image(first, size).shape
    told: list[str] = []
    if size is None and like is not None and like.size and shape[1:] != (like.size, like.size):
        size = like.size
        shape = read_image(first, size).shape
        told.append(like.line(size))
    count = sum(len(paths) for split in files.values() for paths in split.values())
    in_memory = count * math.prod(shape) <= IN_MEMORY

    def split(name: str) -> Split:
        members = [(path, label) for label, c in enumerate(classes) for path in files[name][c]]
        # The class decides only between files of one name and the same contents.
        members.sort(key=lambda member: digests.place(member[0], "order"))
        paths = [path for path, _ in members]
        pictures = _Pictures(paths, size, shape)
        of = "images" if in_memory else "files"
        images: ImageArray
        if in_memory:
            images = pictures.decoded(folder)
        else:
            images = pictures.lazy([digests.contents[path] for path in paths])
        how = "as in the files" if size is None else "centre cut and resized"
        return Split(
            images,
            np.array([_name(path.relative_to(folder)) for path in paths]),
            np.array([label for _, label in members], np.int64),
            f"own images, {_hw(shape)}, {how} (sha256 of the {of}: {fingerprint(images)})",
        )

    splits = {name: split(name) for name in ("train", "validation", "test")}
    return DataSet(
        _name(Path(folder.resolve().name)),
        tuple(_name(Path(c)) for c in classes),
        splits["train"],
        splits["validation"],
        splits["test"],
        overlaps=overlaps(splits),
        told=tuple(told),
        brought={} if size is None else {"size": size},
    )


@dataclass(frozen=True)
class _Pictures:
    """Files that are decoded by number: uint8 (C, H, W), all of one shape."""

    paths: list[Path]
    size: int | None
    shape: tuple[int, int, int]

    def __call__(self, row: int) -> np.ndarray:
        pixels = _decoded(self.paths[row], self.size)
        if pixels.shape != self.shape:
            raise InputError(
                f"{self.paths[row]}: {_hw(pixels.shape)} pixels where other images have"
                f" {_hw(self.shape)}; {_GIVE_A_SIZE}"
            )
        return pixels

    def decoded(self, folder: Path) -> np.ndarray:
        """All of them, in memory.

        Raises:
            InputError: they do not fit.
        """
        try:
            images = np.empty((len(self.paths), *self.shape), np.uint8)
        except MemoryError:
            raise InputError(
                f"{folder}: {len(self.paths):,} images of {_hw(self.shape)} pixels do not fit into"
                f" memory; {_GIVE_A_SIZE}"
            ) from None
        with _silent():
            for row, image in enumerate(images):
                image[...] = self(row)
        return images

    def lazy(self, digests: list[bytes]) -> LazyImages:
        """All of them, decoded when they are asked for."""
        # `_silent` is for one thread: Pillow's remarks are silenced for good where there are more.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return LazyImages(self, len(self.paths), self.shape, digests=digests)


_GIVE_A_SIZE = "bring all images to one size with --image-size N (in Python, size=N)"


def is_here(folder: Path) -> bool:
    """Whether the folder holds sub-folders, as every arrangement above does."""
    return folder.is_dir() and bool(_folders(folder))


class _Digests(dict[Path, bytes]):
    """SHA-256 of each file's own name and contents, read when it is first asked for.

    Attributes:
        contents: the same of its contents alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.contents: dict[Path, bytes] = {}

    def __missing__(self, path: Path) -> bytes:
        # Some file systems store é as one character, some as two.
        name = unicodedata.normalize("NFC", path.name).encode("utf-8", "surrogateescape")
        contents = self.contents[path] = hashlib.sha256(_read(path)).digest()
        self[path] = hashlib.sha256(name + b"\0" + contents).digest()
        return self[path]

    def place(self, path: Path, purpose: str) -> bytes:
        """Where a file stands; for each purpose in another order, or one would favour the other."""
        return hashlib.sha256(purpose.encode() + self[path]).digest()


def _splits(folder: Path, digests: _Digests) -> dict[str, Files]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    train = folder / "train"
    # A class may be called "train" (there is one in CIFAR-100): it holds images, not folders.
    if not (train.is_dir() and _folders(train)):
        _check_not_splits(folder)
        held_out, rest = _held_out(folder, _classes(folder), digests, parts=2)
        return {"train": rest, "validation": held_out[0], "test": held_out[1]}
    splits = {"train": _classes(train)}
    if not (folder / "test").is_dir():
        raise InputError(f"{folder}: has train but no test folder; put the test images in test/")
    splits["test"] = _classes(folder / "test")
    named = [folder / name for name in ("validation", "val") if (folder / name).is_dir()]
    if len(named) > 1:
        raise InputError(f"{folder}: has both validation and val; keep one of them")
    if named:
        splits["validation"] = _classes(named[0])
    else:
        held, splits["train"] = _held_out(folder, splits["train"], digests, parts=1)
        splits["validation"] = held[0]
    for name, classes in splits.items():
        for missing in sorted(splits["train"].keys() ^ classes.keys()):
            where, other = (name, "train") if missing in splits["train"] else ("train", name)
            raise InputError(f"{folder}: class {missing!r} is in {other} but not in {where}")
    return splits


def _check_not_splits(folder: Path) -> None:
    """`train`, `test` and the like are no classes where nothing else is there."""
    folders = _folders(folder)
    if folders and {path.name for path in folders} <= SPLIT_FOLDERS:
        odd = next((path for path in folders if not _folders(path)), None)
        if odd is None:
            raise InputError(f"{folder}: has {folders[0].name} but no train folder")
        raise InputError(
            f"{odd}: holds no class folders; put the images of each class in a folder of its own,"
            f" such as {odd / 'cat'}"
        )
    if len(folders) == 1 and len(_folders(folders[0])) > 1:
        raise InputError(
            f"{folder}: the class folders are one level deeper, in {folders[0]}; give that"
        )


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def _folders(folder: Path) -> list[Path]:
    try:
        found = [path for path in _visible(folder) if path.is_dir() or not path.exists()]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
    for path in found:
        if not path.exists():  # where a class should be, perhaps
            raise InputError(f"{path}: is a link that leads nowhere; mend or remove it")
    return found


def natural(name: str) -> tuple[tuple[str | int, ...], str]:
    """A key that sorts names as people do: the numbers in them as numbers (1, 2, 10)."""
    parts = re.split(r"([0-9]+)", unicodedata.normalize("NFC", name))
    # Text and numbers alternate, so that like is compared with like.
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def _classes(folder: Path) -> Files:
    """The files of each class folder; whether they are images shows when they are read."""
    classes: Files = {}
    for path in sorted(_folders(folder), key=lambda path: natural(path.name)):
        name = _name(Path(unicodedata.normalize("NFC", path.name)))
        files = _visible(path)
        if not files:
            raise InputError(f"{path}: no images in this class; fill or remove the folder")
        if name in classes:
            raise InputError(f"{path}: another class folder beside it is called {name!r} too")
        classes[name] = files
    return classes


def _held_out(
    folder: Path, classes: Files, digests: _Digests, parts: int
) -> tuple[list[Files], Files]:
    """For each part a tenth of each class (at least one image), and what is left."""
    held_out: list[Files] = [{} for _ in range(parts)]
    rest: Files = {}
    for name, files in classes.items():
        size = max(1, round(HELD_OUT * len(files)))
        if len(files) <= parts * size:
            raise InputError(
                f"{folder}: class {name!r} has {len(files)} images, too few to hold some out;"
                f" it needs at least {parts + 1}"
            )
        shuffled = sorted(files, key=lambda path: digests.place(path, "held out"))
        for part in range(parts):
            held_out[part][name] = shuffled[part * size : (part + 1) * size]
        rest[name] = shuffled[parts * size :]
    return held_out, rest


def _read(path: Path) -> bytes:
    try:
        return read_file(path, MOST_BYTES)
    except InputError as error:
        raise InputError(f"{error}; {_WHAT_BELONGS}") from None


def _silent() -> warnings.catch_warnings[None]:
    """Inside, Pillow does not remark on damage that changes nothing."""
    return warnings.catch_warnings(action="ignore")


def read_image(path: Path, size: int | None) -> np.ndarray:
    """One image, uint8 (3, H, W)."""
    with _silent():
        return _decoded(path, size)


def _decoded(path: Path, size: int | None) -> np.ndarray:
    raw = _read(path)
    if not raw:
        raise InputError(f"{path}: no readable image (it is empty); {_WHAT_BELONGS}")
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            assert isinstance(image, ImageFile.ImageFile)
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            if _is_deep(image):
                raise InputError(f"{path}: more than 8 bits a channel; convert it to 8 bits")
            upright = ImageOps.exif_transpose(image).convert("RGB")
        if size is not None:
            upright = cut(upright, size)
        return np.asarray(upright).transpose(2, 0, 1)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{path}: more than {MOST_PIXELS:,} pixels; make it smaller") from None
    except InputError:
        raise
    except UnidentifiedImageError:  # its own words are about the open file, not its name
        reason = "it has none of these formats"
    # Pillow's decoders raise many kinds of errors on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
    raise InputError(f"{path}: no readable image ({reason}); {_WHAT_BELONGS}")


_WHAT_BELONGS = f"a class folder holds images ({', '.join(FORMATS)}) and nothing else"


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether the file has more than 8 bits a channel, of which Pillow would keep 8 at most."""
    if image.mode.startswith(("I", "F")):
        return True
    for tile in image.tile:
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(isinstance(word, str) and _DEEP.search(word) for word in arguments):
            return True
        # PPM, whose second argument is the largest value that a channel takes.
        if tile.codec_name.startswith("ppm") and any(
            isinstance(most, int) and most > 255 for most in arguments
        ):
            return True
    return False


def _name(path: Path) -> str:
    # A file name need not be text; what stands in tables must be, on one line.
    text = path.as_posix().encode(errors="replace").decode()
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _hw(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[2]}"
