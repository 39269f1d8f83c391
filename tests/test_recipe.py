"""Recipes say exactly one thing, or are refused with the file, the key and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from holdfast.errors import InputError
from holdfast.models import build
from holdfast.training import Recipe, load_recipe
from holdfast.training.recipe import ModelSpec, ThreatSpec, recipe_from

SHIPPED = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    """The one line with which the recipe is refused; it always names the file or the option."""
    file = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_recipe(file, overrides)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600 + sum(map(len, overrides))
    assert str(file) in said or "--set" in said
    return said


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_can_be_trained(file):
    recipe = load_recipe(file)
    with torch.device("meta"):
        build(recipe.model.architecture, recipe.model.arguments)
    assert recipe_from(recipe.to_dict()) == recipe


def test_there_are_shipped_recipes():
    assert any(file.stem == "cifar10-cpu" for file in SHIPPED)


def test_a_recipe_survives_being_written_down():
    recipe = Recipe(
        model=ModelSpec(
            architecture="wide-resnet", arguments={"depth": 16, "mean": [0.5, 0.5, 0.5]}
        ),
        threat=ThreatSpec(norm="l2", eps="0.5"),
        budget="1h30m",
    )
    assert recipe_from(recipe.to_dict()) == recipe
    assert recipe_from(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


def test_keys_that_came_later_are_written_only_when_they_say_something():
    """So that a run from before them is still known as the same run."""
    old = Recipe().to_dict()
    assert "extra" not in old
    assert old["objective"] == {"name": "n-fgsm", "arguments": {}}
    assert "bias_rate" not in old["optimiser"]
    changed = {
        "objective": {"awp": 0.005, "awp_warmup": 0.1, "eps_warmup": 0.5},
        "optimiser": {"bias_rate": 2},
        "extra": {"file": "more.npz"},
    }
    new = recipe_from(changed)
    written_down = new.to_dict()
    assert written_down["objective"]["awp"] == 0.005
    assert written_down["optimiser"]["bias_rate"] == 2
    assert written_down["extra"] == {"file": "more.npz", "share": 0.7}
    assert recipe_from(written_down) == new


def test_a_bad_recipe_made_in_python_is_one_line() -> None:
    for values, says in (
        ({"epochs": 0}, "'epochs' must be a finite number above 0, not 0"),
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'?"),
        ({"model": "cnn"}, "'model' must be a mapping of keys to values, not 'cnn'"),
        ({"optimiser": {"name": "sgdd"}}, "'optimiser': 'name' must be sgd, muon or adam"),
        ({"budget": "soon"}, "budget 'soon' is no length of time"),
    ):
        with pytest.raises(InputError) as caught:
            Recipe(**values)
        assert str(caught.value).startswith(says) and "\n" not in str(caught.value)
        with pytest.raises(InputError) as caught:
            recipe_from(values, "mine.yaml")
        assert str(caught.value).startswith(f"mine.yaml: {says}")


def test_an_empty_mapping_is_the_default_recipe(tmp_path):
    assert load_recipe(written(tmp_path, "{}")) == Recipe()


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("epoch: 3", "epoch", "epochs"),
        ("modle: {}", "modle", "model"),
        ("model: {architectur: small-cnn}", "architectur", "architecture"),
        ("optimiser: {learning_rat: 1}", "learning_rat", "learning_rate"),
        ("threat: {epsilon: 8/255, ep: 1}", "epsilon", "eps"),
        ("objective: {nam: pgd}", "nam", "name"),
        ("objective: {name: n-fgms}", "n-fgms", "n-fgsm"),
        ("objective: {name: trades, arguments: {bata: 6}}", "bata", "beta"),
        ("validation: {stepz: 3}", "stepz", "steps"),
        ("augment: {crop_paddin: 3}", "crop_paddin", "crop_padding"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(tmp_path, text, key, meant):
    said = refusal(tmp_path, text)
    assert repr(key) in said
    assert meant in said


@pytest.mark.parametrize(
    "text",
    [
        "epochs: many",
        "epochs: 0",
        "epochs: -1",
        "epochs: .nan",
        "epochs: .inf",
        f"epochs: 1{'0' * 400}",
        "epochs: true",
        "epochs: [3]",
        "epochs: 2020-01-01",
        "batch_size: 1",
        "batch_size: 12.5",
        "batch_size: '128'",
        "averaging: 1",
        "averaging: -0.1",
        "train_on: test",
        "precision: float16",
        "budget: soon",
        "budget: -5m",
        "budget: true",
        "model: small-cnn",
        "model:",
        "model: {arguments: [1]}",
        "model: {arguments: {width: .nan}}",
        "model: {arguments: {width: 2020-01-01}}",
        "model: {arguments: {1: 2}}",
        "model: {1: 2}",
        "1: 2",
        "~: 2",
        "model: {arguments: {mean: !!set {0.5}}}",
        "model: {architecture: null}",
        "optimiser: {learning_rate: 0}",
        "optimiser: {learning_rate: .inf}",
        "optimiser: {learning_rate: fast}",
        "optimiser: {warmup: 0}",
        "optimiser: {warmup: 1}",
        "optimiser: {momentum: 1}",
        "optimiser: {weight_decay: -1}",
        "optimiser: {clip_gradient: .inf}",
        "optimiser: {bias_rate: 0}",
        "optimiser: {name: sgdd}",
        "extra: {share: 0}",
        "extra: {share: 1}",
        "extra: {file: [a]}",
        "extra: images.npz",
        "augment: {crop_padding: -1}",
        "augment: {crop_padding: 2.5}",
        "augment: {flip: often}",
        "augment: {pad_mode: ones}",
        "validation: {every: 0}",
        "validation: {images: 0}",
        "validation: {steps: 0}",
        "validation: {steps: 1.5}",
        "objective: {arguments: {step: fast}}",
        "objective: {arguments: {step: true}}",
        "objective: {arguments: {step: .inf}}",
        "objective: {arguments: {noise: -1}}",
        "objective: {arguments: {label_smoothing: 1}}",
        "objective: {awp: -0.1}",
        "objective: {awp: 1}",
        "objective: {awp_warmup: 2}",
        "objective: {eps_warmup: -0.1}",
        "objective: {name: diffusion, awp: 0.01}",
        "objective: {name: interval, awp: 0.01}",
        "objective: {name: pgd, arguments: {steps: 0}}",
        "objective: {name: pgd, arguments: {steps: 2.5}}",
        "objective: {name: trades, arguments: {beta: .nan}}",
        "threat: {eps: 0}",
        "threat: {eps: -8/255}",
        "threat: {eps: 8/0}",
        "threat: {eps: .inf}",
        "threat: {eps: .nan}",
        "threat: {eps: eight}",
        "threat: {norm: l7}",
        "threat: {norm: l0}",  # the attacks of training know no l0
    ],
)
def test_bad_values_are_refused_when_the_file_is_read(tmp_path, text):
    refusal(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just words",
        "- a list",
        "a: [1",
        "a: 1\n b: 2",
        "\x07",
        "[" * 2000,
        "epochs: !!bool maybe",
        "epochs: !!timestamp x",
        "epochs: 2001-99-99",
        "epochs: 0x_",
        f"epochs: {'9' * 5000}",
        "? [a]\n: b",
        "--- {}\n--- {}",
    ],
)
def test_what_is_no_recipe_at_all_is_refused_in_one_line(tmp_path, text):
    refusal(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            load_recipe(path)
    (tmp_path / "latin.yaml").write_bytes(b"train_on: \xe9")
    with pytest.raises(InputError, match=r"latin\.yaml"):
        load_recipe(tmp_path / "latin.yaml")


@pytest.mark.parametrize("place", ["file", "--set"])
def test_a_tag_that_would_run_code_runs_nothing(tmp_path, place):
    trap = tmp_path / "ran"
    value = f"!!python/object/apply:os.mkdir ['{trap}']"
    if place == "file":
        refusal(tmp_path, f"epochs: {value}")
    else:
        refusal(tmp_path, "{}", f"epochs={value}")
    assert not trap.exists()


def test_a_bomb_of_aliases_is_refused_before_it_unfolds(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 12):  # 10^12 entries
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    for key in ("epochs: *a11", "model: {arguments: {width: *a11}}", "a: 1"):
        assert "aliases" in refusal(tmp_path, "\n".join([*lines, key]))
    assert "aliases" in refusal(tmp_path, "model: &m {arguments: *m}")


def test_set_reaches_every_level(tmp_path):
    file = written(tmp_path, "optimiser: {momentum: 0.8}\nepochs: 3")
    recipe = load_recipe(
        file,
        [
            "optimiser.learning_rate=5e-2",
            "model.arguments.width=8",
            "model.architecture=small-cnn",
            "model.arguments.mean=[0.5]",
            "epochs=4",
            "epochs=5",
            "threat.eps=4/255",
            "budget=1h30m",
        ],
    )
    assert recipe.optimiser.learning_rate == 0.05
    assert recipe.optimiser.momentum == 0.8
    assert recipe.model == ModelSpec(
        architecture="small-cnn", arguments={"width": 8, "mean": [0.5]}
    )
    assert recipe.epochs == 5  # the last one counts
    assert recipe.threat.eps == "4/255"
    assert recipe.budget == "1h30m"


@pytest.mark.parametrize(
    "override",
    [
        "epochs",
        "=3",
        "",
        "epochs=",
        "epochs=[1",
        "epochs=!!bool x",
        "epochs=2001-99-99",
        f"epochs={'[' * 2000}",
        ".=1",
        "epochs.more=1",
        "model=",
        "model..width=1",
        "model.arguments=3",
        "optimiser.lr=1",
        "__class__=1",
        "optimiser.__init__=1",
        "epoch\ns=1",
    ],
)
def test_hostile_overrides_are_refused(tmp_path, override):
    refusal(tmp_path, "epochs: 3", override)
