"""The names of what flows through every room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

Images = Float[Tensor, "n c h w"]  # values in [0, 1]
Labels = Int64[Tensor, " n"]  # 0 … K − 1
Logits = Float[Tensor, "n k"]
Model = Callable[[Images], Logits]


@runtime_checkable
class Stored(Protocol):
    """Images that are not in memory: those that are indexed are read."""

    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any: ...

    def part(self, rows: Any) -> Any:
        """Some of the images, which are not read yet."""


Report = Callable[[float], None]  # called with the share of the work that is done, 0 … 1
