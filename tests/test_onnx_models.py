"""ONNX files: the verdicts of the network that was exported, image by image; black boxes where a
graph does not become one of PyTorch; one line for whatever is wrong."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from libraries import library
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import InputError
from holdfast.models.adapted import adaptation_lines
from holdfast.models.black_box import innermost
from holdfast.models.sources.onnx_graph import OPERATIONS, OnnxGraph
from holdfast.models.sources.onnx_models import OnnxRuntime

LINF = hf.Threat("linf", 0.06)


@pytest.fixture(scope="module")
def onnx() -> Any:
    library("onnxruntime")
    return library("onnx")


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    net, x, _ = models.digits(10)
    return net, x, models.answers(net, x)


def export(net: nn.Module, x: Tensor, file: Path, batch: bool = True) -> Path:
    library("onnx")
    axes = {"images": {0: "n"}} if batch else {}
    torch.onnx.export(
        net.eval(), (x[:2],), str(file), dynamo=False, input_names=["images"], dynamic_axes=axes
    )
    return file


@pytest.fixture(scope="module")
def exported(onnx, problem, tmp_path_factory) -> Path:
    net, x, _ = problem
    return export(net, x, tmp_path_factory.mktemp("onnx") / "digits, small.onnx")


def evaluate(model: Any, x: Tensor, y: Tensor, **more: Any):
    options = {"batch_size": 5, "precision": "original", **more}
    return hf.evaluate(model, x, y, LINF, [hf.attacks.APGD(steps=6)], **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prefix", ["onnx:", ""])
def test_the_verdicts_are_those_of_the_network_that_was_exported(problem, exported, prefix):
    net, x, y = problem
    model = hf.load(f"{prefix}{exported}")
    assert torch.allclose(model(x), net(x), atol=1e-4)
    found, expected = evaluate(model, x, y), evaluate(net, x, y)
    assert torch.equal(found.broken, expected.broken) and 0 < expected.robust_accuracy < 1
    assert [v.attack for v in found.verdicts] == [v.attack for v in expected.verdicts]
    (line,) = adaptation_lines(model)
    assert line.startswith("differentiable: computed by PyTorch, off by at most")
    assert torch.allclose(copy.deepcopy(model)(x), model(x))


@pytest.mark.filterwarnings("ignore")
def test_the_command_line_judges_a_zoo_model_and_its_export_alike(onnx, tmp_path):
    from holdfast.cli.evaluate import Options, run

    torch.manual_seed(0)
    net = models.digits(1)[0]
    file = export(net, torch.rand(2, 1, 8, 8), tmp_path / "net.onnx")
    options = {
        "data": "digits",
        "limit": 8,
        "suite": "fgsm",
        "eps": "0.1",
        "curve": False,
        "quiet": True,
    }
    result = run(Options(model=f"onnx:{file}", out=tmp_path / "run", **options))
    assert result.n == 8 and result.standard_accuracy > 0.5
    record = hf.read(tmp_path / "run")
    assert record.model.sha256 and "differentiable" in record.model.adaptation[0]
    again = run(
        Options(model=f"onnx:{file}", out=tmp_path / "run", **options)
    )  # read, not searched
    assert again.robust_accuracy == result.robust_accuracy


@pytest.mark.filterwarnings("ignore")
def test_a_black_box_by_onnxruntime(problem, exported):
    net, x, y = problem
    model = hf.load(f"onnx:{exported},engine=onnxruntime")
    assert isinstance(innermost(model), OnnxRuntime)
    assert torch.allclose(model(x), net(x), atol=1e-4)
    assert not model(x.clone().requires_grad_()).requires_grad
    result = hf.evaluate(model, x, y, LINF, "square", queries=30)
    assert result.queries.budget == 30 and result.standard_accuracy == 1
    assert any("a black box, without gradients" in line for line in adaptation_lines(model))


@pytest.mark.filterwarnings("ignore")
def test_an_operation_that_is_not_known_makes_a_black_box(problem, exported, monkeypatch):
    net, x, _ = problem
    monkeypatch.delitem(OPERATIONS, "Conv")
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    model = hf.load(f"onnx:{exported}")
    assert torch.allclose(model(x), net(x), atol=1e-4)
    (line,) = adaptation_lines(model)
    assert "a black box" in line and "operations that are not known: Conv" in line
    with pytest.raises(InputError, match=r"cannot be computed by PyTorch: .*Conv"):
        hf.load(f"onnx:{exported},engine=torch")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="needs onnxruntime, which is not installed: pip install"):
        hf.load(f"onnx:{exported}")


@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_computes_otherwise_is_not_trusted(problem, exported, monkeypatch):
    monkeypatch.setitem(OPERATIONS, "Relu", lambda x, attributes: x.clamp_min(0) * 1.01)
    monkeypatch.setitem(OPERATIONS, "Sigmoid", lambda x, attributes: torch.sigmoid(1.01 * x))
    monkeypatch.setitem(OPERATIONS, "Gemm", lambda a, b, c, attributes: 1.1 * (a @ b.T) + c)
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    model = hf.load(f"onnx:{exported}")
    assert any("are off by" in line and "black box" in line for line in adaptation_lines(model))


@pytest.mark.filterwarnings("ignore")
def test_without_onnxruntime_nothing_is_compared_and_that_is_said(problem, exported, monkeypatch):
    net, x, _ = problem
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model = hf.load(f"onnx:{exported}")
    assert torch.allclose(model(x), net(x), atol=1e-4)
    assert any("not compared" in line for line in adaptation_lines(model))


@pytest.mark.filterwarnings("ignore")
def test_a_graph_of_one_batch_size_takes_any(onnx, problem, tmp_path):
    net, x, _ = problem

    class Baked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.reshape(2, 1, 8, 8))

    file = export(Baked(), x, tmp_path / "baked.onnx", batch=False)
    for engine in ("torch", "onnxruntime"):
        model = hf.load(f"onnx:{file},engine={engine}")
        assert torch.allclose(model(x[:7]), net(x[:7]), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_softmax_at_the_end_is_taken_off(onnx, problem, tmp_path):
    net, x, _y = problem
    file = export(nn.Sequential(net, nn.Softmax(1)), x, tmp_path / "softmax.onnx")
    for more in ({}, {"outputs": "probabilities"}):
        model = hf.load(f"onnx:{file}", **more)
        assert torch.allclose(model(x), net(x), atol=1e-4)
    assert any(
        "softmax at the graph's end is taken off" in line for line in adaptation_lines(model)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_channels_last_and_8_bit_images(onnx, problem, tmp_path, engine):
    _net, _x, _ = problem
    colour = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()

    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = colour

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.permute(0, 3, 1, 2).float() / 255)

    images = (torch.rand(4, 3, 8, 8) * 255).round() / 255
    whole = (images * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    file = export(Bytes(), whole, tmp_path / "bytes.onnx")
    model = hf.load(f"onnx:{file},engine={engine}")
    assert torch.allclose(model(images), colour(images), atol=1e-4)
    assert any("(N, H, W, C)" in line for line in adaptation_lines(model))


@pytest.mark.filterwarnings("ignore")
def test_several_outputs_are_a_dictionary(onnx, problem, tmp_path, capsys):
    net, x, _ = problem

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean((2, 3), keepdim=True), self.net(x)

    file = tmp_path / "two.onnx"
    torch.onnx.export(
        Two().eval(), (x[:2],), str(file), dynamo=False, input_names=["images"],
        output_names=["features", "answers"], dynamic_axes={"images": {0: "n"}},
    )  # fmt: skip
    for engine in ("torch", "onnxruntime"):
        assert torch.allclose(hf.load(f"onnx:{file},engine={engine}")(x), net(x), atol=1e-4)
        assert "'answers' is taken" in capsys.readouterr().err


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "pools": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, groups=8, padding=(0, 1), dilation=2), nn.SiLU(),
        nn.AvgPool2d(2, 2, ceil_mode=True), nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.LogSoftmax(1),
    ),
    "norms": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(2, 8), nn.GELU(), nn.InstanceNorm2d(8, affine=True),
        nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2.0), nn.PixelUnshuffle(2), nn.ELU(),
        nn.Conv2d(32, 8, 1), nn.PReLU(), nn.Flatten(), nn.LayerNorm(128), nn.Linear(128, 4),
    ),
    "attention": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Transposed(), nn.TransformerEncoderLayer(
            8, 2, 16, batch_first=True, activation="gelu"), nn.Flatten(), nn.Linear(128, 4),
    ),
}  # fmt: skip


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_what_networks_consist_of_is_computed_as_pytorch_does(onnx, tmp_path, kind, dynamo):
    if dynamo:
        library("onnxscript")
    torch.manual_seed(0)
    net = NETWORKS[kind]().eval()
    x = torch.rand(3, 3, 16, 16)
    file = tmp_path / "net.onnx"
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if dynamo else {
        "input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}  # fmt: skip
    torch.onnx.export(net, (x,), str(file), dynamo=dynamo, **shapes)
    model = hf.load(f"onnx:{file},engine=torch")
    images = torch.rand(5, 3, 16, 16, requires_grad=True)
    expected = net(images)
    assert torch.allclose(model(images).softmax(1), expected.softmax(1), atol=1e-4)
    seeds = torch.randn_like(expected)
    if "softmax" not in str(model.said):
        ours, theirs = (
            torch.autograd.grad((m(images) * seeds).sum(), images)[0] for m in (model, net)
        )
        assert torch.allclose(ours, theirs, atol=1e-3 * float(theirs.abs().max()))


def node(
    onnx: Any, kind: str, inputs: list[np.ndarray], **attributes: Any
) -> tuple[Any, list[Any]]:
    """A graph that does one operation to an image, and onnxruntime's answers to it."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    outputs = attributes.pop("outputs", 1)
    names = [f"input_{i}" for i in range(len(inputs))]
    made = [f"output_{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(kind, names, made, **attributes)],
        "one",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, inputs[0].shape)],
        [helper.make_empty_tensor_value_info(name) for name in made],
        [numpy_helper.from_array(a, n) for a, n in zip(inputs[1:], names[1:], strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return model, session.run(None, {names[0]: inputs[0]})


X = np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)
whole = lambda *n: np.array(n, dtype=np.int64)  # noqa: E731
CASES: dict[str, tuple[Any, ...]] = {
    "Slice, backwards": ("Slice", [X, whole(-1), whole(-100), whole(2), whole(-2)]),
    "Slice, of two axes": ("Slice", [X, whole(1, 0), whole(9, -1), whole(1, 3)]),
    "Gather, from the end": ("Gather", [X, np.array([[0, -1]])], {"axis": 1}),
    "Gather, one": ("Gather", [X, np.array(2)], {"axis": 1}),
    "Pad, reflecting": ("Pad", [X, whole(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    "Pad, of some axes": ("Pad", [X, whole(1, 2), np.float32(3.0), whole(3)]),
    "MaxPool, SAME_LOWER": ("MaxPool", [X], {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER",
                                             "strides": [2, 1]}),
    "MaxPool, uneven": ("MaxPool", [X], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 1],
                                         "strides": [2, 2], "ceil_mode": 1}),
    "AveragePool, SAME_UPPER": ("AveragePool", [X], {"kernel_shape": [3, 3],
                                                     "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "AveragePool, with its padding": ("AveragePool", [X], {"kernel_shape": [3, 3],
                                      "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "Conv, SAME_UPPER": ("Conv", [X, X[:, :, :3, :3]], {"auto_pad": "SAME_UPPER",
                                                        "strides": [2, 2]}),
    "ConvTranspose": ("ConvTranspose", [X, X[:, 0, :, :][:1].repeat(4, 0)[:, None, :3, :3]],
                      {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "Reduce, of no axes": ("ReduceSum", [X, whole()], {"noop_with_empty_axes": 1}),
    "Reduce, from the end": ("ReduceMean", [X, whole(-1, 1)], {"keepdims": 0}),
    "ReduceL2": ("ReduceL2", [X, whole(1)]),
    "Split, uneven": ("Split", [X, whole(1, 3)], {"axis": 1, "outputs": 2}),
    "DepthToSpace": ("DepthToSpace", [X], {"blocksize": 2}),
    "DepthToSpace, CRD": ("DepthToSpace", [X], {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": ("SpaceToDepth", [X], {"blocksize": 2}),
    "Resize, linear": ("Resize", [X, np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)],
                       {"mode": "linear"}),
    "Clip, from above": ("Clip", [X, np.float32(-1.0), np.float32(0.5)]),
    "HardSigmoid": ("HardSigmoid", [X], {"alpha": 0.3}),
    "Selu": ("Selu", [X]),
    "Mod": ("Mod", [X, np.float32(0.7)], {"fmod": 1}),
    "LRN": ("LRN", [X], {"size": 3}),
    "Flatten, from the end": ("Flatten", [X], {"axis": -1}),
    "Tile": ("Tile", [X, whole(1, 2, 1, 1)]),
    "Expand": ("Expand", [X[:, :1], whole(1, 4, 1, 6)]),
    "Transpose, whole": ("Transpose", [X]),
    "Trilu": ("Trilu", [X], {"upper": 0}),
    "TopK": ("TopK", [X, whole(2)], {"axis": 1, "outputs": 2}),
    "QuantizeLinear": ("QuantizeLinear", [X, np.float32(0.05), np.uint8(7)]),
    "Where Equal": ("Max", [X, np.float32(0.1)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operations_mean_what_onnxruntime_computes(onnx, case):
    kind, inputs, *more = CASES[case]
    model, expected = node(onnx, kind, inputs, **(more[0] if more else {}))
    found = OnnxGraph(model)(torch.from_numpy(inputs[0]))
    found = [found] if isinstance(found, Tensor) else list(found.values())
    for ours, theirs in zip(found, expected, strict=True):
        assert tuple(ours.shape) == theirs.shape
        assert np.allclose(ours.double().numpy(), theirs.astype(np.float64), atol=1e-5)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "ONNX model"), (b"nonsense" * 20, "no ONNX model"), (b"PK\x03\x04", "no ONNX model")],
)
def test_damaged_files_are_one_line(onnx, tmp_path, content, said):
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        hf.load(f"onnx:{file}")
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_a_file_cut_short_is_one_line(exported, tmp_path):
    file = tmp_path / "model.onnx"
    content = exported.read_bytes()
    for size in (len(content) // 3, len(content) - 9):
        file.write_bytes(content[:size])
        with pytest.raises(InputError) as error:
            hf.load(f"onnx:{file}")
        assert "\n" not in str(error.value)


def test_what_is_no_image_classifier_is_one_line(onnx, exported, tmp_path):
    from onnx import TensorProto, helper

    def write(*shapes: list[int], kind: int = TensorProto.FLOAT) -> Path:
        inputs = [helper.make_tensor_value_info(f"i{n}", kind, s) for n, s in enumerate(shapes)]
        graph = helper.make_graph(
            [helper.make_node("Identity", ["i0"], ["o"])], "g", inputs,
            [helper.make_tensor_value_info("o", kind, shapes[0])],
        )  # fmt: skip
        file = tmp_path / "model.onnx"
        file.write_bytes(
            helper.make_model(
                graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8
            ).SerializeToString()
        )
        return file

    for file, message in (
        (lambda: write([1, 3, 8, 8], [1]), "has 2 inputs"),
        (lambda: write([1, 8]), "has 2 dimensions, images have 4"),
        (lambda: write([1, 3, 8, 8], kind=TensorProto.INT64), "is no image"),
    ):
        with pytest.raises(InputError, match=message):
            hf.load(f"onnx:{file()}")
    with pytest.raises(InputError, match="there is no such file"):
        hf.load(f"onnx:{tmp_path / 'gone.onnx'}")
    with pytest.raises(InputError, match="has no option 'layout'"):
        hf.load(f"onnx:{exported},layout=nhwc")
    with pytest.raises(InputError, match="engine 'tensorrt'"):
        hf.load(f"onnx:{exported},engine=tensorrt")


def test_onnx_missing_is_one_line_with_the_command(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="needs onnx, which is not installed: pip install onnx"):
        hf.load(f"onnx:{exported}")
