"""Models that come as files: of code, of weights, of programs."""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib
import json
import logging
import os
import pickle
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import holdfast as hf
from holdfast.errors import InputError
from holdfast.models.registry import build

ARGUMENTS = {"width": 8, "classes": 5}
NAME = "small-cnn:width=8,classes=5"
CODE = """
import torch
from beside import CLASSES

def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, CLASSES))

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3072, CLASSES)

    def forward(self, x):
        return self.fc(x.flatten(1))

ready = build()
number = 3
def broken():
    raise RuntimeError("no such data")
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("CLASSES = 7\n")
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    return file


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build("small-cnn", ARGUMENTS).eval()


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
GREY = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["build", "Net", "ready"])
def test_a_file_of_code_gives_a_function_a_class_or_a_ready_module(code: Path, name: str) -> None:
    model = hf.load(f"{code}:{name}")
    assert model(IMAGES).shape == (2, 7) and not model.training


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "has no 'nothing'"),
        ("number", "is a int, which is not callable"),
        ("broken", "no such data"),
    ],
)
def test_code_that_gives_no_model_is_one_line(code: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        hf.load(f"{code}:{name}")
    assert "\n" not in str(error.value)


def test_a_file_of_code_that_does_not_parse_or_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def build(:\n")
    with pytest.raises(InputError, match="cannot import"):
        hf.load(f"{tmp_path / 'bad.py'}:build")
    with pytest.raises(InputError, match="cannot import"):
        hf.load(f"{tmp_path / 'gone.py'}:build")


def _wrapped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt"])
@pytest.mark.parametrize(
    "held",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
        lambda state: {"model": _wrapped(state, "module."), "optimizer": {"lr": 0.1}},
        lambda state: {"net": _wrapped(state, "_orig_mod.module.")},
        lambda state: {"state": {"inner": _wrapped(state, "model.")}},
    ],
)
def test_weights_are_found_in_a_file(network, tmp_path: Path, ending: str, held) -> None:
    file = tmp_path / f"weights{ending}"
    torch.save(held(network.state_dict()), file)
    model = hf.load(file, architecture=NAME)
    assert torch.equal(model(GREY), network(GREY))


def test_safetensors_are_weights_too(network, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(_wrapped(network.state_dict(), "module."), file)
    assert torch.equal(hf.load(file, architecture=NAME)(GREY), network(GREY))


def test_averaged_weights_are_taken_where_both_fit(network, tmp_path: Path, capsys) -> None:
    file = tmp_path / "weights.pth"
    other = build("small-cnn", ARGUMENTS)
    torch.save({"model": other.state_dict(), "ema": network.state_dict()}, file)
    assert torch.equal(hf.load(file, architecture=NAME)(GREY), network(GREY))
    assert "'ema' taken" in capsys.readouterr().err


def test_weights_for_a_network_of_ones_own(code: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    own = nn.Sequential(nn.Flatten(), nn.Linear(3072, 7))
    torch.save(own.state_dict(), file)
    model = hf.load(file, architecture=f"{code}:build")
    assert torch.equal(model(IMAGES), own(IMAGES))


def test_what_does_not_fit_is_said(network, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    state = dict(network.state_dict())
    first = next(iter(state))
    state["extra"] = state.pop(first)
    torch.save(state, file)
    with pytest.raises(InputError, match=f"1 missing: {first}.*1 unexpected: extra"):
        hf.load(file, architecture=NAME)
    torch.save(network.state_dict(), file)
    with pytest.raises(InputError, match=r"of another shape.*not"):
        hf.load(file, architecture="small-cnn:width=8,classes=4")


class _Attack:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/holdfast-was-fooled"),))


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt", ".bin"])
def test_weights_never_run_code(tmp_path: Path, ending: str) -> None:
    file, trap = tmp_path / f"weights{ending}", Path("/tmp/holdfast-was-fooled")
    trap.unlink(missing_ok=True)
    for write in (lambda: torch.save(_Attack(), file), lambda: file.write_bytes(_pickled())):
        write()
        with pytest.raises(InputError, match=r"would run code|cannot be read"):
            hf.load(file, architecture=NAME)
        assert not trap.exists()


def _pickled() -> bytes:
    return pickle.dumps(_Attack())


# --- what people save besides ------------------------------------------------------------------


class _Dictionary(dict):
    """As Lightning's AttributeDict and many configurations."""


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3072, 7))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.activation = torch.relu

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    "extras",
    [
        lambda: {"args": argparse.Namespace(lr=0.1, depth=28)},
        lambda: {"best_acc": np.float64(0.5), "history": np.arange(3.0)},
        lambda: {"hyper_parameters": _Dictionary(lr=0.1), "callbacks": {"a": {"b": Path("x")}}},
        lambda: {"when": datetime.datetime(2020, 1, 1), "tags": {1, 2}},
        lambda: {"scheduler": _Scheduler(), "counts": collections.Counter("ab")},
        lambda: {"defaults": collections.defaultdict(list, a=[1])},
    ],
)
def test_objects_beside_the_weights_are_not_read(network, tmp_path: Path, extras, capsys) -> None:
    file = tmp_path / "weights.ckpt"
    torch.save({"state_dict": network.state_dict(), "epoch": 3, **extras()}, file)
    assert torch.equal(hf.load(file, architecture=NAME)(GREY), network(GREY))
    assert "'state_dict' taken" in capsys.readouterr().err


