"""What a defence is, and what it declares about itself so that an attacker can know all of it.

A `Defence` wraps a model: images → transform → model → logits. It declares which backward
passes it offers, whether it draws random numbers, and everything else follows from that:
whether gradients are exact, which surrogate an attack may choose, whether to average.

Wrapping a wrapped model chains defences; the outermost one sees the image first.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .. import draws
from ..draws import fixed_draws, image_seeds
from ..errors import InputError
from ..models.backward import BACKWARDS, OffersBackwards, offering, replace_backward, with_backward
from ..models.chain import Preprocessor
from ..models.checkpoint import checkpoint_in
from ..types import Images as Images
from ..types import Model as Model

_ROUNDING = 1e-5  # how far float arithmetic may carry a transform out of [0, 1]


# --- backward passes --------------------------------------------------------------------------


def smooth_round(x: Tensor) -> Tensor:
    """A smooth staircase, x − sin(2πx) / 2π: equal to round(x) on integers and half-integers.

    Its slope is 1 on average, 0 in the middle of a step and 2 at its edge.
    """
    return x - torch.sin(2 * math.pi * x) / (2 * math.pi)


# --- the contract -----------------------------------------------------------------------------

D = TypeVar("D", bound="Defence")


class Defence(Preprocessor, OffersBackwards, ABC):
    """A model behind a transformation of its images.

    A subclass gives `transform`, the class attributes below, and an `__init__` that takes the
    model, then options by keyword, each with a default, and hands them all to this one.

    Attributes:
        name: what the command line calls it: `module:Class` unless given.
        random: whether `transform` draws random numbers. It must take all of them from
            `self.draw_seeds(images)`.
        backwards: the backward passes an attacker may choose, the default first:
            `exact`, the gradient of `transform` itself, end to end;
            `identity`, straight through, as if nothing had been done;
            `surrogate`, the gradient of `self.surrogate`, a smooth or learned stand-in.
        backward: the one in use; see `with_backward`.

    Raises:
        InputError: at the first forward pass, if `transform` changes the shape of the images or
            leaves [0, 1].
    """

    name: ClassVar[str]
    random: ClassVar[bool] = False
    backwards: ClassVar[tuple[str, ...]] = ("exact", "identity")

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}:{cls.__qualname__}"
        if not cls.backwards or not set(cls.backwards) <= set(BACKWARDS):
            raise InputError(
                f"defence {cls.name}: backwards must name some of {', '.join(BACKWARDS)}, "
                f"not {cls.backwards!r}"
            )

    def __init__(self, model: Model, **options: Any):
        super().__init__()
        self.model = model
        self.options = options
        # Two equal steps of a chain must not draw equal numbers.
        self._depth = len(steps(model))
        self._checked = False

    @abstractmethod
    def transform(self, images: Images) -> Images:
        """What the model is shown instead: the same shape, in [0, 1]."""

    def surrogate(self, images: Images) -> Images:
        """The stand-in whose gradient `surrogate` uses, (N, C, H, W) → (N, C, H, W)."""
        raise NotImplementedError(f"{self.name} declares a surrogate and does not define it")

    @property
    def differentiable(self) -> bool:
        """Whether exact gradients flow through this step."""
        return "exact" in self.backwards

    @property
    def spec(self) -> str:
        """This step as `parse` reads it, every option written out: `jpeg:quality=75`."""
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name

    def extra_repr(self) -> str:
        return f"{self.spec}, backward={self.backward!r}"

    def draw_seeds(self, images: Images) -> Int64[Tensor, " n"]:
        """One seed an image for `holdfast.draws`: fresh, or those of `fixed_draws`."""
        seeds = draws.item_seeds(0, image_seeds(len(images)), self._depth)
        return seeds.to(images.device)

    def with_backward(self: D, backward: str) -> D:
        """The same defence (weights shared) with another backward pass.

        Every step of the chain that offers it takes it; the others keep theirs.

        Raises:
            InputError: no step offers it.
        """
        offered = declared(self).backwards
        if backward not in offered:
            raise InputError(
                f"no defence here offers backward {backward!r}; choose from {', '.join(offered)}"
            )
        return with_backward(self, backward)

    def defended(self, images: Images) -> Images:
        """`transform` in the forward pass, `backward` in the backward pass; checked once."""
        if self.backward == "exact":
            shown = self.transform(images)
            self._check(images, shown)
            return shown
        # The surrogate must see the draws that the transform saw.
        with fixed_draws(image_seeds(len(images))) if self.random else nullcontext():
            with torch.no_grad():
                shown = self.transform(images)
            self._check(images, shown)
            stand_in = images if self.backward == "identity" else self.surrogate(images)
        return replace_backward(shown, stand_in)

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        return self.model(self.defended(images))

    def _check(self, images: Tensor, shown: Tensor) -> None:
        # Once: looking at every value of every batch would stall an accelerator.
        if self._checked:
            return
        if not isinstance(shown, Tensor):
            raise InputError(
                f"defence {self.name}: transform returned {type(shown).__name__}, not a tensor"
            )
        if shown.shape != images.shape:
            raise InputError(
                f"defence {self.name}: transform turned images of shape {tuple(images.shape)} "
                f"into {tuple(shown.shape)}; it must keep the shape"
            )
        low, high = (float(value) for value in torch.aminmax(shown.detach()))
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise InputError(
                f"defence {self.name}: transform left [0, 1] (values from {low:.3g} to "
                f"{high:.3g}); clamp its result"
            )
        self._checked = True


@dataclass(frozen=True)
class Declaration:
    """What the defences of a model say about themselves, taken together.

    Attributes:
        differentiable: every step has exact gradients.
        random: some step draws random numbers.
        backwards: what `with_backward` accepts.
    """

    differentiable: bool
    random: bool
    backwards: tuple[str, ...]


def steps(model: Model) -> list[Defence]:
    """The defences inside a model, in the order in which they see the image."""
    if not isinstance(model, nn.Module):
        return []
    return [module for module in model.modules() if isinstance(module, Defence)]


def declared(model: Model) -> Declaration:
    """What an attacker must know about a model; nothing is random where nothing is declared."""
    chain = steps(model)
    return Declaration(
        differentiable=all(step.differentiable for step in chain),
        random=any(step.random for step in chain),
        backwards=tuple(
            b for b in BACKWARDS if any(b in module.backwards for module in offering(model))
        ),
    )


def weights_folder(owner: str, folder: str | Path) -> Path:
    """Where the card of a defence's own network is. Nothing but a folder is taken: no name of a
    module, whose code would run.

    Raises:
        InputError: there is no such folder, or no checkpoint in it.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # no error, whatever the name is
        raise InputError(f"{owner}: weights folder {folder} does not exist")
    return checkpoint_in(folder) or folder


