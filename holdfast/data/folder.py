"""Any folder of images with one folder a class."""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError
from .base import DataSet, Split, fingerprint

# Formats that Pillow decodes itself; others (such as EPS) start outside programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 50_000_000  # of one image; a small file can claim far more
HELD_OUT = 0.1  # the share of a class that goes to validation, and again to test

Files = dict[str, list[Path]]  # the image files of each class


def load(folder: str | Path, size: int | None = None) -> DataSet:
    """The images of a folder, as RGB.

    Two arrangements are read, hidden files ignored:

    - `DIR/train/CLASS/*`, `DIR/test/CLASS/*`, and `DIR/validation/CLASS/*` or `DIR/val/CLASS/*`;
      without the latter, a tenth of each class in train becomes validation;
    - `DIR/CLASS/*`, of which a tenth of each class is validation and a tenth test.

    What is held out depends on nothing but the set of paths inside the folder. All images are
    held in memory at once.

    Args:
        folder: `DIR`.
        size: height and width, in pixels, to which images are brought: the centre is cut to a
            square and resized. None takes them as they are, all of one size.

    Returns:
        Images uint8 (N, 3, H, W), sorted by class and path; file names relative to the folder;
        classes sorted by name.

    Raises:
        InputError: no such folder; fewer than two classes; a class without images or missing in a
            split; a file that is no image, is larger than 50 million pixels, has more than 8 bits
            a channel, or has another size than the rest.
    """
    folder = Path(folder)
    if size is not None and size < 1:
        raise InputError(f"size must be 1 or more pixels, not {size}")
    files = _splits(folder)
    classes = tuple(files["train"])
    if len(classes) < 2:
        raise InputError(
            f"{folder}: {len(classes)} class folders, where a classifier needs at least 2; put the"
            " images of each class in a folder of its own"
        )
    shape = read_image(files["train"][classes[0]][0], size).shape

    def split(name: str) -> Split:
        members = [(path, label) for label, c in enumerate(classes) for path in files[name][c]]
        images = np.empty((len(members), *shape), np.uint8)
        for image, (path, _) in zip(images, members, strict=True):
            pixels = read_image(path, size)
            if pixels.shape != shape:
                raise InputError(
                    f"{path}: {_hw(pixels.shape)} pixels where other images have {_hw(shape)};"
                    " give a size to bring all images to"
                )
            image[...] = pixels
        how = "as in the files" if size is None else "centre cut and resized"
        return Split(
            images,
            np.array([_name(path.relative_to(folder)) for path, _ in members]),
            np.array([label for _, label in members], np.int64),
            f"own images, {_hw(shape)}, {how} (sha256 of the images: {fingerprint(images)})",
        )

    return DataSet(
        _name(Path(folder.resolve().name)),
        tuple(_name(Path(c)) for c in classes),
        split("train"),
        split("validation"),
        split("test"),
    )


def is_here(folder: Path) -> bool:
    """Whether the folder holds sub-folders, as every arrangement above does."""
    return folder.is_dir() and bool(_folders(folder))


def _splits(folder: Path) -> dict[str, Files]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    train = folder / "train"
    # A class may be called "train" (there is one in CIFAR-100): it holds images, not folders.
    if not (train.is_dir() and _folders(train)):
        held_out, rest = _held_out(folder, _classes(folder), parts=2)
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
        (splits["validation"],), splits["train"] = _held_out(folder, splits["train"], parts=1)
    for name, classes in splits.items():
        for missing in sorted(splits["train"].keys() ^ classes.keys()):
            where, other = (name, "train") if missing in splits["train"] else ("train", name)
            raise InputError(f"{folder}: class {missing!r} is in {other} but not in {where}")
    return splits


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _classes(folder: Path) -> Files:
    """The files of each class folder; whether they are images shows when they are read."""
    classes = {path.name: _visible(path) for path in _folders(folder)}
    for name, files in classes.items():
        if not files:
            raise InputError(f"{folder / name}: no images in this class; fill or remove the folder")
    return classes


def _held_out(folder: Path, classes: Files, parts: int) -> tuple[list[Files], Files]:
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
        shuffled = sorted(files, key=lambda path: _hash(path.relative_to(folder)))
        for part in range(parts):
            held_out[part][name] = sorted(shuffled[part * size : (part + 1) * size])
        rest[name] = sorted(shuffled[parts * size :])
    return held_out, rest


def _hash(path: Path) -> bytes:
    # Some file systems store é as one character, some as two.
    text = unicodedata.normalize("NFC", path.as_posix())
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def read_image(path: Path, size: int | None) -> np.ndarray:
    """One image, uint8 (3, H, W)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{path}: more than 8 bits a channel; convert it to 8 bits")
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{path}: more than {MOST_PIXELS:,} pixels; make it smaller") from None
    except InputError:
        raise
    # Pillow's decoders raise many kinds of errors on damaged files.
    except Exception as error:
        reason = "is a folder" if path.is_dir() else "no readable image"
        raise InputError(
            f"{path}: {reason} ({type(error).__name__}); a class folder holds images"
            f" ({', '.join(FORMATS)}) and nothing else"
        ) from None
    if size is not None:
        side = min(upright.size)
        left, top = (upright.width - side) // 2, (upright.height - side) // 2
        # Cut before resizing, or what is cut off would still blend into the border.
        square = upright.crop((left, top, left + side, top + side))
        upright = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(upright).transpose(2, 0, 1)


def _name(path: Path) -> str:
    # A file name need not be text; what stands in tables must be.
    return path.as_posix().encode(errors="replace").decode()


def _hw(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[2]}"
