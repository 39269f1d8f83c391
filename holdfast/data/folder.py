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
import re
import unicodedata
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ..errors import InputError
from .base import DataSet, Split, fingerprint, overlaps
from .pickles import read_file

# Formats that Pillow decodes itself; others (such as EPS) start outside programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 50_000_000  # of one image; a small file can claim far more
MOST_BYTES = 512 * 2**20  # of one file; 50 million pixels have 150 million bytes
LARGEST_SIDE = 7_000  # pixels to which images can be brought
HELD_OUT = 0.1  # the share of a class that goes to validation, and again to test
SPLIT_FOLDERS = {"train", "test", "validation", "val"}

# How Pillow calls the layouts of 16 bits a channel that it would cut to 8 without a word.
_DEEP = re.compile(r";1[0-9][BLNS]")

Files = dict[str, list[Path]]  # the image files of each class


def load(folder: str | Path, size: int | None = None) -> DataSet:
    """The images of a folder, as RGB.

    Two arrangements are read, hidden files ignored:

    - `DIR/train/CLASS/*`, `DIR/test/CLASS/*`, and `DIR/validation/CLASS/*` or `DIR/val/CLASS/*`;
      without the latter, a tenth of each class in train becomes validation;
    - `DIR/CLASS/*`, of which a tenth of each class is validation and a tenth test.

    What is held out, and the order of the images, depend on each file's own name and contents
    alone (not on its class, nor on the place or the file system of the folder). All images are held
    in memory at once.

    Args:
        folder: `DIR`.
        size: height and width, in pixels, to which images are brought: the centre is cut to a
            square and resized. None takes them as they are, all of one size.

    Returns:
        Images uint8 (N, 3, H, W), sorted by the SHA-256 of file name and contents, so that the
        first N of a split are a sample of it; file names relative to the folder; classes sorted by
        name, numbers in names as numbers (1, 2, 10). `overlaps` says which images, by their pixels,
        are in more than one split.

    Raises:
        InputError: no such folder; fewer than two classes; a class without images or missing in a
            split; a file that is no image, is larger than 50 million pixels, has more than 8 bits
            a channel, or has another size than the rest; more images than memory holds.
    """
    folder = Path(folder)
    if size is not None and (type(size) is not int or not 1 <= size <= LARGEST_SIDE):
        raise InputError(f"size must be 1 to {LARGEST_SIDE} pixels, not {size!r}")
    digests = _Digests()
    files = _splits(folder, digests)
    classes = tuple(files["train"])
    if len(classes) < 2:
        raise InputError(
            f"{folder}: {len(classes)} class folders ({', '.join(classes) or 'none'}), where a"
            " classifier needs at least 2; put the images of each class in a folder of its own"
        )
    shape = read_image(files["train"][classes[0]][0], size).shape

    def split(name: str) -> Split:
        members = [(path, label) for label, c in enumerate(classes) for path in files[name][c]]
        # The class decides only between files of one name and the same contents.
        members.sort(key=lambda member: digests.place(member[0], "order"))
        try:
            images = np.empty((len(members), *shape), np.uint8)
        except MemoryError:
            raise InputError(
                f"{folder}: {len(members):,} images of {_hw(shape)} pixels do not fit into memory;"
                f" {_GIVE_A_SIZE}"
            ) from None
        for image, (path, _) in zip(images, members, strict=True):
            pixels = read_image(path, size)
            if pixels.shape != shape:
                raise InputError(
                    f"{path}: {_hw(pixels.shape)} pixels where other images have {_hw(shape)};"
                    f" {_GIVE_A_SIZE}"
                )
            image[...] = pixels
        how = "as in the files" if size is None else "centre cut and resized"
        return Split(
            images,
            np.array([_name(path.relative_to(folder)) for path, _ in members]),
            np.array([label for _, label in members], np.int64),
            f"own images, {_hw(shape)}, {how} (sha256 of the images: {fingerprint(images)})",
        )

    splits = {name: split(name) for name in ("train", "validation", "test")}
    return DataSet(
        _name(Path(folder.resolve().name)),
        tuple(_name(Path(c)) for c in classes),
        **splits,
        overlaps=overlaps(splits),
    )


_GIVE_A_SIZE = "bring all images to one size with --image-size N (in Python, size=N)"


def is_here(folder: Path) -> bool:
    """Whether the folder holds sub-folders, as every arrangement above does."""
    return folder.is_dir() and bool(_folders(folder))


class _Digests(dict[Path, bytes]):
    """SHA-256 of each file's own name and contents, read when it is first asked for."""

    def __missing__(self, path: Path) -> bytes:
        # Some file systems store é as one character, some as two.
        name = unicodedata.normalize("NFC", path.name).encode("utf-8", "surrogateescape")
        contents = hashlib.sha256(_read(path)).digest()
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


def read_image(path: Path, size: int | None) -> np.ndarray:
    """One image, uint8 (3, H, W)."""
    raw = _read(path)
    if not raw:
        raise InputError(f"{path}: no readable image (it is empty); {_WHAT_BELONGS}")
    try:
        with warnings.catch_warnings():
            # A file may be damaged in ways that Pillow only remarks on.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                assert isinstance(image, ImageFile.ImageFile)
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                if _is_deep(image):
                    raise InputError(f"{path}: more than 8 bits a channel; convert it to 8 bits")
                upright = ImageOps.exif_transpose(image).convert("RGB")
            if size is not None:
                side = min(upright.size)
                left, top = (upright.width - side) // 2, (upright.height - side) // 2
                # Cut before resizing, or what is cut off would still blend into the border.
                square = upright.crop((left, top, left + side, top + side))
                upright = square.resize((size, size), Image.Resampling.BICUBIC)
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