# --- checks of options ------------------------------------------------------------------------


def whole_number(owner: str, option: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` if it is a whole number in [low, high]; InputError naming the option otherwise."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        limits = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"{owner}: {option} must be a whole number {limits}, not {value!r}")
    return value


def real_number(
    owner: str, option: str, value: Any, *, above: float, at_most: float = math.inf
) -> float:
    """`value` if it is finite and in (above, at_most]; InputError naming the option otherwise."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not (real and math.isfinite(value) and above < value <= at_most):
        limits = f"above {above:g}" + (f" and at most {at_most:g}" if at_most < math.inf else "")
        raise InputError(f"{owner}: {option} must be a number {limits}, not {value!r}")
    return float(value)


def odd_kernel(owner: str, value: Any) -> int:
    """`value` if it is an odd whole number of at least 3; InputError otherwise."""
    if whole_number(owner, "kernel", value, 3) % 2 == 0:
        raise InputError(f"{owner}: kernel must be odd, so that it has a centre, not {value}")
    return value


def fits(owner: str, kernel: int, images: Images) -> None:
    """InputError if a kernel is larger than the images."""
    height, width = images.shape[2:]
    if kernel > min(height, width):
        raise InputError(
            f"{owner}: its kernel of {kernel} pixels is larger than the images ({height}×{width})"
        )
