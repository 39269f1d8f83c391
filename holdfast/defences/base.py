"""What a defence is, and what it declares, so that an attacker can know all of it.

A `Defence` wraps a model: images → transform → model → logits. It declares which backward passes an
attacker may choose and whether it draws random numbers. From this follows how it is attacked:
whether its gradients are exact, which surrogates there are, whether to average over draws.

A defence around a defended model makes a chain. The outermost defence gets the image first.

**A new defence** is one file in `holdfast/defences/`. It holds a subclass of `Defence` with a
`name`, which `registry` finds by itself: the command line, cards of models and the tests know it
from then on. A defence of your own may also stay outside, and is then called `module:Class`::

    from ..inputs import real_number
    from ..types import Images, Model
    from .base import Defence

    class Darken(Defence):
        '''Multiplies every value by `factor`, above 0 and at most 1.'''

        name = "darken"  # --defence darken:factor=0.5

        def __init__(self, model: Model, *, factor: float = 0.5):
            self.factor = real_number(f"{self.name}: factor", factor, above=0, at_most=1)
            super().__init__(model, factor=factor)

        def transform(self, images: Images) -> Images:
            return images * self.factor

If `transform` has no useful gradient, declare `backwards = ("identity", "surrogate")` and define
`surrogate`. If it draws random numbers, declare `random = True` and take all of them from
`self.draw_seeds(images)`.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .. import draws
from ..draws import fixed_draws, image_seeds
from ..errors import InputError
from ..inputs import whole_number
from ..models.backward import BACKWARDS, OffersBackwards, offering, replace_backward, with_backward
from ..models.chain import Preprocessor
from ..models.checkpoint import checkpoint_in
from ..types import Images, Model

_ROUNDING = 1e-5  # how far float arithmetic may carry a transform out of [0, 1]


# --- backward passes --------------------------------------------------------------------------


def smooth_round(x: Tensor) -> Tensor:
    """The smooth staircase x − sin(2πx) / 2π: x itself at integers and half-integers.

    Its slope is 1 on average: 0 at integers, where `round` is flat, and 2 at half-integers, where
    `round` jumps.

    Example:
        >>> smooth_round(torch.tensor([2.0, 2.25, 2.5]))
        tensor([2.0000, 2.0908, 2.5000])
    """
    return x - torch.sin(2 * math.pi * x) / (2 * math.pi)


# --- the contract -----------------------------------------------------------------------------

D = TypeVar("D", bound="Defence")


class Defence(Preprocessor, OffersBackwards, ABC):
    """A model behind a transformation of its images.

    A subclass gives `transform` and the class attributes below. Its `__init__` takes the model,
    then options by keyword, each with a default, and hands all of them to this one.

    Attributes:
        name: its name on the command line; `module:Class` unless it is given.
        random: whether `transform` draws random numbers, all of them from
            `self.draw_seeds(images)`.
        backwards: the backward passes that an attacker may choose, the default first. `exact` is
            the gradient of `transform` itself. `identity` passes the gradient straight through, as
            if there were no transformation. `surrogate` is the gradient of `self.surrogate`, a
            smooth or learned stand-in.
        backward: the one in use; see `with_backward`.

    Raises:
        InputError: at the first forward pass, if `transform` changes the shape of the images or
            leaves [0, 1].

    Example:
        >>> class Darken(Defence):
        ...     def transform(self, images):
        ...         return images / 2
        >>> Darken(lambda images: images.flatten(1))(torch.ones(1, 1, 1, 2))
        tensor([[0.5000, 0.5000]])
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
        """The images that the model gets, of the same shape and in [0, 1]."""

    def surrogate(self, images: Images) -> Images:
        """The stand-in for `transform` whose gradient the backward pass `surrogate` takes."""
        raise NotImplementedError(f"{self.name} declares a surrogate and does not define it")

    @property
    def differentiable(self) -> bool:
        """Whether this defence offers its exact gradient."""
        return "exact" in self.backwards

    @property
    def spec(self) -> str:
        """This defence as `parse` reads it, with every option: `jpeg:quality=75`."""
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name

    def extra_repr(self) -> str:
        return f"{self.spec}, backward={self.backward!r}"

    def draw_seeds(self, images: Images) -> Int64[Tensor, " n"]:
        """One seed an image for `holdfast.draws`, (N,): new ones, or those of `fixed_draws`."""
        seeds = draws.item_seeds(0, image_seeds(len(images)), self._depth)
        return seeds.to(images.device)

    def with_backward(self: D, backward: str) -> D:
        """The same defended model, weights shared, with another backward pass.

        Every part of it that offers this backward pass takes it; the others keep theirs.

        Raises:
            InputError: no part offers it.
        """
        offered = declared(self).backwards
        if backward not in offered:
            raise InputError(
                f"no defence here offers backward {backward!r}; choose from {', '.join(offered)}"
            )
        return with_backward(self, backward)

    def defended(self, images: Images) -> Images:
        """The transformed images, with the backward pass in use. The first result is checked."""
        if self.backward == "exact":
            transformed = self.transform(images)
            self._check(images, transformed)
            return transformed
        # The surrogate must have the draws that the transformation had.
        with fixed_draws(image_seeds(len(images))) if self.random else nullcontext():
            with torch.no_grad():
                transformed = self.transform(images)
            self._check(images, transformed)
            stand_in = images if self.backward == "identity" else self.surrogate(images)
        return replace_backward(transformed, stand_in)

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        return self.model(self.defended(images))

    def _check(self, images: Tensor, transformed: Tensor) -> None:
        # Once only: an accelerator would have to wait for the result of every check.
        if self._checked:
            return
        if not isinstance(transformed, Tensor):
            kind = type(transformed).__name__
            raise InputError(f"defence {self.name}: transform returned {kind}, not a tensor")
        if transformed.shape != images.shape:
            raise InputError(
                f"defence {self.name}: transform turned images of shape {tuple(images.shape)} "
                f"into {tuple(transformed.shape)}; it must keep the shape"
            )
        low, high = (float(value) for value in torch.aminmax(transformed.detach()))
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise InputError(
                f"defence {self.name}: transform left [0, 1] (values from {low:.3g} to "
                f"{high:.3g}); clamp its result"
            )
        self._checked = True


