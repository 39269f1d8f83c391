"""Images as models see them, of which not all are in memory: those that are indexed are read."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

IN_MEMORY = 2**29  # bytes up to which images are held as float32 at once
TOGETHER = 128  # images that are read at once, where all of them are
_FORGOTTEN = 2**26  # bytes of a mapped file that are read before its pages are let go


class StoredImages:
    """Images float32 (N, C, H, W) in [0, 1] that are held as uint8, in memory or elsewhere.

    They are indexed as a tensor is, by a number, a slice, a list, a mask or numbers in a tensor;
    what is indexed is read, divided by 255, and is a tensor.

    Args:
        source: uint8 (N, C, H, W): an array or tensor, a `numpy.memmap`, or whatever has a `shape`
            and is indexed like an array (`holdfast.data.LazyImages`, a data set of h5py).

    Example:
        >>> images = StoredImages(np.full((100, 3, 2, 2), 51, np.uint8))
        >>> images.shape, images[:2].shape, images[torch.tensor([7])].mean()
        (torch.Size([100, 3, 2, 2]), torch.Size([2, 3, 2, 2]), tensor(0.2000))
    """

    dtype = torch.float32
    device = torch.device("cpu")  # of what is read
    ndim = 4

    def __init__(self, source: Any):
        self._source = source.numpy(force=True) if isinstance(source, Tensor) else source
        self._rows, self._read = np.arange(len(source)), 0

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self._rows), *self._source.shape[1:]))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Tensor]:
        return each(self)

    def __getitem__(self, rows: Any) -> Tensor:
        wanted = self._rows[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        if wanted.ndim == 0:
            return self[[int(rows)]][0]
        pixels = np.empty((len(wanted), *self.shape[1:]), np.float32)
        if isinstance(self._source, np.ndarray) or hasattr(self._source, "part"):
            pixels[...] = self._source[wanted]
        else:  # not all that is indexed by a number takes several, or in any order
            for place, row in enumerate(wanted.tolist()):
                pixels[place] = self._source[row]
        self._let_go(pixels.size)
        return torch.from_numpy(pixels).div_(255).to(self.device)

    def part(self, rows: Any) -> StoredImages:
        """Some of the images, which are not read yet."""
        other = StoredImages(self._source)
        other._rows = self._rows[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        other.device = self.device
        return other

    def to(self, device: torch.device | str) -> StoredImages:
        """The same images; those that are read go to a device."""
        other = self.part(slice(None))
        other.device = torch.device(device)
        return other

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
        self._read += read
        if self._read > _FORGOTTEN and getattr(self._source, "mode", "") == "r":
            self._read, base = 0, self._source
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                base.madvise(mmap.MADV_DONTNEED)


ModelImages = Tensor | StoredImages  # float32 (N, C, H, W) in [0, 1]


def is_bytes(images: Any) -> bool:
    """Whether images are uint8 (N, C, H, W), wherever they are."""
    of_bytes = str(getattr(images, "dtype", "")) in ("uint8", "torch.uint8")
    return of_bytes and len(getattr(images, "shape", ())) == 4


def is_large(images: Any) -> bool:
    """Whether images are uint8 (N, C, H, W) and too many to be held as float32 at once."""
    return is_bytes(images) and 4 * prod(images.shape) > IN_MEMORY


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


def in_parts(function: Callable[..., Tensor], *rows: Any) -> Tensor:
    """A function of each image, without all of them in memory, or copies of all, at once.

    Args:
        rows: tensors or stored images of N rows each, some of which `function` takes at once.
    """
    parts = torch.arange(len(rows[0])).split(TOGETHER)
    return torch.cat([function(*(each[some] for each in rows)) for some in parts])
