"""Extra training images from an `.npz`, such as the published generated CIFAR-10 sets."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int64, UInt8

from ..errors import InputError

CHUNK = 8 * 2**20  # bytes read at a time
LOCAL_HEADER = 30  # bytes before the name in a zip file's local headers


class _Wrong(Exception):
    """What is wrong with the file, in words."""


@dataclass(frozen=True, eq=False)
class ExtraImages:
    """Images with labels beside those of the data set.

    Attributes:
        images: uint8 (N, H, W, C), mapped from the file where it holds them uncompressed: one
            million of CIFAR-10's size are 3 GB, of which a batch reads what it needs.
        labels: int64 (N,).
        digest: SHA-256 of both.
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int64[np.ndarray, " n"]
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Int64[np.ndarray, " m"]) -> UInt8[np.ndarray, "m c h w"]:
        """The images of some rows, in memory."""
        return np.ascontiguousarray(self.images[rows].transpose(0, 3, 1, 2))

    def holds(self, images: UInt8[np.ndarray, "m c h w"]) -> int:
        """How many of some images are among these, pixel for pixel."""
        others = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).reshape(len(images), -1)
        own = self.images.reshape(len(self), -1)
        # Eight bytes from the middle tell nearly all apart; the rest are compared whole.
        middle = slice(own.shape[1] // 2, own.shape[1] // 2 + 8)
        keys, sought = (
            np.ascontiguousarray(rows[:, middle]).view(f"V{rows[:, middle].shape[1]}").ravel()
            for rows in (own, others)
        )
        known = set(sought.tolist())
        rows = [row for row, key in enumerate(keys.tolist()) if key in known]
        held = {hashlib.sha256(own[row].tobytes()).digest() for row in rows}
        return sum(hashlib.sha256(image.data).digest() in held for image in others)


def load_extra(path: Path | str, shape: tuple[int, int, int], classes: int) -> ExtraImages:
    """The arrays `image` uint8 (N, H, W, C) and `label` (N,) of an `.npz`.

    Every byte is read once, to check it and for the digest; nothing is unpickled.

    Args:
        path: a file as `np.savez` writes it. Uncompressed, its images stay in it; compressed, all
            of them are unpacked into memory.
        shape: (C, H, W) of the data set's images.
        classes: labels lie in [0, classes).

    Raises:
        InputError: no such file, damaged, other arrays, shapes, types or labels than these.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            labels, label_digest = _labels(archive, path, classes)
            wanted = (len(labels), shape[1], shape[2], shape[0])
            images, image_digest = _array(archive, path, "image", wanted, "u")
    except _Wrong as wrong:
        said = str(wrong)
    except FileNotFoundError:
        said = "no such file"
    except (zipfile.BadZipFile, zlib.error, EOFError):
        said = "damaged, or no .npz file"
    except MemoryError:
        said = "does not fit into memory; write it uncompressed, with np.savez"
    except (OSError, ValueError, RuntimeError, NotImplementedError, OverflowError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
    else:
        both = hashlib.sha256(f"{wanted}{image_digest}{label_digest}".encode()).hexdigest()
        return ExtraImages(images, labels, both)
    raise InputError(f"extra images {path}: {said}")


def _labels(
    archive: zipfile.ZipFile, path: Path, classes: int
) -> tuple[Int64[np.ndarray, " n"], str]:
    raw, digest = _array(archive, path, "label", None, "iu")
    if not len(raw):
        raise _Wrong("holds no images")
    labels = raw.astype(np.int64)
    if raw.dtype.kind == "u" and raw.max() > np.iinfo(np.int64).max:
        raise _Wrong("'label' holds numbers beyond int64")
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        first = int(bad.argmax())
        raise _Wrong(f"label[{first}] is {labels[first]}; the data has {classes} classes")
    return labels, digest


def _array(
    archive: zipfile.ZipFile, path: Path, name: str, wanted: tuple[int, ...] | None, kinds: str
) -> tuple[np.ndarray, str]:
    """One array and the SHA-256 of its bytes; mapped if it is stored as it is."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        held = ", ".join(sorted(entry.removesuffix(".npy") for entry in archive.namelist()))
        raise _Wrong(f"lacks the array {name!r} (it holds {held[:100] or 'nothing'})") from None
    with archive.open(info) as stream:
        shape, dtype = _header(stream, name)
        begin = stream.tell()
        if wanted is None and len(shape) != 1:
            raise _Wrong(f"{name!r} must have the shape (N,), not {shape}")
        if wanted is not None and shape != wanted:
            raise _Wrong(f"{name!r} must have the shape {wanted}, not {shape}")
        if dtype.kind not in kinds or (wanted is not None and dtype != np.uint8):
            raise _Wrong(f"{name!r} must be {'whole numbers' if wanted is None else 'uint8'}")
        size = math.prod(shape) * dtype.itemsize
        if info.file_size != begin + size:
            raise _Wrong(f"{name!r} is not as long as its shape {shape} says")
        stored = info.compress_type == zipfile.ZIP_STORED and wanted is not None
        unpacked = None if stored else np.empty(size, np.uint8)
        digest = _read(stream, unpacked)
    if unpacked is not None:
        return unpacked.view(dtype).reshape(shape), digest
    offset = _place(path, info) + begin
    return np.memmap(path, dtype, "r", offset, shape), digest


def _header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array that a stream begins with; the stream stands at its content."""
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise _Wrong(f"{name!r} is written in an unknown format")
    shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise _Wrong(f"{name!r} holds pickled objects, which are never loaded")
    if fortran and len(shape) > 1:
        raise _Wrong(f"{name!r} is in column order; write it with np.ascontiguousarray")
    return shape, dtype


def _read(stream: IO[bytes], into: np.ndarray | None) -> str:
    """SHA-256 of the rest of a stream, which is kept in `into`; its end checks the zip's CRC."""
    sha, at = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        sha.update(chunk)
        if into is not None:
            into[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
        at += len(chunk)
    return sha.hexdigest()


def _place(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after a local header with a name and extra fields."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
    name, more = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + LOCAL_HEADER + name + more
