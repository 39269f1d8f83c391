"""Pictures from files: read, decoded, told apart.

Pictures become RGB as follows: palettes and grey are spread out, CMYK is converted without a colour
profile, transparency is dropped (the colours under it show), the first picture of a moving or a
many-paged file is taken, and photographs are turned upright as their EXIF entry says. What RGB of
8 bits cannot hold, such as 16 bits a channel, is refused.
"""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from ..errors import InputError
from ..picture_files import FORMATS, MOST_PIXELS, opened
from .brought import cut
from .images import LazyImages
from .pickles import read_file

MOST_BYTES = 512 * 2**20  # of one file; 50 million pixels have 150 million bytes


@dataclass(frozen=True)
class Pictures:
    """Files that are decoded by number: uint8 (C, H, W), all of one shape."""

    paths: list[Path]
    size: int | None
    shape: tuple[int, int, int]

    def __call__(self, row: int) -> np.ndarray:
        pixels = _decoded(self.paths[row], self.size)
        if pixels.shape != self.shape:
            raise InputError(
                f"{self.paths[row]}: {hw(pixels.shape)} pixels where other images have"
                f" {hw(self.shape)}; {GIVE_A_SIZE}"
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
                f"{folder}: {len(self.paths):,} images of {hw(self.shape)} pixels do not fit into"
                f" memory; {GIVE_A_SIZE}"
            ) from None
        with _silent():
            for row, image in enumerate(images):
                image[...] = self(row)
        return images

    def lazy(self, digests: list[bytes]) -> LazyImages:
        """All of them, decoded when they are asked for."""
        silence_threads()
        return LazyImages(self, len(self.paths), self.shape, digests=digests)


GIVE_A_SIZE = "bring all images to one size with --image-size N (in Python, size=N)"


class Digests(dict[Path, bytes]):
    """SHA-256 of each file's own name and contents, read when it is first asked for.

    Args:
        whole: read the contents; else a file is told by its name and its length, which is what
            many gigabytes of files allow.

    Attributes:
        contents: the same without the name.
    """

    def __init__(self, whole: bool = True) -> None:
        super().__init__()
        self.whole = whole
        self.contents: dict[Path, bytes] = {}

    def __missing__(self, path: Path) -> bytes:
        # Some file systems store é as one character, some as two.
        name = unicodedata.normalize("NFC", path.name).encode("utf-8", "surrogateescape")
        what = hashlib.sha256(_read(path)).digest() if self.whole else str(_length(path)).encode()
        self[path] = hashlib.sha256(name + b"\0" + what).digest()
        self.contents[path] = what if self.whole else self[path]
        return self[path]

    def place(self, path: Path, purpose: str) -> bytes:
        """Where a file stands; for each purpose in another order, or one would favour the other."""
        return hashlib.sha256(purpose.encode() + self[path]).digest()


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {_WHAT_BELONGS}") from None


def lengths(paths: Iterable[Path], most: int) -> int:
    """Bytes of files, together; no more are looked at once they are beyond `most`."""
    total = 0
    for path in paths:
        total += _length(path)
        if total > most:
            break
    return total


def _read(path: Path) -> bytes:
    try:
        return read_file(path, MOST_BYTES)
    except InputError as error:
        raise InputError(f"{error}; {_WHAT_BELONGS}") from None


def silence_threads() -> None:
    """Pillow's remarks are silenced for good: `_silent` is for one thread."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _silent() -> warnings.catch_warnings[None]:
    """Inside, Pillow does not remark on damage that changes nothing."""
    return warnings.catch_warnings(action="ignore")


def read_image(path: Path, size: int | None) -> np.ndarray:
    """One image, uint8 (3, H, W)."""
    with _silent():
        return _decoded(path, size)


def _decoded(path: Path, size: int | None) -> np.ndarray:
    return decoded(_read(path), str(path), size, f"; {_WHAT_BELONGS}")


def decoded(
    raw: bytes,
    where: str,
    size: int | None,
    hint: str = "",
    most: int = MOST_PIXELS,
    ground: int | None = None,
) -> UInt8[np.ndarray, "3 h w"]:
    """A picture from the bytes of its file; its header is looked at before anything is decoded.

    Args:
        where: what it is called in errors.
        size: height and width to which it is brought; None: its own.
        hint: what to do where it is no picture.
        most: pixels that it may have.
        ground: the grey, 0 to 255, that shows through where it is transparent; None: transparency
            is dropped.

    Raises:
        InputError: no picture, damaged, of more than 8 bits a channel, or too large.
    """
    with opened(raw, where, hint, most) as image:
        upright = ImageOps.exif_transpose(image)
        if ground is not None:
            below = Image.new("RGBA", upright.size, (ground, ground, ground, 255))
            upright = Image.alpha_composite(below, upright.convert("RGBA"))
        upright = upright.convert("RGB")
        if size is not None:
            upright = cut(upright, size)
        return np.asarray(upright).transpose(2, 0, 1)


_WHAT_BELONGS = f"a class folder holds images ({', '.join(FORMATS)}) and nothing else"


def hw(shape: tuple[int, ...]) -> str:
    """Height and width of (C, H, W), in words."""
    return f"{shape[1]}×{shape[2]}"
