"""Somebody's model as Holdfast asks it: the one place that every call of it goes through.

Models come from everywhere. One writes to the images that it is given, the next takes half
precision or one batch size only, or has logits of −∞; some raise whatever their authors thought of.
`WrappedModel` stands between them and everything else, so that nothing behind it has to know.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..errors import HoldfastError, InputError, OutOfMemory
from ..parsing import said
from ..types import Images, Model
from .chain import InFront, onto, undefended

NO_PREDICTION = -1  # no class has this number: a model that answers nothing is never right
MASKED = 1000.0  # at least so far below the finite logits of its image is a logit of −∞
# Batch sizes that are tried where a model refuses the one it was given.
USUAL_SIZES = (2, 1, 4, 8, 16, 32, 64, 128, 256, 10, 20, 25, 50, 100, 200, 250, *range(3, 65))
LARGEST_SIZE = 4096
FITTING_SECONDS = 5.0  # after which no more sizes are tried


def predicted(logits: Float[Tensor, "*n k"]) -> Int64[Tensor, "*n"]:
    """The class that a model answers; `NOTHING` (−1) where its logits are NaN."""
    return torch.where(logits.isnan().any(-1), NO_PREDICTION, logits.argmax(-1))


# --- surroundings ------------------------------------------------------------------------------

_theirs: ContextVar[tuple[torch.dtype, torch.device] | None] = ContextVar("theirs", default=None)


@contextmanager
def own_defaults() -> Iterator[None]:
    """Inside, tensors are made in float32 on the CPU and can take part in gradients, whatever
    the caller's default type, default device or inference mode. Models still see the caller's
    defaults when they are asked."""
    theirs = torch.get_default_dtype(), torch.get_default_device()
    token = _theirs.set(theirs if _theirs.get() is None else _theirs.get())
    try:
        with torch.inference_mode(False), _defaults(torch.float32, torch.device("cpu")):
            yield
    finally:
        _theirs.reset(token)


@contextmanager
def _defaults(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Inside, torch's defaults are these; nothing is done where they are already."""
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.get_default_device() != device:
            stack.enter_context(device)
        if before != dtype:
            stack.callback(torch.set_default_dtype, before)
            torch.set_default_dtype(dtype)
        yield


# --- asking ------------------------------------------------------------------------------------


@dataclass
class Notes:
    """What calls have shown of a model.

    Attributes:
        writes: it writes to the images that it is given.
        masks: some of its logits are −∞.
        classes: how many logits it answers; None before its first answer.
        dtype: what it takes images in.
        refused: batch sizes that it cannot take.
        size: one that it can; None where it was not looked for.
        calls: how often it answered.
        coarse: its answers come in half precision.
    """

    writes: bool = False
    masks: bool = False
    classes: int | None = None
    dtype: torch.dtype = torch.float32
    refused: set[int] = field(default_factory=set)
    size: int | None = None
    calls: int = 0
    coarse: bool = False


class _Squeezed(InputError):
    """The answer to one image has lost the images' dimension: that to two may keep it."""


