"""Pictures from files: read, decoded, told apart.

Pictures become RGB as follows: palettes and grey are spread out, CMYK is converted without a colour
profile, transparency is dropped (the colours under it show), the first picture of a moving or a
many-paged file is taken, and photographs are turned upright as their EXIF entry says. What RGB of
8 bits cannot hold, such as 16 bits a channel, is refused.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ..errors import InputError
from .brought import cut
from .images import LazyImages
from .pickles import read_file

# Formats that Pillow decodes itself; others (such as EPS) start outside programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 50_000_000  # of one image; a small file can claim far more
MOST_BYTES = 512 * 2**20  # of one file; 50 million pixels have 150 million bytes

# How Pillow calls the layouts of 16 bits a channel that it would cut to 8 without a word.
_DEEP = re.compile(r";1[0-9][BLNS]")


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
    raw: bytes, where: str, size: int | None, hint: str = "", most: int = MOST_PIXELS
) -> UInt8[np.ndarray, "3 h w"]:
    """A picture from the bytes of its file; its header is looked at before anything is decoded.

    Args:
        where: what it is called in errors.
        size: height and width to which it is brought; None: its own.
        hint: what to do where it is no picture.
        most: pixels that it may have.

    Raises:
        InputError: no picture, damaged, of more than 8 bits a channel, or too large.
    """
    with _opened(raw, where, hint, most) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        if size is not None:
            upright = cut(upright, size)
        return np.asarray(upright).transpose(2, 0, 1)


def check_opens(raw: bytes, where: str, hint: str = "", most: int = MOST_PIXELS) -> None:
    """Whether `decoded` would begin to decode: by the header of the file.

    Raises:
        InputError: no picture, of more than 8 bits a channel, or too large.
    """
    with _opened(raw, where, hint, most):
        pass


@contextmanager
def _opened(raw: bytes, where: str, hint: str, most: int) -> Iterator[Image.Image]:
    """A picture whose header was read and checked. What happens inside to its pixels, on which
    Pillow's decoders raise many kinds of errors, becomes one line."""
    if not raw:
        raise InputError(f"{where}: no readable image (it is empty){hint}")
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            assert isinstance(image, ImageFile.ImageFile)
            if image.width * image.height > most:
                raise Image.DecompressionBombError
            if _is_deep(image):
                raise InputError(f"{where}: more than 8 bits a channel; convert it to 8 bits")
            yield image
            return
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{where}: more than {most:,} pixels; make it smaller") from None
    except InputError:
        raise
    except UnidentifiedImageError:  # its own words are about the open file, not its name
        reason = "it has none of these formats"
    except Exception as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
    raise InputError(f"{where}: no readable image ({reason}){hint}")


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


def hw(shape: tuple[int, ...]) -> str:
    """Height and width of (C, H, W), in words."""
    return f"{shape[1]}×{shape[2]}"
