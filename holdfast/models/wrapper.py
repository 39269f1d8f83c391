"""`WrappedModel`, through which Holdfast calls every model that a user brings.

Models differ. Some write to the images that they are given, some take half precision or one batch
size only, some have logits of −∞, and each raises its own errors. `wrapped(model)` is a module that
hides these differences: it takes any batch of float32 images, leaves them as they are, returns
float32 logits in one form, and raises `InputError` with one line.
"""

from __future__ import annotations

import copy
import itertools
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..distributed import leads
from ..errors import HoldfastError, InputError, OutOfMemory
from ..parsing import one_line
from ..terminal import tell
from ..types import Images, Model
from .answers import PLAIN, Form, Formed, recognised
from .chain import Preprocessor, undefended, with_network

NO_PREDICTION = -1  # in place of a class: no class has this number, so it is never right
MASKED = 1000.0  # a logit of −∞ becomes one that is at least so far below the image's finite logits
# Batch sizes that are tried, in this order, where a model does not take the one it was given.
USUAL_SIZES = (2, 1, 4, 8, 16, 32, 64, 128, 256, 10, 20, 25, 50, 100, 200, 250, *range(3, 65))
LARGEST_SIZE = 4096
TRYING_SECONDS = 5.0  # after this time, no further size is tried


def predicted(logits: Float[Tensor, "*n k"]) -> Int64[Tensor, "*n"]:
    """The predicted class, which has the largest logit; `NO_PREDICTION` (−1) where one is NaN.

    Example:
        >>> predicted(torch.tensor([[0.0, 3.0], [torch.nan, 1.0]]))
        tensor([ 1, -1])
    """
    return torch.where(logits.isnan().any(-1), NO_PREDICTION, logits.argmax(-1))


# --- torch's defaults ---------------------------------------------------------------------------

_callers_defaults: ContextVar[tuple[torch.dtype, torch.device] | None] = ContextVar(
    "callers_defaults", default=None
)


@contextmanager
def standard_defaults() -> Iterator[None]:
    """Inside, new tensors are float32, on the CPU, and can have gradients.

    Outside, the caller may have set another default dtype or device, or inference mode. These come
    back afterwards; a `WrappedModel` calls its model with the caller's dtype and device.

    Example:
        >>> with torch.device("meta"), standard_defaults():
        ...     print(torch.zeros(2).device)
        cpu
    """
    current = torch.get_default_dtype(), torch.get_default_device()
    # Where one of these contexts is inside another, the caller's are those outside of both.
    token = _callers_defaults.set(_callers_defaults.get() or current)
    try:
        with torch.inference_mode(False), _defaults(torch.float32, torch.device("cpu")):
            yield
    finally:
        _callers_defaults.reset(token)


