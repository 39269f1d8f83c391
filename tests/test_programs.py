"""Exported programs that somebody sent: what they hold is read, and nothing of it is run."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.errors import InputError
from holdfast.models.programs import is_arithmetic, is_operator

GREY = torch.rand(2, 1, 8, 8)


class Attack:
    """Pickles as a call of `os.mkdir`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def pickled(folder: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"x": Attack(folder)}, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with a buffer, a constant, a split, and a number of images that is left open."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.layer(x.flatten(1)).split(3, 1)
            return a * b.shape[0] + torch.tensor([1.0, 2.0, 3.0]) * (x.shape[0] // 2)

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("program") / "program.pt2"
    shapes = ({0: torch.export.Dim("n")},)
    exported = torch.export.export(Network().eval(), (GREY,), dynamic_shapes=shapes)
    torch.export.save(exported, file)
    return file


def changed(program: Path, to: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy with other contents."""
    with zipfile.ZipFile(program) as before, zipfile.ZipFile(to, "w") as after:
        for info in before.infolist():
            after.writestr(info, change(info.filename, before.read(info)))
    return to


def model_changed(pattern: str, by: str) -> Callable[[str, bytes], bytes]:
    """What a pattern finds in the network's text, made something else."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        made, count = re.subn(pattern, lambda _: by, content.decode())
        assert count
        return made.encode()

    return change


def test_a_program_is_read(program: Path, tmp_path: Path) -> None:
    expected = torch.export.load(program).module()(GREY)
    same = changed(program, tmp_path / "same.pt2", lambda _, content: content)
    for file in (program, same):
        assert torch.equal(hf.load(file)(GREY), expected)
        assert hf.load(file)(torch.rand(5, 1, 8, 8)).shape == (5, 3)


def test_reading_one_leaves_torch_as_it_was(program: Path) -> None:
    before = torch.load, torch._C._pickle_load_obj
    hf.load(program)
    assert (torch.load, torch._C._pickle_load_obj) == before


@pytest.mark.parametrize("file", ["data/sample_inputs/model.pt", "data/constants/model.pt"])
def test_pickled_objects_are_not_loaded(file: str, program: Path, tmp_path: Path) -> None:
    bad, fooled = tmp_path / "bad.pt2", tmp_path / "fooled"
    changed(program, bad, lambda n, held: pickled(fooled) if n.endswith(file) else held)
    with zipfile.ZipFile(bad, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        if f"{root}/{file}" not in archive.namelist():  # where older versions kept them
            archive.writestr(f"{root}/{file}", pickled(fooled))
    with pytest.raises(InputError, match="holds pickled objects, which are never loaded"):
        hf.load(bad)
    assert not fooled.exists()


@pytest.mark.parametrize("first", [True, False])
def test_pickled_weights_are_not_loaded(first: bool, program: Path, tmp_path: Path) -> None:
    bad, fooled = tmp_path / "bad.pt2", tmp_path / "fooled"

    def change(name: str, held: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return held.replace(b'"use_pickle": false', b'"use_pickle": true', 1 if first else -1)
        return pickled(fooled) if "data/weights/weight_" in name else held

    with pytest.raises(InputError, match=r"never loaded|not a program"):
        hf.load(changed(program, bad, change))
    assert not fooled.exists()


def test_an_object_of_somebodys_own_is_not_loaded(program: Path, tmp_path: Path) -> None:
    bad, fooled = tmp_path / "bad.pt2", tmp_path / "fooled"

    def change(name: str, held: bytes) -> bytes:
        if name.endswith("constants_config.json"):
            return re.sub(rb'"path_name": "\w+"', b'"path_name": "opaque_obj_0"', held)
        return held

    changed(program, bad, change)
    with zipfile.ZipFile(bad, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/constants/opaque_obj_0", pickle.dumps(Attack(fooled)))
    with pytest.raises(InputError):
        hf.load(bad)
    assert not fooled.exists()


def test_compiled_code_is_not_loaded(program: Path, tmp_path: Path) -> None:
    bad = changed(program, tmp_path / "bad.pt2", lambda _, content: content)
    with zipfile.ZipFile(bad, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/aotinductor/model/model.so", b"\x7fELF")
    with pytest.raises(InputError, match="compiled code, which is never run"):
        hf.load(bad)


def test_sizes_are_not_evaluated(program: Path, tmp_path: Path) -> None:
    fooled = tmp_path / "fooled"
    by = f"\"expr_str\": \"__import__('os').mkdir('{fooled}')\""
    change = model_changed(r'"expr_str": "[^"]*"', by)
    with pytest.raises(InputError, match=r"a size in it is no arithmetic: .__import__"):
        hf.load(changed(program, tmp_path / "bad.pt2", change))
    assert not fooled.exists()


def test_functions_are_operators(program: Path, tmp_path: Path) -> None:
    change = model_changed(r'"torch\.ops\.aten\.linear\.default"', '"torch.os.system"')
    with pytest.raises(InputError, match=r"no operator of torch's: 'torch\.os\.system'"):
        hf.load(changed(program, tmp_path / "bad.pt2", change))


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("Symbol('s34', positive=True, integer=True)", True),
        ("Add(Mul(Integer(2), Symbol('s0', integer=True)), Integer(-1))", True),
        ("FloorDiv(Symbol('s0'), 2)", True),
        ("Max(1, Mod(s0, 4))", True),
        ("2*s0 + 1 >= 3", True),
        ("__import__('os').system('x')", False),
        ("Add('__import__(1)')", False),
        ("Symbol('a').__class__", False),
        ("lambdify('x', 'y')", False),
        ("(lambda: 1)()", False),
        ("[1 for _ in 'x']", False),
        ("eval('x')", False),
        ("exec(s0)", False),
        ("s0[0]", False),
        ("1 +", False),
    ],
)
def test_arithmetic(text: str, is_one: bool) -> None:
    assert is_arithmetic(text) == is_one


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("torch.ops.aten.conv2d.default", True),
        ("torch.ops.aten.__and__.Tensor", True),
        ("torch.ops.higher_order.cond", True),
        ("torch.ops.quantized_decomposed.quantize_per_tensor.default", True),
        ("_operator.floordiv", True),
        ("_operator.and_", True),
        ("torch.sym_max", True),
        ("math.trunc", True),
        ("_operator.methodcaller", False),
        ("_operator.call", False),
        ("_operator.__name__.format", False),
        ("torch.os.system", False),
        ("torch.load", False),
        ("torch.ops.load_library", False),
        ("torch.ops.aten.__class__.mro", False),
        ("torch.ops.__loader__.x.y", False),
        ("os.system", False),
        ("#os:system", False),
    ],
)
def test_operators(name: str, is_one: bool) -> None:
    assert is_operator(name) == is_one
