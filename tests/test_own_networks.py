"""Training a network of one's own: by code that a person names, or a module in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import command
from test_training import Fuse, contents, digits, in_a_process, one_line, same, tiny, weights
from torch import nn

import holdfast as hf
from holdfast.errors import InputError
from holdfast.models import load_checkpoint
from holdfast.training import load_recipe, train
from holdfast.training import trainer as training_loop
from holdfast.training.recipe import architecture_changes

__all__ = ["in_a_process"]  # a fixture

CODE = """
from pathlib import Path
import torch
from torch import nn

Path(__file__).with_name("ran").touch()

class Net(nn.Module):
    def __init__(self, width=4, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, x):
        # As many people write it: `view` fails on images that lie channels last.
        return self.fc(self.drop(torch.relu(self.conv(x))).view(x.size(0), -1))

def of_seven(width=4):
    return Net(width, 7)

def broken():
    raise KeyError("no such thing")

def no_module():
    return 3

class Wider(Net):
    def __init__(self, width=4, classes=10):
        super().__init__(width + 1, classes)

class Shapeless(Net):
    def forward(self, x):
        return x

class Detached(Net):
    def forward(self, x):
        return super().forward(x.detach())

class Late(Net):
    def forward(self, x):
        if self.training and len(x) > 2:
            raise IndexError("batch of 16")
        return super().forward(x)

