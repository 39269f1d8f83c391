"""One forward pass of a model through a repaired graph.

`Pass` sees every call of a function of torch that the model makes, and lets it return what it
returns; what kills gradients gets a useful backward pass by its rule.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.overrides import TorchFunctionMode

from . import custom
from .graph import Graph, Place, mapped, mapped_values
from .rules import by_place, rule_of
from .threads import in_other_threads


class Pass(TorchFunctionMode):
    """Shows a graph every call of torch's functions.

    Args:
        graph: what is remembered of this forward pass.
    """

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        graph, kwargs = self.graph, kwargs or {}
        if graph.idle or torch._C._functorch.peek_interpreter_stack() is not None:  # in `vmap`
            return func(*args, **kwargs)
        if graph.finding and torch.is_inference_mode_enabled():
            graph.note("inference_mode", once=True)
        if graph.back:
            args = mapped(args, graph.as_it_came_back)
            kwargs = mapped_values(kwargs, graph.as_it_came_back)
        func, rule = rule_of(func)
        # Whatever the model switched off.
        with torch.inference_mode(False), torch.enable_grad():
            if rule is not None:
                return graph.seen(rule(graph, func, *by_place(args, kwargs)))
            return graph.seen(graph.any_other(func, args, kwargs))


def _hooks(part: nn.Module) -> list[dict[int, Any]]:
    return [part._backward_hooks, part._backward_pre_hooks]


@contextmanager
def _frozen(model: Any) -> Iterator[list[nn.Module]]:
    """Inside, no parameter requires gradients, and no hook of a module changes them: yields the
    modules that have one."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    parameters = [p for part in parts for p in part.parameters(recurse=False) if p.requires_grad]
    hooked = [part for part in parts if part._backward_hooks or part._backward_pre_hooks]
    hooks = [(owner, dict(owner)) for part in hooked for owner in _hooks(part)]
    for parameter in parameters:
        parameter.requires_grad_(False)
    for owner, _ in hooks:
        owner.clear()
    try:
        yield hooked
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for owner, kept in hooks:
            owner.update(kept)


@contextmanager
def _autograd_functions(graph: Graph) -> Iterator[None]:
    """Inside, calls of custom autograd functions are shown to the graph.

    Not `Function.apply` is replaced but its code: models keep `apply` under names of their own.
    """
    apply: Any = torch.autograd.Function.apply.__func__  # type: ignore[attr-defined]
    code, home = apply.__code__, apply.__globals__
    original = FunctionType(code, home, apply.__name__, apply.__defaults__, apply.__closure__)

    def shown(cls: Any, args: Any, kwargs: Any) -> Any:
        return custom.apply(graph, lambda *a, **k: original(cls, *a, **k), cls, args, kwargs)

    apply.__code__ = _shows.__code__
    home["_shown"], before = shown, home.get("_shown")
    try:
        yield
    finally:
        apply.__code__, home["_shown"] = code, before


@contextmanager
def _saved_as_they_are(graph: Graph) -> Iterator[None]:
    """Inside, tensors are saved for the backward pass as they are, as hooks may hand back others,
    and checkpoints run a part again when no graph sees it; and modules pass gradients on as they
    are."""
    hooks, checkpoint = torch.autograd.graph.saved_tensors_hooks, torch.utils.checkpoint

    def enter(self: Any) -> None:
        if type(self).__module__ != checkpoint.__name__:
            graph.note("hook on saved tensors", once=True)

    def leave(self: Any, *args: Any) -> None: ...

    def kept(self: Any, args: Any) -> Any:
        graph.note("hook on a gradient", once=True)
        return args

    of_modules = torch.utils.hooks.BackwardHook
    with ExitStack() as stack:
        for home, name, other in (
            (hooks, "__enter__", enter),
            (hooks, "__exit__", leave),
            (of_modules, "setup_input_hook", kept),
            (of_modules, "setup_output_hook", kept),
        ):
            stack.callback(setattr, home, name, getattr(home, name))
            setattr(home, name, other)
        yield


def _with_class() -> Any:
    __class__ = None  # the cell of `super()`, which the code that is replaced has

    def _shows(cls: Any, *args: Any, **kwargs: Any) -> Any:
        __class__  # noqa: B018
        return _shown(cls, args, kwargs)  # type: ignore[name-defined]  # noqa: F821

    return _shows


_shows = _with_class()


# What is replaced for a pass, such as `Function.apply`, is replaced for all threads.
_ALONE = threading.RLock()


@contextmanager
def repairing(graph: Graph, model: Any) -> Iterator[None]:
    """Inside, the calls that a model makes go through a graph."""
    with _ALONE, ExitStack() as stack:
        for part in stack.enter_context(_frozen(model)):
            if graph.finding:
                graph.found[Place("hook on a gradient", type(part).__name__)] += 1
        stack.enter_context(_autograd_functions(graph))
        stack.enter_context(_saved_as_they_are(graph))
        stack.enter_context(in_other_threads(lambda: _watched(graph)))
        if "torch._dynamo" in sys.modules:  # compiled parts run as they were written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(setattr, graph, "idle", True)  # for threads that go on
        stack.enter_context(_watched(graph))
        yield


@contextmanager
def _watched(graph: Graph) -> Iterator[None]:
    """Inside, a graph sees the calls that this thread makes."""
    with torch.set_grad_enabled(not graph.plan.hidden), Pass(graph):
        yield
