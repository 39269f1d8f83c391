"""Training that starts from weights: what is taken, what starts anew, how its parts learn; and the
tutorial, whose own commands are run in small."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import command
from printed_commands import ROOT, in_markdown
from safetensors.torch import save_file
from test_own_networks import CODE
from test_training import (
    Fuse,
    WithoutTest,
    contents,
    digits,
    in_a_process,
    one_line,
    same,
    tiny,
    trainer,
    weights,
)
from torch import Tensor, nn

import holdfast as hf
from holdfast.data.base import DataSet, Split
from holdfast.errors import InputError
from holdfast.models import build, save_checkpoint
from holdfast.training import load_recipe, train
from holdfast.training import trainer as training_loop
from holdfast.training.optimisers import optimiser_for
from holdfast.training.recipe import Recipe, recipe_from

__all__ = ["in_a_process"]  # a fixture

TEN = [str(k) for k in range(10)]
ARGUMENTS = {"width": 3, "mean": [0.3], "std": [0.4]}


def given(seed: int = 5, classes: int = 10, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return build("small-cnn", {**ARGUMENTS, "classes": classes, "width": width})


def checkpoint(folder: Path, names: list[str] | None = None, **card: Any) -> nn.Module:
    names = TEN if names is None else names
    model = given(classes=len(names))
    arguments = {**ARGUMENTS, "classes": len(names)}
    save_checkpoint(
        folder,
        model,
        {"architecture": "small-cnn", "arguments": arguments, "classes": names, **card},
    )
    return model


def few(classes: int) -> DataSet:
    """The digits below `classes`."""
    whole = digits(200)

    def part(split: Split) -> Split:
        kept = split.labels < classes
        return Split(split.images[kept], split.filenames[kept], split.labels[kept], split.pixels)

    held = part(whole.validation)
    return WithoutTest("digits", tuple(TEN[:classes]), part(whole.train), held, held)


def recipe(source: object, **changes: Any) -> Recipe:
    """It does not say which network."""
    held = tiny(validation={"images": 6, "steps": 2}).to_dict()
    return recipe_from({**held, "model": {"weights": str(source)}, **changes})


def started(tmp_path: Path, source: object, data: DataSet, **changes: Any) -> dict[str, Tensor]:
    """The weights before the first step: nothing is trained at such a rate."""
    nothing = {"learning_rate": 1e-12, "weight_decay": 0}
    result = train(
        recipe(source, epochs=1, optimiser=nothing, **changes), data, tmp_path / "run", device="cpu"
    )
    return result.model.state_dict()


def assert_taken(found: dict[str, Tensor], source: nn.Module, *, classifier: bool) -> None:
    for name, value in source.state_dict().items():
        if "running" in name or "tracked" in name:
            continue  # the average's statistics are its own
        if name.startswith("linear") and not classifier:
            assert found[name].shape != value.shape or not torch.allclose(found[name], value)
        else:
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7)


# -- what is taken ------------------------------------------------------------------------------


def test_everything_is_taken_where_the_classes_are_the_same(tmp_path, capsys):
    model = checkpoint(tmp_path / "given")
    assert_taken(started(tmp_path, tmp_path / "given", digits()), model, classifier=True)
    card = json.loads((tmp_path / "run/model/card.json").read_text())
    assert card["started_from"]["classifier"] == "kept"
    assert card["started_from"]["source"] == str(tmp_path / "given")
    assert (
        json.loads((tmp_path / "run/result.json").read_text())["started_from"]
        == (card["started_from"])
    )
    # The network is that of the card, with nothing said of it.
    assert (card["architecture"], card["arguments"]["width"]) == ("small-cnn", 3)


@pytest.mark.parametrize("names", [["a", *TEN[1:]], TEN[::-1], ["a", "b", "c", "d"]])
def test_the_classifier_starts_anew_where_the_classes_are_others(tmp_path, names):
    model = checkpoint(tmp_path / "given", names)
    assert_taken(started(tmp_path, tmp_path / "given", digits()), model, classifier=False)


def test_the_live_network_begins_with_exactly_the_given_weights(tmp_path):
    """To the last bit, batch norm's statistics too; the classifier is that of a random start."""
    model = checkpoint(tmp_path / "given", ["a", "b"])
    model.body[1].running_mean += 1
    save_checkpoint(
        tmp_path / "given",
        model,
        {
            "architecture": "small-cnn",
            "arguments": {**ARGUMENTS, "classes": 2},
            "classes": ["a", "b"],
        },
    )
    asked = {"model": {"architecture": "small-cnn", "arguments": ARGUMENTS}}
    fresh = trainer(tmp_path / "a", tiny(**asked)).model.module.state_dict()
    asked["model"]["weights"] = str(tmp_path / "given")
    found = trainer(tmp_path / "b", tiny(**asked)).model.module.state_dict()
    for name, value in model.state_dict().items():
        expected = fresh[name] if name.startswith("linear") else value
        assert torch.equal(found[name], expected), name


