"""Picture files, as far as their headers tell: what is none, too large or too deep is refused
before a pixel is decoded."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, UnidentifiedImageError

from .errors import InputError

# Formats that Pillow decodes itself; others (such as EPS) start outside programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MOST_PIXELS = 50_000_000  # of one image; a small file can claim far more

# How Pillow calls the layouts of 16 bits a channel that it would cut to 8 without a word.
_DEEP = re.compile(r";1[0-9][BLNS]")


def check_opens(raw: bytes, where: str, hint: str = "", most: int = MOST_PIXELS) -> None:
    """Whether bytes are a picture that would be decoded: by the header of the file.

    Args:
        where: what it is called in errors.
        hint: what to do where it is no picture.
        most: pixels that it may have.

    Raises:
        InputError: no picture, of more than 8 bits a channel, or too large.
    """
    with opened(raw, where, hint, most):
        pass


@contextmanager
def opened(
    raw: bytes, where: str, hint: str = "", most: int = MOST_PIXELS
) -> Iterator[Image.Image]:
    """A picture whose header was read and checked. What happens inside to its pixels, on which
    Pillow's decoders raise many kinds of errors, becomes one line.

    Args and raises: as `check_opens`; also where the file is damaged.
    """
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