class _Scheduler:
    def __init__(self):
        self.step, self.history = 3, [1, 2]


def test_what_is_not_read_is_said(network, tmp_path: Path, capsys) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"net": network.state_dict(), "args": argparse.Namespace(lr=0.1)}, file)
    hf.load(file, architecture=NAME)
    assert "not read: objects of argparse.Namespace" in capsys.readouterr().err


def test_a_whole_pickled_model_gives_its_weights_and_runs_no_code(
    code: Path, tmp_path: Path, capsys
) -> None:
    file, whole = tmp_path / "model.pth", _Net()
    torch.save(whole, file)
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        F = torch.nn\n"
        "        self.body = F.Sequential(F.Flatten(), F.Linear(3072, 7))\n"
        "    def forward(self, x):\n"
        "        return self.body(x)\n"
    )
    model = hf.load(file, architecture=f"{tmp_path / 'own.py'}:Net")
    assert torch.equal(model(IMAGES), whole(IMAGES))
    assert "_Net, whose weights are read and code is not" in capsys.readouterr().err
    torch.save({"ema": {"of": whole}}, file)
    model = hf.load(file, architecture=f"{tmp_path / 'own.py'}:Net")
    assert torch.equal(model(IMAGES), whole(IMAGES))


def test_one_network_of_several_is_taken_and_said(network, tmp_path: Path, capsys) -> None:
    file = tmp_path / "lightning.ckpt"
    teacher = {"teacher.fc.weight": torch.zeros(3, 3), "criterion.weight": torch.ones(5)}
    torch.save({"state_dict": {**_wrapped(network.state_dict(), "student."), **teacher}}, file)
    assert torch.equal(hf.load(file, architecture=NAME)(GREY), network(GREY))
    assert "'student' taken, left out: teacher, criterion" in capsys.readouterr().err
    with pytest.raises(InputError, match=f"they fit --architecture {NAME}"):
        hf.load(file)


def test_numpy_archives_and_odd_endings_are_weights_too(network, tmp_path: Path) -> None:
    arrays, odd = tmp_path / "weights.npz", tmp_path / "ckpt.t7"
    np.savez(arrays, **{name: value.numpy() for name, value in network.state_dict().items()})
    torch.save({"net": network.state_dict()}, odd, _use_new_zipfile_serialization=False)
    for file in (arrays, odd):
        assert torch.equal(hf.load(file, architecture=NAME)(GREY), network(GREY))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "best.pth.tar")
    with pytest.raises(InputError, match=f"they fit --architecture {NAME}"):
        hf.load(tmp_path / "best.pth.tar")


