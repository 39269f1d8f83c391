"""Models that come as files: of code, of weights, of programs."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

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
