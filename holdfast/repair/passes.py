"""One forward pass of a model through a repaired graph.

`Pass` sees every call of a function of torch that the model makes, and lets it return what it
returns; what kills gradients gets a useful backward pass. Parameters do not require gradients
here, so that a tensor that does comes from the images.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..models.backward import replace_backward
from ..types import Images
from . import detours
from .surrogates import COMPARISONS, SATURATING, STEPS, functions, lookup, soft_step

Handler = Callable[..., Any]

NEAR_THE_END = 0.3  # share of worn-out elements from which (N, K) outputs are repaired
INSIDE = 0.9  # and any other tensor
SAME_DIRECTION = 0.5  # cosine from which a backward pass is that of its forward pass


@dataclass
class Plan:
    """What the first pass found, for all passes after it. Calls are known by name and number.

    Attributes:
        saturated: calls whose slope is worn out.
        backwards: for each call of a custom autograd function the backward pass that it gets:
            `own`, that of its `forward`, or `identity`.
        splices: for each place where a tensor comes back into the graph, what stands in.
        hidden: whether the model is not to see that it is differentiated, as it then answers
            otherwise.
        flat_remainders: whether x % s counts as flat, as it is over longer ways: x − x % s is a
            floor.
        softened: the shape behind the first dimension in which stand-ins are values too: that of
            the logits, so that attacks climb what lies before a rounded or saturated end. Empty:
            nowhere.
        gain: what gradients of the logits are multiplied by.
    """

    saturated: set[tuple[str, int]] = field(default_factory=set)
    backwards: dict[tuple[str, int], str] = field(default_factory=dict)
    splices: dict[int, detours.Splice | None] = field(default_factory=dict)
    hidden: bool = False
    flat_remainders: bool = False
    softened: tuple[int, ...] = ()
    gain: float = 1.0


@dataclass(frozen=True)
class Place:
    """Where something was repaired: what, and in which function."""

    what: str
    where: str


@dataclass(frozen=True)
class Choice:
    """A whole number that says which class is largest, and along which dimension of what."""

    scores: Tensor
    dim: int


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", "").rstrip("_") if not _dunder(func) else func.__name__


def _dunder(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return name.startswith("__") and name.endswith("__")


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments, in lists too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Arguments with every tensor among them changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_mapped(each, change) for each in value)
    return value


def _has_history(value: Any) -> bool:
    return any(tensor.requires_grad for tensor in _tensors(value))


def _counts(tensor: Tensor) -> bool:
    """Whether it holds whole numbers, truth values or quantised ones."""
    return not (tensor.is_floating_point() or tensor.is_complex())


class Pass(TorchFunctionMode):
    """Repairs the graph of one forward pass.

    Args:
        images: the model's input, (N, C, H, W), which requires gradients.
        plan: what is known; filled in by the first pass.
        finding: whether this is the first pass, which looks for what is to be repaired.

    Attributes:
        found: how often each place was repaired.
    """

    def __init__(self, images: Images, plan: Plan, finding: bool = False):
        super().__init__()
        self.images, self.plan, self.finding = images, plan, finding
        self.found: Counter[Place] = Counter()
        self.calls: Counter[str] = Counter()
        self.left: list[Tensor] = []  # what went out to other libraries
        # Whole numbers and truth values carry the floats that they came from. The tensors are kept
        # beside them, or another could get the number of one that is gone.
        self.carried: dict[int, tuple[Tensor, Tensor]] = {}
        self.choices: dict[int, tuple[Tensor, Choice]] = {}
        self.asked: dict[int, Tensor] = {}  # what the model itself made require gradients
        self.idle = False  # inside somebody's autograd function

    # -- the way of every call --------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.idle:
            return func(*args, **kwargs)
        handler = _HANDLERS.get(func)
        if self.finding and torch.is_inference_mode_enabled():
            self.found.setdefault(Place("inference_mode", _where()), 1)
        # Whatever the model switched off.
        with torch.inference_mode(False), torch.enable_grad():
            if handler is not None:
                return handler(self, func, args, kwargs)
            return self.any_other(func, args, kwargs)

    def any_other(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A function without a rule of its own: whole numbers that carry floats stand for them."""
        carrying = (self.carried or self.choices) and any(
            id(t) in self.carried or id(t) in self.choices
            for t in _tensors([*args, *kwargs.values()])
        )
        if carrying:
            return self.of_carriers(func, args, kwargs)
        before = _has_history([*args, *kwargs.values()])
        result = func(*args, **kwargs)
        return self.after(func, args, result) if before else result

    def after(self, func: Callable[..., Any], args: Any, result: Any) -> Any:
        """The result of a function of something with a history; it may have lost it."""
        if not isinstance(result, Tensor):
            return result
        if result.requires_grad or func in _FRESH:
            return result
        source = next((t for t in _tensors(args) if t.requires_grad), None)
        if source is None or source.shape != result.shape:
            return result
        if _counts(result):
            self.note(_name(func))
            self.carry(result, source)
            return result
        self.note(_name(func))
        return self.made(result, source)

    def made(self, value: Tensor, stand_in: Tensor) -> Tensor:
        """The value with the gradient of a stand-in of the same shape."""
        if stand_in.shape[1:] == self.plan.softened and stand_in.ndim == 2:
            return stand_in.to(value.dtype)
        return replace_backward(value.detach(), stand_in.to(value.dtype))

    def of_carriers(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A function of whole numbers that carry floats. What it does to the floats stands in."""
        value = func(*args, **kwargs)
        if not isinstance(value, Tensor):
            if isinstance(value, list | tuple):  # unbind, split, chunk
                self._each_part(func, args, kwargs, value)
            return value
        chosen = next((t for t in _tensors(args) if id(t) in self.choices), None)
        if chosen is not None:
            return self._of_choice(func, args, value, chosen)
        if value.requires_grad and self._masks(args):
            return value  # a mask on something with a history of its own: as ReLU does
        stand_in = self._on_floats(func, args, kwargs, value)
        if stand_in is None:
            return value
        if _counts(value):
            self.carry(value, stand_in)
            return value
        return self.made(value, stand_in)

    def _masks(self, args: Any) -> bool:
        """Whether all that carries floats among the arguments is a mask."""
        return all(t.dtype == torch.bool for t in _tensors(args) if id(t) in self.carried)

    def _on_floats(
        self, func: Callable[..., Any], args: Any, kwargs: Any, value: Tensor
    ) -> Tensor | None:
        """What the function makes of the floats; at worst the first of them, if the shape fits."""
        own = _name(func)
        if own in COMPARISONS:
            return self._compared(own, args, value)
        try:
            floats = _mapped(list(args), self.float_of)
            named = {k: v for k, v in kwargs.items() if k != "dtype"}
            if own in ("dequantize", "int_repr"):
                result = floats[0]
            else:
                result = func(*floats, **_mapped_values(named, self.float_of))
            if own in STEPS or own in ("floor_divide", "__floordiv__", "__rfloordiv__"):
                result = floats[0] if own in STEPS else torch.div(floats[0], floats[1])
            if isinstance(result, Tensor) and result.requires_grad and result.shape == value.shape:
                return result
        except Exception:  # whatever refuses floats: shifts, masks of bits, tables
            pass
        first = next((t for t in _tensors(args) if id(t) in self.carried), None)
        if first is None:
            return None
        carrier = self.float_of(first)
        if own in ("bitwise_left_shift", "__lshift__", "bitwise_right_shift", "__rshift__"):
            shift = 2.0 ** int(args[1]) if not isinstance(args[1], Tensor) else 1.0
            carrier = carrier * shift if "l" in own.replace("bitwise", "") else carrier / shift
        return carrier if carrier.shape == value.shape else None

    def _each_part(self, func: Any, args: Any, kwargs: Any, values: Any) -> None:
        try:
            parts = func(*_mapped(list(args), self.float_of), **kwargs)
        except Exception:  # whatever refuses floats
            return
        for value, part in zip(values, parts, strict=False):
            if isinstance(value, Tensor) and isinstance(part, Tensor) and part.requires_grad:
                self.carry(value, part)

    def _compared(self, name: str, args: Any, value: Tensor) -> Tensor | None:
        a, b = (self.float_of(arg) if isinstance(arg, Tensor) else arg for arg in args[:2])
        soft = COMPARISONS[name](torch.as_tensor(a - b, dtype=torch.get_default_dtype()))
        return soft if soft.shape == value.shape else None

    def _of_choice(self, func: Any, args: Any, value: Tensor, chosen: Tensor) -> Tensor:
        """A function of the number of the largest class."""
        choice = self.choices[id(chosen)][1]
        scores = choice.scores.movedim(choice.dim, -1)
        name = _name(func)
        if name == "one_hot" and value.shape == scores.shape:
            self.carry(value, scores)
        elif name == "scatter" and value.shape == choice.scores.shape:
            return self._written(func, args, value, choice.scores)
        elif name in ("embedding", "__getitem__", "index_select") and not _counts(value):
            table = next(t for t in _tensors(args) if t is not chosen)
            if len(table) == scores.shape[-1]:
                spread = scores.detach().std(-1, keepdim=True).clamp_min(1e-12)
                stand_in = (scores / spread).softmax(-1) @ table.detach().flatten(1)
                if stand_in.numel() == value.numel():
                    return replace_backward(value.detach(), stand_in.view_as(value))
        elif value.numel() == chosen.numel() and _counts(value):
            self.choices[id(value)] = value, choice  # the same, in another shape
        return value

    def _written(self, func: Any, args: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        """A result with a stand-in; where the function writes to its first argument, into it."""
        made = self.made(value, stand_in)
        if not func.__name__.endswith("_") or _dunder(func):
            return made
        args[0].copy_(made)
        return args[0]

    # -- what is remembered -----------------------------------------------------------------

    def carry(self, counted: Tensor, floats: Tensor) -> None:
        """Let whole numbers carry the floats that they came from."""
        value = counted.dequantize() if counted.is_quantized else counted.to(torch.float32)
        exact = self.made(value, floats.float())
        self.carried[id(counted)] = counted, exact

    def float_of(self, tensor: Tensor) -> Tensor:
        """The floats that whole numbers carry; any other tensor as it is."""
        known = self.carried.get(id(tensor))
        return tensor if known is None else known[1]

    def number(self, name: str) -> tuple[str, int]:
        """This call's name and number."""
        self.calls[name] += 1
        return name, self.calls[name]

    def note(self, what: str) -> None:
        if self.finding:
            self.found[Place(what, _where())] += 1

    # -- rules: steps, clamps and saturation ------------------------------------------------

    def step(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Rounding and the like: the gradient goes straight through."""
        x = args[0]
        if id(x) in self.carried or not _has_history(x):
            return self.any_other(func, args, kwargs)
        self.note(_name(func))
        plain = _without(kwargs, "out")
        made = self.made(_out_of_place(func)(x.detach(), *args[1:], **plain), x)
        return self._stored(func, args, kwargs, made)

    def _stored(self, func: Any, args: Any, kwargs: Any, made: Tensor) -> Tensor:
        if func.__name__.endswith("_") and not _dunder(func):
            return args[0].copy_(made)
        if kwargs.get("out") is not None:
            return kwargs["out"].copy_(made)
        return made

    def division(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Division that rounds its result."""
        rounds = _name(func) != "div" or kwargs.get("rounding_mode") is not None
        if not rounds or not _has_history(args):
            return self.any_other(func, args, kwargs)
        self.note("division that rounds")
        value = func(*args, **kwargs)
        a, b = (args[1], args[0]) if _name(func) == "__rfloordiv__" else args[:2]
        stand_in = torch.true_divide(*(torch.as_tensor(each) for each in (a, b)))
        return self.made(value, stand_in)

    def remainder(self, func: Any, args: Any, kwargs: Any) -> Any:
        """x % s: over longer ways it goes neither up nor down."""
        if not self.plan.flat_remainders or not _has_history(args):
            return self.any_other(func, args, kwargs)
        self.note("remainder")
        return func(*args, **kwargs).detach()

    def heaviside(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not _has_history(args[0]):
            return self.any_other(func, args, kwargs)
        self.note("heaviside")
        value = torch.heaviside(args[0].detach(), *args[1:], **_without(kwargs, "out"))
        made = self.made(value, soft_step(args[0]))
        return self._stored(func, args, kwargs, made)

    def saturating(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Functions whose slope wears out at their ends."""
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if x is None or id(x) in self.carried or not x.requires_grad:
            return self.any_other(func, args, kwargs)
        name = _name(func)
        call = self.number(name)
        if self.finding:
            y = _out_of_place(func)(x.detach(), *args[1:], **_without(kwargs, "inplace", "out"))
            if y.shape == x.shape:
                worn = float(SATURATING[name](x.detach(), y).float().mean())
                if worn > (NEAR_THE_END if x.ndim == 2 else INSIDE):
                    self.plan.saturated.add(call)
                    self.note(f"saturated {name}")
        if call not in self.plan.saturated:
            return func(*args, **kwargs)
        value = _out_of_place(func)(x.detach(), *args[1:], **_without(kwargs, "inplace", "out"))
        made = self.made(value, x)
        if kwargs.get("inplace"):
            return x.copy_(made)
        return self._stored(func, args, kwargs, made)

    # -- rules: whole numbers and truth values ----------------------------------------------

    def comparison(self, func: Any, args: Any, kwargs: Any) -> Any:
        carrying = any(id(t) in self.carried for t in _tensors(args))
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not (carrying or _has_history(args)):
            return result
        if any(id(t) in self.choices for t in _tensors(args)):
            return result
        soft = self._compared(_name(func), args, result)
        if soft is not None and soft.requires_grad:
            self.carried[id(result)] = result, replace_backward(result.to(soft.dtype), soft)
        return result

    def cast(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Between number formats: floats to whole numbers, and back."""
        x = args[0]
        result = func(*args, **kwargs)
        if not isinstance(x, Tensor) or result is x:
            return result
        if id(x) in self.choices:
            if _counts(result):
                self.choices[id(result)] = result, self.choices[id(x)][1]
            return result
        carrier = self.float_of(x)
        if not carrier.requires_grad:
            return result
        if _counts(result):
            if not _counts(x):
                self.note(f"cast to {str(result.dtype).removeprefix('torch.')}")
            self.carry(result, carrier)
        elif not result.requires_grad:
            if x.dtype == torch.bool:
                self.note("comparison")
            return self.made(result, carrier)
        return result

    def chooses(self, func: Any, args: Any, kwargs: Any) -> Any:
        """argmax and its like: which is the largest."""
        result = func(*args, **kwargs)
        x = args[0]
        scores = self.float_of(x)
        if not scores.requires_grad and id(x) not in self.choices:
            return result
        name = _name(func)
        if name in ("argsort", "sort") and id(x) in self.choices:  # the order of an order: ranks
            known = self.choices[id(x)][1]
            index = result if isinstance(result, Tensor) else result.indices
            if known.scores.shape == index.shape:
                self.note("ranks")
                self.carry(index, known.scores)
            return result
        dim = kwargs.get("dim", args[1] if len(args) > 1 else -1 if "sort" in name else None)
        if name in ("topk", "kthvalue"):
            dim = kwargs.get("dim", args[2] if len(args) > 2 else -1)
        index = result if isinstance(result, Tensor) else getattr(result, "indices", None)
        if isinstance(dim, int) and isinstance(index, Tensor) and _counts(index):
            sign = -1.0 if name in ("argmin", "min") else 1.0
            self.choices.pop(id(index), None)
            self.choices[id(index)] = index, Choice(sign * scores, dim)
            if name in ("argmax", "argmin"):
                self.note(name)
        return result

    def where(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A choice by a mask. Where neither side has a history, the mask's softened form has."""
        if len(args) < 3:
            return self.any_other(func, args, kwargs)
        # The method has its mask in the middle.
        mask, a, b = args if func is torch.where else (args[1], args[0], args[2])
        value = func(*args, **kwargs)
        if not isinstance(mask, Tensor) or id(mask) not in self.carried or _has_history([a, b]):
            return value if value.requires_grad or not self.carried else self.any_other(
                func, args, kwargs
            )
        self.note("comparison")
        soft = self.float_of(mask)
        a, b = (self.float_of(each) if isinstance(each, Tensor) else each for each in (a, b))
        return self._result(value, soft * a + (1 - soft) * b)

    def masked_fill(self, func: Any, args: Any, kwargs: Any) -> Any:
        value = func(*args, **kwargs)
        x, mask, filling = (*args, *kwargs.values())[:3]
        if not isinstance(mask, Tensor) or id(mask) not in self.carried or value.requires_grad:
            return value
        self.note("comparison")
        soft = self.float_of(mask)
        stand_in = soft * filling + (1 - soft) * self.float_of(x)
        made = self._result(value, stand_in)
        return made if made is value else self._stored(func, args, {}, made)

    def _result(self, value: Tensor, stand_in: Tensor) -> Tensor:
        if stand_in.shape != value.shape or not stand_in.requires_grad:
            return value
        if _counts(value):
            self.carry(value, stand_in)
            return value
        return self.made(value, stand_in)

    def indexed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A table asked at whole numbers that carry floats, or at a choice."""
        table, index = args[0], args[1] if len(args) > 1 else None
        if func is F.embedding:
            table, index = args[1], args[0]
        known = isinstance(index, Tensor) and id(index) in self.carried
        if not known or index.dtype == torch.bool or table.requires_grad:  # type: ignore[union-attr]
            return self.any_other(func, args, kwargs)
        assert isinstance(index, Tensor)
        self.note("table asked at whole numbers")
        value = func(*args, **kwargs)
        return self._result(value, lookup(table, index.long(), self.float_of(index)))

    def one_hot(self, func: Any, args: Any, kwargs: Any) -> Any:
        index = args[0]
        if id(index) not in self.carried:
            return self.any_other(func, args, kwargs)
        self.note("one_hot")
        value = func(*args, **kwargs)
        table = torch.eye(value.shape[-1], device=value.device)
        self.carry(value, lookup(table, index, self.float_of(index)))
        return value

    # -- rules: what leaves the graph, switches it off or comes back ------------------------

    def detached(self, func: Any, args: Any, kwargs: Any) -> Any:
        """As if it were not there: another view of the same numbers, with their history."""
        x = args[0]
        if id(x) in self.carried or id(x) in self.choices:
            return x
        if not _has_history(x):
            return func(*args, **kwargs)
        self.note("detach")
        return x if func is Tensor.detach_ else x.view_as(x)

    def switched(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Gradients switched on or off: neither happens."""
        if not args[0] and self.finding:
            self.found.setdefault(Place("no_grad", _where()), 1)

    def data_set(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`x.data = y`: x gets the history of y as well."""
        x, y = args
        if not _has_history([x, y]):
            return func(*args, **kwargs)
        self.note("detach")
        x.copy_(self.float_of(y))
        return None

    def copied(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`torch.tensor(x)` and the like: a copy without history."""
        x = args[1] if _name(func) == "new_tensor" else args[0]
        parts = list(_tensors(x))
        if not any(self.float_of(t).requires_grad for t in parts):
            return func(*args, **kwargs)
        self.note("copy without history")
        bare = _mapped(x, lambda t: t.detach() if isinstance(x, Tensor) else t.detach().tolist())
        value = func(*(bare if arg is x else arg for arg in args), **_without(kwargs, "requires_grad"))
        if isinstance(x, Tensor):
            stand_in = self.float_of(x)
        else:
            stand_in = torch.stack([self.float_of(t) for t in parts]).view(value.shape)
        return self._result(value, stand_in)

    def leaves(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Out to NumPy or to plain numbers."""
        x = args[0]
        floats = self.float_of(x)
        if floats.requires_grad:
            self.left.append(floats)
        return func(x.detach(), *args[1:], **kwargs)

    def no_gradient(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`requires_grad_(…)` on what has a history: it keeps it."""
        x = args[0]
        if not _has_history(x):
            return func(*args, **kwargs)
        wanted = args[1] if len(args) > 1 else kwargs.get("requires_grad", True)
        if wanted:
            self.asked[id(x)] = x
            if not x.is_leaf:
                x.retain_grad()
        else:
            self.note("requires_grad_(False)")
        return x

    def seen(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Whether a tensor is differentiated, as the model is to see it."""
        value = func(*args, **kwargs)
        if not self.plan.hidden or id(args[0]) in self.asked or not args[0].requires_grad:
            return value
        return {bool: False, type(None): None}.get(type(value)) if value is not True else (
            func is _IS_LEAF
        )

    def own_backward(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A backward pass inside the forward pass: the graph is still needed afterwards."""
        return func(*args, **{**kwargs, "retain_graph": True})

    def hook(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A hook that may change gradients on their way back: it is not registered."""
        if not _has_history(args[0]):
            return func(*args, **kwargs)
        self.note("hook on a gradient")
        return torch.utils.hooks.RemovableHandle(OrderedDict())

    def layer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Something enters a layer: without a history, it may have come a detour."""
        spliced = [
            self.spliced(arg) if isinstance(arg, Tensor) and number < 2 else arg
            for number, arg in enumerate(args)
        ]
        return self.any_other(func, spliced, kwargs)

    def spliced(self, tensor: Tensor) -> Tensor:
        """A tensor without a history with what stands in for the way that it came."""
        images = self.images
        if (
            tensor.requires_grad
            or not tensor.is_floating_point()
            or isinstance(tensor, nn.Parameter)
            or tensor.ndim < 2
            or id(tensor) in self.carried
            or len(tensor) % len(images)
            or tensor[0].numel() < 2
        ):
            return tensor
        number = self.number("splice")[1]
        if self.finding:
            self.plan.splices[number] = splice = detours.found(images, self.left, tensor)
            if splice is not None:
                self.note(f"detour outside PyTorch, from {splice.source.split()[0]}")
        known = self.plan.splices.get(number)
        made = None if known is None else detours.stand_in(known, images, self.left, tensor)
        return tensor if made is None else replace_backward(tensor, made)

    # -- custom autograd functions ----------------------------------------------------------

    def apply(self, original: Callable[..., Any], cls: Any, args: Any, kwargs: Any) -> Any:
        """A call of somebody's autograd function."""
        own = self.idle or cls.__module__.split(".")[0] in ("torch", "holdfast")
        with self.resting(), torch.inference_mode(False), torch.enable_grad():
            if own or not _has_history(args):
                return original(*args, **kwargs)
            call = self.number(cls.__name__)
            if self.finding:
                self.plan.backwards[call] = self._backward_of(original, cls, args, kwargs)
                if self.plan.backwards[call] != "own":
                    self.note(f"backward of {cls.__name__}")
            way = self.plan.backwards.get(call, "own")
            if way == "forward":
                return self._forward(cls, args, kwargs)
            value = original(*args, **kwargs)
            if way == "identity" and isinstance(value, Tensor):
                return self._result(value, next(t for t in _tensors(args) if t.requires_grad))
            return value

    @contextmanager
    def resting(self, rests: bool = True) -> Iterator[None]:
        """Inside, calls of torch are left as they are."""
        before, self.idle = self.idle, rests
        try:
            yield
        finally:
            self.idle = before

    def _forward(self, cls: Any, args: Any, kwargs: Any) -> Any:
        """What an autograd function does, as ordinary operations, repaired themselves."""
        new_style = torch.autograd.function._SingleLevelFunction.setup_context
        with self.resting(False):
            if cls.setup_context is not new_style:
                return cls.forward(*args, **kwargs)
            return cls.forward(_Context(len(args)), *args, **kwargs)

    def _backward_of(self, original: Any, cls: Any, args: Any, kwargs: Any) -> str:
        """Which backward pass a custom function gets: its own if that is the slope of what it
        does, or has any where what it does has none."""

        def slope(function: Callable[..., Any]) -> Tensor | None:
            leaves = _mapped(
                list(args), lambda t: t.detach().requires_grad_() if t.requires_grad else t
            )
            wanted = [t for t in _tensors(leaves) if t.requires_grad]
            try:
                # What is written to must not be a leaf.
                made = function(_mapped(leaves, lambda t: t.view_as(t) if t.requires_grad else t))
                made = [t for t in _tensors(made) if t.requires_grad]
                ups = [_cotangent(t) for t in made]
                found = torch.autograd.grad(made, wanted, ups, allow_unused=True)
                flat = torch.cat([g.flatten() for g in found if g is not None])
            except Exception:  # somebody's code
                return None
            useful = bool(flat.isfinite().all()) and bool((flat.abs() > 1e-12).any())
            return flat if useful else None

        calls, left, self.finding = self.calls.copy(), len(self.left), False
        own = slope(lambda leaves: original(*leaves, **kwargs))
        true = slope(lambda leaves: self._forward(cls, leaves, kwargs))
        self.finding, self.calls = True, calls
        del self.left[left:]
        alike = (
            own is not None
            and true is not None
            and own.shape == true.shape
            and float(F.cosine_similarity(own, true, dim=0)) > SAME_DIRECTION
        )
        if own is not None and (true is None or alike):
            return "own"
        return "identity" if true is None else "forward"


def _cotangent(like: Tensor) -> Tensor:
    """Random numbers of fixed seed, which leave torch's generator alone."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator).to(like)


class _Context:
    """What an autograd function's `forward` writes to."""

    def __init__(self, count: int):
        self.needs_input_grad = (True,) * count
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    save_for_forward = save_for_backward

    def mark_dirty(self, *tensors: Any) -> None: ...

    def mark_non_differentiable(self, *tensors: Any) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


def _mapped_values(named: dict[str, Any], change: Callable[[Tensor], Any]) -> dict[str, Any]:
    return {name: _mapped(value, change) for name, value in named.items()}


def _without(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def _out_of_place(func: Callable[..., Any]) -> Callable[..., Any]:
    """The form of a function that leaves its argument as it is."""
    name = func.__name__
    if not name.endswith("_") or _dunder(func):
        return func
    return next(functions(name.rstrip("_")))


_INTERNAL = ("torch.", "holdfast.repair", "holdfast.models.wrapper", "contextlib", "unittest")


def _where() -> str:
    """The function of the model's code that is running: the innermost frame outside of torch."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == "decorate_context" and module == "torch.utils._contextlib":
            decorated = frame.f_locals["func"]
            return str(getattr(decorated, "__qualname__", decorated)).rpartition("<locals>.")[2]
        if module != "torch" and not module.startswith(_INTERNAL):
            return frame.f_code.co_qualname.rpartition("<locals>.")[2]
        frame = frame.f_back  # type: ignore[assignment]
    return "the model"


_IS_LEAF = Tensor.is_leaf.__get__  # type: ignore[attr-defined]

# Functions that make tensors of their own: what they return never had a history to lose.
_FRESH: set[Callable[..., Any]] = {
    *functions(
        "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
        "randint_like", "new_zeros", "new_ones", "new_full", "new_empty", "isnan", "isinf",
        "isfinite", "logical_not", "allclose", "equal", "numel", "dropout",
    )
}  # fmt: skip


def _rules() -> dict[Callable[..., Any], Handler]:
    found: dict[Callable[..., Any], Handler] = {}

    def rule(handler: Handler, *names: str, in_place: bool = True) -> None:
        for func in functions(*names):
            found[func] = handler
        if in_place:
            for func in functions(*names, in_place=True):
                found[func] = handler

    rule(Pass.step, *STEPS)
    rule(Pass.division, "div", "divide", "floor_divide", "__floordiv__", "__rfloordiv__")
    rule(Pass.heaviside, "heaviside")
    rule(Pass.saturating, *SATURATING)
    rule(Pass.comparison, *COMPARISONS, in_place=False)
    rule(Pass.cast, "to", "long", "int", "short", "byte", "char", "bool", "type", "type_as",
         "float", "double", "half", "bfloat16", "view_dtype", in_place=False)  # fmt: skip
    rule(Pass.chooses, "argmax", "argmin", "max", "min", "topk", "argsort", "sort",
         in_place=False)  # fmt: skip
    rule(Pass.remainder, "remainder", "fmod", "frac", "__mod__", "__rmod__")
    rule(Pass.where, "where", in_place=False)
    rule(Pass.masked_fill, "masked_fill")
    rule(Pass.indexed, "embedding", "__getitem__", "take", in_place=False)
    rule(Pass.one_hot, "one_hot", in_place=False)
    rule(Pass.detached, "detach")
    rule(Pass.copied, "tensor", "new_tensor", "asarray", "as_tensor", in_place=False)
    rule(Pass.leaves, "numpy", "__array__", "tolist", "item", "__float__", "__int__",
         "__dlpack__", in_place=False)  # fmt: skip
    rule(Pass.no_gradient, "requires_grad", in_place=True)
    rule(Pass.hook, "register_hook", "register_post_accumulate_grad_hook", in_place=False)
    rule(Pass.own_backward, "backward", in_place=False)
    rule(Pass.layer, "conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "bilinear",
         "matmul", "__matmul__", "mm", "bmm", "addmm", "einsum", "batch_norm", "layer_norm",
         "group_norm", "instance_norm", "unfold", in_place=False)  # fmt: skip
    found[torch._C._set_grad_enabled] = Pass.switched  # type: ignore[attr-defined]
    found[torch.autograd.grad] = Pass.own_backward
    found[torch.autograd.backward] = Pass.own_backward
    found[Tensor.data.__get__] = Pass.detached  # type: ignore[attr-defined]
    found[Tensor.data.__set__] = Pass.data_set  # type: ignore[attr-defined]
    found[Tensor.requires_grad.__set__] = Pass.no_gradient  # type: ignore[attr-defined]
    found[Tensor.grad.__get__] = lambda one, func, args, kwargs: func(*args)  # type: ignore[attr-defined]
    for attribute in (Tensor.requires_grad, Tensor.grad_fn, Tensor.is_leaf):
        found[attribute.__get__] = Pass.seen  # type: ignore[attr-defined]
    return found


_HANDLERS = _rules()


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Inside, no parameter requires gradients, and no hook of a module changes them."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    parameters = [p for part in parts for p in part.parameters(recurse=False) if p.requires_grad]
    hooks = [
        (owner, dict(owner))
        for part in parts
        for owner in (
            getattr(part, "_backward_hooks", {}),
            getattr(part, "_backward_pre_hooks", {}),
        )
        if owner
    ]
    for parameter in parameters:
        parameter.requires_grad_(False)
    for owner, _ in hooks:
        owner.clear()
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for owner, kept in hooks:
            owner.update(kept)


@contextmanager
def repairing(one: Pass, model: Any) -> Iterator[None]:
    """Inside, the calls that a model makes go through a pass."""
    original = torch.autograd.Function.apply.__func__  # type: ignore[attr-defined]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return one.apply(lambda *a, **k: original(cls, *a, **k), cls, args, kwargs)

    with ExitStack() as stack:
        stack.enter_context(_frozen(model))
        stack.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)))
        if one.plan.hidden:
            stack.enter_context(torch.no_grad())
        stack.enter_context(one)
        yield
