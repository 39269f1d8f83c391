"""`Adapted`: somebody's model behind its own preprocessing, in front of the data's classes.

Images come in [0, 1] and of the data's size. What the model wants besides (another size, a crop,
mean and std, another number format) is part of `Adapted`: attacks differentiate through it.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..parsing import nearest, parse_number
from ..types import Images, Model
from .answers import LEAST, LOGITS, PROBABILITIES, Form
from .chain import Preprocessor, undefended, with_network
from .class_map import ByClass, ClassMap, by_name, class_map
from .wrapper import WrappedModel, callable_model

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
NUMBERS = (LOGITS, PROBABILITIES)  # what a model's outputs may be
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "area")
LARGEST_SIZE = 4096  # pixels

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Preprocessing:
    """What happens to images in [0, 1] before the network sees them, in this order.

    Attributes:
        resize: to this height and width; or the shorter side to one number; None: not at all.
        crop: the middle of this height and width, filled up with black where there is less.
        interpolation: of resizing; with antialiasing, as in Pillow.
        colour: grey images are shown in three equal channels.
        bgr: the channels are in the order blue, green, red.
        scale: what values in [0, 1] are multiplied by: 255 where a network takes 0 to 255.
        mean, std: one number a channel, or one for all, in units of [0, 1]; () for none.
    """

    resize: Size | int | None = None
    crop: Size | None = None
    interpolation: str = "bilinear"
    colour: bool = False
    bgr: bool = False
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def said(self, whose: str = "") -> tuple[str, ...]:
        """What is done, one line each; `whose`: it is by default."""
        lines = []
        if self.resize is not None:
            to = (
                f"{self.resize} (shorter side)"
                if isinstance(self.resize, int)
                else _by(self.resize)
            )
            lines.append(f"images are resized to {to}, {self.interpolation}")
        if self.crop is not None:
            lines.append(f"images are cropped to the middle {_by(self.crop)}")
        if self.scale != 1:
            lines.append(f"values are multiplied by {self.scale:g}")
        if self.bgr:
            lines.append("channels are put in the order blue, green, red")
        if self.mean or self.std:
            mean, std = self.mean or (0.0,), self.std or (1.0,)
            lines.append(f"values are normalised: mean {_list(mean)}, std {_list(std)}")
        return tuple(f"{line}{whose}" for line in lines)


NOTHING = Preprocessing()


class Prepared(nn.Module):
    """Images in [0, 1] → what a network takes.

    Example:
        >>> steps = Preprocessing(resize=8, crop=(8, 8), mean=(0.5,), std=(0.5,))
        >>> Prepared(steps)(torch.ones(1, 3, 16, 32)).shape
        torch.Size([1, 3, 8, 8])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, steps: Preprocessing):
        super().__init__()
        self.steps = steps
        # Plain attributes, by which two models are told apart.
        self.resize, self.crop, self.interpolation = steps.resize, steps.crop, steps.interpolation
        self.scale, self.bgr, self.colour = steps.scale, steps.bgr, steps.colour
        for name, values, usual in (("mean", steps.mean, 0.0), ("std", steps.std, 1.0)):
            tensor = torch.tensor(values or (usual,), dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, tensor)
        self.normalises = bool(steps.mean or steps.std)

    def extra_repr(self) -> str:
        return str(self.steps)

    def forward(self, images: Images) -> Tensor:
        x = images
        if self.colour:
            x = _in_colour(x)
        if self.resize is not None:
            x = _resized(x, self.resize, self.interpolation)
        if self.crop is not None:
            x = _cropped(x, self.crop)
        if self.bgr:
            x = x.flip(1)
        if self.scale != 1:
            x = x * self.scale
        if self.normalises:
            _check_channels(x, self.mean, self.std)
            x = (x - self.mean) / self.std
        return x


# A tracer takes each of these as one operation: what they do depends on the shape of the images.