@dataclass(frozen=True)
class Declaration:
    """What all defences of a model declare together.

    Attributes:
        differentiable: whether every defence offers its exact gradient.
        random: whether any of them draws random numbers.
        backwards: every backward pass that some part of the model offers.
    """

    differentiable: bool
    random: bool
    backwards: tuple[str, ...]


def steps(model: Model) -> list[Defence]:
    """The defences of a model, in the order in which they get the image.

    Example:
        >>> from holdfast.defences import Jpeg, Median
        >>> [defence.name for defence in steps(Jpeg(Median(nn.Flatten())))]
        ['jpeg', 'median']
    """
    if not isinstance(model, nn.Module):
        return []
    return [module for module in model.modules() if isinstance(module, Defence)]


def declared(model: Model) -> Declaration:
    """What a model's defences declare. A model without defences is differentiable and not random.

    Example:
        >>> from holdfast.defences import Jpeg
        >>> declared(Jpeg(nn.Flatten()))
        Declaration(differentiable=False, random=False, backwards=('identity', 'surrogate'))
    """
    chain = steps(model)
    return Declaration(
        differentiable=all(step.differentiable for step in chain),
        random=any(step.random for step in chain),
        backwards=tuple(
            b for b in BACKWARDS if any(b in module.backwards for module in offering(model))
        ),
    )


def weights_folder(owner: str, folder: str | Path) -> Path:
    """The folder with the card of a defence's own network.

    Only a folder is taken. A name `module:function` would run code.

    Args:
        owner: the defence's name, for errors.
        folder: a checkpoint, or a training run.

    Raises:
        InputError: there is no such folder, or no checkpoint in it.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # no error, whatever the name is
        raise InputError(f"{owner}: weights folder {folder} does not exist")
    return checkpoint_in(folder) or folder


# --- checks of options ------------------------------------------------------------------------


def odd_kernel(owner: str, value: Any, option: str = "kernel") -> int:
    """`value` if it is an odd whole number of at least 3; InputError otherwise."""
    if whole_number(f"{owner}: {option}", value, 3) % 2 == 0:
        raise InputError(f"{owner}: {option} must be odd, so that it has a centre, not {value}")
    return value


def fits(owner: str, kernel: int, images: Images) -> None:
    """InputError if a kernel is larger than the images."""
    height, width = images.shape[2:]
    if kernel > min(height, width):
        raise InputError(
            f"{owner}: its kernel of {kernel} pixels is larger than the images ({height}×{width})"
        )
