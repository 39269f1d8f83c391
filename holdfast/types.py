"""The names of what flows through every room."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int64
from torch import Tensor

Images = Float[Tensor, "n c h w"]  # values in [0, 1]
Labels = Int64[Tensor, " n"]  # 0 … K − 1
Logits = Float[Tensor, "n k"]
Model = Callable[[Images], Logits]
Report = Callable[[float], None]  # called with the share of the work that is done, 0 … 1
