"""NumPy's files, `.npy` and `.npz`, from anybody: what they claim is checked before it is believed.

A header may promise 10¹² elements, a small zip file may unpack to a large one, and an array of
objects is a pickle, which is a program. So a header is read first, and an array only where its
shape and type are what is wanted and as long as the file; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import math
import stat
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import InputError
from ..placeholders import placeholder_at

CHUNK = 8 * 2**20  # bytes read at a time
LARGEST_HEADER = 10_000  # characters; that of a plain array has about 100
LARGEST_UNPACKED = 8 * 2**30  # bytes of a compressed array
_MAGIC = b"\x93NUMPY"
_LOCAL_HEADER = 30  # bytes before the name in a zip file's local headers
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # that NumPy writes


class Wrong(Exception):
    """What is wrong with a file, in words."""


@dataclass(frozen=True)
class Header:
    """What an array's header says.

    Attributes:
        shape, dtype, fortran: of the array; `fortran` where its first index runs fastest.
        offset: bytes of the stream before its content.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return math.prod(self.shape) * self.dtype.itemsize


Check = Callable[[Header], None]  # raises Wrong where the array is not what is wanted


@contextmanager
def opened(path: Path, what: str = "") -> Iterator[IO[bytes]]:
    """A plain file, open for reading.

    Raises:
        InputError: whatever is wrong with the file, or went wrong while it was read; it begins with
            `what` and the path.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Wrong("is a folder" if path.is_dir() else "is no plain file")
        if path.stat().st_size and (instead := placeholder_at(path)):
            raise Wrong(f"is {instead}")
        with path.open("rb") as file:
            yield file
        return
    except InputError:
        raise
    except Wrong as wrong:
        said = str(wrong)
    except FileNotFoundError:
        said = "no such file"
    except (zipfile.BadZipFile, zlib.error, EOFError):
        said = "damaged, or no .npz file"
    except MemoryError:
        said = "does not fit into memory"
    # NumPy and zipfile raise many kinds of errors on damaged files.
    except Exception as error:
        said = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        said = said or type(error).__name__
    raise InputError(f"{what}{path}: {said}")


def read_header(stream: IO[bytes], length: int, what: str) -> Header:
    """The header of the array that a stream of `length` bytes is, which stands behind it then.

    Raises:
        Wrong: no array, one of objects, or one that is not as long as the stream; `what` is its
            name in the message.
    """
    try:
        version = np.lib.format.read_magic(stream)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files of Python 2
            shape, fortran, dtype = reader(stream, max_header_size=LARGEST_HEADER)
        header = Header(tuple(shape), np.dtype(dtype), bool(fortran), stream.tell())
    except KeyError:
        raise Wrong(f"{what} is written in an unknown format") from None
    except zipfile.BadZipFile:
        raise
    # The header is text that NumPy parses; what it stumbles over may be anything.
    except Exception:
        raise Wrong(f"{what} is no readable .npy array: its header is damaged") from None
    if header.dtype.hasobject:
        raise Wrong(f"{what} holds pickled objects, which are never loaded")
    if len(header.shape) > 32 or not all(
        type(side) is int and 0 <= side < 2**62 for side in header.shape
    ):
        raise Wrong(f"{what} is no readable .npy array: its shape is none")
    if header.offset + header.size != length:
        raise Wrong(f"{what} is not as long as its shape {_short(header.shape)} says")
    return header


def _short(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) < 100 else f"{text[:100]}…"


def read_content(stream: IO[bytes], header: Header, into: np.ndarray | None) -> str:
    """SHA-256 of an array's content, which is kept in `into`; its end checks a zip's CRC."""
    sha, at = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        sha.update(chunk)
        if into is not None:
            into[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
        at += len(chunk)
    if at != header.size:
        raise Wrong("the file ends too early")
    return sha.hexdigest()


def loaded(stream: IO[bytes], header: Header) -> tuple[np.ndarray, str]:
    """The array behind a header, in memory, and the SHA-256 of its bytes."""
    content = np.empty(header.size, np.uint8)
    digest = read_content(stream, header, content)
    return _shaped(content.view(header.dtype), header), digest


def _shaped(flat: np.ndarray, header: Header) -> np.ndarray:
    return flat.reshape(header.shape, order="F" if header.fortran else "C")


def map_npy(path: Path, check: Check) -> np.ndarray:
    """The array of an `.npy` file, mapped from it, once `check` has passed its header.

    Raises:
        InputError: a file that is missing, no plain file, damaged, or not what is wanted.
    """
    with opened(path) as file:
        header = read_header(file, path.stat().st_size, "it")
        check(header)
        flat = np.memmap(path, header.dtype, "r", header.offset, math.prod(header.shape))
        return _shaped(flat, header)


def member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """An array of an `.npz` file.

    Raises:
        Wrong: there is none of that name, or none that NumPy wrote.
    """
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        held = ", ".join(sorted(entry.removesuffix(".npy") for entry in archive.namelist()))
        raise Wrong(f"lacks the array {name!r} (it holds {held[:100] or 'nothing'})") from None
    if info.compress_type not in _METHODS or info.flag_bits & 1:
        raise Wrong(f"{name!r} is encrypted or packed in a way that NumPy does not write")
    return info


def check_unpacked(header: Header, what: str) -> None:
    """Wrong, where a compressed array would fill more memory than is reasonable."""
    if header.size > LARGEST_UNPACKED:
        raise Wrong(
            f"{what} unpacks to {header.size / 2**30:.0f} GiB; write the file uncompressed, with"
            " np.savez, and it need not fit into memory"
        )


def place(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after a local header with a name and extra fields."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
    name, more = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + _LOCAL_HEADER + name + more


def read_array(path: Path, name: str, check: Check) -> np.ndarray:
    """The array of an `.npy` file, or the one of that name of an `.npz` file, in memory.

    Args:
        check: of the header, before anything is read; it has to bound the shape.

    Raises:
        InputError: a file that is missing, no plain file, damaged, or not what is wanted.
    """
    with opened(path) as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            file.seek(0)
            header = read_header(file, path.stat().st_size, "it")
            check(header)
            return loaded(file, header)[0]
        file.seek(0)
        if not zipfile.is_zipfile(file):
            raise Wrong("is no readable .npy or .npz file")
        with zipfile.ZipFile(file) as archive:
            info = member(archive, name)
            with archive.open(info) as stream:
                header = read_header(stream, info.file_size, repr(name))
                check(header)
                return loaded(stream, header)[0]
