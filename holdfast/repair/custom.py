"""Custom autograd functions and operators: whether a backward pass is that of its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils.checkpoint import CheckpointFunction

from .graph import Graph, has_history, mapped, tensors_in

SAME_DIRECTION = 0.5  # cosine from which a backward pass is that of its forward pass


def apply(graph: Graph, original: Callable[..., Any], cls: Any, args: Any, kwargs: Any) -> Any:
    """A call of somebody's autograd function."""
    own = graph.idle or cls.__module__.split(".")[0] in ("torch", "holdfast")
    with graph.resting(), torch.inference_mode(False), torch.enable_grad():
        if cls is CheckpointFunction:  # it runs its first argument again when differentiated
            with graph.resting(False):
                return args[0](*args[2:])
        if own or not has_history(args):
            return original(*args, **kwargs)

        def forward(*args: Any) -> Any:
            return _forward(graph, cls, args, kwargs)

        return _repaired(graph, cls.__name__, original, forward, args, kwargs)


def operator(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """A call of somebody's operator, which may have been written in Python."""
    if not has_history(args):
        return func(*args, **kwargs)
    name = str(func).removesuffix(".default")
    written = OPDEFS.get(name.replace(".", "::"))

    def forward(*args: Any) -> Any:
        return written._init_fn(*args, **kwargs)  # type: ignore[union-attr]

    return _repaired(graph, name, func, forward if written is not None else None, args, kwargs)


Call = Callable[..., Any]


def _repaired(
    graph: Graph, name: str, original: Call, forward: Call | None, args: Any, kwargs: Any
) -> Any:
    """The call with a useful backward pass; `forward`: what it does as ordinary operations."""
    call = graph.number(name)
    if graph.finding:
        graph.plan.backwards[call] = _backward_of(graph, original, forward, args, kwargs)
        if graph.plan.backwards[call] != "own":
            graph.note(f"backward of {name}")
    way = graph.plan.backwards.get(call, "own")
    if way == "forward" and forward is not None:
        return forward(*args)
    value = original(*args, **kwargs)
    if way == "identity" and isinstance(value, Tensor):
        return graph.result(value, next(t for t in tensors_in(args) if t.requires_grad))
    return value


def _forward(graph: Graph, cls: Any, args: Any, kwargs: Any) -> Any:
    """What an autograd function does, as ordinary operations, repaired themselves."""
    new_style = torch.autograd.function._SingleLevelFunction.setup_context
    with graph.resting(False):
        if cls.setup_context is not new_style:
            return cls.forward(*args, **kwargs)
        return cls.forward(_Context(len(args)), *args, **kwargs)


def _backward_of(graph: Graph, original: Call, forward: Call | None, args: Any, kwargs: Any) -> str:
    """Which backward pass a custom function gets: its own if that is the slope of what it
    does, or has any where what it does has none."""

    def slope(function: Callable[..., Any]) -> Tensor | None:
        leaves = mapped(list(args), lambda t: t.detach().requires_grad_() if t.requires_grad else t)
        wanted = [t for t in tensors_in(leaves) if t.requires_grad]
        try:
            # What is written to must not be a leaf.
            made = function(mapped(leaves, lambda t: t.view_as(t) if t.requires_grad else t))
            made = [t for t in tensors_in(made) if t.requires_grad]
            ups = [_cotangent(t) for t in made]
            found = torch.autograd.grad(made, wanted, ups, allow_unused=True)
            flat = torch.cat([g.flatten() for g in found if g is not None])
        except Exception:  # somebody's code
            return None
        useful = bool(flat.isfinite().all()) and bool((flat.abs() > 1e-12).any())
        return flat if useful else None

    calls, left, graph.finding = graph.calls.copy(), len(graph.left), False
    own = slope(lambda leaves: original(*leaves, **kwargs))
    true = None if forward is None else slope(lambda leaves: forward(*leaves))
    graph.finding, graph.calls = True, calls
    del graph.left[left:]
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
    """Random numbers that leave torch's generator alone, and whose seed nobody else takes: they
    must not be those that a backward pass draws."""
    generator = torch.Generator().manual_seed(0x686F6C64)
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
