"""`holdfast list`, `models` and `leaderboard`: for people in 80 columns, for programs as JSON."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from run_folders import evaluation_run
from typer.testing import CliRunner

from holdfast.attacks import SUITES, attack_classes
from holdfast.cli import app
from holdfast.cli.list import Kind, summary
from holdfast.defences import DEFENCES
from holdfast.models import ARCHITECTURES
from holdfast.training.objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parents[1]
THERE = {
    "suites": set(SUITES),
    "attacks": set(attack_classes()),
    "defences": set(DEFENCES),
    "objectives": set(OBJECTIVES),
    "recipes": {file.stem for file in ROOT.glob("recipes/*.yaml")},
    "architectures": set(ARCHITECTURES),
    "models": {file.parent.name for file in ROOT.glob("zoo/*/card.json")},
}


def printed(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def boxes(text: str) -> set[str]:
    return {c for c in text if unicodedata.name(c, "").startswith("BOX DRAWINGS")}


@pytest.mark.parametrize("kind", Kind)
def test_each_is_listed_with_a_line_of_what_it_is(kind: Kind) -> None:
    listed = json.loads(printed("list", kind, "--json"))
    names = [one["name"] for one in listed]
    assert THERE[kind] <= set(names) and len(names) == len(set(names))
    lines = printed("list", kind).splitlines()
    for one in listed:
        assert len(one["summary"]) > 10 and "\n" not in one["summary"]
        (line,) = [line for line in lines if line.split()[:1] == [one["name"]]]
        assert line.endswith(one["summary"])


def test_an_unknown_kind_is_refused() -> None:
    done = CliRunner().invoke(app, ["list", "attack"])
    assert done.exit_code == 2 and "attacks" in done.output


def test_a_summary_is_the_first_sentence() -> None:
    class Thing:
        """Adds 0.5 to e.g. every
        value. Then more.

        And more.
        """

    assert summary(Thing) == "Adds 0.5 to e.g. every value"


def test_models_fit_and_draw_no_boxes() -> None:
    text = printed("models")
    assert max(map(len, text.splitlines())) <= 80
    assert not boxes(text)
    by_name = {model["name"]: model for model in json.loads(printed("models", "--json"))}
    best = by_name["cifar10-linf-2h"]
    assert best["threat"] == {"norm": "linf", "eps": pytest.approx(8 / 255)}
    assert {result["suite"] for result in best["results"]} == {"swift", "autoattack"}
    assert "44.4% (41.3% to 47.5%)" in text
    assert "apgd, L∞ 8/255" in text  # what an undefended model was judged by
    assert "swift, L∞" not in text  # what the others were trained for
    (line,) = [line for line in text.splitlines() if "certified, L2 0.5" in line]
    assert "35.6% (29.7% to 41.9%)" in line and line.endswith(" 250")
    for name in ("cifar10-standard-cpu", "cifar10-autoencoder-cpu", "cifar10-diffusion-cpu"):
        assert by_name[name]["threat"] is None
        assert f"{name}: {by_name[name]['architecture']}, no threat model" in text


def test_a_leaderboard_fits_and_draws_no_boxes(tmp_path: Path) -> None:
    for name, standing in (("cifar10-linf-one-hour", 0.4), ("another", 0.45)):
        evaluation_run(tmp_path / name, name=name, robust=standing, fired=("gradients-vanish",))
    text = printed("leaderboard", tmp_path)
    assert not boxes(text)
    runs = {str(tmp_path / name) for name in ("cifar10-linf-one-hour", "another")}
    assert all(len(line) <= 80 or line.split(";")[0].strip() in runs for line in text.splitlines())
    assert text.index("another") < text.index("cifar10-linf-one-hour")  # the best first
    assert text.count("flags: gradients-vanish") == 2
    listed = json.loads(printed("leaderboard", tmp_path, "--json"))
    assert [row["model"] for row in listed] == ["another", "cifar10-linf-one-hour"]
    assert {row["run"] for row in listed} == runs
    assert all(row["flags"] == ["gradients-vanish"] for row in listed)