def test_it_is_said_which(tmp_path, capsys):
    checkpoint(tmp_path / "given", ["a", "b", "c", "d"])
    train(recipe(tmp_path / "given"), few(3), tmp_path / "run", device="cpu", progress=True)
    said = capsys.readouterr().err.splitlines()[0]
    assert "all weights taken but the classifier's, linear.bias, linear.weight" in said
    assert "for 3 classes (0, 1, 2), not 4 (a, b, c, …)" in said


def files(folder: Path, model: nn.Module) -> dict[str, Path]:
    """The same weights in every way that people save them."""
    state = model.state_dict()
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "plain.pth")
    torch.save({"module." + k: v for k, v in state.items()}, folder / "wrapped.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "lightning.ckpt")
    averaged = {k: v.clone() for k, v in state.items()}
    torch.save({"model": given(99).state_dict(), "ema": averaged}, folder / "ema.bin")
    save_file(state, folder / "whole.safetensors")
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()},
              folder / "half.safetensors")  # fmt: skip
    (folder / "hub").mkdir(exist_ok=True)
    save_file(state, folder / "hub" / "model.safetensors")
    return {file.name: file for file in folder.iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        *("plain.pth", "wrapped.pt", "lightning.ckpt", "ema.bin", "whole.safetensors"),
        *("half.safetensors", "hub"),
    ],
)
def test_files_of_weights_are_read_as_people_save_them(tmp_path, name):
    model = given()
    file = files(tmp_path / "files", model)[name]
    if name.startswith("half"):
        model.half().float()
    assert_taken(started(tmp_path, file, digits()), model, classifier=True)
    shutil.rmtree(tmp_path / "run")
    assert_taken(started(tmp_path, file, few(3)), model, classifier=False)


def test_a_run_and_a_name_from_the_zoo_are_taken(tmp_path, monkeypatch):
    first = train(tiny(epochs=1), digits(), tmp_path / "first", device="cpu")
    assert_taken(started(tmp_path, tmp_path / "first", few(4)), first.model, classifier=False)
    monkeypatch.setenv("HOLDFAST_ZOO", str(tmp_path / "zoo"))
    model = checkpoint(tmp_path / "zoo" / "mine")
    shutil.rmtree(tmp_path / "run")
    assert_taken(started(tmp_path, "mine", few(3)), model, classifier=False)


def test_into_a_network_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(CODE)
    named = {"architecture": "net.py:Net", "arguments": {"width": 3}}
    train(tiny(epochs=1, model=named), digits(), "first", device="cpu")
    named["weights"] = "first"
    result = train(tiny(epochs=1, model=named), few(3), "second", device="cpu")
    assert result.model.fc.out_features == 3
    assert result.record.started_from["classifier"] == "replaced"
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    torch.save(module.state_dict(), "linear.pth")
    found = hf.train(
        recipe("linear.pth", epochs=1), few(3), "third", device="cpu",
        model=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
    )  # fmt: skip
    assert found.record.started_from["classifier"] == "replaced"
    # A card that names code gives no network by itself.
    with pytest.raises(InputError, match="a card may run none"):
        train(recipe("first"), few(3), "fourth", device="cpu")


def test_other_weights_are_another_run(tmp_path):
    checkpoint(tmp_path / "given")
    train(recipe(tmp_path / "given", epochs=1), digits(), tmp_path / "run", device="cpu")
    before = contents(tmp_path / "run")
    train(recipe(tmp_path / "given", epochs=1), digits(), tmp_path / "run", device="cpu")
    assert contents(tmp_path / "run") == before
    save_checkpoint(
        tmp_path / "given",
        given(6),
        {"architecture": "small-cnn", "arguments": ARGUMENTS, "classes": TEN},
    )
    with pytest.raises(InputError, match="weights are others"):
        train(recipe(tmp_path / "given", epochs=1), digits(), tmp_path / "run", device="cpu")
    assert contents(tmp_path / "run") == before


# -- what does not fit --------------------------------------------------------------------------


