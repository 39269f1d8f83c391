"""The training benchmarks measure what they say, shown on runs of seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import digits, tiny

import holdfast as hf
from holdfast import data as datasets
from holdfast.mixing.parameters import Points
from holdfast.models import load_checkpoint
from holdfast.training import load_recipe
from holdfast.training.recipe import recipe_from

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import collapse
import gpu_estimate
import mixture_bound
import one_gpu
import recipe_choices
import speed_page
import table
import training_page
import training_profile

RECIPE = """
model: {architecture: small-cnn, arguments: {width: 3}}
threat: {eps: 0.1}
augment: {crop_padding: 1}
validation: {images: 20, steps: 2}
batch_size: 16
averaging: 0.9
precision: float32
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE)
    return file


def run(monkeypatch, module, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    few = digits()
    monkeypatch.setattr(datasets, "load", lambda source: few)
    module.main()


def test_the_profile_counts_operations_and_accounts_for_all_time(tmp_path, monkeypatch, recipe):
    out = tmp_path / "profile.json"
    run(
        monkeypatch,
        training_profile,
        *("--recipe", recipe, "--device", "cpu", "--steps", 4, "--sizes", 64, "--out", out),
    )
    result = json.loads(out.read_text())
    ours, plain = result["steps"]
    assert (ours["objective"], plain["objective"]) == ("n-fgsm", "standard")
    # Multiply-adds of the passes over 16 images of 8×8, two operations each: convolutions of
    # 1→3, 3→6 at half resolution, 6→6, then a linear layer of 24→10.
    forward = 16 * 2 * (64 * 27 + 16 * 162 + 16 * 324 + 240)
    first = 16 * 2 * 64 * 27  # whose input needs no gradient in training
    assert plain["gflop_per_step"] * 1e9 == pytest.approx(3 * forward - first)
    assert ours["gflop_per_step"] * 1e9 == pytest.approx(5 * forward - first)
    for step in (ours, plain):
        assert step["tflops"] == pytest.approx(step["gflop_per_step"] / step["step_ms"], rel=1e-6)
        assert step["share_of_matmul_rate"] == pytest.approx(
            step["tflops"] / result["matmul_tflops"]
        )
        assert step["phases_ms"].keys() == {
            *("batch", "attack", "forward", "backward", "optimiser", "averaging", "rest")
        }
        assert all(value > 0 for value in step["phases_ms"].values())
        assert step["kinds_ms"]["convolutions"] > 0
        assert step["kinds_ms"]["batch norm"] > 0
    assert ours["phases_ms"]["attack"] > 5 * plain["phases_ms"]["attack"]
    page = "\n".join(speed_page.tables([result]))
    assert f"| standard | {plain['images_per_second']:.0f} |" in page
    assert f"| attack | {ours['phases_ms']['attack']:.1f} |" in page


def test_the_matrix_rate_is_near_that_of_a_timed_product():
    rate = training_profile.matmul_rate(torch.device("cpu"), (256,), seconds=0.05)
    assert 1e8 < rate < 1e15


def test_the_page_says_so_when_nothing_was_measured():
    assert "Not measured yet" in speed_page.tables([])[0]


def test_collapse_measures_the_last_and_the_best_weights(tmp_path, monkeypatch, recipe):
    out, runs = tmp_path / "collapse.json", tmp_path / "runs"
    arguments = ("--recipe", recipe, "--budget", "2m", "--set", "epochs=3", "--limit", 24)
    more = ("--eps", "0.1:2", "--runs", runs, "--device", "cpu", "--out", out)
    # A made-up clock would be another test's: here the budget is dropped, the epochs stay.
    monkeypatch.setattr(collapse, "load_recipe", lambda file, changes: tiny(epochs=3))
    run(monkeypatch, collapse, *arguments, *more)
    result = json.loads(out.read_text())
    assert [row["seed"] for row in result["rows"]] == [0, 1]
    validation = digits().validation
    images = datasets.to_tensor(validation.images)
    labels = torch.from_numpy(validation.labels)
    for row in result["rows"]:
        folder = runs / f"eps-0.1-seed-{row['seed']}"
        last = collapse.final_model(folder)
        held = load_file(folder / "checkpoints" / "latest.safetensors")
        assert torch.equal(last.linear.weight, held["average.linear.weight"])
        attack = hf.attacks.PGD(steps=50, step_size=0.1, loss="margin")
        threat = hf.Threat("linf", 0.1)
        for key, model in (("last", last), ("best", load_checkpoint(folder / "model"))):
            points = attack(model, images, labels, threat, seed=row["seed"], batch_size=250)
            with torch.no_grad():
                standing = float((model(points).argmax(1) == labels).float().mean())
            assert row[key]["pgd50_accuracy"] == pytest.approx(standing)
        assert row["fall"] == pytest.approx(
            row["best"]["pgd50_accuracy"] - row["last"]["pgd50_accuracy"]
        )
        assert row["holds"] is (row["fall"] <= 0.03)
    assert result["n"] == 24
    assert result["split"] == "validation"


def test_choices_train_each_variation_and_keep_what_the_runs_say(tmp_path, monkeypatch, recipe):
    out, runs = tmp_path / "recipe_choices.json", tmp_path / "runs"
    seen = []

    def drop_budget(file, changes):
        seen.append(changes)
        return load_recipe(file, [c for c in changes if not c.startswith("budget")])

    monkeypatch.setattr(recipe_choices, "load_recipe", drop_budget)
    arguments = ("--recipe", recipe, "--set", "epochs=1", "--limit", 24, "--seeds", 2)
    tries = ("--try", "augment.crop_padding=0", "--try", "averaging=0.5 augment.flip=none")
    more = ("--images", 40, "--runs", runs, "--device", "cpu", "--out", out)
    run(monkeypatch, recipe_choices, *arguments, *tries, *more)
    result = json.loads(out.read_text())
    assert result["train_images"] == 40
    assert [(row["tried"], row["seed"]) for row in result["rows"]] == [
        *(("augment.crop_padding=0", seed) for seed in (0, 1)),
        *(("averaging=0.5 augment.flip=none", seed) for seed in (0, 1)),
    ]
    assert "budget=7m" in seen[0]
    trained = [json.loads(file.read_text()) for file in sorted(runs.glob("*/request.json"))]
    assert [told["asked"]["recipe"]["augment"]["crop_padding"] for told in trained] == [0, 0, 1, 1]
    for row, folder in zip(result["rows"], sorted(runs.iterdir()), strict=True):
        told = json.loads((folder / "result.json").read_text())
        held = told["validation"]
        assert held["n"] == result["n"] == 24
        assert told["steps"] == 40 // 16
        assert row["pgd_accuracy"] == held["pgd_accuracy"]
        for name, share in (("standard", "standard_accuracy"), ("pgd", "pgd_accuracy")):
            bits = np.frombuffer(bytes.fromhex(row["right"][name]), np.uint8)
            assert np.unpackbits(bits, count=24).mean() == pytest.approx(row[share])
        right = round(24 * row["standard_accuracy"])
        assert any(
            f"| {right / 24:.1%} (" in line and f"`{row['tried']}` | {row['seed']}" in line
            for line in training_page.choices([result])
        )


def test_choices_of_equal_epochs_have_no_budget(tmp_path, monkeypatch, recipe):
    out, runs = tmp_path / "recipe_choices.json", tmp_path / "runs"
    arguments = ("--recipe", recipe, "--epochs", 1, "--limit", 24, "--images", 40)
    tries = ("--try", "averaging=0.5", "--try", "epochs=2")
    run(monkeypatch, recipe_choices, *arguments, *tries, "--runs", runs, "--out", out)
    result = json.loads(out.read_text())
    assert [row["epochs"] for row in result["rows"]] == pytest.approx([1.0, 2.0], abs=0.1)
    for file in runs.glob("*/request.json"):
        assert json.loads(file.read_text())["asked"]["recipe"]["budget"] is None
    assert any("; 1 epochs a run, on the first 40" in x for x in training_page.choices([result]))


def test_choices_are_compared_image_by_image():
    """Two seeds; the second variation is right where the first is, and on one image more a seed."""

    def row(tried: str, seed: int, right: list[int]) -> dict:
        bits = np.packbits(np.array(right, np.uint8)).tobytes().hex()
        shares = {"standard_accuracy": 0.5, "pgd_accuracy": float(np.mean(right))}
        told = {"tried": tried, "seed": seed, "epochs": 1.0, "machine": "a machine", **shares}
        return {**told, "right": {"standard": bits, "pgd": bits}}

    rows = [
        *(row("a=1", 0, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]), row("a=1", 1, [0] * 10)),
        *(row("a=2", 0, [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]), row("a=2", 1, [1] + [0] * 9)),
    ]
    recipe = load_recipe(Path(__file__).parents[1] / "recipes/cifar10-cpu.yaml").to_dict()
    told = {"recipe": recipe, "budget": "1m", "n": 10, "pixels": "made up", "command": ["x"]}
    lines = training_page.choices([{**told, "rows": rows}])
    assert sum("PGD-10 beside the first" in line for line in lines) == 1
    shown = [line for line in lines if line.startswith("| `a=2`")]
    assert all("+10.0 points (" in line for line in shown) and len(shown) == 2
    (together,) = (line for line in lines if line.startswith("- `a=2`"))
    assert "2 seeds together: +10.0 points" in together and "p = 0.5" in together


