"""Networks are the published ones, and a checkpoint is exactly what its card says, or refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import holdfast as hf
from holdfast.errors import InputError
from holdfast.models import ARCHITECTURES, build, load_checkpoint, load_weights, save_checkpoint
from holdfast.runs.identity import settings_digest

TINY = {"width": 3, "classes": 4}


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# -- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "published"),
    [
        # Counted without the last batch norm (1,024), the count is that of the usual code.
        ("preact-resnet", {"depth": 18}, 11_171_146 + 1_024),
        ("wide-resnet", {"depth": 28, "widen": 10}, 36_479_194),
        ("wide-resnet", {"depth": 34, "widen": 10}, 46_160_474),
    ],
)
def test_parameter_counts_are_the_published_ones(name, arguments, published):
    with torch.device("meta"):
        model = build(name, arguments)
    assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize(
    ("name", "arguments", "blocks", "features"),
    [
        ("preact-resnet", {"depth": 10, "width": 2}, 4, 16),
        ("preact-resnet", {"depth": 18, "width": 2}, 8, 16),
        ("preact-resnet", {"depth": 34, "width": 2}, 16, 16),
        ("preact-resnet", {"depth": 14, "width": 3, "stages": 3}, 6, 12),
        ("preact-resnet", {"depth": 8, "width": 2, "stages": 3, "stem_stride": 2}, 3, 8),
        ("preact-resnet", {"depth": 4, "width": 2, "stages": 1, "activation": "gelu"}, 1, 2),
        ("wide-resnet", {"depth": 10, "widen": 1}, 3, 64),
        ("wide-resnet", {"depth": 16, "widen": 1, "activation": "silu"}, 6, 64),
    ],
)
def test_shapes(name, arguments, blocks, features):
    model = build(name, {**arguments, "classes": 7}).eval()
    assert len(model.blocks) == blocks
    for side in (32, 12):
        x = torch.rand(2, 3, side, side)
        assert model(x).shape == (2, 7)
        assert model.features(x).shape == (2, features)
    assert torch.allclose(model(x), model.linear(model.features(x)))


def test_images_of_one_channel_and_the_small_network():
    for name, arguments in (
        ("preact-resnet", {"depth": 10, "width": 2, "mean": [0.5], "std": [0.5]}),
        ("small-cnn", {"width": 2}),
    ):
        model = build(name, arguments).eval()
        assert model(torch.rand(3, 1, 8, 8)).shape == (3, 10)
        assert model.features(torch.rand(3, 1, 8, 8)).ndim == 2


def test_normalisation_is_inside():
    model = build("preact-resnet", {"depth": 10, "width": 2, "mean": [0.1] * 3, "std": [2.0] * 3})
    other = build("preact-resnet", {"depth": 10, "width": 2, "mean": [0.0] * 3, "std": [1.0] * 3})
    own = model.state_dict()
    other.load_state_dict({k: v for k, v in own.items() if "normalise" not in k}, strict=False)
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(model.eval()(x), other.eval()((x - 0.1) / 2), atol=1e-5)


def test_a_mirrored_network_answers_for_an_image_and_its_mirror_image(tmp_path):
    size = {"depth": 10, "width": 2}
    plain, own = build("preact-resnet", size), build("preact-resnet", {**size, "mirrored": True})
    own.load_state_dict(plain.state_dict())
    card = {"architecture": "preact-resnet", "arguments": {**size, "mirrored": True}}
    x = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(plain.train()(x), own.train()(x))  # training is the same
        plain.eval(), own.eval()
        save_checkpoint(tmp_path / "model", own, {**card, "classes": list("abcdefghij")})
        average = (plain(x) + plain(x.flip(3))) / 2
        for model in (own, hf.load(tmp_path / "model")):
            assert torch.allclose(model(x), average, atol=1e-6)
            assert torch.allclose(model(x), model(x.flip(3)), atol=1e-6)
    assert not torch.allclose(plain(x), average, atol=1e-3)
    assert settings_digest(plain) != settings_digest(own)
    # Runs of earlier versions, which knew no such thing, go on.
    assert "mirrored" not in vars(plain)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_gets_a_gradient(name):
    size = {"widen": 1, "depth": 10} if name.startswith("wide") else {"width": 2}
    model = build(name, size).train()
    channels = model.normalise.mean.shape[1]
    model(torch.rand(4, channels, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "hint"),
    [
        ("preact-resnets", {}, "'preact-resnet'"),
        ("vit", {}, "small-cnn"),
        ("preact-resnet", {"dept": 18}, "'depth'"),
        ("preact-resnet", {"depth": 17}, "depth 17"),
        ("preact-resnet", {"depth": 2}, "depth 2"),
        ("preact-resnet", {"depth": -6}, "depth"),
        ("preact-resnet", {"depth": "18"}, "depth"),
        ("preact-resnet", {"width": 0}, "width"),
        ("preact-resnet", {"width": 2.5}, "width"),
        ("preact-resnet", {"stages": 0}, "stages"),
        ("preact-resnet", {"stem_stride": 3}, "stem_stride"),
        ("preact-resnet", {"stem_stride": 1.0}, "stem_stride"),
        ("preact-resnet", {"stem_stride": True}, "stem_stride"),
        ("preact-resnet", {"mirrored": 1}, "mirrored"),
        ("preact-resnet", {"activation": "rely"}, "relu"),
        ("preact-resnet", {"activation": ["relu"]}, "relu"),
        ("preact-resnet", {"classes": True}, "classes"),
        ("preact-resnet", {"mean": "abc"}, "mean"),
        ("preact-resnet", {"mean": []}, "mean"),
        ("preact-resnet", {"mean": [0.5]}, "std"),
        ("preact-resnet", {"std": [1, 1, 0]}, "std"),
        ("preact-resnet", {"std": [1, 1, float("nan")]}, "std"),
        ("wide-resnet", {"depth": 29}, "depth 29"),
        ("wide-resnet", {"depth": 4}, "depth 4"),
        ("wide-resnet", {"widen": 0}, "widen"),
        ("small-cnn", {"width": None}, "width"),
    ],
)
def test_bad_arguments_are_refused(name, arguments, hint):
    with pytest.raises(InputError, match=hint) as error:
        build(name, arguments)
    one_line(error)


# -- checkpoints --------------------------------------------------------------------------------


def trained(seed: int = 0) -> nn.Module:
    """A tiny network whose batch norms have seen something."""
    torch.manual_seed(seed)
    model = build("small-cnn", TINY).train()
    model(torch.rand(16, 1, 8, 8))
    return model.eval()


def card(**more: Any) -> dict[str, Any]:
    return {"architecture": "small-cnn", "arguments": TINY, "classes": list("abcd"), **more}


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_checkpoint(tmp_path / "model", trained(), card())


def rewrite(file: Path, change: dict[str, Any]) -> None:
    held = json.loads(file.read_text())
    held.update(change)
    file.write_text(json.dumps({k: v for k, v in held.items() if v is not None}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_checkpoint_comes_back(tmp_path, dtype):
    model = trained()
    folder = save_checkpoint(tmp_path / "a" / "b", model, card(classes=["α", "β", "γ", "δ"]), dtype)
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model.safetensors"]
    stored = load_file(folder / "model.safetensors")
    assert {v.dtype for v in stored.values()} == {dtype, torch.int64}
    loaded = load_checkpoint(folder)
    for name, value in loaded.state_dict().items():
        own = model.state_dict()[name]
        assert value.dtype == own.dtype  # float32 again
        assert torch.equal(value, own.to(dtype).to(own.dtype) if own.is_floating_point() else own)
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    assert loaded.card["classes"] == ["α", "β", "γ", "δ"]
    payload = (folder / "model.safetensors").read_bytes()
    assert loaded.card["weights_sha256"] == hashlib.sha256(payload).hexdigest()
    x = torch.rand(5, 1, 8, 8)
    assert torch.allclose(loaded(x), model(x), atol=1e-6 if dtype == torch.float32 else 0.05)


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model = trained().to(memory_format=torch.channels_last)
    before = {k: (v.clone(), v.stride()) for k, v in model.state_dict().items()}
    save_checkpoint(tmp_path, model, card(), torch.float16)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.stride() == before[name][1]
    x = torch.rand(5, 1, 8, 8)
    assert torch.allclose(load_checkpoint(tmp_path)(x), model(x), atol=0.05)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(float("nan"), torch.float32), (float("inf"), torch.float32), (1e6, torch.float16)],
)
def test_what_could_not_be_read_back_is_not_written(folder, value, dtype):
    before = (folder / "model.safetensors").read_bytes()
    model = trained()
    with torch.no_grad():
        model.body[1].running_var[0] = value
    with pytest.raises(InputError, match=r"body\.1\.running_var") as error:
        save_checkpoint(folder, model, card(), dtype)
    one_line(error)
    assert (folder / "model.safetensors").read_bytes() == before
    load_checkpoint(folder)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "model", Path("/proc/holdfast")):
        with pytest.raises(InputError, match="cannot write") as error:
            save_checkpoint(place, trained(), card())
        one_line(error)


def refused(folder: Path, named: str, hint: str = "") -> None:
    with pytest.raises(InputError) as error:
        load_checkpoint(folder)
    assert named in one_line(error)
    assert hint in str(error.value)


@pytest.mark.parametrize("name", ["card.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, str(folder / name), "does not exist")


def test_a_missing_folder_is_named(tmp_path):
    refused(tmp_path / "nowhere", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[:7],
        lambda b: b[:-1],
        lambda b: b + b"\0",
        lambda b: b"\xff" * 8 + b[8:],
        lambda b: b[:40] + bytes([b[40] ^ 64]) + b[41:],
        lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:],  # the lowest bit of one weight
        lambda b: b"PK\x03\x04" + b,
    ],
)
def test_damaged_weights_are_refused(folder, damage):
    file = folder / "model.safetensors"
    broken = damage(file.read_bytes())
    file.write_bytes(broken)
    refused(folder, str(file))
    assert file.read_bytes() == broken


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda w: w.pop("linear.bias"), "lacks 'linear.bias'"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra' too many"),
        (lambda w: w.update({"linear.bias": torch.zeros(5)}), "'linear.bias' in another shape"),
        (lambda w: w.update({"linear.bias": torch.full((4,), torch.nan)}), "'linear.bias' holds"),
        (lambda w: w.update({"linear.bias": torch.full((4,), torch.inf)}), "not finite"),
        (lambda w: w.clear(), "lacks"),
    ],
)
def test_weights_of_another_network_are_refused(folder, change, hint):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    refused(folder, "model.safetensors", hint)
    model = trained(seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError):
        load_weights(folder / "model.safetensors", model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_that_the_card_does_not_speak_of_are_refused(folder, tmp_path):
    other = save_checkpoint(tmp_path / "other", trained(seed=1), card())
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    refused(folder, "model.safetensors", "card.json")


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"architecture": None}, "'architecture'"),
        ({"arguments": None}, "'arguments'"),
        ({"classes": None}, "'classes'"),
        ({"architecture": 3}, "'architecture'"),
        ({"arguments": [1]}, "'arguments'"),
        ({"classes": "abcd"}, "'classes'"),
        ({"architecture": "small-cm"}, "'small-cnn'"),
        ({"arguments": {"widt": 3}}, "'width'"),
        ({"arguments": {"width": 0}}, "width"),
        ({"arguments": {"mean": "x"}}, "mean"),
    ],
)
def test_a_bad_card_is_refused(folder, change, hint):
    rewrite(folder / "card.json", change)
    refused(folder, str(folder / "card.json"), hint)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": ' * 100_000, "\udcff"])
def test_a_card_that_is_no_card_is_refused(folder, text):
    (folder / "card.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, str(folder / "card.json"))


class Trap:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_never_loaded(folder, tmp_path):
    trap, file = tmp_path / "ran", folder / "model.safetensors"
    torch.save(Trap(trap), tmp_path / "model.pt")
    for content in (pickle.dumps(Trap(trap)), (tmp_path / "model.pt").read_bytes()):
        file.write_bytes(content)
        refused(folder, str(file), "damaged")
        (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InputError):
        hf.load(tmp_path / "model.pt")
    assert not trap.exists()


# -- finding a model ----------------------------------------------------------------------------


def answers_as(model: nn.Module, other: nn.Module) -> bool:
    x = torch.rand(3, 1, 8, 8)
    return not model.training and torch.equal(model(x), other(x))


def test_load_by_folder_run_and_zoo_name(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "run" / "model", trained(0), card())
    save_checkpoint(tmp_path / "zoo" / "digits-one", trained(1), card())
    monkeypatch.setenv("HOLDFAST_ZOO", str(tmp_path / "zoo"))
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "run", tmp_path / "run" / "model", "run", "run/model/"):
        assert answers_as(hf.load(source), trained(0))
    for source in ("digits-one", "zoo/digits-one", tmp_path / "zoo" / "digits-one"):
        assert answers_as(hf.load(source), trained(1))
    with pytest.raises(InputError, match="digits-one"):
        hf.load("digits-two")  # the known names are listed


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """The name of a module in the current folder, new for each test."""
    name = f"made_up_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "import torch\n"
        "from holdfast.errors import InputError\n"
        "SIZE = 3\n"
        "def network():\n    return torch.nn.Flatten()\n"
        "def bare():\n    return lambda x: x.flatten(1)\n"
        "def number():\n    return 7\n"
        "def needs(size):\n    return size\n"
        "def broken():\n    return None.weights\n"
        "def fails():\n    raise OSError('no such\\nfile')\n"
        "def says():\n    raise InputError('the weights are elsewhere')\n"
        "def imports():\n    import not_there_at_all\n"
    )
    monkeypatch.chdir(tmp_path)
    return name


def test_load_by_module_and_function(module):
    model = hf.load(f"{module}:network")
    assert isinstance(model.inner, nn.Flatten)  # behind what makes its answers logits
    assert not model.training
    assert hf.load(f"{module}:bare")(torch.rand(2, 3, 4, 4)).shape == (2, 48)


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        ("netwrok", "has no 'netwrok'"),
        ("", "has no ''"),
        ("SIZE", "not callable"),
        ("number", "built a int, which cannot be called"),
        ("needs", "missing 1 required"),
        ("broken", "AttributeError: 'NoneType' object has no attribute 'weights'"),
        ("fails", "OSError: no such file"),
        ("says", "the weights are elsewhere"),
        ("imports", "No module named 'not_there_at_all'"),
    ],
)
def test_a_function_that_builds_no_model(module, function, hint):
    with pytest.raises(InputError) as error:
        hf.load(f"{module}:{function}")
    assert hint in one_line(error)


@pytest.mark.parametrize("source", ["", "nothing", "no.such:thing", ":build", ".x:y", "a" * 5000])
def test_names_that_are_no_model(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOLDFAST_ZOO", str(tmp_path / "nowhere"))
    with pytest.raises(InputError) as error:
        hf.load(source)
    one_line(error)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match="holds no model"):
        hf.load(tmp_path)
