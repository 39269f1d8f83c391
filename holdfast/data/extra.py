"""Extra training images from an `.npz`, such as the published generated CIFAR-10 sets."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

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
    with opened(path, "extra images ") as file, zipfile.ZipFile(file) as archive:
        # Both headers before either content: what is held in memory is bounded by them.
        label = _header(archive, "label", None)
        wanted = (label.shape[0], shape[1], shape[2], shape[0])
        _header(archive, "image", wanted)
        if not wanted[0]:
            raise Wrong("holds no images")
        labels, label_digest = _content(archive, path, "label", in_memory=True)
        labels = _checked(labels, classes)
        images, image_digest = _content(archive, path, "image", in_memory=False)
        both = hashlib.sha256(f"{wanted}{image_digest}{label_digest}".encode()).hexdigest()
        return ExtraImages(images, labels, both)


def _header(archive: zipfile.ZipFile, name: str, wanted: tuple[int, ...] | None) -> Header:
    """The header of an array: labels where `wanted` is None, else images of that shape."""
    info, what = member(archive, name), repr(name)
    with archive.open(info) as stream:
        header = read_header(stream, info.file_size, what)
    if wanted is None and len(header.shape) != 1:
        raise Wrong(f"{what} must have the shape (N,), not {header.shape}")
    if wanted is not None and header.shape != wanted:
        raise Wrong(f"{what} must have the shape {wanted}, not {header.shape}")
    if wanted is None and header.dtype.kind not in "iu":
        raise Wrong(f"{what} must be whole numbers")
    if wanted is not None and header.dtype != np.uint8:
        raise Wrong(f"{what} must be uint8")
    if header.fortran and len(header.shape) > 1:
        raise Wrong(f"{what} is in column order; write it with np.ascontiguousarray")
    if info.compress_type != zipfile.ZIP_STORED:
        check_unpacked(header, what)
    return header


def _content(
    archive: zipfile.ZipFile, path: Path, name: str, *, in_memory: bool
) -> tuple[np.ndarray, str]:
    """One array and the SHA-256 of its bytes; mapped, if it may be and is stored as it is."""
    info = member(archive, name)
    with archive.open(info) as stream:
        header = read_header(stream, info.file_size, repr(name))
        if in_memory or info.compress_type != zipfile.ZIP_STORED:
            return loaded(stream, header)
        digest = read_content(stream, header, None)
    offset = place(path, info) + header.offset
    return np.memmap(path, header.dtype, "r", offset, header.shape), digest


def _checked(raw: np.ndarray, classes: int) -> Int64[np.ndarray, " n"]:
    labels = raw.astype(np.int64)
    if raw.dtype.kind == "u" and raw.max() > np.iinfo(np.int64).max:
        raise Wrong("'label' holds numbers beyond int64")
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        first = int(bad.argmax())
        raise Wrong(f"label[{first}] is {labels[first]}; the data has {classes} classes")
    return labels