class WrappedModel(nn.Module):
    """A model that may do what it likes with what it is given.

    It gets images of its own to write to, in the number format and in batches of the size that it
    takes. Its answers are float32 (N, K): of each image either finite, a logit of −∞ standing
    `MASKED` below the others, or NaN all over, where the model answers nothing: where a logit is
    NaN or +∞, or all are −∞. For a model that needs none of this, nothing changes, bit for bit.

    Raises (on a call):
        InputError: whatever the model raised, in one line, with what it was asked.
        OutOfMemory: memory did not suffice.
    """

    def __init__(self, inner: Model):
        super().__init__()
        self.inner = inner
        self.notes = Notes()  # shallow copies share it

    def train(self, mode: bool = True) -> WrappedModel:
        """Every part in this mode, also those that do not let themselves be asked for it."""
        for part in self.modules():
            if hasattr(part, "training"):
                part.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model alone: copies are traced, folded and taken apart."""
        return copy.deepcopy(self.inner, memo)

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        notes, count = self.notes, len(images)
        size = notes.size
        if not count and notes.classes is not None:  # no model needs to know how to answer nothing
            return images.new_zeros(0, notes.classes)
        # What refuses two sizes takes one only.
        if size is not None and (count in notes.refused or len(notes.refused) > 1):
            return self._answer(images, size)
        try:
            return self._ask(images, notes.dtype)
        except Exception as error:
            _raise_own(error, images)
            found = self._another_way(images, error)
            if found is None:
                raise _refusal(error, images) from error
        if found != count:
            notes.refused.add(count)
            notes.size = found
        return self._answer(images, found)

    def _answer(self, images: Images, size: int) -> Float[Tensor, "n k"]:
        """The answer in batches of one size, the last one filled up with its own images."""
        try:
            parts = []
            for part in images.split(size):
                rows = torch.arange(size, device=part.device) % len(part)
                parts.append(self._ask(part[rows], self.notes.dtype)[: len(part)])
            return torch.cat(parts)
        except Exception as error:
            _raise_own(error, images)
            raise _refusal(error, images) from error

    def _ask(self, images: Images, dtype: torch.dtype) -> Float[Tensor, "n k"]:
        """One call, as it is."""
        notes = self.notes
        # A copy, and no leaf: where gradients are wanted, a leaf could not be written to.
        own = images.to(dtype, copy=True)
        theirs = _theirs.get()
        if theirs is None:
            answer = self.inner(own)
        else:
            with _defaults(*theirs):
                answer = self.inner(own)
        logits = self._checked(answer, len(images)).to(images.device, torch.float32, copy=True)
        # Writing through NumPy leaves no trace but the values.
        if own._version or (notes.calls < 2 and not torch.equal(own.detach(), images.to(dtype))):
            notes.writes = True
        notes.calls += 1
        return self._settled(logits)

    def _checked(self, answer: Any, count: int) -> Tensor:
        if not isinstance(answer, Tensor):
            raise InputError(
                f"the model returned a {type(answer).__name__}, not a tensor of logits"
            )
        shape = tuple(answer.shape)
        told = (
            f"the model returned shape {shape} for {count} images; logits must be (N, K) with K ≥ 2"
        )
        if count == 1 and answer.ndim == 1 and len(answer) > 1:
            raise _Squeezed(told)
        if answer.ndim != 2 or shape[0] != count or shape[1] < 2 or answer.is_complex():
            raise InputError(told)
        if self.notes.classes not in (None, shape[1]):
            raise InputError(
                f"the model answered {self.notes.classes} classes before, and {shape[1]} now"
            )
        self.notes.classes = shape[1]
        self.notes.coarse |= answer.dtype in (torch.float16, torch.bfloat16)
        return answer

    def _settled(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Rows that are finite, or NaN all over."""
        if bool(torch.isfinite(logits).all()):
            return logits
        masked = logits == -torch.inf
        nothing = ~(logits < torch.inf).all(1) | masked.all(1)
        self.notes.masks |= bool((masked & ~nothing[:, None]).any())
        with torch.no_grad():
            least = logits.masked_fill(masked, torch.inf).amin(1, keepdim=True)
            floor = (least - least.abs() - MASKED).clamp_min(torch.finfo(logits.dtype).min)
        logits = torch.where(masked, floor, logits)
        return torch.where(nothing[:, None], torch.nan, logits)

    def _another_way(self, images: Images, error: Exception) -> int | None:
        """The size of a batch that the model takes, where it refused this one; its number format
        is taken down. None where none is found."""
        notes, count = self.notes, len(images)
        dtypes = [notes.dtype] if notes.calls else _formats(self.inner)
        numbers = (int(text) for text in re.findall(r"\d{1,4}", str(error)))
        named = [number for number in numbers if 0 < number <= LARGEST_SIZE]
        known = [notes.size] if notes.size else [2] if count == 1 else []
        sizes = dict.fromkeys([count, *known, *named, *USUAL_SIZES])
        began = time.monotonic()
        with torch.no_grad():
            for size in sizes:
                rows = torch.arange(size, device=images.device) % count
                for dtype in dtypes:
                    if (size, dtype) == (count, notes.dtype):
                        continue
                    if time.monotonic() - began > FITTING_SECONDS:
                        return None
                    try:
                        self._ask(images.detach()[rows], dtype)
                    except Exception:  # it is asked another way next
                        continue
                    notes.dtype = dtype
                    return size
        return None


