"""What is remembered in one forward pass through a repaired graph, and how values get stand-ins.

Parameters do not require gradients here, so that a tensor that does comes from the images: it has a
history.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models.backward import replace_backward
from ..types import Images
from . import detours
from .surrogates import COMPARISONS, LOGIC, STEPS, functions


@dataclass
class Plan:
    """What the first pass found, for all passes after it. Calls are known by name and number.

    Attributes:
        classes: how many logits the model has.
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
        entry: what stands in for what enters the first layer; None: nothing.
        steps: whether there are steps that are known by autograd's nodes alone.
        end: the number of the logits on the way that are climbed; None: the model's answers are.
    """

    classes: int
    saturated: set[tuple[str, int]] = field(default_factory=set)
    backwards: dict[tuple[str, int], str] = field(default_factory=dict)
    splices: dict[int, detours.Splice | None] = field(default_factory=dict)
    hidden: bool = False
    flat_remainders: bool = False
    softened: tuple[int, ...] = ()
    gain: float = 1.0
    entry: detours.Splice | None = None
    steps: bool = False
    end: int | None = None

    @property
    def climbs(self) -> bool:
        """Whether what is climbed may differ from the model's answers."""
        return bool(self.softened) or self.end is not None


class Reached(BaseException):
    """The first layer was reached, and nothing further is wanted of the pass."""


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

    def renamed(self, names: Tensor) -> Choice:
        """The same where class `c` is called `names[c]`: of the classes that share a name, the one
        that leads speaks for all."""
        scores = self.scores.movedim(self.dim, -1)
        least = scores.detach().amin(-1)  # of a name that no class has
        shared = [scores[..., names == name] for name in range(int(names.max()) + 1)]
        best = [each.amax(-1) if each.shape[-1] else least for each in shared]
        return Choice(torch.stack(best, self.dim), self.dim)


def name_of(func: Callable[..., Any]) -> str:
    if is_operator(func):
        return func.__name__
    return getattr(func, "__name__", "").rstrip("_").removeprefix("special_")