ready = Net(3)
"""
OWN: dict[str, Any] = {"precision": "float32", "epochs": 1}


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A working folder with net.py in it; `ran` is there once its code was run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path / "ran"


def own(name: str, **arguments: Any) -> Any:
    return tiny(**OWN, model={"architecture": name, "arguments": arguments})


def recipe_file(name: str) -> Path:
    held = tiny(**OWN).to_dict() | {"model": {"architecture": name, "arguments": {"width": 5}}}
    file = Path("mine.yaml")
    file.write_text(json.dumps(held))
    return file


# -- who may name code --------------------------------------------------------------------------


def test_a_recipe_alone_runs_no_code(code):
    file = recipe_file("net.py:Net")
    with pytest.raises(InputError, match=r"--architecture net\.py:Net") as error:
        load_recipe(file)
    one_line(error)
    with pytest.raises(InputError, match="a recipe may run none"):
        load_recipe(file, ["model.arguments.width=2", "epochs=3"])
    assert not code.exists()


@pytest.mark.parametrize(
    "named", ["model.architecture=net.py:Net", "model={architecture: net.py:Net}"]
)
def test_a_person_may_name_it(code, named):
    recipe = load_recipe(recipe_file("net.py:Net"), [named])
    assert recipe.model.architecture == "net.py:Net"
    # The file's arguments are of the very network that is named; a whole new section has its own.
    assert recipe.model.arguments == ({"width": 5} if "{" not in named else {})


def test_arguments_of_another_network_are_dropped(code):
    file = recipe_file("small-cnn")
    named = load_recipe(file, ["model.architecture=net.py:of_seven"])
    assert named.model.arguments == {}
    named = load_recipe(file, ["model.architecture=net.py:Net", "model.arguments.width=6"])
    assert named.model.arguments == {"width": 6}
    assert architecture_changes("net.py:Net") == ['model.architecture="net.py:Net"']


def test_the_whole_way_on_the_command_line(code, monkeypatch, capsys):
    file = recipe_file("net.py:Net")
    begin = ["train", file, "--data", "digits", "--out", "run", "--set", "validation.images=20"]
    assert command(monkeypatch, *begin) == 2
    assert "--architecture net.py:Net" in capsys.readouterr().err
    assert not code.exists() and not Path("run").exists()
    assert command(monkeypatch, *begin, "--architecture", "net.py:Net") == 0
    card = json.loads(Path("run/model/card.json").read_text())
    assert card["architecture"] == "net.py:Net"
    assert card["arguments"] == {"width": 5, "classes": 10}

    judge = ["evaluate", "run", "--data", "digits", "--limit", "5", "--suite", "pgd", "--out", "e"]
    capsys.readouterr()
    assert command(monkeypatch, *judge) == 2
    said = capsys.readouterr().err
    assert "net.py:Net" in said and "--architecture" in said and said.count("\n") == 1
    assert command(monkeypatch, *judge, "--architecture", "net.py:Net") == 0
    # The file may lie elsewhere by then, under another name.
    Path("net.py").rename("moved.py")
    assert hf.load("run", architecture="moved.py:Net").fc.out_features == 10


def test_a_card_runs_no_code_and_another_network_does_not_fit(code):
    train(own("net.py:Net"), digits(), "run", device="cpu")
    code.unlink()
    for folder in ("run", "run/model"):
        with pytest.raises(InputError, match="a card may run none") as error:
            hf.load(folder)
        one_line(error)
    with pytest.raises(InputError, match="a card may run none"):
        load_checkpoint("run/model")
    with pytest.raises(InputError, match="weights of another architecture"):
        hf.load("run", architecture="net.py:Wider")
    with pytest.raises(InputError, match=r"'net\.py:ready' has no argument 'classes'"):
        hf.load("run", architecture="net.py:ready")
    with pytest.raises(InputError, match="'small-cnn' is no code"):
        hf.load("run", architecture="small-cnn")
    assert not code.exists()  # net.py was read once, by the person's own word


# -- what comes of it ---------------------------------------------------------------------------


def test_the_weights_that_are_loaded_are_those_that_were_trained(code):
    result = train(own("net.py:Net", width=6), digits(), "run", device="cpu")
    model = hf.load("run", architecture="net.py:Net")
    assert model.conv.out_channels == 6
    assert same(model.state_dict(), weights(Path("run")))
    assert same(model.state_dict(), result.model.state_dict())
    again = train(own("net.py:Net", width=6), digits(), "run", device="cpu")
    assert same(again.model.state_dict(), model.state_dict())


def test_dropout_draws_from_the_runs_seed(code):
    for name in ("one", "two"):
        torch.manual_seed(len(name) * 7)  # what the surrounding program draws must not matter
        torch.rand(3 if name == "one" else 5)
        train(own("net.py:Net"), digits(), name, device="cpu")
    assert same(weights(Path("one")), weights(Path("two")))


def test_a_network_with_other_outputs_gets_a_new_last_layer(code):
    result = train(own("net.py:of_seven"), digits(), "run", device="cpu")
    card = json.loads(Path("run/model/card.json").read_text())
    assert card["classifier"] == "fc"
    model = hf.load("run", architecture="net.py:of_seven")
    assert model.fc.out_features == 10
    assert same(model.state_dict(), result.model.state_dict())


def test_another_file_is_another_run(code):
    train(own("net.py:Net"), digits(), "run", device="cpu")
    Path("other.py").write_text(CODE + "\n# not the same\n")
    before = contents(Path("run"))
    with pytest.raises(InputError, match="another run"):
        train(own("other.py:Net"), digits(), "run", device="cpu")
    assert contents(Path("run")) == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("net.py:Nett", "has no 'Nett'"),
        ("nett.py:Net", "cannot import"),
        ("net.py:broken", "KeyError: 'no such thing'"),
        ("net.py:no_module", "built a int"),
        ("net.py:Path", "built a PosixPath"),
        ("net.py:Shapeless", "logits \\(N, K\\) are needed"),
        ("net.py:Detached", "none reaches the images"),
        ("net.py:Late", "fails at step 0: IndexError: batch of 16"),
        ("net", "is unknown"),
        ("timm:resnet18", "through code of your own"),
    ],
)
def test_what_does_not_work_is_one_line(code, name, says):
    with pytest.raises(InputError, match=says) as error:
        train(own(name), digits(), "run", device="cpu")
    assert len(one_line(error)) < 400
    assert not Path("run").exists() or not any(Path("run").iterdir())


def test_unknown_arguments_name_the_nearest(code):
    with pytest.raises(InputError, match="no argument 'widht'; did you mean 'width'"):
        train(own("net.py:Net", widht=3), digits(), "run", device="cpu")
    with pytest.raises(InputError, match="has no argument 'width'; it has none"):
        train(own("net.py:ready", width=3), digits(), "run", device="cpu")
    with pytest.raises(InputError, match="has 4 classes, the data 10"):
        train(own("net.py:Net", classes=4), digits(), "run", device="cpu")


# -- a module in Python -------------------------------------------------------------------------


class Module(nn.Module):
    """Lazy layers, shared weights, float64, and answers in a dictionary."""

    def __init__(self):
        super().__init__()
        self.first = nn.LazyLinear(64)
        self.second = nn.Linear(64, 64)
        self.third = nn.Linear(64, 64)
        self.third.weight = self.second.weight
        self.head = nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += 1
        x = x.flatten(1).to(self.head.weight.dtype)
        return {"logits": self.head(self.third(torch.relu(self.second(self.first(x)))))}


def test_a_module_is_copied_and_the_trained_copy_returned(tmp_path):
    torch.manual_seed(0)
    module = Module().double()
    module(torch.rand(2, 1, 8, 8))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = hf.train(tiny(**OWN), digits(), tmp_path / "run", model=module, device="cpu")
    assert same(before, module.state_dict())  # it stays as it was
    assert isinstance(result.model, Module) and result.model is not module
    assert not torch.equal(result.model.head.weight, before["head.weight"].float())
    assert torch.equal(result.model.second.weight, result.model.third.weight)
    assert float(result.model.seen) > 0  # buffers that are no batch norm's go with the average
    card = json.loads((tmp_path / "run/model/card.json").read_text())
    assert card["architecture"].endswith(":Module")
    # The same call again reads the run; another module is another run.
    again = hf.train(tiny(**OWN), digits(), tmp_path / "run", model=module, device="cpu")
    assert same(again.model.state_dict(), result.model.state_dict())
    with torch.no_grad():
        module.head.bias += 1
    with pytest.raises(InputError, match="another run"):
        hf.train(tiny(**OWN), digits(), tmp_path / "run", model=module, device="cpu")


def test_training_begins_with_the_modules_weights(tmp_path):
    """Without a step worth the name, the averaged weights are those that were given."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    recipe = tiny(**OWN, optimiser={"learning_rate": 1e-12, "weight_decay": 0})
    result = hf.train(recipe, digits(), tmp_path / "run", model=module, device="cpu")
    for name, value in result.model.state_dict().items():
        torch.testing.assert_close(value, module.state_dict()[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (lambda x: x, "must be a torch.nn.Module, not a function"),
        ("net.py:Net", "must be a torch.nn.Module, not a str"),
        (nn.Flatten(), "64 logits, the data has 10 classes|has no weight"),
        (nn.Sequential(nn.Flatten(), nn.Linear(65, 10)), "fails on images of 1×8×8"),
        (nn.Conv2d(1, 10, 3), "logits \\(N, K\\) are needed"),
    ],
)
def test_modules_that_do_not_fit_are_one_line(tmp_path, module, says):
    with pytest.raises(InputError, match=says) as error:
        hf.train(tiny(**OWN), digits(), tmp_path / "run", model=module, device="cpu")
    assert len(one_line(error)) < 400
    assert not (tmp_path / "run").exists()


# -- kills --------------------------------------------------------------------------------------


def run_own(burns_at: int, folder: str, run: str, log: str) -> None:
    torch.set_num_threads(1)
    training_loop.CHECKPOINT_SECONDS = -1
    Fuse(burns_at, Path(log))
    train(own(f"{folder}/net.py:Net").model_copy(update={"epochs": 2}), digits(), run, device="cpu")


def test_kills_change_nothing_where_the_network_draws_itself(code, tmp_path, in_a_process):
    log = str(tmp_path / "log")
    arguments = (str(tmp_path), "killed", log)
    assert in_a_process(run_own, 0, str(tmp_path), "whole", log) == 0
    for moment in (3, 9, 5, 12):
        assert in_a_process(run_own, moment, *arguments) != 0
    assert in_a_process(run_own, 0, *arguments) == 0
    assert same(weights(Path("whole")), weights(Path("killed")))
