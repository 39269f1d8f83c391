"""Stand-ins for operations whose gradient is zero, missing or worn out: what is differentiated in
their place. The forward value never changes.

Straight-through after Bengio, Léonard & Courville, "Estimating or propagating gradients through
stochastic neurons for conditional computation", 2013; as an attack, backward pass differentiable
approximation (Athalye, Carlini & Wagner, ICML 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WORN_OUT = 1e-4  # a slope below this carries nothing back


def functions(*names: str, in_place: bool = False) -> Iterator[Callable[..., Any]]:
    """Every function of torch that goes by one of these names, methods and operators included.

    Args:
        in_place: those that write to their first argument; else those that do not.
    """
    for name in names:
        called = f"{name}_" if in_place else name
        for home in (torch, torch.Tensor, F, torch.special):
            found = getattr(home, called, None)
            if callable(found):
                yield found


def per_image(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """A figure of each row of x, shaped so that it broadcasts; the whole x is one row if it has
    less than two dimensions. So an image's gradient does not depend on its batch."""
    if x.ndim < 2:
        return reduce(x)
    return reduce(x.flatten(1), 1).view(-1, *[1] * (x.ndim - 1))


def soft_step(difference: Tensor) -> Tensor:
    """A smooth step: 0 far below 0, 1 far above, its width a third of the row's spread."""
    x = difference.detach()
    spread = per_image(x, torch.std).nan_to_num(1.0) if x.numel() > 1 else x.abs()
    return torch.sigmoid(3 * difference / spread.clamp_min(1e-12))


def soft_equal(difference: Tensor) -> Tensor:
    """A smooth bump: 1 where the two are equal, 0 far from it."""
    x = difference.detach()
    spread = per_image(x, torch.std).nan_to_num(1.0) if x.numel() > 1 else x.abs()
    return torch.exp(-((3 * difference / spread.clamp_min(1e-12)) ** 2))


# By name, what a comparison of a and b stands for.
COMPARISONS: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"), soft_step),
    **dict.fromkeys(
        ("lt", "le", "less", "less_equal", "__lt__", "__le__"), lambda d: soft_step(-d)
    ),
    **dict.fromkeys(("eq", "__eq__", "isclose"), soft_equal),
    **dict.fromkeys(("ne", "not_equal", "__ne__"), lambda d: 1 - soft_equal(d)),
}

# By name, what is made of softened truth values.
LOGIC: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("logical_not", "bitwise_not", "__invert__"), lambda a: 1 - a),
    **dict.fromkeys(("logical_and", "bitwise_and", "__and__"), lambda a, b: a * b),
    **dict.fromkeys(("logical_or", "bitwise_or", "__or__"), lambda a, b: a + b - a * b),
    **dict.fromkeys(("logical_xor", "bitwise_xor", "__xor__"), lambda a, b: a + b - 2 * a * b),
}

# Steps: the stand-in is what goes in.
STEPS = ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")


def _outside(x: Tensor, y: Tensor) -> Tensor:
    return x != y


# By name, whether an element's slope is worn out, from what went in and what came out.
SATURATING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **dict.fromkeys(
        ("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu6", "minimum", "maximum"),
        _outside,
    ),
    "tanh": lambda x, y: 1 - y * y < WORN_OUT,
    "sigmoid": lambda x, y: y * (1 - y) < WORN_OUT,
    "expit": lambda x, y: y * (1 - y) < WORN_OUT,
    "hardsigmoid": lambda x, y: (y <= 0) | (y >= 1),
    "softsign": lambda x, y: (1 - y.abs()) ** 2 < WORN_OUT,
    "erf": lambda x, y: torch.exp(-x * x) < WORN_OUT,
    "softmax": lambda x, y: (y * (1 - y) < WORN_OUT).all(-1, keepdim=True).expand_as(y),
}


def lookup(table: Tensor, index: Tensor, carrier: Tensor) -> Tensor:
    """The stand-in for `table[index]`, where `index` counts something that `carrier` holds before
    it was rounded: the table's slope there, by central differences."""
    last = len(table) - 1
    upper, lower = (index + 1).clamp(0, last), (index - 1).clamp(0, last)
    steps = (upper - lower).clamp_min(1)
    extra = [1] * (table.ndim - 1)
    slope = (table[upper].float() - table[lower].float()) / steps.view(*steps.shape, *extra)
    return slope.detach() * carrier.view(*carrier.shape, *extra)