@contextmanager
def _defaults(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Inside, torch makes tensors of this dtype on this device; changes nothing if it does so."""
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.get_default_device() != device:
            stack.enter_context(device)
        if before != dtype:
            stack.callback(torch.set_default_dtype, before)
            torch.set_default_dtype(dtype)
        yield


_blank: ContextVar[bool] = ContextVar("blank", default=False)


@contextmanager
def blank_filling() -> Iterator[None]:
    """Inside, batches are filled up by black images where the model takes one size only: nobody
    then asks twice about an image who did not mean to."""
    token = _blank.set(True)
    try:
        yield
    finally:
        _blank.reset(token)


def _filled(images: Images, size: int) -> Images:
    """A batch of `size`, filled up by its own images, in turns, or by black ones."""
    if _blank.get():
        black = images.new_zeros(size - len(images), *images.shape[1:])
        return torch.cat([images, black])
    return images[torch.arange(size, device=images.device) % len(images)]


# --- calling a model ---------------------------------------------------------------------------


@dataclass
class Traits:
    """How a model behaves, as its calls so far have shown.

    Attributes:
        writes_to_images: whether it has written to the images that it was given.
        masks_classes: whether some of its logits are −∞.
        classes: the number of its logits; None before the first call.
        dtype: what it takes images in.
        refused_sizes: batch sizes that it does not take.
        batch_size: a batch size that it takes; None where any size was taken so far.
        calls: number of calls that returned logits.
        half_precision: whether its logits come in half precision.
        form: how it takes images and gives logits; found out on the first call.
        said: what was recognised, one line each.
    """

    writes_to_images: bool = False
    masks_classes: bool = False
    classes: int | None = None
    dtype: torch.dtype = torch.float32
    refused_sizes: set[int] = field(default_factory=set)
    batch_size: int | None = None
    calls: int = 0
    half_precision: bool = False
    form: Form = PLAIN
    said: tuple[str, ...] = ()


class _BatchDimensionLost(InputError):
    """For one image, the model returned (K,) and not (1, K). For two it may return (2, K)."""


class WrappedModel(nn.Module):
    """A model that takes any batch of images and always returns logits of one form.

    - The inner model gets a copy of the images, so it may write to them.
    - It gets them in the number format and the layout, and in batches of the size, that it takes.
    - Answers that are objects, tuples or dictionaries are unwrapped; one number an image is read as
      a binary classifier's. What was recognised is told in one line.
    - Logits are returned as float32 (N, K) on the images' device. A row is finite, or NaN
      throughout: then the model predicts nothing for this image.
    - The model predicts nothing where a logit is NaN or +∞, or all are −∞. Some logits of −∞ are
      replaced by finite ones, at least `MASKED` below the image's other logits.

    Where a model needs none of this, its logits are returned unchanged, bit for bit.

    Args:
        inner: the model.
        form: what is known beforehand of how it takes images and gives logits.

    Attributes:
        inner: the model itself.
        traits: how it behaves; shallow copies share them.

    Raises (on a call):
        InputError: one line with what the model raised, and for which images.
        OutOfMemory: not enough memory.

    Example:
        >>> model = WrappedModel(lambda images: images.mul_(2).flatten(1).half())
        >>> images = torch.full((1, 1, 1, 2), 0.25)
        >>> model(images), images.max(), model.traits.writes_to_images
        (tensor([[0.5000, 0.5000]]), tensor(0.2500), True)
    """

    def __init__(self, inner: Model, form: Form = PLAIN):
        super().__init__()
        self.inner = inner
        self.traits = Traits(form=form)

    def train(self, mode: bool = True) -> WrappedModel:
        """Set the mode of every part, also of parts whose own `train` does nothing or raises."""
        for part in self.modules():
            if hasattr(part, "training"):
                part.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the inner model alone, because copies are traced, folded and taken apart; one
        that is asked in its own form where it has one."""
        inner, form = copy.deepcopy(self.inner, memo), self.traits.form
        if form == PLAIN:
            return inner
        return Formed(inner, replace(form, dtype=self.traits.dtype))

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        traits, count = self.traits, len(images)
        if not count and traits.classes is not None:  # many models cannot take an empty batch
            return images.new_zeros(0, traits.classes)
        size, refused = traits.batch_size, traits.refused_sizes
        # A model that refused two sizes takes one size only.
        if size is not None and (count in refused or len(refused) > 1):
            return self._in_batches(images, size)
        try:
            return self._call(images, traits.dtype)
        except Exception as error:
            _raise_known(error, images)
            size = self._size_it_takes(images, error)
            if size is None:
                raise _input_error(error, images) from error
        if size != count:
            refused.add(count)
            traits.batch_size = size
        return self._in_batches(images, size)

    def _in_batches(self, images: Images, size: int) -> Float[Tensor, "n k"]:
        """Logits in batches of exactly this size; the last batch is filled up."""
        try:
            parts = []
            for part in images.split(size):
                parts.append(self._call(_filled(part, size), self.traits.dtype)[: len(part)])
            return torch.cat(parts)
        except Exception as error:
            _raise_known(error, images)
            raise _input_error(error, images) from error

    def _call(self, images: Images, dtype: torch.dtype) -> Float[Tensor, "n k"]:
        """One call of the inner model."""
        traits = self.traits
        # The copy is no leaf: a leaf that requires gradients cannot be written to.
        copied = images.to(dtype, copy=True)
        callers = _callers_defaults.get()
        asked = copied if traits.form == PLAIN else traits.form.images(copied)
        with nullcontext() if callers is None else _defaults(*callers):
            try:
                output = self.inner(asked)
            except SystemExit as error:  # it would end the caller's program without a word
                raise RuntimeError(one_line(error)) from error
        if not traits.calls:
            self._recognise(output, len(images))
        if traits.form != PLAIN:
            output = traits.form.logits(output)
        logits = self._checked(output, len(images)).to(images.device, torch.float32, copy=True)
        # torch does not count what is written through NumPy: then only the values tell.
        changed = copied._version or (
            traits.calls < 2 and not torch.equal(copied, images.to(dtype))
        )
        if changed:
            traits.writes_to_images = True
        traits.calls += 1
        return self._finite_or_nan(logits)

    def _recognise(self, output: Any, count: int) -> None:
        """Find out the form of the answers, and tell what is special about it."""
        traits = self.traits
        form = recognised(output, count, traits.form)
        said = form.said(output)
        if said != traits.said and leads():
            for line in said:
                tell(f"note: {line}", error=True)
        traits.form, traits.said = form, said

    def _checked(self, output: Any, count: int) -> Tensor:
        """The output, where it is (count, K) logits of as many classes as before."""
        if not isinstance(output, Tensor):
            raise InputError(
                f"the model returned a {type(output).__name__}, not a tensor of logits"
            )
        shape = tuple(output.shape)
        message = (
            f"the model returned shape {shape} for {count} images; logits must be (N, K) with K ≥ 2"
        )
        if shape == (count,) and self.traits.form == PLAIN:
            message += "; of labels alone, say outputs=labels"
        if count == 1 and output.ndim == 1 and len(output) > 1:
            raise _BatchDimensionLost(message)
        if output.ndim != 2 or shape[0] != count or shape[1] < 2 or output.is_complex():
            raise InputError(message)
        if self.traits.classes not in (None, shape[1]):
            raise InputError(
                f"the model returned {self.traits.classes} logits before, and {shape[1]} now"
            )
        self.traits.classes = shape[1]
        self.traits.half_precision |= output.dtype in (torch.float16, torch.bfloat16)
        return output

    def _finite_or_nan(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Logits of which each row is finite, or NaN throughout."""
        if bool(torch.isfinite(logits).all()):
            return logits
        masked = logits == -torch.inf
        nothing = ~(logits < torch.inf).all(1) | masked.all(1)
        self.traits.masks_classes |= bool((masked & ~nothing[:, None]).any())
        with torch.no_grad():
            least = logits.masked_fill(masked, torch.inf).amin(1, keepdim=True)
            floor = (least - least.abs() - MASKED).clamp_min(torch.finfo(logits.dtype).min)
        logits = torch.where(masked, floor, logits)
        return torch.where(nothing[:, None], torch.nan, logits)

    def _size_it_takes(self, images: Images, error: Exception) -> int | None:
        """A batch size that the model takes, after it raised `error`; None if none is found.

        Every size is tried in every likely number format, and with the channels last;
        `traits.dtype` and `traits.form` become those that the model took.
        """
        traits, count = self.traits, len(images)
        dtypes = [traits.dtype] if traits.calls else _likely_dtypes(self.inner)
        numbers = (int(text) for text in re.findall(r"\d{1,4}", str(error)))
        named = [number for number in numbers if 0 < number <= LARGEST_SIZE]
        known = [traits.batch_size] if traits.batch_size else [2] if count == 1 else []
        sizes = dict.fromkeys([count, *known, *named, *USUAL_SIZES])
        form, began = traits.form, time.monotonic()
        layouts = [form] if traits.calls else [form, replace(form, channels_last=True)]
        with torch.no_grad():
            for size in sizes:
                trial = _filled(images.detach()[: 0 if _blank.get() else size], size)
                for dtype, layout in itertools.product(dtypes, layouts):
                    if (size, dtype, layout) == (count, traits.dtype, form):
                        continue
                    if time.monotonic() - began > TRYING_SECONDS:
                        return None
                    traits.form = layout
                    try:
                        self._call(trial, dtype)
                    except Exception:  # the next size, format or layout is tried
                        traits.form, traits.said = form, ()
                        continue
                    traits.dtype = dtype
                    return size
        return None


def _likely_dtypes(model: Model) -> list[torch.dtype]:
    """Number formats in which a model may take its images, float32 first."""
    of_weights: list[torch.dtype] = []
    if isinstance(model, nn.Module):
        tensors = (*model.parameters(), *model.buffers())
        of_weights = [tensor.dtype for tensor in tensors if tensor.dtype.is_floating_point]
    # A frozen TorchScript module hides its weights.
    others = of_weights or (torch.float64, torch.float16, torch.bfloat16)
    return list(dict.fromkeys([torch.float32, *others]))


def _raise_known(error: Exception, images: Images) -> None:
    """Raise Holdfast's own errors again, and `OutOfMemory` where memory was short."""
    if isinstance(error, HoldfastError) and not isinstance(error, _BatchDimensionLost):
        raise error
    if is_out_of_memory(error):
        raise OutOfMemory(
            f"not enough memory for the model on images of shape {tuple(images.shape)}: "
            "take a smaller batch size"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says, in whatever words, that a device or the machine lacked memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory) or (
        isinstance(error, RuntimeError) and "memory" in str(error).lower() and "alloc" in str(error)
    )


def _input_error(error: Exception, images: Images) -> InputError:
    """What the model raised, as one line that says for which images."""
    if isinstance(error, InputError):
        return error
    what = one_line(error)
    return InputError(
        f"the model cannot answer images of shape {tuple(images.shape)} on {images.device}: "
        f"{what[:300]}{'…' if len(what) > 300 else ''}{_grey_hint(images)}"
    )


def _grey_hint(images: Images) -> str:
    """What to do for a model of one channel, where grey images were stored in three."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        return ""
    grey = bool((images[:, :1] == images[:, 1:]).all())
    return "; the images are grey, in 3 equal channels: of a model of 1, say --grey" if grey else ""


# --- wrapping and unwrapping --------------------------------------------------------------------


def wrapped(model: Any) -> nn.Module:
    """The model behind a `WrappedModel`. In a chain of defences, the network behind them is
    wrapped, and the chain is kept.

    Args:
        model: anything that can be called with images and returns logits, or an exported program.
            A model that was made inside `torch.inference_mode` is copied, because gradients cannot
            pass through it.

    Raises:
        InputError: anything else; the message says what to give instead.

    Example:
        >>> wrapped(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))(torch.rand(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """
    if isinstance(model, WrappedModel):
        return model
    if isinstance(model, Preprocessor):
        return cast(nn.Module, with_network(model, wrapped(undefended(model))))
    return WrappedModel(_differentiable(callable_model(model)))


def callable_model(model: Any) -> Model:
    """The model as a function of images; InputError where it is none, with what to give instead."""
    kind = type(model).__name__
    kind = f"an {kind}" if kind[0] in "AEIOaeio" else f"a {kind}"
    if isinstance(model, torch.export.ExportedProgram):
        return model.module()
    if isinstance(model, str | Path):
        raise InputError(
            f"the model is a name, {str(model)!r}: load it first, as in "
            f"holdfast.evaluate(holdfast.load({str(model)!r}), …)"
        )
    if isinstance(model, type):
        raise InputError(
            f"the model is the class {model.__name__}, not one of its instances: "
            f"write {model.__name__}(…)"
        )
    if isinstance(model, dict):
        raise InputError(
            f"the model is {kind}, as of weights: build the network, call its load_state_dict, "
            "and give the network"
        )
    if isinstance(model, list | tuple | set):
        raise InputError(f"the model is {kind}: give one model a call, in a loop over them")
    if not callable(model):
        hint = "a function from images (N, C, H, W) to logits (N, K)"
        if hasattr(model, "predict_proba"):
            hint = (
                "wrap it: lambda x: torch.from_numpy(model.predict_proba(x.flatten(1).numpy()))"
                ".log()"
            )
        raise InputError(f"the model is {kind}, which cannot be called: {hint}")
    if isinstance(model, nn.Module):
        for name, weight in model.named_parameters():
            if nn.parameter.is_lazy(weight):
                raise InputError(
                    f"the model's {name!r} is not initialised (a lazy layer): call the model once, "
                    "and load its weights"
                )
    return model


def _differentiable(model: Model) -> Model:
    """The model, or a copy of it if its weights are inference tensors, which have no gradients."""
    if isinstance(model, nn.Module) and any(
        tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())
    ):
        with torch.inference_mode(False):
            return copy.deepcopy(model)
    return model


def unwrapped(model: Model) -> Model:
    """The model without any `WrappedModel` in it, weights shared. This is compiled and hashed.

    Example:
        >>> network = nn.Flatten()
        >>> unwrapped(wrapped(network)) is network
        True
    """
    if isinstance(model, WrappedModel):
        return unwrapped(model.inner)
    if not isinstance(model, nn.Module) or not any(
        isinstance(part, WrappedModel) for part in model.modules()
    ):
        return model
    shallow = copy.copy(model)
    shallow._modules = dict(model._modules)
    for name, child in model._modules.items():
        if child is not None:
            # `setattr` keeps a module in `_modules`, a bare function in `__dict__`.
            del shallow._modules[name]
            shallow.__dict__.pop(name, None)
            setattr(shallow, name, unwrapped(child))
    return shallow


def part_named(model: nn.Module, name: str) -> nn.Module:
    """A module inside a model by its dotted name in the model without any `WrappedModel`."""
    for step in name.split("."):
        while isinstance(model, WrappedModel):
            model = model.inner  # type: ignore[assignment]
        model = getattr(model, step)
    return model


def traits_of(model: Model) -> list[Traits]:
    """The traits of every wrapped model inside this one."""
    if not isinstance(model, nn.Module):
        return []
    return [part.traits for part in model.modules() if isinstance(part, WrappedModel)]


def spread_of(model: Model, logits: Float[Tensor, "n k"]) -> float:
    """The standard deviation of a model's logits, without those that stand for −∞."""
    if any(traits.masks_classes for traits in traits_of(model)):
        logits = logits[logits > logits.amax(1, keepdim=True) - MASKED]
    return float(logits.double().std())  # the squares of large logits overflow float32