@torch.fx.wrap
def _in_colour(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


@torch.fx.wrap
def _resized(images: Tensor, size: Size | int, interpolation: str) -> Tensor:
    height, width = images.shape[-2:]
    if isinstance(size, int):
        short, long = min(height, width), max(height, width)
        longer = max(1, int(size * long / short))
        size = (size, longer) if height <= width else (longer, size)
    if tuple(size) == (height, width):
        return images
    if interpolation in ("nearest", "area"):
        mode = "nearest-exact" if interpolation == "nearest" else interpolation
        return F.interpolate(images, size, mode=mode)
    resized = F.interpolate(images, size, mode=interpolation, antialias=True)
    # As Pillow: bicubic interpolation overshoots.
    return resized.clamp(0, 1) if interpolation == "bicubic" else resized


@torch.fx.wrap
def _cropped(images: Tensor, size: Size) -> Tensor:
    height, width = images.shape[-2:]
    down, right = max(0, size[0] - height), max(0, size[1] - width)
    if down or right:
        images = F.pad(images, (right // 2, (right + 1) // 2, down // 2, (down + 1) // 2))
        height, width = images.shape[-2:]
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return images[..., top : top + size[0], left : left + size[1]]


@torch.fx.wrap
def _check_channels(images: Tensor, mean: Tensor, std: Tensor) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if values.shape[1] not in (1, images.shape[1]):
            raise InputError(
                f"{name} has {values.shape[1]} values, and the images have {images.shape[1]} "
                "channels"
            )


class Adapted(nn.Module):
    """A model behind its own preprocessing, in front of the data's classes.

    Args:
        model: anything callable with images, as `holdfast.evaluate` takes it.
        steps: what happens to images before it sees them.
        outputs: `logits`, or `probabilities`, of which the logarithm is taken.
        dtype: one of `DTYPES` in which it is run; None: as it is.
        said: what was chosen, one line each.
        names: of its outputs, if they have any.

    Attributes:
        card: what is known of the model, as on a checkpoint's card; empty if nothing is.

    Raises (when made):
        InputError: `dtype` for a model without weights here.

    Example:
        >>> model = Adapted(nn.Flatten(), Preprocessing(mean=(0.5,), std=(0.5,)))
        >>> model(torch.tensor([[[[1.0, 0.5, 0.0]]]]))
        tensor([[ 1.,  0., -1.]])
    """

    def __init__(
        self,
        model: Model,
        steps: Preprocessing = NOTHING,
        *,
        outputs: str = LOGITS,
        dtype: str | None = None,
        said: Sequence[str] = (),
        card: Mapping[str, Any] | None = None,
        names: Sequence[str] = (),
    ):
        super().__init__()
        self.said, self.card, self.names = tuple(said), dict(card or {}), tuple(names)
        self.outputs, self.dtype = outputs, dtype
        form = Form()
        if isinstance(model, WrappedModel):
            form, model = model.traits.form, model.inner
        form = replace(form, probabilities=outputs == PROBABILITIES)
        self.prepared = Prepared(steps)
        self.model = WrappedModel(callable_model(model), form)
        if dtype is not None:
            self._cast(dtype)
        self.by_class: ByClass | None = None

    def in_classes(self, classes: ClassMap, card: Mapping[str, Any]) -> Adapted:
        """The same model, weights shared, whose outputs are these classes."""
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.by_class = ByClass(classes)
        other.said, other.card, other.names = (*self.said, classes.said), dict(card), ()
        return other

    def _cast(self, dtype: str) -> None:
        inner = self.model.inner
        if not isinstance(inner, nn.Module) or not any(
            tensor.is_floating_point() for tensor in (*inner.parameters(), *inner.buffers())
        ):
            raise InputError(f"dtype {dtype} is for a model whose weights are here: it has none")
        try:
            inner.to(DTYPES[dtype])
        except Exception as error:  # a program may refuse
            text = " ".join(str(error).split())[:150]
            raise InputError(f"the model cannot be run in {dtype}: {text}") from None
        self.model.traits.dtype = DTYPES[dtype]

    def forward(self, images: Images) -> Tensor:
        logits = self.model(self.prepared(images))
        return logits if self.by_class is None else self.by_class(logits)


@dataclass(frozen=True)
class Adaptation:
    """What a user says of a model: the options `--mean`, `--std`, `--input-size`, `--outputs`
    and `--dtype`, checked.

    Attributes:
        mean, std: () where they are not given.
        input_size: None where it is not given.
        outputs: one of `NUMBERS`; None where it is not given.
        dtype: one of `DTYPES`; None where it is not given.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input_size: Size | None = None
    outputs: str | None = None
    dtype: str | None = None

    @staticmethod
    def checked(
        mean: Any = None,
        std: Any = None,
        input_size: Any = None,
        outputs: str | None = None,
        dtype: Any = None,
    ) -> Adaptation:
        """The options, from numbers or from their text.

        Raises:
            InputError: one of them is out of its range.
        """
        if outputs is not None and outputs not in NUMBERS:
            hint = "; what an attacker sees of them is said to evaluate"
            raise InputError(
                f"outputs must be {' or '.join(NUMBERS)}, not {outputs!r}"
                + (hint if outputs in ("scores", "labels") else "")
            )
        name = None if dtype is None else str(dtype).removeprefix("torch.")
        if name is not None and name not in DTYPES:
            raise InputError(f"dtype {name!r} is unknown{nearest(name, DTYPES)}")
        return Adaptation(
            _values("mean", mean, 0.0),
            _values("std", std, None),
            None if input_size is None else _size(input_size),
            outputs,
            name,
        )

    @property
    def given(self) -> bool:
        """Whether anything is asked for."""
        return any((self.mean, self.std, self.input_size, self.outputs, self.dtype))

    def steps(self, own: Preprocessing = NOTHING) -> Preprocessing:
        """Preprocessing: the model's own, and in its place what was said."""
        if self.mean or self.std:
            own = replace(own, mean=self.mean, std=self.std)
        if self.input_size is not None:
            own = replace(own, resize=self.input_size, crop=None)
        return own


def adapted(
    model: Model,
    asked: Adaptation,
    own: Preprocessing = NOTHING,
    *,
    names: Sequence[str] | None = None,
    said: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
) -> Model:
    """A model as it was asked for; in a chain of defences, the network behind them.

    Args:
        own: its own preprocessing.
        names: of its outputs, if they have any.
        said: what is already known of it, one line each.
        card: what is known of it, as on a checkpoint's card.

    Raises:
        InputError: a number format that it cannot be run in.
    """
    if isinstance(model, Preprocessor):
        return with_network(
            model, adapted(undefended(model), asked, own, names=names, said=said, card=card)
        )
    steps = asked.steps(own)
    lines = [*said, *steps.said()]
    if asked.outputs == PROBABILITIES:
        lines.append(f"the model's probabilities become logits: log p, of 0 as of {LEAST:.1e}")
    if asked.dtype is not None:
        lines.append(f"the model is run in {asked.dtype}")
    return Adapted(
        model,
        steps,
        outputs=asked.outputs or LOGITS,
        dtype=asked.dtype,
        said=lines,
        card=card or getattr(model, "card", {}),
        names=names or (),
    )


def in_classes(model: Model, classes: Any, data: Sequence[str] | None) -> Model:
    """A model whose outputs are the data's classes; of a chain of defences, its network.

    Args:
        classes: which outputs stand for which class, as `class_map` takes it; None: what the names
            of its outputs say, if they are those of the data in another order, or more.
        data: the names of the data's classes, in their order.

    Raises:
        InputError: as `class_map`.
    """
    if isinstance(model, Preprocessor):
        return with_network(model, in_classes(undefended(model), classes, data))
    card = dict(getattr(model, "card", {}))
    names = getattr(model, "names", ()) or card.get("classes")
    found: ClassMap | None = None
    if classes is not None:
        found = class_map(classes, data, names)
    elif data and isinstance(model, Adapted) and model.names:
        found = by_name(data, model.names)
    if found is None:
        return model
    if not isinstance(model, Adapted):
        model = Adapted(model, card=card)
    if "classes" in card:
        card["classes"] = list(data or found.named(names))
    return model.in_classes(found, card)


def adaptation_lines(model: Any) -> tuple[str, ...]:
    """What was done and recognised, so that a model takes images in [0, 1] and gives logits."""
    return tuple(dict.fromkeys(_lines(model)))


def _lines(model: Any) -> Iterator[str]:
    if isinstance(model, nn.Module):
        for part in model.modules():
            if isinstance(part, Adapted):
                yield from part.said
            elif isinstance(part, WrappedModel):
                yield from part.traits.said
            elif isinstance(told := getattr(part, "told", None), str):  # of a file of weights
                yield told


def described_with(described: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """`model` and `data` of a result, with what was done to the model and recognised in it."""
    lines = adaptation_lines(model)
    if not lines:
        return dict(described)
    return {**described, "model": {**described.get("model", {}), "adaptation": list(lines)}}


# --- reading options -----------------------------------------------------------------------------


def _values(name: str, given: Any, usual: float | None) -> tuple[float, ...]:
    """One number, or one a channel, in units of [0, 1]."""
    if given is None:
        return ()
    if isinstance(given, Tensor):
        given = given.flatten().tolist()
    if isinstance(given, str):
        given = [part for part in re.split(r"[,\s]+", given.strip("[]() ")) if part]
    items = (
        list(given) if isinstance(given, list | tuple) or hasattr(given, "__iter__") else [given]
    )
    try:
        values = tuple(parse_number(item) for item in items)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    if not values or not all(math.isfinite(value) for value in values):
        raise InputError(f"{name} must be a number, or one a channel, not {given!r}")
    if max(values) > 1:
        raise InputError(
            f"{name} {max(values):g} is not in units of [0, 1], in which the images come: "
            f"divide by 255, as in {max(values):g}/255"
        )
    if min(values) < 0 or (usual is None and min(values) <= 0):
        raise InputError(
            f"{name} must be {'at least' if usual == 0 else 'above'} 0, not {min(values):g}"
        )
    return values


def _size(given: Any) -> Size:
    """Height and width from `224`, `224x256` or a pair."""
    wrong = InputError(
        f"input size must be a number of pixels, or HxW such as 224x256, not {given!r}"
    )
    items = re.split(r"[x×,]", given.strip().lower()) if isinstance(given, str) else given
    items = list(items) if isinstance(items, list | tuple) else [items]
    try:
        numbers = [int(item) for item in items]
    except (TypeError, ValueError):
        raise wrong from None
    if len(numbers) not in (1, 2) or not all(1 <= n <= LARGEST_SIZE for n in numbers):
        raise wrong
    return numbers[0], numbers[-1]


def _by(size: Size) -> str:
    return f"{size[0]}×{size[1]}"


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
