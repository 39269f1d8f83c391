"""The rules: for each function of torch that kills gradients, what happens in a repaired graph.

A rule is called in the function's place, `rule(graph, func, args, kwargs)`, and returns what the
function returns, with a useful backward pass.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.backward import replace_backward
from . import custom, detours
from .graph import (
    Choice,
    Graph,
    counts,
    has_history,
    is_operator,
    linked,
    mapped,
    name_of,
    tensors_in,
)
from .surrogates import COMPARISONS, SATURATING, STEPS, functions, lookup, soft_step

Rule = Callable[[Graph, Any, Any, Any], Any]

# Shares of worn-out elements above which a function counts as saturated: in the shape of the
# logits, anywhere else, and where it cuts at one end only: of that, as of a ReLU, nothing is left.
NEAR_THE_END, INSIDE, ONE_SIDED = 0.3, 0.9, 0.999
PERIODS = 10  # standard deviation, in periods, from which an oscillation is flat


def without(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def out_of_place(func: Callable[..., Any]) -> Callable[..., Any]:
    """The form of a function that leaves its argument as it is."""
    name = func.__name__
    if not name.endswith("_") or is_operator(func):
        return func
    return next(functions(name.rstrip("_")))


def _attribute(name: str) -> Any:
    """A tensor's attribute, as `Pass` sees it read and set."""
    return getattr(Tensor, name)


_IS_LEAF = _attribute("is_leaf").__get__
_GRAD_FN = _attribute("grad_fn").__get__

# -- rules: steps, clamps and saturation ------------------------------------------------


