"""`onnx:FILE`: models in the Open Neural Network Exchange format.

A graph whose operations are known is computed by PyTorch, here (`OnnxGraph`) or by onnx2torch, and
attacked like any other network. Onnxruntime is asked whether the answers are the same. All other
graphs are black boxes, which onnxruntime computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...parsing import one_line
from ...placeholders import placeholder_at
from .base import Source, imported, quiet
from .onnx_graph import TYPES, OnnxGraph, unknown

PROBES = 4  # images on which onnxruntime is compared with
SIZES = (32, 224, 64, 28, 8)  # heights and widths that are tried where the file names none
CLOSE = 1e-3  # how much answers may differ, in their standard deviation
CHANNELS = (1, 3, 4)
ENGINES = ("auto", "torch", "onnxruntime")

Shape = tuple[int | None, ...]


class OnnxRuntime:
    """A model that onnxruntime computes: answers, and no gradients.

    Args:
        content: the file's bytes.
        batch: the only batch size that it takes; None: any.
    """

    def __init__(self, runtime: Any, content: bytes, batch: int | None = None):
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        self.batch = batch
        self._session = runtime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        (given,) = self._session.get_inputs()
        self._name, self._type = given.name, given.type
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxRuntime:
        return self  # it holds no state

    def __call__(self, images: Tensor) -> Any:
        if self.batch is not None and len(images) != self.batch:
            raise ValueError(f"the graph takes batches of {self.batch} only")
        x = images.detach().cpu()
        if self._type == "tensor(uint8)":
            x = (x * 255).round().to(torch.uint8)
        else:
            kinds = {"tensor(float16)": torch.float16, "tensor(double)": torch.float64}
            x = x.to(kinds.get(self._type, torch.float32))
        answers = self._session.run(None, {self._name: x.contiguous().numpy()})
        tensors = [torch.from_numpy(answer).to(images.device) for answer in answers]
        return tensors[0] if len(tensors) == 1 else dict(zip(self._outputs, tensors, strict=True))


def build(name: str, options: dict[str, Any]) -> Source:
    """The model of an ONNX file; `engine=torch` or `engine=onnxruntime` says who computes it.

    Raises:
        InputError: no such file, no ONNX model, not one image input; onnx is missing, or what a
            graph needs that PyTorch cannot compute.
    """
    what = f"onnx:{name}"
    engine = str(options.pop("engine", "auto"))
    if options or engine not in ENGINES:
        wrong = f"engine {engine!r}" if not options else f"option {next(iter(options))!r}"
        raise InputError(f"model {what} has no {wrong}; known: engine={'|'.join(ENGINES)}")
    if not os.path.isfile(name):
        raise InputError(f"model {what}: there is no such file")
    onnx = imported("onnx", "onnx")
    model = _read(onnx, name, what)
    shape = _input_shape(model, what)
    said = []
    softmax = _without_softmax(model)
    if softmax:
        said.append("the softmax at the graph's end is taken off: what it was given are the logits")
    runtime = _runtime(model, what, engine)
    if engine != "onnxruntime":
        network, told = _network(model, runtime, shape, what)
        if network is not None or engine == "torch":
            if network is None:
                raise InputError(f"model {what} cannot be computed by PyTorch: {told}")
            return _source(network, shape, [*said, told], softmax)
        said.append(f"a black box, without gradients, computed by onnxruntime: {told}")
    if runtime is None:
        imported("onnxruntime", "onnx")
        raise InputError(f"model {what} cannot be read by onnxruntime")
    if engine == "onnxruntime":
        said.append("a black box, without gradients, computed by onnxruntime")
    batch = shape[0]
    return _source(OnnxRuntime(*runtime, batch), shape, said, softmax)


def _source(model: Any, shape: Shape, said: list[str], softmax: bool) -> Source:
    if _channels_last(shape):
        model = _ChannelsLast(model)
        said.append("the graph takes images as (N, H, W, C), and gets them so")
    return Source(model, said=tuple(said), outputs="logits" if softmax else None)


class _ChannelsLast(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images.permute(0, 2, 3, 1))


def _read(onnx: Any, name: str, what: str) -> Any:
    try:
        with quiet():
            model = onnx.load(name)
            onnx.checker.check_model(model)
            if model.functions:
                model = onnx.inliner.inline_local_functions(model)
        return model
    except Exception as error:  # of the reader, on whatever the file holds
        said = placeholder_at(name) or one_line(error)[:200]
        raise InputError(f"model {what}: no ONNX model: {said}") from None


def _input_shape(model: Any, what: str) -> Shape:
    """(N, C, H, W) of the images, or (N, H, W, C), as far as the file says."""
    held = {value.name for value in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs[:5])
        raise InputError(f"model {what} has {len(inputs)} inputs ({names}), not one of images")
    kind = inputs[0].type.tensor_type
    if kind.elem_type not in TYPES or TYPES[kind.elem_type] in (torch.bool, torch.int64):
        raise InputError(f"model {what}: its input {inputs[0].name!r} is no image")
    if not kind.HasField("shape"):
        return (None, None, None, None)
    shape = tuple(dim.dim_value or None for dim in kind.shape.dim)
    if len(shape) != 4:
        raise InputError(
            f"model {what}: its input {inputs[0].name!r} has {len(shape)} dimensions, images have 4"
        )
    return shape


def _channels_last(shape: Shape) -> bool:
    return shape[3] in CHANNELS and shape[1] not in CHANNELS and shape[1] is not None


def _without_softmax(model: Any) -> bool:
    """Take off a softmax over the classes at the end, of which nothing else is made."""
    graph = model.graph
    if len(graph.output) != 1 or not graph.node:
        return False
    name = graph.output[0].name
    last = next((node for node in graph.node if name in node.output), None)
    if last is None or last.op_type not in ("Softmax", "LogSoftmax"):
        return False
    rank = len(graph.output[0].type.tensor_type.shape.dim)
    axis = next((a.i for a in last.attribute if a.name == "axis"), None)
    if rank != 2 or axis not in (None, 1, -1) or any(name in n.input for n in graph.node):
        return False
    graph.node.remove(last)
    graph.output[0].name = last.input[0]
    return True


def _runtime(model: Any, what: str, engine: str) -> tuple[Any, bytes] | None:
    """Onnxruntime and the model's bytes; None where it is not installed."""
    try:
        with quiet():
            import onnxruntime
    except ImportError:
        if engine == "onnxruntime":
            imported("onnxruntime", "onnx")
        return None
    return onnxruntime, model.SerializeToString()