def test_one_gpu_measures_each_goal_and_says_which_were_missed(tmp_path, monkeypatch, capsys):
    out, runs = tmp_path / "out", tmp_path / "runs"
    kinds = {one_gpu.GOALS[0].recipe: "n-fgsm", one_gpu.GOALS[-1].recipe: "standard"}
    monkeypatch.setattr(
        one_gpu,
        "load_recipe",
        lambda file, changes: tiny(epochs=2, objective={"name": kinds[file.name]}),
    )
    monkeypatch.setattr(one_gpu, "SUITE", "pgd")
    arguments = ("--data", "digits", "--device", "cpu", "--limit", 24, "--runs", runs, "--out", out)
    told = ["one_gpu", "--only", "43-percent", "accurate", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", told)
    one_gpu.main()
    test = datasets.load("digits").test
    images, labels = datasets.to_tensor(test.images), torch.from_numpy(test.labels)
    robust, accurate = (json.loads((out / f"{n}.json").read_text()) for n in one_gpu.NAMES[:5:4])
    for name, result in (("43-percent", robust), ("accurate", accurate)):
        with torch.no_grad():
            right = load_checkpoint(runs / name / "model")(images[:24]).argmax(1) == labels[:24]
        assert result["standard_accuracy"] == pytest.approx(float(right.float().mean()))
        assert result["n"] == 24 and result["epochs"] == 2 and result["training_seconds"] > 0
    assert robust["suite"] == "pgd" and "robust_accuracy" not in accurate
    assert robust["reached"] is (robust["robust_accuracy"] >= 0.4321)
    assert not accurate["reached"]
    assert "accurate" in capsys.readouterr().out.splitlines()[-1]


def test_every_goal_has_a_recipe_that_can_be_read():
    for goal in one_gpu.GOALS:
        recipe = load_recipe(one_gpu.RECIPES / goal.recipe)
        assert (recipe.objective.name == "standard") is (goal.robust is None)


def test_the_estimate_for_a_gpu_follows_the_line_through_the_runs():
    told = {"run": "a", "width": 8, "steps": 9, "standard_accuracy": 0.7, "n": 10}
    # 10 points for each doubling of the operations.
    found = [
        {**told, "operations": 1e15 * 2**k, "robust_accuracy": 0.3 + 0.1 * k, "pixels": "digits"}
        for k in (-1, 0, 1)
    ]
    operations = [run["operations"] for run in found]
    fitted = gpu_estimate.line(operations, np.array([run["robust_accuracy"] for run in found]))
    assert fitted[1] == pytest.approx(0.1)
    # Drawn again, the line would lie twice as steep, or not rise at all.
    steeper, flat = (
        gpu_estimate.line(operations, np.array([0.4 - s, 0.4, 0.4 + s])) for s in (0.2, -0.1)
    )
    again = tuple(np.array(both) for both in zip(steeper, flat, strict=True))
    made = gpu_estimate.estimates(fitted, again)
    half = next(m for m in made if m["robust_accuracy"] == 0.5)
    assert half["operations"] == pytest.approx(4e15)
    assert half["seconds"]["10%"] == pytest.approx(4e15 / 98.9e12)
    assert half["interval"] == (pytest.approx(2e15 * 2**0.5 / 2), None)
    page = training_page.gpu_estimates(
        [
            {
                "suite": "swift",
                "runs": found,
                "estimates": made,
                "points_per_doubling": 10.0,
                "points_per_doubling_interval": (5.0, 20.0),
                "published_tflops": 989.0,
                "gpu": "one",
                "command": ["it"],
            }
        ]
    )
    row = next(row for row in page if "40 s" in row)
    assert "| 50.00% | 4.0 · 10¹⁵ (1.4 · 10¹⁵ to no bound) |" in row
    assert any("10.0 points of robust accuracy (5.0 to 20.0)" in row for row in page)


def test_verdicts_drawn_again_vary_as_shares_do():
    folder = gpu_estimate.RESULTS / "cifar10-linf-w40-swift"
    stand = gpu_estimate.standing(folder)
    figure = json.loads((folder / "result.json").read_text())["robust_accuracy"]
    assert stand.mean() == pytest.approx(figure)
    one, other = gpu_estimate.drawn_again(np.stack([stand, ~stand]))
    assert one.std() == pytest.approx((figure * (1 - figure) / len(stand)) ** 0.5, rel=0.1)
    assert one + other == pytest.approx(1)  # the same images for all runs


def test_a_command_says_by_what_its_recipe_was_another():
    file, asked = "recipes/cifar10-cpu.yaml", load_recipe("recipes/cifar10-cpu.yaml").to_dict()
    assert table.since_then(file, [], asked) == ""
    asked["augment"] |= {"crop_padding": 3, "pad_mode": "zeros"}
    told = table.since_then(file, [], asked)
    assert "`--set augment.crop_padding=3 --set augment.pad_mode=zeros`" in told
    # What it says is enough: followed today, the recipe is the one of then.
    again = table.changes_in(told.split("`")[1].split())
    assert load_recipe(file, again).to_dict() == asked
    assert table.since_then(file, again, asked) == ""


def test_the_estimate_counts_all_operations_of_a_run(tmp_path):
    folder = tmp_path / "results" / "one" / "training"
    folder.mkdir(parents=True)
    # Judged by two suites: only the figure of the common one counts.
    for place, suite, robust in (
        (folder.parent, "apgd", 0.5),
        (tmp_path / "results/two", "swift", 0.4),
    ):
        place.mkdir(exist_ok=True)
        (place / "request.json").write_text('{"git": "5a"}')
        (place / "result.json").write_text(
            json.dumps(
                {
                    **{
                        "robust_accuracy": robust,
                        "standard_accuracy": 0.7,
                        "suite": suite,
                        "n": 10,
                    },
                    **{"data": {"pixels": "digits"}, "model": {"name": "m", "sha256": "5a"}},
                }
            )
        )
    arguments = {"depth": 8, "stages": 3, "width": 4, "stem_stride": 2}
    asked = tiny(threat={"eps": "8/255"}).to_dict()
    asked["model"] = {"architecture": "preact-resnet", "arguments": arguments}
    (folder / "request.json").write_text(json.dumps({"asked": {"recipe": asked}}))
    (folder / "result.json").write_text(json.dumps({"steps": 5}))
    (run,) = gpu_estimate.runs(tmp_path / "results", digits(), recipe_from(asked))
    once = gpu_estimate.operations_per_step(recipe_from(asked), digits())
    assert run["operations"] == 5 * once > 0 and run["width"] == 4
    assert run["robust_accuracy"] == 0.4
    # Another family is left out: other augmentation, or another threat.
    shifted = tiny(augment={"crop_padding": 3})
    assert gpu_estimate.runs(tmp_path / "results", digits(), shifted) == []
    asked["threat"]["eps"] = "4/255"
    (folder / "request.json").write_text(json.dumps({"asked": {"recipe": asked}}))
    assert gpu_estimate.runs(tmp_path / "results", digits(), recipe_from(asked)) == []


def test_the_best_gate_of_a_mixture_in_closed_form():
    """Four images that stand, two that are wrong when clean; one answered by the robust alone."""
    right = np.array([1, 1, 1, 1, 0, 0], dtype=bool)
    accurate = np.array([1, 1, 1, 0, 1, 1], dtype=bool)
    clean = np.array([9.0, 9.0, 9.0, 1.5, 1.0, 3.0])
    attacked = np.array([2.0, 4.0, 5.0, 1.5, 0.0, 0.0])

    def found(allowed, wanted, **changes):
        given = {"clean": clean, "attacked": attacked, "right": right, "stands": right}
        given |= {"accurate": accurate} | changes
        return mixture_bound.best_gate(**given, allowed=allowed / 6, wanted=wanted / 6)

    assert found(0, 1) == {"gain": 1 / 6, "cost": 0.0}  # the first wrong one costs nothing
    # Beyond 3 lies the second; on the way two are lost, and one that the accurate does not know.
    assert found(2, 2) == {"gain": 1 / 6, "cost": None}
    always = np.ones(6, dtype=bool)
    assert found(1, 2, accurate=always) == {"gain": 1 / 6, "cost": 2 / 6}
    assert found(2, 2, accurate=always) == {"gain": 2 / 6, "cost": 2 / 6}
    # What falls anyway cannot be lost.
    assert found(0, 2, accurate=always, stands=right & (attacked > 3)) == {"gain": 2 / 6, "cost": 0}


@pytest.mark.parametrize(("second", "gain", "cost"), [(0.0, 0.5, 0.0), (0.99, 0.0, 0.5)])
def test_sharpened_logits_help_only_where_the_robust_model_stays_surer(second, gain, cost):
    # Class 0 is right. Attacked, the first image stands, with class 1 at `second`; of the second
    # image the robust model is wrong by a little, and the accurate one right.
    sure, attacked, wrong = [1.0, 0.0, 0.0], [1.0, second, 0.0], [0.9, 1.0, 0.0]
    robust = {0.0: sure, 0.1: attacked, 1.0: wrong, 1.1: wrong}

    def answers(images):
        return torch.tensor([robust[round(float(x), 1)] for x in images.flatten()])

    def accurate(images):
        return torch.tensor([[9.0, 0.0, 0.0]]).repeat(len(images), 1)

    clean = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    points = Points(answers, accurate, clean, torch.tensor([0, 0]))
    points.add(clean + 0.1, worst=True)
    found = mixture_bound.best_sharpened(points, allowed=0.0, wanted=0.5)
    assert found == {"gain": gain, "cost": cost}


def test_a_bound_on_mixtures_is_measured_and_drawn(tmp_path, monkeypatch):
    hf.train(tiny(), digits(), tmp_path / "robust")
    hf.train(tiny(), digits(), tmp_path / "accurate", seed=1)
    out = tmp_path / "mixture_bound.json"
    arguments = (tmp_path / "robust", "--accurate", tmp_path / "accurate", "--steps", 5)
    run(monkeypatch, mixture_bound, *arguments, "--limit", 20, "--out", out)
    result = json.loads(out.read_text())
    (row,) = result["rows"]
    assert result["n"] == 20
    assert 0 <= row["attacked_accuracy"] <= row["standard_accuracy"] <= 1
    scores = {gate["score"] for gate in row["gates"]}
    assert scores == {*mixture_bound.SCORES, "sharpened logits"}
    for known, always in zip(row["gates"][::2], row["gates"][1::2], strict=True):
        assert 0 <= known["gain"] <= always["gain"] <= 1 - row["standard_accuracy"]
    text = "\n".join(training_page.mixture_bounds([result]))
    assert f"{row['standard_accuracy']:.1%}" in text
    assert "at most" in text