class Attack:
    """A pickle that would create a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_what_does_not_fit_is_one_line(tmp_path):
    checkpoint(tmp_path / "given")
    wide = {"architecture": "small-cnn", "arguments": {"width": 4}}
    cases = [
        ({**wide, "weights": str(tmp_path / "given")}, "body.0.weight \\(3×1×3×3, not 4×1×3×3\\)"),
        ({**wide, "weights": str(tmp_path / "given")}, "they are of small-cnn with"),
        ({"architecture": "preact-resnet", "weights": str(tmp_path / "given")}, "missing"),
        ({"weights": str(tmp_path / "nothing")}, "model.weights"),
        ({"weights": "cifar10-linf-slym"}, "did you mean 'cifar10-linf-slim'"),
        ({"weights": "net.py:build"}, "a file may name no code"),
        ({"weights": "http://127.0.0.1:1"}, "a file may name no address"),
        ({"weights": str(tmp_path)}, "holds no model"),
        ({"weights": ""}, "model"),
        ({"weights": "x" * 300}, "model"),
        ({"weights": "a\0b"}, "model"),
        ({"weights": 3}, "model"),
        ({"weights": [1]}, "weights"),
        ({"classifier": "lineal", "weights": str(tmp_path / "given"), **wide}, "no layer 'lineal'"),
    ]
    for model, says in cases:
        with pytest.raises(InputError, match=says) as error:
            held = {**tiny(epochs=1).to_dict(), "model": model}
            train(recipe_from(held), digits(), tmp_path / "run", device="cpu")
        assert len(one_line(error)) < 1000
        assert not (tmp_path / "run").exists()


def test_files_that_are_no_weights_are_one_line_and_run_nothing(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "attack.pth").write_bytes(pickle.dumps(Attack(ran)))
    torch.save({"a": Attack(ran)}, tmp_path / "attack.pt")
    (tmp_path / "noise.pth").write_bytes(b"no weights at all")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "program.pt")
    torch.save(nn.Linear(4, 2).state_dict(), tmp_path / "other.pth")
    infinite = given().state_dict()
    infinite["body.0.weight"][0] = float("nan")
    torch.save(infinite, tmp_path / "infinite.pth")
    for name in ("attack.pth", "attack.pt", "noise.pth", "empty.safetensors", "none.pth",
                 "program.pt", "other.pth", "infinite.pth"):  # fmt: skip
        with pytest.raises(InputError) as error:
            train(recipe(tmp_path / name, epochs=1), digits(), tmp_path / "run", device="cpu")
        one_line(error)
        assert not (tmp_path / "run").exists() and not ran.exists()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    checkpoint(tmp_path / "given")
    file = tmp_path / "given" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 64
    file.write_bytes(raw)
    with pytest.raises(InputError, match="is damaged"):
        train(recipe(tmp_path / "given"), digits(), tmp_path / "run", device="cpu")


def test_a_recipe_names_weights_in_the_working_folder_only(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {weights: ../elsewhere/w.pth}")
    with pytest.raises(InputError, match="leads out of the working folder"):
        load_recipe(file)
    assert load_recipe(file, ["model.weights=/tmp/w.pth"]).model.weights == "/tmp/w.pth"


# -- how its parts learn ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "muon", "adam"])
def test_rates_of_the_parts(name):
    spec = recipe_from(
        {"optimiser": {"name": name, "learning_rate": 0.1, "matrix_rate": 0.04, "bias_rate": 8,
                       "classifier_rate": 10, "backbone_rate": 0.5}}
    ).optimiser  # fmt: skip
    model = given()
    optimiser = optimiser_for(model, spec, lambda name: name.startswith("linear"))
    peaks = {id(p): group["peak"] for group in optimiser.param_groups for p in group["params"]}
    assert len(peaks) == sum(1 for _ in model.parameters())
    plain = optimiser_for(model, recipe_from(
        {"optimiser": {"name": name, "learning_rate": 0.1, "matrix_rate": 0.04, "bias_rate": 8}}
    ).optimiser)  # fmt: skip
    before = {id(p): group["peak"] for group in plain.param_groups for p in group["params"]}
    for key, weight in model.named_parameters():
        factor = 10 if key.startswith("linear") else 0.5
        assert peaks[id(weight)] == pytest.approx(factor * before[id(weight)]), key


@pytest.mark.parametrize("name", ["sgd", "muon", "adam"])
def test_a_frozen_backbone_stays_to_the_bit_and_then_learns(tmp_path, name):
    spec = {"name": name, "frozen_epochs": 1, "classifier_rate": 2, "clip_gradient": 1.0}
    one = trainer(tmp_path, tiny(epochs=3, optimiser=spec))
    before = {k: v.clone() for k, v in one.model.module.named_parameters()}
    for step in range(4):
        one._step()
        one.schedule.advance(0.1)
        changed = {
            k for k, v in one.model.module.named_parameters() if not torch.equal(v, before[k])
        }
        assert {"linear.weight", "linear.bias"} <= changed
        assert (changed == {"linear.weight", "linear.bias"}) is (step < 3)


def test_parts_need_a_classifier(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softplus())
    asked = tiny(optimiser={"classifier_rate": 3})
    hf.train(asked.model_copy(update={"epochs": 1}), digits(), tmp_path / "a", model=module)

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(64, 10))

        def forward(self, x):
            return x.flatten(1) @ self.table

    with pytest.raises(InputError, match=r"say model\.classifier"):
        hf.train(asked, digits(), tmp_path / "b", model=Bare())
    named = recipe_from({**asked.to_dict(), "model": {"classifier": "table"}, "epochs": 1})
    hf.train(named, digits(), tmp_path / "b", model=Bare())


TUNED = {"name": "adam", "learning_rate": 0.01, "classifier_rate": 5, "frozen_epochs": 0.7}


def tune(burns_at: int, source: str, run: str, log: str) -> None:
    torch.set_num_threads(1)
    training_loop.CHECKPOINT_SECONDS = -1
    Fuse(burns_at, Path(log))
    asked = recipe(source, epochs=2, optimiser=TUNED, class_weights="balanced", patience=9)
    train(asked, few(4), run, device="cpu")


def test_kills_change_nothing(tmp_path, in_a_process):
    checkpoint(tmp_path / "given")
    source, log, whole, killed = (str(tmp_path / n) for n in ("given", "log", "whole", "killed"))
    assert in_a_process(tune, 0, source, whole, log) == 0
    for moment in (5, 9, 14):
        assert in_a_process(tune, moment, source, killed, log) != 0
    assert in_a_process(tune, 0, source, killed, log) == 0
    assert same(weights(Path(whole)), weights(Path(killed)))


# -- the tutorial -------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "fine-tuning.md").read_text()
SMALLER = {
    "examples/photographs.py": ["--train", "14", "--test", "5"],
    "train": ["--set", "batch_size=12", "--set", "validation.steps=2"],
    "evaluate": ["--limit", "6"],
}
EPOCHS = {"epochs=14": "epochs=2"}


def test_the_tutorials_own_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in in_markdown(PAGE) if "RUN" not in line.split()]
    commands = [words for words in commands if len(words) > 2]
    assert [words[1] for words in commands] == [
        "examples/photographs.py", "data", "train", "train", "evaluate", "report"
    ]  # fmt: skip
    trained = 0
    for program, verb, *words in commands:
        words = [EPOCHS.get(word, word) for word in words] + SMALLER.get(verb, [])
        if verb == "train" and not any(word.startswith("epochs=") for word in words):
            words += ["--set", "epochs=1"]
        if program == "python":
            subprocess.run([sys.executable, ROOT / verb, *words], check=True, capture_output=True)
        else:
            assert command(monkeypatch, verb, *words) == 0, capsys.readouterr().err
            trained += verb == "train"
    assert trained == 2
    said = capsys.readouterr()
    assert "it starts anew for 3 classes (flower, person, temple)" in said.err
    assert "lengthened from 1 epoch to 2 epochs" in said.err
    assert "class names" not in said.err
    result = hf.read("runs/photographs-swift")
    assert result.n == 6 and result.threat["eps"] == pytest.approx(8 / 255)
    page = Path("runs/photographs.html").read_text()
    assert "flower" in page and "lengthened from 1 epoch to 2 epochs" in page
    jpegs = list(Path("runs/photographs").glob("*/*/*.jpg"))
    assert len(jpegs) == 3 * (14 + 5)


def test_its_python_makes_a_folder_too(tmp_path, monkeypatch):
    """With scikit-image itself where it is installed, else with photographs in its place."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    try:
        import skimage.data  # noqa: F401
    except ImportError:
        from types import ModuleType, SimpleNamespace

        from sklearn.datasets import load_sample_image

        module = ModuleType("skimage")
        module.data = SimpleNamespace(  # type: ignore[attr-defined]
            chelsea=lambda: load_sample_image("flower.jpg"),
            coffee=lambda: load_sample_image("china.jpg"),
        )
        monkeypatch.setitem(sys.modules, "skimage", module)
    exec(code, {})
    found = hf.data.load("runs/mine", size=16)
    assert found.classes == ("cat", "coffee")
    assert len(found.train) + len(found.validation) == 120 and len(found.test) == 60
    assert not found.overlaps
