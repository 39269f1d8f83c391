"""Layers that several architectures share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,  # its other name
    "gelu": F.gelu,
}


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """One of `ACTIVATIONS`; InputError for another name."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InputError(f"activation {name!r} is unknown; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Normalise(nn.Module):
    """(x − mean) / std in each channel. It is part of a model, which takes images in [0, 1].

    Args:
        mean, std: one number a channel; std above 0.

    Raises:
        InputError: other values, or lists of different length.

    Example:
        >>> Normalise([0.5], [0.25])(torch.tensor([[[[0.0, 1.0]]]]))
        tensor([[[[-2.,  2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if not isinstance(values, list | tuple) or not values or not all(map(_finite, values)):
                raise InputError(f"{name} must be a list of numbers, one a channel, not {values!r}")
        if len(mean) != len(std) or min(std) <= 0:
            raise InputError(
                f"std must be {len(mean)} numbers above 0, as many as mean has, not {std!r}"
            )
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return (images - self.mean) / self.std


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