def _formats(model: Model) -> list[torch.dtype]:
    """The number formats in which a model may want its images, float32 first."""
    own: list[torch.dtype] = []
    if isinstance(model, nn.Module):
        tensors = (*model.parameters(), *model.buffers())
        own = [tensor.dtype for tensor in tensors if tensor.dtype.is_floating_point]
    # A frozen module hides its weights.
    return list(
        dict.fromkeys([torch.float32, *(own or (torch.float64, torch.float16, torch.bfloat16))])
    )


def _raise_own(error: Exception, images: Images) -> None:
    """Raise again what is Holdfast's own, and say where memory was short."""
    if isinstance(error, HoldfastError) and not isinstance(error, _Squeezed):
        raise error
    if is_out_of_memory(error):
        raise OutOfMemory(
            f"memory did not suffice for the model on images of shape {tuple(images.shape)}: "
            "take a smaller batch size"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had not enough memory, in one of the many words for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory) or (
        isinstance(error, RuntimeError) and "memory" in str(error).lower() and "alloc" in str(error)
    )


def _refusal(error: Exception, images: Images) -> InputError:
    if isinstance(error, InputError):
        return error
    what = said(error)
    return InputError(
        f"the model cannot answer images of shape {tuple(images.shape)} on {images.device}: "
        f"{what[:300]}{'…' if len(what) > 300 else ''}"
    )


# --- taking a model ----------------------------------------------------------------------------


def wrapped(model: Any) -> nn.Module:
    """A model behind `WrappedModel`; of a chain of defences, the network behind them (defences are
    Holdfast's own kind, and draw for every image).

    Args:
        model: anything callable from images to logits, or an exported program. One that was made
            inside `torch.inference_mode`, which no gradient passes, is copied.

    Raises:
        InputError: anything else, with the right call where one can be told.
    """
    if isinstance(model, WrappedModel):
        return model
    if isinstance(model, InFront):
        return cast(nn.Module, onto(model, wrapped(undefended(model))))
    return WrappedModel(_differentiable(_callable(model)))


def _callable(model: Any) -> Model:
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
    """The model, or a copy of it where its weights are inference tensors."""
    if isinstance(model, nn.Module) and any(
        tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())
    ):
        with torch.inference_mode(False):
            return copy.deepcopy(model)
    return model


def unwrapped(model: Model) -> Model:
    """A model without any `WrappedModel` in it, weights shared: what is compiled and hashed."""
    if isinstance(model, WrappedModel):
        return unwrapped(model.inner)
    if not isinstance(model, nn.Module) or not any(
        isinstance(part, WrappedModel) for part in model.modules()
    ):
        return model
    fast_copy = copy.copy(model)
    fast_copy._modules = dict(model._modules)
    for name, child in model._modules.items():
        if child is not None:
            # A bare function lives in another place of a module than a module does.
            del fast_copy._modules[name]
            fast_copy.__dict__.pop(name, None)
            setattr(fast_copy, name, unwrapped(child))
    return fast_copy


def part_named(model: nn.Module, name: str) -> nn.Module:
    """The part of a dotted name, in which nothing is said of `WrappedModel` on the way."""
    for step in name.split("."):
        while isinstance(model, WrappedModel):
            model = model.inner  # type: ignore[assignment]
        model = getattr(model, step)
    return model


def notes_of(model: Model) -> list[Notes]:
    """What is known of the models inside."""
    if not isinstance(model, nn.Module):
        return []
    return [part.notes for part in model.modules() if isinstance(part, WrappedModel)]


def spread_of(model: Model, logits: Float[Tensor, "n k"]) -> float:
    """The standard deviation of a model's logits, those that stand for −∞ left out."""
    if any(notes.masks for notes in notes_of(model)):
        logits = logits[logits > logits.amax(1, keepdim=True) - MASKED]
    return float(logits.double().std())  # squares of large logits overflow float32