def _in_parts(network: nn.Module, folder: Path, **changed: str) -> Path:
    """The weights in two files and an index of them."""
    names = list(network.state_dict())
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({name: network.state_dict()[name] for name in held}, folder / file)
    listed = {name: file for file, held in halves.items() for name in held} | changed
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return index


def test_weights_in_parts_are_put_together(network, tmp_path: Path) -> None:
    index = _in_parts(network, tmp_path)
    for source in (index, tmp_path):
        assert torch.equal(hf.load(source, architecture=NAME)(GREY), network(GREY))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors is missing beside it"):
        hf.load(index, architecture=NAME)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ({"x": "../secret.safetensors"}, "is not a file beside it"),
        ({"x": "/etc/passwd"}, "is not a file beside it"),
        ({"x": "a.safetensors"}, "no file holds x"),
        ({"x": "model.safetensors.index.json"}, "is an index too"),
    ],
)
def test_an_index_leads_nowhere_else(network, tmp_path: Path, listed, said: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path.parent / "secret.safetensors")
    with pytest.raises(InputError, match=said):
        hf.load(_in_parts(network, tmp_path, **listed), architecture=NAME)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_an_index_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(content)
    with pytest.raises(InputError) as error:
        hf.load(file, architecture=NAME)
    assert "\n" not in str(error.value)


# --- attack files ------------------------------------------------------------------------------


class _Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *values):
        self.asked = function, values

    def __reduce__(self):
        return self.asked


TRAP = "holdfast-was-fooled"


def _attacks(trap: Path) -> dict[str, object]:
    return {
        "system": _Calls(os.system, f"touch {trap}"),
        "eval": _Calls(eval, f"open({str(trap)!r}, 'w')"),
        "exec": _Calls(exec, f"open({str(trap)!r}, 'w')"),
        "popen": _Calls(subprocess.Popen, ["touch", str(trap)]),
        "method": _Calls(Path.touch, trap),
        "getattr": _Calls(getattr, trap, "touch"),
        "import": _Calls(importlib.import_module, "trapdoor"),
        "torch": _Calls(torch.load, str(trap)),
        "runpy": _Calls(runpy.run_path, str(trap)),
    }


