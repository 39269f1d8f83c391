"""Adversarial images that are not in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..stored import TOGETHER, StoredImages


class StoredPoints:
    """The adversarial images of a ledger, float32 (N, C, H, W), where the journal keeps them.

    They are indexed as a tensor is; what is indexed is read. `points[:]` has all in memory.

    Args:
        images: the clean ones, which stand where none was found.
        read: gives those that were found of some images, by their numbers: float32, flat.
    """

    dtype = torch.float32
    device = torch.device("cpu")
    ndim = 4

    def __init__(self, images: StoredImages, read: Callable[[Sequence[int]], dict[int, Tensor]]):
        self._images, self._read, self._numbers = images, read, np.arange(len(images))
        self._newest: dict[int, Tensor] = {}

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self._numbers), *self._images.shape[1:]))

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Tensor]:
        return (point for rows in torch.arange(len(self)).split(TOGETHER) for point in self[rows])

    def __getitem__(self, rows: Any) -> Tensor:
        wanted = self._numbers[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        if wanted.ndim == 0:
            return self[[int(rows)]][0]
        found = self._read(wanted.tolist()) | self._newest
        points = torch.empty(len(wanted), *self.shape[1:])
        clean = []
        for place, number in enumerate(wanted.tolist()):
            if number in found:
                points[place] = found[number].view(self.shape[1:])
            else:
                clean.append(place)
        if clean:
            points[clean] = self._images[wanted[clean]]
        return points

    def __setitem__(self, row: int, point: Tensor) -> None:
        """Have a point at hand until the journal, which is told of it next, has it."""
        self._newest = {int(self._numbers[row]): point}

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:].numpy(), dtype)

    def part(self, rows: Any) -> StoredPoints:
        """Some of them, which are not read yet."""
        other = StoredPoints(self._images, self._read)
        other._numbers = self._numbers[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        return other


AdversarialImages = Tensor | StoredPoints  # float32 (N, C, H, W) in [0, 1]