def is_operator(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return name.startswith("__") and name.endswith("__")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments, in lists too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Arguments with every tensor among them changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(mapped(each, change) for each in value)
    return value


def linked(tensor: Tensor) -> bool:
    """Whether it comes from the images: a leaf that requires gradients is the model's own."""
    return tensor.grad_fn is not None


def has_history(value: Any) -> bool:
    return any(linked(tensor) for tensor in tensors_in(value))


def counts(tensor: Tensor) -> bool:
    """Whether it holds whole numbers, truth values or quantised ones."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def mapped_values(named: dict[str, Any], change: Callable[[Tensor], Any]) -> dict[str, Any]:
    return {name: mapped(value, change) for name, value in named.items()}


# Functions that make tensors of their own: what they return never had a history to lose.
FRESH: set[Callable[..., Any]] = {
    *functions(
        "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
        "randint_like", "new_zeros", "new_ones", "new_full", "new_empty", "isnan", "isinf",
        "isfinite", "allclose", "equal", "numel", "dropout",
    )
}  # fmt: skip


class Graph:
    """The repaired graph of one forward pass.

    Args:
        images: the model's input, (N, C, H, W), which requires gradients.
        plan: what is known; filled in by the first pass.
        finding: whether this is the first pass, which looks for what is to be repaired.

    Attributes:
        found: how often each place was repaired.
    """

    def __init__(self, images: Images, plan: Plan, finding: bool = False):
        self.images, self.plan, self.finding = images, plan, finding
        self.found: Counter[Place] = Counter()
        self.calls: Counter[str] = Counter()
        self.left: list[Tensor] = []  # what went out to other libraries
        # Whole numbers and truth values carry the floats that they came from. The tensors are kept
        # beside them, or another could get the number of one that is gone.
        self.carried: dict[int, tuple[Tensor, Tensor]] = {}
        self.choices: dict[int, tuple[Tensor, Choice]] = {}
        self.back: dict[int, tuple[Tensor, Tensor]] = {}  # what came back, and what stands in
        self.asked: dict[int, Tensor] = {}  # what the model itself made require gradients
        self.made_logits: list[Tensor] = []  # what has a history and as many columns as classes
        self.first: Tensor | None = None  # the first layer's weight
        self.entering: list[Tensor] = []  # what entered it
        self.stops, self.thread = False, threading.current_thread()  # whether it ends there
        self.idle = False  # inside somebody's autograd function

    # -- functions without a rule ------------------------------------------------------------

    def any_other(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A function without a rule of its own: whole numbers that carry floats stand for them."""
        carrying = (self.carried or self.choices) and any(
            id(t) in self.carried or id(t) in self.choices
            for t in tensors_in([*args, *kwargs.values()])
        )
        if carrying:
            return self.of_carriers(func, args, kwargs)
        before = has_history([*args, *kwargs.values()])
        result = func(*args, **kwargs)
        return self.after(func, args, result) if before else result

    def after(self, func: Callable[..., Any], args: Any, result: Any) -> Any:
        """The result of a function of something with a history; it may have lost it."""
        if not isinstance(result, Tensor):
            return result
        if linked(result) or func in FRESH:
            return result
        alike = [t for t in tensors_in(args) if linked(t) and t.shape == result.shape]
        if not alike:
            return result
        source = alike[-1 if name_of(func) == "searchsorted" else 0]  # what is sought comes last
        if counts(result):
            self.note(name_of(func))
            self.carry(result, source)
            return result
        self.note(name_of(func))
        return self.made(result, source)

    def made(self, value: Tensor, stand_in: Tensor) -> Tensor:
        """The value with the gradient of a stand-in of the same shape."""
        if self.finding and not self.found and linked(stand_in):
            self.note("lost gradient")  # where nothing says what took it
        if stand_in.shape[1:] == self.plan.softened and stand_in.ndim == 2:
            return stand_in.to(value.dtype)
        return replace_backward(value.detach(), stand_in.to(value.dtype))

    def result(self, value: Tensor, stand_in: Tensor) -> Tensor:
        if stand_in.shape != value.shape or not linked(stand_in):
            return value
        if counts(value):
            self.carry(value, stand_in)
            return value
        return self.made(value, stand_in)

    def stored(self, func: Any, args: Any, kwargs: Any, made: Tensor) -> Tensor:
        if func.__name__.endswith("_") and not is_operator(func):
            return args[0].copy_(made)
        if kwargs.get("out") is not None:
            return kwargs["out"].copy_(made)
        return made

    def of_carriers(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A function of whole numbers that carry floats. What it does to the floats stands in."""
        value = func(*args, **kwargs)
        if not isinstance(value, Tensor):
            if isinstance(value, list | tuple):  # unbind, split, chunk
                self._each_part(func, args, kwargs, value)
            return value
        chosen = next((t for t in tensors_in(args) if id(t) in self.choices), None)
        if chosen is not None:
            return self._of_choice(func, args, value, chosen)
        if linked(value) and self._masks(args):
            return value  # a mask on something with a history of its own: as ReLU does
        stand_in = self._on_floats(func, args, kwargs, value)
        if stand_in is None:
            return value
        if counts(value):
            self.carry(value, stand_in)
            return value
        if self._masks(args):
            self.note("comparison")
        return self.made(value, stand_in)

    def _masks(self, args: Any) -> bool:
        """Whether all that carries floats among the arguments is a mask."""
        return all(t.dtype == torch.bool for t in tensors_in(args) if id(t) in self.carried)

    def _on_floats(
        self, func: Callable[..., Any], args: Any, kwargs: Any, value: Tensor
    ) -> Tensor | None:
        """What the function makes of the floats; at worst the first of them, if the shape fits."""
        own = name_of(func)
        if own in COMPARISONS:
            return self.compared(own, args, value)
        if own in LOGIC and args[0].dtype == torch.bool:
            soft = LOGIC[own](*(self.float_of(arg).float() for arg in args[:2]))
            return soft if soft.shape == value.shape else None
        try:
            floats = mapped(list(args), self.float_of)
            named = {k: v for k, v in kwargs.items() if k != "dtype"}
            if own in ("dequantize", "int_repr"):
                result = floats[0]
            else:
                result = func(*floats, **mapped_values(named, self.float_of))
            if own in STEPS or own in ("floor_divide", "__floordiv__", "__rfloordiv__"):
                result = floats[0] if own in STEPS else torch.div(floats[0], floats[1])
            if isinstance(result, Tensor) and linked(result) and result.shape == value.shape:
                return result
        except Exception:  # whatever refuses floats: shifts, masks of bits, tables
            pass
        first = next((t for t in tensors_in(args) if id(t) in self.carried), None)
        if first is None:
            return None
        carrier = self.float_of(first)
        if own in ("bitwise_left_shift", "__lshift__", "bitwise_right_shift", "__rshift__"):
            shift = 2.0 ** int(args[1]) if not isinstance(args[1], Tensor) else 1.0
            carrier = carrier * shift if "l" in own.replace("bitwise", "") else carrier / shift
        return carrier if carrier.shape == value.shape else None

    def _each_part(self, func: Any, args: Any, kwargs: Any, values: Any) -> None:
        try:
            parts = func(*mapped(list(args), self.float_of), **kwargs)
        except Exception:  # whatever refuses floats
            return
        for value, part in zip(values, parts, strict=False):
            if isinstance(value, Tensor) and isinstance(part, Tensor) and linked(part):
                self.carry(value, part)

    def compared(self, name: str, args: Any, value: Tensor) -> Tensor | None:
        a, b = (self.float_of(arg) if isinstance(arg, Tensor) else arg for arg in args[:2])
        soft = COMPARISONS[name](torch.as_tensor(a - b, dtype=torch.get_default_dtype()))
        return soft if soft.shape == value.shape else None

    def _of_choice(self, func: Any, args: Any, value: Tensor, chosen: Tensor) -> Tensor:
        """A function of the number of the largest class."""
        choice = self.choices[id(chosen)][1]
        scores = choice.scores.movedim(choice.dim, -1)
        name = name_of(func)
        if name == "one_hot" and value.shape == scores.shape:
            self.carry(value, scores)
        elif name == "scatter" and value.shape == choice.scores.shape:
            return self.written(func, args, value, choice.scores)
        elif name in ("embedding", "__getitem__", "index_select") and not counts(value):
            table = next(t for t in tensors_in(args) if t is not chosen)
            if len(table) == scores.shape[-1]:
                spread = scores.detach().std(-1, keepdim=True).clamp_min(1e-12)
                stand_in = (scores / spread).softmax(-1) @ table.detach().flatten(1)
                if stand_in.numel() == value.numel():
                    return replace_backward(value.detach(), stand_in.view_as(value))
        elif value.numel() == chosen.numel() and counts(value):
            # A function of the number, such as `% 10` or a table of names; or the same, reshaped.
            names = _function_of_each(func, args, chosen, value, scores.shape[-1])
            self.choices[id(value)] = value, choice if names is None else choice.renamed(names)
        return value

    def written(self, func: Any, args: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        """A result with a stand-in; where the function writes to its first argument, into it."""
        made = self.made(value, stand_in)
        if not func.__name__.endswith("_") or is_operator(func):
            return made
        args[0].copy_(made)
        return args[0]

    # -- what is remembered -----------------------------------------------------------------

    def seen(self, result: Any) -> Any:
        """A result, remembered where it may be logits."""
        if (
            isinstance(result, Tensor)
            and result.ndim == 2
            and result.shape[1] == self.plan.classes
            and result.is_floating_point()
            and linked(result)
        ):
            self.made_logits.append(result)
        return result

    def reaches(self, entering: Tensor, weight: Tensor) -> bool:
        """Whether this is the first layer, perhaps once more: known by its weight."""
        if self.first is None:
            self.first = weight
            if self.stops:
                self.entering.append(entering)
                if threading.current_thread() is self.thread:  # in another, nobody would know
                    raise Reached
        return weight is self.first

    def carry(self, counted: Tensor, floats: Tensor) -> None:
        """Let whole numbers carry the floats that they came from."""
        value = counted.dequantize() if counted.is_quantized else counted.to(torch.float32)
        exact = self.made(value, floats.float())
        self.carried[id(counted)] = counted, exact

    def float_of(self, tensor: Tensor) -> Tensor:
        """The floats that whole numbers carry; any other tensor as it is."""
        known = self.carried.get(id(tensor))
        return tensor if known is None else known[1]

    def as_it_came_back(self, tensor: Tensor) -> Tensor:
        """What stands in for a tensor that came a detour; any other as it is."""
        known = self.back.get(id(tensor))
        return tensor if known is None else known[1]

    def number(self, name: str) -> tuple[str, int]:
        """This call's name and number."""
        self.calls[name] += 1
        return name, self.calls[name]

    def note(self, what: str, once: bool = False) -> None:
        """Something was repaired here; `once`: however often that happens in this function."""
        if self.finding:
            place = Place(what, running())
            self.found[place] = 1 if once else self.found[place] + 1

    @contextmanager
    def resting(self, rests: bool = True) -> Iterator[None]:
        """Inside, calls of torch are left as they are."""
        before, self.idle = self.idle, rests
        try:
            yield
        finally:
            self.idle = before


def _function_of_each(
    func: Any, args: Any, chosen: Tensor, value: Tensor, count: int
) -> Tensor | None:
    """What a function makes of each number below `count`, if that is what it made of `chosen`."""
    numbers = torch.arange(count, dtype=chosen.dtype, device=chosen.device)
    try:
        names = func(*mapped(list(args), lambda t: numbers if t is chosen else t))
    except Exception:  # whatever wants `chosen` in its own shape
        return None
    fits = isinstance(names, Tensor) and names.shape == numbers.shape and bool((names >= 0).all())
    return names if fits and torch.equal(names[chosen].flatten(), value.flatten()) else None


_INTERNAL = ("torch.", "holdfast.repair", "holdfast.models.wrapper", "contextlib", "unittest")


def running() -> str:
    """The function of the model's code that is running: the innermost frame outside of torch."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == "decorate_context" and module == "torch.utils._contextlib":
            decorated = frame.f_locals["func"]
            return str(getattr(decorated, "__qualname__", decorated)).rpartition("<locals>.")[2]
        if module != "torch" and not module.startswith(_INTERNAL):
            names = frame.f_code.co_qualname.split(".<locals>.")
            while names[-1] in ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>"):
                names.pop()  # the function that they are in
            return "the model" if names[-1] == "<module>" else names[-1]
        frame = frame.f_back  # type: ignore[assignment]
    return "the model"
