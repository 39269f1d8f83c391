"""Images as models see them, of which not all are in memory: those that are indexed are read."""

from __future__ import annotations

import copy
import ctypes
import mmap
import os
import sys
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

IN_MEMORY = 2**29  # bytes up to which images are held as float32 at once
TOGETHER = 128  # images that are read at once, where all of them are
_FORGOTTEN = 2**26  # bytes of a mapped file that are read before its pages are let go
_MMAP_THRESHOLD = -3  # as malloc.h calls it


@cache
def _freed_is_given_back() -> None:
    """Let whatever is larger than 4 MiB go back to the system as soon as it is freed.

    By itself glibc comes to keep blocks of up to 32 MiB. Pieces of images of many sizes then leave
    holes, and these grow with the number of images as if all of them were in memory after all.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**22)


class NotInMemory(ABC):
    """Images float32 (N, C, H, W) in [0, 1] that are read when they are indexed.

    They are indexed as a tensor is, by a number, a slice, a list, a mask or numbers in a tensor;
    what is indexed is a tensor. A subclass says how some are read.

    Args:
        shape: (N, C, H, W).
    """

    dtype = torch.float32
    device = torch.device("cpu")  # of what is read
    ndim = 4

    def __init__(self, shape: Sequence[int]):
        self._rows, self._size = np.arange(shape[0]), tuple(shape[1:])
        if exceeds_memory(shape):
            _freed_is_given_back()

    @abstractmethod
    def _read(self, numbers: Int64[np.ndarray, " m"]) -> Tensor:
        """Some of the images, by their numbers among all: float32 (M, C, H, W), on the CPU."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self._rows), *self._size))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Tensor]:
        return each(self)

    def __getitem__(self, rows: Any) -> Tensor:
        wanted = self._numbers(rows)
        return self._read(wanted).to(self.device) if wanted.ndim else self[[int(rows)]][0]

    def __setitem__(self, rows: Any, images: Tensor) -> None:
        raise TypeError(f"{type(self).__name__} cannot be written to")

    def _numbers(self, rows: Any) -> Int64[np.ndarray, " m"]:
        numbers: np.ndarray = self._rows[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        return numbers

    def part(self, rows: Any) -> Self:
        """Some of the images, which are not read yet."""
        other = copy.copy(self)
        other._rows = self._numbers(rows)
        return other

    def to(self, device: torch.device | str) -> Self:
        """The same images; those that are read go to a device."""
        other = copy.copy(self)
        other.device = torch.device(device)
        return other


class StoredImages(NotInMemory):
    """Images that are held as uint8, in memory or elsewhere; those that are read are divided by
    255.

    Args:
        source: uint8 (N, C, H, W): an array or tensor, a `numpy.memmap`, or whatever has a `shape`
            and is indexed like an array (`holdfast.data.LazyImages`, a data set of h5py).

    Example:
        >>> images = StoredImages(np.full((100, 3, 2, 2), 51, np.uint8))
        >>> images.shape, images[:2].shape, images[torch.tensor([7])].mean()
        (torch.Size([100, 3, 2, 2]), torch.Size([2, 3, 2, 2]), tensor(0.2000))
    """

    def __init__(self, source: Any):
        super().__init__(source.shape)
        self._source = source.numpy(force=True) if isinstance(source, Tensor) else source
        self._bytes_read = 0

    def _read(self, numbers: Int64[np.ndarray, " m"]) -> Tensor:
        pixels = np.empty((len(numbers), *self._size), np.float32)
        if isinstance(self._source, np.ndarray) or hasattr(self._source, "part"):
            pixels[...] = self._source[numbers]
        else:  # not all that is indexed by a number takes several, or in any order
            for place, row in enumerate(numbers.tolist()):
                pixels[place] = self._source[row]
        self._let_go(pixels.size)
        return torch.from_numpy(pixels).div_(255)

    @property
    def readers(self) -> Tensor | None:
        """Which workers have each image, int64 (N, W), −1 in the places left over; None: all have
        all (see `holdfast.data.shards`)."""
        known = getattr(self._source, "readers", None)
        return None if known is None else known[self._rows]

    def prefetch(self, rows: Any) -> None:
        """These are asked for soon: whoever decodes them may begin."""
        if hasattr(self._source, "prefetch"):
            self._source.prefetch(self._rows[rows])

    def _let_go(self, read: int) -> None:
        """Pages of a mapped file that were read stay in memory, and soon all of it would."""
        self._bytes_read += read
        if self._bytes_read > _FORGOTTEN and getattr(self._source, "mode", "") == "r":
            self._bytes_read, base = 0, self._source
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                base.madvise(mmap.MADV_DONTNEED)


class _OpenFile:
    """A file, by default a temporary one, that is closed once nobody has it any more."""

    def __init__(self, path: Path | None):
        self.file: Any = tempfile.TemporaryFile() if path is None else path.open("rb")  # noqa: SIM115
        weakref.finalize(self, self.file.close)


class ImageFile(NotInMemory):
    """Images in a file: what is assigned to rows is written, what is indexed is read.

    Args:
        shape: (N, C, H, W).
        path: a file that holds them already, float32 in C order; by default an empty temporary one,
            which is gone with this object.

    Raises:
        OSError: the file cannot be opened, or is none of this many images.

    Example:
        >>> images = ImageFile((5, 1, 2, 2))
        >>> images[torch.tensor([3, 0])] = torch.ones(2, 1, 2, 2)
        >>> images[1:4].mean((1, 2, 3))
        tensor([0., 0., 1.])
    """

    def __init__(self, shape: Sequence[int], path: Path | None = None):
        super().__init__(shape)
        whole, self._each = 4 * prod(shape), 4 * prod(shape[1:])
        self._open = _OpenFile(path)
        self._file = self._open.file
        if path is None:
            self._file.truncate(whole)
        elif (held := os.fstat(self._file.fileno()).st_size) != whole:
            raise OSError(f"{path} has {held} bytes, not {whole}")

    def _read(self, numbers: Int64[np.ndarray, " m"]) -> Tensor:
        found = np.empty((len(numbers), *self._size), "<f4")
        for place, number in zip(found, numbers.tolist(), strict=True):
            self._file.seek(number * self._each)
            if self._file.readinto(place.data.cast("B")) != self._each:
                raise OSError(f"image {number} of {self._file.name} cannot be read")
        return torch.from_numpy(found.astype(np.float32, copy=False))

    def __setitem__(self, rows: Any, images: Tensor) -> None:
        held = images.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
        for image, number in zip(held, self._numbers(rows).tolist(), strict=True):
            self._file.seek(number * self._each)
            self._file.write(image.data.cast("B"))


class Chosen(NotInMemory):
    """Of several versions of each image, the one that was chosen.

    Args:
        versions: each float32 (N, C, H, W), in memory or not.
        which: int64 (N,), the number of the version.

    Example:
        >>> zeros, ones = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
        >>> Chosen([zeros, ones], torch.tensor([0, 1, 0]))[:].mean((1, 2, 3))
        tensor([0., 1., 0.])
    """

    def __init__(self, versions: Sequence[Any], which: Int64[Tensor, " n"]):
        super().__init__(versions[0].shape)
        self._versions, self._which = versions, which.numpy()

    def _read(self, numbers: Int64[np.ndarray, " m"]) -> Tensor:
        found, which = torch.empty(len(numbers), *self._size), self._which[numbers]
        for number, version in enumerate(self._versions):
            if (places := np.flatnonzero(which == number)).size:
                found[places] = version[torch.from_numpy(numbers[places])].cpu()
        return found


class Made(NotInMemory):
    """Images that are made of others when they are asked for, always alike.

    Args:
        make: from numbers int64 (M,) to images float32 (M, C, H, W).
        shape: (N, C, H, W).

    Example:
        >>> images = Made(lambda rows: rows.float().view(-1, 1, 1, 1), (10, 1, 1, 1))
        >>> images[torch.tensor([7, 2])].flatten()
        tensor([7., 2.])
    """

    def __init__(self, make: Callable[[Int64[Tensor, " m"]], Tensor], shape: Sequence[int]):
        super().__init__(shape)
        self._make = make

    def _read(self, numbers: Int64[np.ndarray, " m"]) -> Tensor:
        return self._make(torch.from_numpy(numbers))


ModelImages = Tensor | NotInMemory  # float32 (N, C, H, W) in [0, 1]


def is_bytes(images: Any) -> bool:
    """Whether images are uint8 (N, C, H, W), wherever they are."""
    of_bytes = str(getattr(images, "dtype", "")) in ("uint8", "torch.uint8")
    return of_bytes and len(getattr(images, "shape", ())) == 4


def exceeds_memory(shape: Sequence[int]) -> bool:
    """Whether images of this shape (N, C, H, W) are too many to be held as float32 at once."""
    return 4 * prod(shape) > IN_MEMORY


def is_large(images: Any) -> bool:
    """Whether images are uint8 (N, C, H, W) and too many to be held as float32 at once."""
    return is_bytes(images) and exceeds_memory(images.shape)


def each(images: ModelImages) -> Iterator[Tensor]:
    """One image after the other, (C, H, W)."""
    for rows in torch.arange(len(images)).split(TOGETHER):
        yield from images[rows]


def in_memory(images: Any) -> Tensor:
    """All of the images, as a tensor."""
    held: Tensor = images if isinstance(images, Tensor) else images[:]
    return held


def part(images: Any, rows: Any) -> Any:
    """Some of the images; of those that are not in memory, without reading them."""
    return images[rows] if isinstance(images, Tensor) else images.part(rows)


def room_for(images: Any) -> Any:
    """Room for other versions of the images: where these are in memory, a tensor; else a file."""
    return torch.empty_like(images) if isinstance(images, Tensor) else ImageFile(images.shape)


def in_parts(function: Callable[..., Tensor], *rows: Any) -> Tensor:
    """A function of each image, without all of them in memory, or copies of all, at once.

    Args:
        rows: tensors or stored images of N rows each, some of which `function` takes at once.
    """
    parts = torch.arange(len(rows[0])).split(TOGETHER)
    return torch.cat([function(*(each[some] for each in rows)) for some in parts])