def step(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """Rounding and the like: the gradient goes straight through."""
    x = args[0]
    if id(x) in graph.carried or not has_history(x):
        return graph.any_other(func, args, kwargs)
    graph.note(name_of(func))
    plain = without(kwargs, "out")
    made = graph.made(out_of_place(func)(x.detach(), *args[1:], **plain), x)
    return graph.stored(func, args, kwargs, made)


def elementwise(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """`apply_` and `map_`: a function of Python's on each value, in place."""
    x = args[0]
    if not linked(x):
        return func(*args, **kwargs)
    graph.note(name_of(func))
    value = func(x.detach().clone(), *(mapped(list(args[1:]), Tensor.detach)), **kwargs)
    return x.copy_(graph.made(value, x.clone()))


def drawn(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """Draws by a probability: on average they are the probability."""
    if not has_history(args[:1]):
        return graph.any_other(func, args, kwargs)
    graph.note("bernoulli")
    return graph.made(func(args[0].detach(), *args[1:], **without(kwargs, "out")), args[0])


def another(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """A deep copy, which what has a history does not allow."""
    return args[0].clone() if linked(args[0]) else func(*args, **kwargs)


def quantised(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """A quantised layer: the layer with its weights in floating point stands in."""
    x, name = graph.float_of(args[0]), name_of(func).split(".")[0]
    value = func(*args, **kwargs)
    if not linked(x):
        return value
    ops, packed = torch.ops.quantized, args[1]
    if name.startswith("linear"):
        weight, bias = ops.linear_unpack(packed)
        made = F.linear(x.float(), weight.dequantize(), bias)
    elif name.startswith("conv2d"):
        weight, bias = ops.conv2d_unpack(packed)
        ways = packed.stride(), packed.padding(), packed.dilation(), packed.groups()
        made = F.conv2d(x.float(), weight.dequantize(), bias, *ways)
    elif name.startswith(("add", "mul")):
        other = graph.float_of(packed) if isinstance(packed, Tensor) else packed
        made = x + other if name.startswith("add") else x * other
    else:
        return value
    graph.note(f"quantised {name}")
    return graph.result(value, made.relu() if "relu" in name else made)


def division(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """Division that rounds its result."""
    rounds = name_of(func) != "div" or kwargs.get("rounding_mode") is not None
    if not rounds or not has_history(args):
        return graph.any_other(func, args, kwargs)
    graph.note("division that rounds")
    value = func(*args, **kwargs)
    a, b = (args[1], args[0]) if name_of(func) == "__rfloordiv__" else args[:2]
    stand_in = torch.true_divide(*(torch.as_tensor(each) for each in (a, b)))
    return graph.made(value, stand_in)


def remainder(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """x % s: over longer ways it goes neither up nor down."""
    if not graph.plan.flat_remainders or not has_history(args):
        return graph.any_other(func, args, kwargs)
    graph.note("remainder")
    return func(*args, **kwargs).detach()


def oscillation(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """sin and cos of what spans many periods: over longer ways they go neither up nor down."""
    x = args[0]
    if not isinstance(x, Tensor) or not linked(x):
        return graph.any_other(func, args, kwargs)
    call = graph.number(name_of(func))
    if graph.finding and float(x.detach().std()) > PERIODS * 2 * math.pi:
        graph.plan.saturated.add(call)
        graph.note(f"{name_of(func)} over many periods")
    value = func(*args, **kwargs)
    return value.detach() if call in graph.plan.saturated else value


def heaviside(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    if not has_history(args[0]):
        return graph.any_other(func, args, kwargs)
    graph.note("heaviside")
    value = torch.heaviside(args[0].detach(), *args[1:], **without(kwargs, "out"))
    made = graph.made(value, soft_step(args[0]))
    return graph.stored(func, args, kwargs, made)


def _worn_enough(name: str, args: Any, kwargs: Any, near_the_end: bool) -> float:
    """The share of worn-out elements from which a call counts as saturated."""
    if near_the_end:
        return NEAR_THE_END
    ends = [*args[1:], kwargs.get("min"), kwargs.get("max")]
    cut_at_both = name in ("clamp", "clip") and sum(end is not None for end in ends) > 1
    may_cut_at_one = ("clamp", "clip", "clamp_min", "clamp_max", "minimum", "maximum")
    return INSIDE if cut_at_both or name not in may_cut_at_one else ONE_SIDED


def saturating(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """Functions whose slope wears out at their ends."""
    x = args[0] if args and isinstance(args[0], Tensor) else None
    if x is None or id(x) in graph.carried or not linked(x):
        return graph.any_other(func, args, kwargs)
    name = name_of(func)
    call = graph.number(name)
    if graph.finding:
        y = out_of_place(func)(x.detach(), *args[1:], **without(kwargs, "inplace", "out"))
        if y.shape == x.shape:
            worn = float(SATURATING[name](x.detach(), y).float().mean())
            if worn > _worn_enough(name, args, kwargs, x.shape[1:] == (graph.plan.classes,)):
                graph.plan.saturated.add(call)
                graph.note(f"saturated {name}")
    if call not in graph.plan.saturated:
        return func(*args, **kwargs)
    value = out_of_place(func)(x.detach(), *args[1:], **without(kwargs, "inplace", "out"))
    made = graph.made(value, x)
    if kwargs.get("inplace"):
        return x.copy_(made)
    return graph.stored(func, args, kwargs, made)


# -- rules: whole numbers and truth values ----------------------------------------------


def comparison(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    carrying = any(id(t) in graph.carried for t in tensors_in(args))
    result = func(*args, **kwargs)
    if not isinstance(result, Tensor) or not (carrying or has_history(args)):
        return result
    if any(id(t) in graph.choices for t in tensors_in(args)):
        return result
    soft = graph.compared(name_of(func), args, result)
    if soft is not None and linked(soft):
        graph.carried[id(result)] = result, replace_backward(result.to(soft.dtype), soft)
    return result


def cast(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """Between number formats: floats to whole numbers, and back."""
    x = args[0]
    result = func(*args, **kwargs)
    if not isinstance(x, Tensor) or result is x:
        return result
    if id(x) in graph.choices:
        if counts(result):
            graph.choices[id(result)] = result, graph.choices[id(x)][1]
        return result
    carrier = graph.float_of(x)
    if not linked(carrier):
        return result
    if counts(result):
        if not counts(x):
            graph.note(f"cast to {str(result.dtype).removeprefix('torch.')}")
        graph.carry(result, carrier)
    elif not linked(result):
        if x.dtype == torch.bool:
            graph.note("comparison")
        return graph.made(result, carrier)
    return result


def chooses(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """argmax and its like: which is the largest."""
    result = func(*args, **kwargs)
    x = args[0]
    scores = graph.float_of(x)
    if not linked(scores) and id(x) not in graph.choices:
        return result
    name = name_of(func)
    if name in ("argsort", "sort") and id(x) in graph.choices:  # the order of an order: ranks
        known = graph.choices[id(x)][1]
        index = result if isinstance(result, Tensor) else result.indices
        if known.scores.shape == index.shape:
            graph.note("ranks")
            graph.carry(index, known.scores)
        return result
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1 if "sort" in name else None)
    if name in ("topk", "kthvalue"):
        dim = kwargs.get("dim", args[2] if len(args) > 2 else -1)
    index = result if isinstance(result, Tensor) else getattr(result, "indices", None)
    if isinstance(dim, int) and isinstance(index, Tensor) and counts(index):
        sign = -1.0 if name in ("argmin", "min") else 1.0
        graph.choices.pop(id(index), None)
        graph.choices[id(index)] = index, Choice(sign * scores, dim)
        if name in ("argmax", "argmin"):
            graph.note(name)
    return result


def where(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """A choice by a mask. Where neither side has a history, the mask's softened form has."""
    if len(args) < 3:
        return graph.any_other(func, args, kwargs)
    # The method has its mask in the middle.
    mask, a, b = args if func is torch.where else (args[1], args[0], args[2])
    value = func(*args, **kwargs)
    if not isinstance(mask, Tensor) or id(mask) not in graph.carried or has_history([a, b]):
        return value if linked(value) or not graph.carried else graph.any_other(func, args, kwargs)
    graph.note("comparison")
    soft = graph.float_of(mask)
    a, b = (graph.float_of(each) if isinstance(each, Tensor) else each for each in (a, b))
    return graph.result(value, soft * a + (1 - soft) * b)


def masked_fill(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    value = func(*args, **kwargs)
    x, mask, filling = (*args, *kwargs.values())[:3]
    if not isinstance(mask, Tensor) or id(mask) not in graph.carried or linked(value):
        return value
    graph.note("comparison")
    soft = graph.float_of(mask)
    stand_in = soft * filling + (1 - soft) * graph.float_of(x)
    made = graph.result(value, stand_in)
    return made if made is value else graph.stored(func, args, {}, made)


def put(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """`x[mask] = filling`, and `x[rows, class that is largest] = filling`, where `x` has no history
    of its own that would be lost."""
    x, index, filling = args
    stand_in = None
    for part in index if isinstance(index, tuple) else (index,):
        if not isinstance(part, Tensor) or counts(x) or linked(x):
            continue
        choice = graph.choices.get(id(part))
        if choice is not None and choice[1].scores.shape == x.shape:
            graph.note("written where the largest is")
            stand_in = choice[1].scores
        elif id(part) in graph.carried and part.dtype == torch.bool and part.shape == x.shape:
            soft = graph.float_of(part)
            if not linked(torch.as_tensor(filling)):
                graph.note("comparison")
                stand_in = soft * torch.as_tensor(filling).float().mean() + (1 - soft) * x.clone()
    result = func(*args, **kwargs)
    if stand_in is not None and linked(stand_in):
        x.copy_(graph.made(x.clone(), stand_in))
    return result


def indexed(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """A table asked at whole numbers that carry floats, or at a choice."""
    table, index = args[0], args[1] if len(args) > 1 else None
    if func is F.embedding:
        table, index = index if index is not None else kwargs["weight"], table
    known = isinstance(index, Tensor) and id(index) in graph.carried
    if not known or index.dtype == torch.bool or linked(table):  # type: ignore[union-attr]
        return graph.any_other(func, args, kwargs)
    assert isinstance(index, Tensor)
    graph.note("table asked at whole numbers")
    value = func(*args, **kwargs)
    return graph.result(value, lookup(table, index.long(), graph.float_of(index)))


def one_hot(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    index = args[0]
    if id(index) not in graph.carried:
        return graph.any_other(func, args, kwargs)
    graph.note("one_hot")
    value = func(*args, **kwargs)
    table = torch.eye(value.shape[-1], device=value.device)
    graph.carry(value, lookup(table, index, graph.float_of(index)))
    return value


# -- rules: what leaves the graph, switches it off or comes back ------------------------


def detached(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """As if it were not there: another view of the same numbers, with their history."""
    x = args[0]
    if id(x) in graph.carried or id(x) in graph.choices:
        return x
    if not has_history(x):
        return func(*args, **kwargs)
    graph.note("detach")
    return x if func is Tensor.detach_ else x.view_as(x)


def switched(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """Gradients switched on or off: neither happens."""
    if not args[0]:
        graph.note("no_grad", once=True)


def data_set(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """`x.data = y`: x gets the history of y as well."""
    x, y = args
    if not has_history([x, y]):
        return func(*args, **kwargs)
    graph.note("detach")
    x.copy_(graph.float_of(y))
    return None


def copied(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """`torch.tensor(x)` and the like: a copy without history."""
    x = args[1] if name_of(func) == "new_tensor" else args[0]
    parts = list(tensors_in(x))
    if not any(linked(graph.float_of(t)) for t in parts):
        return func(*args, **kwargs)
    graph.note("copy without history")
    bare = mapped(x, lambda t: t.detach() if isinstance(x, Tensor) else t.detach().tolist())
    value = func(*(bare if arg is x else arg for arg in args), **without(kwargs, "requires_grad"))
    if isinstance(x, Tensor):
        stand_in = graph.float_of(x)
    else:
        stand_in = torch.stack([graph.float_of(t) for t in parts]).view(value.shape)
    return graph.result(value, stand_in)


def leaves(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """Out to NumPy or to plain numbers."""
    x = args[0]
    floats = graph.float_of(x)
    if linked(floats):
        graph.left.append(floats)
    return func(x.detach(), *args[1:], **kwargs)


def no_gradient(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """`requires_grad_(…)` on what has a history: it keeps it."""
    x = args[0]
    if not has_history(x):
        return func(*args, **kwargs)
    wanted = args[1] if len(args) > 1 else kwargs.get("requires_grad", True)
    if wanted:
        graph.asked[id(x)] = x
        if not x.is_leaf:
            x.retain_grad()
    else:
        graph.note("requires_grad_(False)")
    return x


def seen(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """Whether a tensor is differentiated, as the model is to see it."""
    value = func(*args, **kwargs)
    if func is _GRAD_FN and linked(args[0]):
        # That of another view: hooks on it change nothing.
        graph.note("use of grad_fn", once=True)
        value = args[0].view_as(args[0]).grad_fn
    if not graph.plan.hidden or id(args[0]) in graph.asked or not linked(args[0]):
        return value
    return (
        {bool: False, type(None): None}.get(type(value))
        if value is not True
        else (func is _IS_LEAF)
    )


def own_backward(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """A backward pass inside the forward pass: the graph is still needed afterwards."""
    return func(*args, **{**kwargs, "retain_graph": True})


def hook(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """A hook that may change gradients on their way back: it is not registered."""
    if not has_history(args[0]):
        return func(*args, **kwargs)
    graph.note("hook on a gradient")
    return torch.utils.hooks.RemovableHandle(OrderedDict())


def layer(graph: Graph, func: Any, args: Any, kwargs: Any) -> Any:
    """Something enters a layer: without a history, it may have come a detour."""
    weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
    first = isinstance(weight, nn.Parameter) and graph.reaches(args[0], weight)
    entering = [
        spliced(graph, arg, first and number == 0)
        if isinstance(arg, Tensor) and (number == 0 or _is_no_weight(arg, number))
        else arg
        for number, arg in enumerate(args)
    ]
    if first and graph.finding:
        graph.entering.append(entering[0])
    return graph.any_other(func, entering, kwargs)


def _is_no_weight(tensor: Tensor, number: int) -> bool:
    return number == 1 and not isinstance(tensor, nn.Parameter)


def spliced(graph: Graph, tensor: Tensor, first: bool = False) -> Tensor:
    """A tensor without a history with what stands in for the way that it came; what enters the
    first layer also where its history is of no use."""
    images, left, n = graph.images, graph.left, len(graph.images)
    entry = graph.plan.entry if first else None
    if entry is not None:
        if len(tensor) < n:  # a few images after the others
            start = (graph.number("entering")[1] - 1) * len(tensor) % n
            images = images[start : start + len(tensor)]
        made = detours.stand_in(entry, images, [], tensor)
        return tensor if made is None else replace_backward(tensor.detach(), made)
    if (
        linked(tensor)
        or not tensor.is_floating_point()
        or tensor.ndim < 2
        or id(tensor) in graph.carried
        or tensor[0].numel() < 2
    ):
        return tensor
    if len(tensor) == 1 < n:  # one image after the other
        images = images[graph.number("single image")[1] % n - 1 :][:1]
        left, number = left[-1:], -1
    elif len(tensor) % n == 0:
        number = graph.number("splice")[1]
    else:
        return tensor
    if graph.finding and number not in graph.plan.splices:
        graph.plan.splices[number] = splice = detours.found(images, left, tensor)
        if splice is not None:
            graph.note(f"detour outside PyTorch, from {splice.source.split()[0]}", once=number < 0)
    known = graph.plan.splices.get(number)
    made = None if known is None else detours.stand_in(known, images, left, tensor)
    if made is None:
        return tensor
    back = replace_backward(tensor, made)
    graph.back[id(tensor)] = tensor, back  # for what else is done to it, such as a shortcut
    return back


def _rules() -> dict[Callable[..., Any], Rule]:
    found: dict[Callable[..., Any], Rule] = {}

    def rule(handler: Rule, *names: str, in_place: bool = True) -> None:
        for func in functions(*names):
            found[func] = handler
        if in_place:
            for func in functions(*names, in_place=True):
                found[func] = handler

    rule(step, *STEPS)
    rule(division, "div", "divide", "floor_divide", "__floordiv__", "__rfloordiv__")
    rule(heaviside, "heaviside")
    rule(elementwise, "apply", "map", in_place=True)
    rule(drawn, "bernoulli", in_place=False)
    rule(another, "__deepcopy__", in_place=False)
    rule(saturating, *SATURATING)
    rule(comparison, *COMPARISONS, in_place=False)
    rule(cast, "to", "long", "int", "short", "byte", "char", "bool", "type", "type_as",
         "float", "double", "half", "bfloat16", "view_dtype", in_place=False)  # fmt: skip
    rule(chooses, "argmax", "argmin", "max", "min", "topk", "argsort", "sort",
         in_place=False)  # fmt: skip
    rule(remainder, "remainder", "fmod", "frac", "__mod__", "__rmod__")
    rule(oscillation, "sin", "cos", in_place=False)
    rule(where, "where", in_place=False)
    rule(masked_fill, "masked_fill")
    rule(put, "__setitem__", in_place=False)
    rule(indexed, "embedding", "__getitem__", "take", in_place=False)
    rule(one_hot, "one_hot", in_place=False)
    rule(detached, "detach")
    rule(copied, "tensor", "new_tensor", "asarray", "as_tensor", in_place=False)
    rule(leaves, "numpy", "__array__", "tolist", "item", "__float__", "__int__",
         "__dlpack__", in_place=False)  # fmt: skip
    rule(no_gradient, "requires_grad", in_place=True)
    rule(hook, "register_hook", "register_post_accumulate_grad_hook", in_place=False)
    rule(own_backward, "backward", in_place=False)
    rule(layer, "conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "bilinear",
         "matmul", "__matmul__", "mm", "bmm", "addmm", "einsum", "batch_norm", "layer_norm",
         "group_norm", "instance_norm", "unfold", in_place=False)  # fmt: skip
    found[torch._C._set_grad_enabled] = switched
    found[torch.autograd.grad] = own_backward
    found[torch.autograd.backward] = own_backward
    found[_attribute("data").__get__] = detached
    found[_attribute("data").__set__] = data_set
    found[_attribute("grad").__get__] = lambda graph, func, args, kwargs: func(*args)
    found[_attribute("requires_grad").__set__] = no_gradient
    for name in ("requires_grad", "grad_fn", "is_leaf"):
        found[_attribute(name).__get__] = seen
    return found


RULES = _rules()


# Namespaces of operators that come with torch.
OF_TORCH = {"aten", "prims", "prim", "quantized", "quantized_decomposed", "higher_order", "mkldnn"}

# The names of leading parameters, in the order in which functions with a rule have them.
LEADING = ("condition", "input", "self", "other", "mask", "value")


def by_place(args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A call's leading arguments by place, as rules take them, where they were given by name."""
    named = [name for name in LEADING if name in kwargs]
    if not named:
        return args, kwargs
    return (*args, *(kwargs[name] for name in named)), without(kwargs, *named)


def rule_of(func: Any) -> tuple[Any, Rule | None]:
    """A function, and its rule; what exported programs call, by the name that users know."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        space, _, name = str(func).partition(".")
        name = name.split(".")[0]
        if space == "quantized":
            return func, quantised
        name = {"_to_copy": "to", "_softmax": "softmax", "convolution": "conv2d"}.get(name, name)
        for known in (getattr(torch.Tensor, name, None), getattr(torch, name, None)):
            if known in RULES:
                # Layers keep their own order of arguments.
                return (func if RULES[known] is layer else known), RULES[known]
        if space not in OF_TORCH:
            return func, custom.operator
    return func, RULES.get(func)
