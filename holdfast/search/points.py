"""Adversarial images that are not in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ..stored import NotInMemory


class StoredPoints(NotInMemory):
    """The adversarial images of a ledger, float32 (N, C, H, W), where the journal keeps them.

    `points[:]` has all in memory.

    Args:
        images: the clean ones, which stand where none was found.
        read: gives those that were found of some images, by their numbers: float32, flat.
    """

    def __init__(self, images: NotInMemory, read: Callable[[Sequence[int]], dict[int, Tensor]]):
        super().__init__(images.shape)
        self._images, self._find = images, read
        self._newest: dict[int, Tensor] = {}

    def _read(self, numbers: Int64[np.ndarray, " m"]) -> Tensor:
        found = self._find(numbers.tolist()) | self._newest
        points = torch.empty(len(numbers), *self.shape[1:])
        clean = []
        for place, number in enumerate(numbers.tolist()):
            if number in found:
                points[place] = found[number].view(self.shape[1:])
            else:
                clean.append(place)
        if clean:
            points[clean] = self._images[numbers[clean]].cpu()
        return points

    def __setitem__(self, row: Any, point: Tensor) -> None:
        """Have a point at hand until the journal, which is told of it next, has it."""
        self._newest = {int(self._rows[row]): point}

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:].numpy(), dtype)


AdversarialImages = Tensor | NotInMemory  # float32 (N, C, H, W) in [0, 1]