def _network(
    model: Any, runtime: tuple[Any, bytes] | None, shape: Shape, what: str
) -> tuple[nn.Module | None, str]:
    """The graph as a module and how it was made; or None, and why not."""
    reasons = []
    compared: OnnxRuntime | None = None
    if runtime is not None:
        try:
            compared = OnnxRuntime(*runtime)
        except Exception as error:  # a graph that it refuses
            reasons.append(f"onnxruntime refuses it ({one_line(error)[:120]})")
    for name, make in (("PyTorch", _computed_here), ("onnx2torch", _converted)):
        try:
            with quiet():
                network = make(model)
                checked = _agreement(network, compared, shape)
        except Exception as error:  # of a converter: an operation that it does not know
            reasons.append(one_line(error)[:120] if not isinstance(error, _Unfit) else str(error))
            continue
        one_size = shape[0] if shape[0] and not _takes_any(network, shape) else None
        if one_size:
            network = _OneSize(network, one_size)
        return network.eval(), f"differentiable: computed by {name}, {checked}"
    return None, "; ".join(dict.fromkeys(reasons))


class _Unfit(Exception):
    """Why a graph cannot be computed, in words."""


class _OneSize(nn.Module):
    """A graph that was exported for one batch size."""

    def __init__(self, model: nn.Module, batch: int):
        super().__init__()
        self.model, self.batch = model, batch

    def forward(self, images: Tensor) -> Any:
        if len(images) != self.batch:
            raise ValueError(f"the graph takes batches of {self.batch} only")
        return self.model(images)


def _computed_here(model: Any) -> nn.Module:
    missing = unknown(model)
    if missing:
        raise _Unfit(f"operations that are not known: {', '.join(missing[:5])}")
    return OnnxGraph(model).eval()


def _converted(model: Any) -> nn.Module:
    try:
        library = imported("onnx2torch", "onnx")
    except InputError:
        raise _Unfit("onnx2torch is not installed") from None
    return library.convert(model).eval()


def _agreement(network: nn.Module, compared: OnnxRuntime | None, shape: Shape) -> str:
    """In words, how close the answers are to onnxruntime's.

    Raises:
        _Unfit: they are not.
    """
    tried = _probe(compared or network, shape)
    if tried is None:
        raise _Unfit("no image of the usual sizes is taken")
    probe, expected = tried
    with torch.no_grad():
        found = _numbers(network(probe))
    if compared is None:
        return "not compared: onnxruntime is not installed"
    if found.shape != expected.shape:
        raise _Unfit(f"answers {tuple(found.shape)}, and not {tuple(expected.shape)}")
    off = float((found.double() - expected.double()).abs().max())
    spread = max(float(expected.double().std()), 1e-6)
    if not off <= CLOSE * spread + 1e-5:
        raise _Unfit(f"answers are off by {off:.2g} from onnxruntime's")
    return f"off by at most {off:.1g} from onnxruntime's answers to {len(probe)} probes"


def _probe(model: Callable[[Tensor], Any], shape: Shape) -> tuple[Tensor, Tensor] | None:
    """Random images that a model takes, in its own layout, and its answer to them."""
    generator = torch.Generator().manual_seed(0)
    last = _channels_last(shape) or (shape[3] in CHANNELS and shape[1] is None)
    channels = shape[3 if last else 1] or 3
    height, width = (shape[1], shape[2]) if last else (shape[2], shape[3])
    for size in SIZES:
        full = (shape[0] or PROBES, channels, height or size, width or size)
        images = torch.rand(full, generator=generator)
        try:
            with torch.no_grad():
                probe = images.permute(0, 2, 3, 1).contiguous() if last else images
                return probe, _numbers(model(probe))
        except Exception:  # another size is tried
            continue
    return None


def _numbers(answer: Any) -> Tensor:
    """All numbers of an answer, to compare."""
    if isinstance(answer, dict):
        return torch.cat([part.flatten().double() for part in answer.values()])
    return answer


def _takes_any(network: nn.Module, shape: Shape) -> bool:
    """Whether a graph that names one batch size answers others as it does that one."""
    tried = _probe(network, shape)
    if tried is None:
        return False
    probe, expected = tried
    try:
        with torch.no_grad():
            found = _numbers(network(torch.cat([probe, probe, probe])))
            one = _numbers(network(probe[:1]))
    except Exception:
        return False
    if found.shape[0] != 3 * len(probe) or one.shape[0] != 1:
        return False
    return torch.allclose(found[: len(probe)], expected, atol=1e-4) and torch.allclose(
        one, expected[:1], atol=1e-4
    )
