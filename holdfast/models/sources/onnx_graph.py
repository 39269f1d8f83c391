"""`OnnxGraph`: the graph of an ONNX file, computed by PyTorch, and so differentiable.

Each operation of the graph is one function here; what they mean is said in the ONNX standard
(Operators.md). Operations that image classifiers do not use are missing: `unknown` names them.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError

Attributes = dict[str, Any]
Operation = Callable[..., Any]  # (inputs…, attributes) → a tensor or several
OPERATIONS: dict[str, Operation] = {}
DOMAINS = ("", "ai.onnx")
# Types of ONNX by number, as torch knows them.
TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def unknown(model: Any) -> list[str]:
    """The operations of a model that are not known here, by name."""
    known = {*OPERATIONS, "Constant"}
    nodes = model.graph.node
    return sorted({n.op_type for n in nodes if n.op_type not in known or n.domain not in DOMAINS})


class OnnxGraph(nn.Module):
    """The graph of an ONNX model with one input, as a module.

    Args:
        model: an `onnx.ModelProto` whose operations are all known here.
        batch: the only batch size that it takes; None: any.

    Attributes:
        whole: the graph takes 8-bit images: values in [0, 1] are multiplied by 255 and rounded.
    """

    def __init__(self, model: Any, batch: int | None = None):
        super().__init__()
        from onnx import numpy_helper

        graph = model.graph
        self.batch = batch
        self.version = max([o.version for o in model.opset_import if o.domain in DOMAINS] or [1])
        self.digest = hashlib.sha256(model.SerializeToString()).hexdigest()[:16]
        self._buffer_of: dict[str, str] = {}
        self._plain: dict[str, Tensor] = {}  # whole numbers, which shapes are computed from
        for held in graph.initializer:
            self._keep(held.name, numpy_helper.to_array(held))
        self._input = next(i for i in graph.input if i.name not in self._known()).name
        self.whole = _type_of(graph, self._input) == torch.uint8
        self._outputs = [output.name for output in graph.output]
        self._nodes = []
        for node in graph.node:
            attributes = {a.name: _attribute(a) for a in node.attribute}
            if node.op_type == "Constant":
                self._keep(node.output[0], _constant(attributes))
            else:
                attributes["version"] = self.version
                attributes["outputs"] = len(node.output)
                self._nodes.append((node.op_type, list(node.input), list(node.output), attributes))
        uses = Counter(name for _, inputs, _, _ in self._nodes for name in inputs)
        self._uses = uses + Counter(self._outputs)

    def _known(self) -> set[str]:
        return {*self._buffer_of, *self._plain}

    def _keep(self, name: str, array: Any) -> None:
        tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
        if tensor.is_floating_point():
            self._buffer_of[name] = f"value_{len(self._buffer_of)}"
            self.register_buffer(self._buffer_of[name], tensor)
        else:
            self._plain[name] = tensor

    def extra_repr(self) -> str:
        return f"onnx {self.digest}"

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxGraph:
        import copy

        other = copy.copy(self)
        other._buffers = {k: copy.deepcopy(v, memo) for k, v in self._buffers.items()}
        return other

    def forward(self, images: Tensor) -> Any:
        if self.batch is not None and len(images) != self.batch:
            raise InputBatch(f"the graph takes batches of {self.batch} only")
        values: dict[str, Tensor | None] = {"": None, **self._plain}
        values.update({name: getattr(self, held) for name, held in self._buffer_of.items()})
        values[self._input] = (images * 255).round() if self.whole else images
        left = dict(self._uses)
        for name, inputs, outputs, attributes in self._nodes:
            given = _on_one_device([values[i] for i in inputs])
            result = OPERATIONS[name](*given, attributes=attributes)
            result = result if isinstance(result, tuple | list) else (result,)
            values.update(zip(outputs, result, strict=False))
            for used in inputs:  # what is needed no more makes room
                left[used] -= 1
                if not left[used] and used:
                    values.pop(used, None)
        if len(self._outputs) == 1:
            return values[self._outputs[0]]
        return {name: values[name] for name in self._outputs}


class InputBatch(ValueError):
    """A batch of another size than the graph takes."""


def _on_one_device(given: list[Tensor | None]) -> list[Tensor | None]:
    """Constants beside images on an accelerator go there; shapes stay on the CPU."""
    devices = {t.device for t in given if t is not None and t.is_floating_point() and t.ndim}
    if not devices or devices == {torch.device("cpu")}:
        return given
    (device, *_) = sorted(devices, key=str, reverse=True)
    return [t.to(device) if t is not None and t.is_floating_point() else t for t in given]


def _attribute(attribute: Any) -> Any:
    from onnx import helper, numpy_helper

    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "raw_data"):  # a tensor
        return torch.from_numpy(np.array(numpy_helper.to_array(value)))
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _constant(attributes: Attributes) -> Tensor:
    for name, value in attributes.items():
        if name == "value":
            return value
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
    raise InputError("onnx: a constant of a kind that is not known here")


def _type_of(graph: Any, name: str) -> torch.dtype | None:
    (found,) = (i for i in graph.input if i.name == name)
    return TYPES.get(found.type.tensor_type.elem_type)


# --- operations ----------------------------------------------------------------------------------


def _operation(*names: str) -> Callable[[Operation], Operation]:
    def enter(function: Operation) -> Operation:
        for name in names:
            OPERATIONS[name] = function
        return function

    return enter


def _elementwise(function: Any) -> Operation:
    return lambda *inputs, attributes: function(*inputs)


for _name, _function in {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp,
    "Log": torch.log, "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Sin": torch.sin,
    "Cos": torch.cos, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
    "Reciprocal": torch.reciprocal, "Erf": torch.erf, "Sign": torch.sign, "Not": torch.logical_not,
    "Softplus": F.softplus, "Softsign": F.softsign, "Mish": F.mish, "HardSwish": F.hardswish,
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "MatMul": torch.matmul,
    "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge,
    "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "Where": torch.where, "IsNaN": torch.isnan, "Identity": lambda x: x,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
}.items():  # fmt: skip
    OPERATIONS[_name] = _elementwise(_function)


@_operation("Div")
def _div(x: Tensor, y: Tensor, attributes: Attributes) -> Tensor:
    whole = not (x.is_floating_point() or y.is_floating_point())
    return torch.div(x, y, rounding_mode="trunc") if whole else x / y


@_operation("Pow")
def _pow(x: Tensor, y: Tensor, attributes: Attributes) -> Tensor:
    return torch.pow(x, y).to(x.dtype)


@_operation("Mod")
def _mod(x: Tensor, y: Tensor, attributes: Attributes) -> Tensor:
    return torch.fmod(x, y) if attributes.get("fmod") else torch.remainder(x, y)


@_operation("Max")
def _max(*xs: Tensor, attributes: Attributes) -> Tensor:
    found = xs[0]
    for x in xs[1:]:
        found = torch.maximum(found, x)
    return found


@_operation("Min")
def _min(*xs: Tensor, attributes: Attributes) -> Tensor:
    found = xs[0]
    for x in xs[1:]:
        found = torch.minimum(found, x)
    return found


@_operation("Sum")
def _sum(*xs: Tensor, attributes: Attributes) -> Tensor:
    found = xs[0]
    for x in xs[1:]:
        found = found + x
    return found


@_operation("Mean")
def _mean(*xs: Tensor, attributes: Attributes) -> Tensor:
    return _sum(*xs, attributes=attributes) / len(xs)


@_operation("LeakyRelu")
def _leaky_relu(x: Tensor, attributes: Attributes) -> Tensor:
    return F.leaky_relu(x, attributes.get("alpha", 0.01))


@_operation("Elu")
def _elu(x: Tensor, attributes: Attributes) -> Tensor:
    return F.elu(x, attributes.get("alpha", 1.0))


@_operation("Celu")
def _celu(x: Tensor, attributes: Attributes) -> Tensor:
    return F.celu(x, attributes.get("alpha", 1.0))


@_operation("Selu")
def _selu(x: Tensor, attributes: Attributes) -> Tensor:
    alpha = attributes.get("alpha", 1.6732632423543772)
    return attributes.get("gamma", 1.0507009873554805) * torch.where(x > 0, x, alpha * x.expm1())


@_operation("Gelu")
def _gelu(x: Tensor, attributes: Attributes) -> Tensor:
    return F.gelu(x, approximate=attributes.get("approximate", "none"))


@_operation("HardSigmoid")
def _hard_sigmoid(x: Tensor, attributes: Attributes) -> Tensor:
    return (x * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5)).clamp(0, 1)


@_operation("Swish")
def _swish(x: Tensor, attributes: Attributes) -> Tensor:
    return x * torch.sigmoid(attributes.get("alpha", 1.0) * x)


@_operation("Clip")
def _clip(
    x: Tensor, low: Tensor | None = None, high: Tensor | None = None, *, attributes: Attributes
) -> Tensor:
    least = attributes.get("min") if low is None else low
    most = attributes.get("max") if high is None else high
    if least is not None:
        x = x.clamp_min(float(least))
    return x if most is None else x.clamp_max(float(most))


@_operation("Dropout")
def _dropout(x: Tensor, *further: Any, attributes: Attributes) -> Tensor:
    return x


@_operation("Cast", "CastLike")
def _cast(x: Tensor, like: Tensor | None = None, *, attributes: Attributes) -> Tensor:
    dtype = TYPES[attributes["to"]] if like is None else like.dtype
    if x.is_floating_point() and dtype.is_floating_point and dtype != torch.float64:
        return x  # the network's own type stays
    return x.to(dtype)


# Layers.


@_operation("Gemm")
def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, attributes: Attributes) -> Tensor:
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _pads(x: Tensor, size: Sequence[int], attributes: Attributes) -> list[int]:
    """Padding as ONNX writes it: all beginnings, then all ends."""
    count, auto = len(size), attributes.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        return (
            list(attributes.get("pads") or [0] * 2 * count) if auto == "NOTSET" else [0] * 2 * count
        )
    strides = attributes.get("strides") or [1] * count
    dilations = attributes.get("dilations") or [1] * count
    before, after = [], []
    for i in range(count):
        length = x.shape[2 + i]
        reach = (size[i] - 1) * dilations[i] + 1
        missing = max(0, (math.ceil(length / strides[i]) - 1) * strides[i] + reach - length)
        less, more = missing // 2, missing - missing // 2
        before.append(less if auto == "SAME_UPPER" else more)
        after.append(more if auto == "SAME_UPPER" else less)
    return [*before, *after]


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> Tensor:
    count = len(pads) // 2
    order = [p for i in reversed(range(count)) for p in (pads[i], pads[i + count])]
    if not any(order):
        return x
    return F.pad(x, order, mode, value) if mode == "constant" else F.pad(x, order, mode)


@_operation("Conv")
def _conv(x: Tensor, w: Tensor, b: Tensor | None = None, *, attributes: Attributes) -> Tensor:
    count = w.ndim - 2
    pads = _pads(x, w.shape[2:], attributes)
    inside = pads[:count]
    if inside != pads[count:]:
        x, inside = _padded(x, pads), [0] * count
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[count - 1]
    return convolve(
        x, w, b, attributes.get("strides") or 1, inside, attributes.get("dilations") or 1,
        attributes.get("group", 1),
    )  # fmt: skip


@_operation("ConvTranspose")
def _conv_transpose(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, attributes: Attributes
) -> Tensor:
    count = w.ndim - 2
    pads = list(attributes.get("pads") or [0] * 2 * count)
    if pads[:count] != pads[count:] or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise NotImplementedError("ConvTranspose with uneven padding")
    convolve: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[count - 1]
    return convolve(
        x, w, b, attributes.get("strides") or 1, pads[:count],
        attributes.get("output_padding") or 0, attributes.get("group", 1),
        attributes.get("dilations") or 1,
    )  # fmt: skip


@_operation("BatchNormalization")
def _batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, attributes: Attributes
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


@_operation("InstanceNormalization")
def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, attributes: Attributes) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


@_operation("LayerNormalization")
def _layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, attributes: Attributes
) -> Tensor:
    shape = x.shape[attributes.get("axis", -1) % x.ndim :]
    normalised = F.layer_norm(x, shape, eps=attributes.get("epsilon", 1e-5)) * scale
    return normalised if bias is None else normalised + bias


@_operation("GroupNormalization")
def _group_norm(x: Tensor, scale: Tensor, bias: Tensor, attributes: Attributes) -> Tensor:
    groups = attributes["num_groups"]
    if scale.shape[0] != x.shape[1]:  # until version 20: one number a group
        scale, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, bias))
    return F.group_norm(x, groups, scale, bias, attributes.get("epsilon", 1e-5))


@_operation("LRN")
def _lrn(x: Tensor, attributes: Attributes) -> Tensor:
    return F.local_response_norm(
        x, attributes["size"], attributes.get("alpha", 1e-4), attributes.get("beta", 0.75),
        attributes.get("bias", 1.0),
    )  # fmt: skip


@_operation("MaxPool")
def _max_pool(x: Tensor, attributes: Attributes) -> Tensor:
    size = attributes["kernel_shape"]
    x = _padded(x, _pads(x, size, attributes), -torch.inf)
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(size) - 1]
    return pool(
        x, size, attributes.get("strides") or [1] * len(size), 0, attributes.get("dilations") or 1,
        bool(attributes.get("ceil_mode", 0)),
    )  # fmt: skip


@_operation("AveragePool")
def _average_pool(x: Tensor, attributes: Attributes) -> Tensor:
    size = attributes["kernel_shape"]
    strides = attributes.get("strides") or [1] * len(size)
    if any(d != 1 for d in attributes.get("dilations") or ()):
        raise NotImplementedError("AveragePool with dilations")
    pads, ceil = _pads(x, size, attributes), bool(attributes.get("ceil_mode", 0))
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1]
    mean = pool(_padded(x, pads), size, strides, 0, ceil)
    if not any(pads) or attributes.get("count_include_pad", 0):
        return mean
    return mean / pool(_padded(torch.ones_like(x), pads), size, strides, 0, ceil)


def _softmax(function: Callable[..., Tensor]) -> Operation:
    def softmax(x: Tensor, attributes: Attributes) -> Tensor:
        if attributes["version"] >= 13:
            return function(x, dim=attributes.get("axis", -1))
        axis = attributes.get("axis", 1) % x.ndim  # all from this axis on are one
        return function(x.flatten(axis), dim=axis).view_as(x)

    return softmax


OPERATIONS["Softmax"] = _softmax(torch.softmax)
OPERATIONS["LogSoftmax"] = _softmax(torch.log_softmax)


# Sums and the like over some axes.


def _axes(x: Tensor, axes: Tensor | None, attributes: Attributes) -> list[int] | None:
    """Over which axes to reduce; None: over none at all."""
    given = attributes.get("axes") if axes is None else axes.tolist()
    if not given:
        return None if attributes.get("noop_with_empty_axes") else list(range(x.ndim))
    return [axis % x.ndim for axis in given]


def _reduction(function: Callable[..., Tensor]) -> Operation:
    def reduce(x: Tensor, axes: Tensor | None = None, *, attributes: Attributes) -> Tensor:
        over = _axes(x, axes, attributes)
        return x if over is None else function(x, over, bool(attributes.get("keepdims", 1)))

    return reduce


def _product(x: Tensor, over: list[int], keep: bool) -> Tensor:
    for axis in sorted(over, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


for _name, _function in {
    "ReduceMean": lambda x, over, keep: x.mean(over, keepdim=keep),
    "ReduceSum": lambda x, over, keep: x.sum(over, keepdim=keep),
    "ReduceMax": lambda x, over, keep: x.amax(over, keepdim=keep),
    "ReduceMin": lambda x, over, keep: x.amin(over, keepdim=keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, over, keep: x.abs().sum(over, keepdim=keep),
    "ReduceL2": lambda x, over, keep: torch.linalg.vector_norm(x, 2, over, keepdim=keep),
    "ReduceSumSquare": lambda x, over, keep: x.square().sum(over, keepdim=keep),
    "ReduceLogSumExp": lambda x, over, keep: x.logsumexp(over, keepdim=keep),
}.items():
    OPERATIONS[_name] = _reduction(_function)


@_operation("ArgMax")
def _argmax(x: Tensor, attributes: Attributes) -> Tensor:
    return x.argmax(attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


@_operation("CumSum")
def _cumsum(x: Tensor, axis: Tensor, attributes: Attributes) -> Tensor:
    if attributes.get("exclusive") or attributes.get("reverse"):
        raise NotImplementedError("CumSum, exclusive or in reverse")
    return x.cumsum(int(axis))


@_operation("TopK")
def _topk(x: Tensor, k: Tensor, attributes: Attributes) -> Any:
    return torch.topk(
        x, int(k), attributes.get("axis", -1), bool(attributes.get("largest", 1)),
        bool(attributes.get("sorted", 1)),
    )  # fmt: skip


@_operation("Einsum")
def _einsum(*xs: Tensor, attributes: Attributes) -> Tensor:
    return torch.einsum(attributes["equation"], *xs)


# Shapes.


@_operation("Shape")
def _shape(x: Tensor, attributes: Attributes) -> Tensor:
    return torch.tensor(x.shape)[attributes.get("start", 0) : attributes.get("end")]


@_operation("Size")
def _size(x: Tensor, attributes: Attributes) -> Tensor:
    return torch.tensor(x.numel())


@_operation("Reshape")
def _reshape(x: Tensor, shape: Tensor, attributes: Attributes) -> Tensor:
    wanted = shape.tolist()
    if not attributes.get("allowzero"):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@_operation("Flatten")
def _flatten(x: Tensor, attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


@_operation("Transpose")
def _transpose(x: Tensor, attributes: Attributes) -> Tensor:
    return x.permute(attributes.get("perm") or list(reversed(range(x.ndim))))


@_operation("Squeeze")
def _squeeze(x: Tensor, axes: Tensor | None = None, *, attributes: Attributes) -> Tensor:
    given = attributes.get("axes") if axes is None else axes.tolist()
    return x.squeeze() if given is None else x.squeeze(tuple(given))


@_operation("Unsqueeze")
def _unsqueeze(x: Tensor, axes: Tensor | None = None, *, attributes: Attributes) -> Tensor:
    given = attributes["axes"] if axes is None else axes.flatten().tolist()
    for axis in sorted(a % (x.ndim + len(given)) for a in given):
        x = x.unsqueeze(axis)
    return x


@_operation("Concat")
def _concat(*xs: Tensor, attributes: Attributes) -> Tensor:
    return torch.cat(xs, attributes["axis"])


@_operation("Split")
def _split(x: Tensor, sizes: Tensor | None = None, *, attributes: Attributes) -> Any:
    axis = attributes.get("axis", 0)
    given = attributes.get("split") if sizes is None else sizes.tolist()
    parts = attributes.get("num_outputs") or attributes["outputs"]
    return x.split(given or math.ceil(x.shape[axis] / parts), axis)


@_operation("Slice")
def _slice(
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
    *,
    attributes: Attributes,
) -> Tensor:
    begin = attributes["starts"] if starts is None else starts.tolist()
    end = attributes["ends"] if ends is None else ends.tolist()
    over = attributes.get("axes") if axes is None else axes.tolist()
    by = [1] * len(begin) if steps is None else steps.tolist()
    for axis, first, last, step in zip(over or range(len(begin)), begin, end, by, strict=False):
        if step > 0:
            chosen = slice(first, last, step)
            x = x[(slice(None),) * (axis % x.ndim) + (chosen,)]
        else:
            rows = range(x.shape[axis])[slice(first, last if last > -(2**31) else None, step)]
            x = x.index_select(axis, torch.tensor(list(rows), device=x.device))
    return x


@_operation("Gather")
def _gather(x: Tensor, indices: Tensor, attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    rows = indices.to(x.device)
    rows = torch.where(rows < 0, rows + x.shape[axis], rows)
    taken = x.index_select(axis, rows.flatten())
    return taken.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@_operation("GatherElements")
def _gather_elements(x: Tensor, indices: Tensor, attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", 0)
    rows = indices.to(x.device)
    return x.gather(axis, torch.where(rows < 0, rows + x.shape[axis], rows))


@_operation("Expand")
def _expand(x: Tensor, shape: Tensor, attributes: Attributes) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist())))


@_operation("Tile")
def _tile(x: Tensor, repeats: Tensor, attributes: Attributes) -> Tensor:
    return x.repeat(repeats.tolist())


@_operation("Pad")
def _pad(
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    attributes: Attributes,
) -> Tensor:
    given = list(attributes["pads"]) if pads is None else pads.tolist()
    filling = float(attributes.get("value", 0.0) if value is None else value)
    if axes is not None:
        over = [a % x.ndim for a in axes.tolist()]
        before, after = dict.fromkeys(range(x.ndim), 0), dict.fromkeys(range(x.ndim), 0)
        before.update(zip(over, given[: len(over)], strict=True))
        after.update(zip(over, given[len(over) :], strict=True))
        given = [*before.values(), *after.values()]
    mode = attributes.get("mode", "constant")
    if mode == "constant":
        return _padded(x, given, filling)
    count = x.ndim  # torch pads the last axes only
    inner = given[2:count] + given[count + 2 :]
    return _padded(
        x, inner, mode={"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode]
    )


@_operation("ConstantOfShape")
def _constant_of_shape(shape: Tensor, attributes: Attributes) -> Tensor:
    value = attributes.get("value")
    value = torch.zeros(1) if value is None else value
    return torch.full(shape.tolist(), value.item(), dtype=value.dtype)


@_operation("Range")
def _range(start: Tensor, end: Tensor, step: Tensor, attributes: Attributes) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@_operation("Trilu")
def _trilu(x: Tensor, k: Tensor | None = None, *, attributes: Attributes) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if attributes.get("upper", 1) else x.tril(diagonal)


@_operation("DepthToSpace")
def _depth_to_space(x: Tensor, attributes: Attributes) -> Tensor:
    n, c, h, w = x.shape
    b = attributes["blocksize"]
    if attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // b**2, h * b, w * b)


@_operation("SpaceToDepth")
def _space_to_depth(x: Tensor, attributes: Attributes) -> Tensor:
    n, c, h, w = x.shape
    b = attributes["blocksize"]
    x = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b**2, h // b, w // b)


@_operation("Resize", "Upsample")
def _resize(x: Tensor, *further: Tensor | None, attributes: Attributes) -> Tensor:
    given = dict(enumerate(further))
    upsample = len(further) == 1  # Upsample, and Resize of version 10
    scales, sizes = given.get(0 if upsample else 1), given.get(2)
    mode = attributes.get("mode", "nearest")
    way = attributes.get("coordinate_transformation_mode", "half_pixel")
    if sizes is not None and sizes.numel():
        size = sizes.tolist()[-(x.ndim - 2) :]
    else:
        factors: Any = attributes.get("scales") if scales is None else scales.tolist()
        size = [int(n * f) for n, f in zip(x.shape[2:], factors[2:], strict=True)]
    if mode == "nearest":
        if (way == "asymmetric" and attributes.get("nearest_mode", "floor") == "floor") or upsample:
            return F.interpolate(x, size, mode="nearest")
        if way == "half_pixel":
            return F.interpolate(x, size, mode="nearest-exact")
    elif mode in ("linear", "cubic") and x.ndim == 4:
        kind = "bilinear" if mode == "linear" else "bicubic"
        if way in ("half_pixel", "pytorch_half_pixel", "align_corners"):
            return F.interpolate(
                x, size, mode=kind, align_corners=way == "align_corners",
                antialias=bool(attributes.get("antialias", 0)),
            )  # fmt: skip
    raise NotImplementedError(f"Resize, {mode}, {way}")


# Numbers in 8 bits.


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    if values.ndim != 1 or values.numel() == 1:
        return values
    shape = [1] * x.ndim
    shape[axis % x.ndim] = -1
    return values.view(shape)


@_operation("QuantizeLinear")
def _quantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, attributes: Attributes
) -> Tensor:
    """Rounded and cut off, but still floating-point: gradients can be repaired there."""
    axis = attributes.get("axis", 1)
    whole = torch.round(x / _along(scale, x, axis))
    kind = torch.uint8 if zero is None else zero.dtype
    if zero is not None:
        whole = whole + _along(zero, x, axis).to(whole.device, whole.dtype)
    limits = torch.iinfo(kind)
    return whole.clamp(limits.min, limits.max)


@_operation("DequantizeLinear")
def _dequantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, attributes: Attributes
) -> Tensor:
    axis = attributes.get("axis", 1)
    x = x.to(scale.device, scale.dtype)
    if zero is not None:
        x = x - _along(zero, x, axis).to(x.device, x.dtype)
    return x * _along(scale, x, axis)
