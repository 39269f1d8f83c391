"""MAT-files of version 5, as MATLAB and SciPy write them, from anybody.

SciPy's reader crashes on some damaged files and fills the memory from others; this one reads plain
arrays of numbers and nothing else.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..errors import InputError
from .pickles import read_file

LARGEST_MAT = 2**29  # bytes; SVHN's training file has 182 million
LARGEST_ARRAY = 3072 * 100_000  # bytes unpacked; a small file can claim far more than SVHN's 73,257

# Types of data elements and the classes of arrays, as MATLAB's "MAT-file format" numbers them.
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_NUMBER_CLASSES = range(6, 16)  # double to uint64; others are cells, structures, text
_COMPLEX = 0x800


def read_mat(file: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of these names that a file holds, as long as they are plain numbers.

    Raises:
        InputError: no such file, damaged, of another kind, or unpacking to more than any set of
            images of 32 × 32 pixels needs.
    """
    raw = read_file(file, LARGEST_MAT)
    if raw[:8] == b"\x89HDF\r\n\x1a\n" or raw[512:520] == b"\x89HDF\r\n\x1a\n":
        raise InputError(f"{file}: a .mat file of version 7.3; save it with -v7")
    try:
        return _arrays(raw, names)
    except (struct.error, zlib.error, ValueError) as error:
        raise InputError(f"{file}: no readable .mat file ({error})") from None


def _arrays(raw: bytes, names: Collection[str]) -> dict[str, np.ndarray]:
    order = {b"IM": "<", b"MI": ">"}.get(raw[126:128])
    if order is None:
        raise ValueError("its head is another's")
    found: dict[str, np.ndarray] = {}
    at = 128
    while at < len(raw) and len(found) < len(names):
        kind, begin, end, at = _element(raw, at, order, padded=False)
        if kind == _COMPRESSED:
            body = zlib.decompressobj().decompress(raw[begin:end], LARGEST_ARRAY + 1024)
            kind, begin, end, _ = _element(body, 0, order)
        else:
            body = raw
        if kind != _MATRIX:
            continue
        parts: list[tuple[int, int, int]] = []
        inside = begin
        while inside < end and len(parts) < 4:
            which, start, stop, inside = _element(body, inside, order)
            parts.append((which, start, stop))
        if [which for which, *_ in parts[:3]] != [_UINT32, _INT32, _INT8] or len(parts) < 4:
            continue
        flags, sides, called = (body[start:stop] for _, start, stop in parts[:3])
        name = called.decode("latin-1")
        stored = _NUMBERS.get(parts[3][0])
        (bits,) = struct.unpack_from(f"{order}I", flags)
        plain = bits & 0xFF in _NUMBER_CLASSES and not bits & _COMPLEX and stored is not None
        if name not in names or not plain:
            continue
        shape = struct.unpack(f"{order}{len(sides) // 4}i", sides)
        start, stop = parts[3][1:]
        content = np.frombuffer(body, np.uint8, stop - start, start)
        kind_of = np.dtype(f"{order}{stored}")
        if len(shape) > 8 or min(shape, default=0) < 0:
            raise ValueError("an array has no shape that arrays have")
        if math.prod(shape) * kind_of.itemsize != len(content):
            raise ValueError("an array is not as long as its shape says")
        found[name] = content.view(kind_of).reshape(shape, order="F")
    return found


def _element(raw: bytes, at: int, order: str, padded: bool = True) -> tuple[int, int, int, int]:
    """Type, begin and end of the data element at a place, and where the next one stands."""
    kind, length = struct.unpack_from(f"{order}II", raw, at)
    begin = at + 8
    if kind >> 16:  # up to 4 bytes stand in the head itself
        kind, length, begin = kind & 0xFFFF, kind >> 16, at + 4
        if length > 4:
            raise ValueError("a short element is too long")
        return kind, begin, begin + length, at + 8
    end = begin + length
    if end > len(raw):
        raise ValueError("it ends too early")
    return kind, begin, end, end + (-length % 8 if padded else 0)