@pytest.mark.parametrize("attack", _attacks(Path("x")))
@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_attack_beside_weights_runs(
    network, tmp_path: Path, monkeypatch, attack: str, beside: bool, zipped: bool
) -> None:
    trap = tmp_path / TRAP
    (tmp_path / "trapdoor.py").write_text(f"open({str(trap)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    held = _attacks(trap)[attack]
    file = tmp_path / "weights.pth"
    torch.save(
        {"state_dict": network.state_dict(), "x": held} if beside else held,
        file,
        _use_new_zipfile_serialization=zipped,
    )
    try:
        model = hf.load(file, architecture=NAME)
    except InputError as error:
        assert "\n" not in str(error)
    else:  # a call that could be data is kept as data
        assert attack in ("torch", "getattr") and torch.equal(model(GREY), network(GREY))
    assert not trap.exists() and "trapdoor" not in sys.modules


def test_arrays_of_objects_are_not_unpickled(network, tmp_path: Path) -> None:
    file, trap = tmp_path / "weights.npz", tmp_path / TRAP
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    np.savez(file, **arrays, evil=np.array([_Calls(os.system, f"touch {trap}")], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        hf.load(file, architecture=NAME)
    assert not trap.exists()


def test_parts_run_no_code_either(network, tmp_path: Path) -> None:
    trap = tmp_path / TRAP
    torch.save({"x": _Calls(os.system, f"touch {trap}")}, tmp_path / "part.bin")
    with pytest.raises(InputError, match="would run code"):
        hf.load(_in_parts(network, tmp_path, x="part.bin"), architecture=NAME)
    assert not trap.exists()


def test_a_file_changes_nothing_of_the_reader(network, tmp_path: Path) -> None:
    """A BUILD of a function that puts tensors together could change its defaults."""
    from torch._utils import _rebuild_tensor_v2

    before = dict(vars(_rebuild_tensor_v2)), _rebuild_tensor_v2.__defaults__
    data = (
        b"\x80\x02}q\x00(X\x01\x00\x00\x00fctorch._utils\n_rebuild_tensor_v2\n"
        b"N}X\x0c\x00\x00\x00__defaults__)s\x86bX\x01\x00\x00\x00gcargparse\nNamespace\n)\x81u."
    )
    file = tmp_path / "weights.pth"
    torch.save({"x": torch.zeros(1)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, data if name.endswith("data.pkl") else content)
    with pytest.raises(InputError):
        hf.load(file, architecture=NAME)
    assert (dict(vars(_rebuild_tensor_v2)), _rebuild_tensor_v2.__defaults__) == before


def test_content_without_end_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    endless: dict[str, object] = {}
    endless["again"] = endless
    torch.save(endless, file)
    with pytest.raises(InputError, match=r"cannot be read|no weights"):
        hf.load(file, architecture=NAME)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "cannot be read"), (b"nonsense" * 50, "."), (b"PK\x03\x04broken", "cannot be read")],
)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_damaged_files_are_one_line(tmp_path: Path, content: bytes, said: str, ending) -> None:
    file = tmp_path / f"weights{ending}"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        hf.load(file, architecture=NAME)
    assert "\n" not in str(error.value)


def test_weights_alone_ask_for_their_network(network, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(network.state_dict(), file)
    with pytest.raises(InputError, match="--architecture NAME"):
        hf.load(file)
    with pytest.raises(InputError, match="is unknown; did you mean 'small-cnn'"):
        hf.load(file, architecture="smal-cnn")
    with pytest.raises(InputError, match="for a file of weights"):
        hf.load("cifar10-linf-slim", architecture=NAME)
    torch.save({"epoch": 3}, file)
    with pytest.raises(InputError, match="no weights are in it"):
        hf.load(file, architecture=NAME)


@pytest.mark.filterwarnings("ignore")
def test_programs_bring_their_own_network(network, tmp_path: Path) -> None:
    script, exported = tmp_path / "model.pt", tmp_path / "model.pt2"
    torch.jit.trace(network, GREY).save(script)
    batch = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(network, (GREY,), dynamic_shapes=batch), exported)
    for file in (script, exported):
        assert torch.allclose(hf.load(file)(GREY), network(GREY), atol=1e-6)
        with pytest.raises(InputError, match="brings its own network"):
            hf.load(file, architecture=NAME)
    exported.write_bytes(exported.read_bytes()[:100])
    with pytest.raises(InputError, match="not a program that torch can read"):
        hf.load(exported)


def test_a_damaged_program_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch.export")
    logger.addHandler(caplog.handler)  # torch's loggers do not propagate
    for name, content in (("model.pt2", b"PK\x03\x04"), ("other.pt2", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="not a program that torch can read"):
            hf.load(tmp_path / name)
    assert not caplog.records  # torch logs a traceback
    logger.removeHandler(caplog.handler)


def test_the_command_line_takes_weights_and_their_architecture(network, tmp_path: Path) -> None:
    from holdfast.cli.evaluate import Options, run

    torch.manual_seed(0)
    digits = build("small-cnn", {"width": 8, "classes": 10})
    torch.save(digits.state_dict(), tmp_path / "weights.pth")
    options = Options(
        model=str(tmp_path / "weights.pth"),
        out=tmp_path / "run",
        data="digits",
        limit=4,
        suite="fgsm",
        architecture="small-cnn:width=8,classes=10",
        quiet=True,
    )
    result = run(options)
    assert result.n == 4
    record = hf.read(tmp_path / "run")
    assert record.model is not None and record.model.sha256


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "models.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["again"], nn.Module)


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_what_is_said_of_a_model_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "models.md").read_text()
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == "torch.Size([5, 3])\n"
