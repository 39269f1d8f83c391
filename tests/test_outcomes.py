"""An attack that was not tried is told from one that found nothing; figures that do not compare are
told apart, and charts say what they are drawn from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import models
import pytest
from run_folders import evaluation_run

from holdfast import cli
from holdfast.attacks import SUITES, suite_named
from holdfast.cli import leaderboard
from holdfast.evaluation import evaluate
from holdfast.evaluation.result import distinct_names
from holdfast.report import write_report
from holdfast.runs.records import AttackCost
from holdfast.threat import Threat


def outcomes(result) -> dict[str, str]:
    return {cost.name: cost.outcome for cost in result.attacks}


def test_what_a_suite_did_not_need_is_told(tmp_path: Path) -> None:
    model, x, y = models.digits(20)
    result = evaluate(model, x, y, Threat("linf", 0.05), "swift", run=tmp_path / "run")
    told = outcomes(result)
    assert told.pop("swift") == told.pop("square, on a sample") == "ran"
    assert set(told.values()) == {"not needed: no sign that gradients mislead"}
    stored = json.loads((tmp_path / "run" / "result.json").read_text())["attacks"]
    assert [a["outcome"] for a in stored] == [cost.outcome for cost in result.attacks]


def test_what_found_nothing_left_is_told() -> None:
    model = models.linear(3)
    x = models.images(6)
    result = evaluate(model, x, models.answers(model, x), Threat("linf", 0.99), "apgd")
    assert list(outcomes(result).values()) == ["ran", "not needed: nothing stood any more"]


def test_nothing_is_needed_where_all_are_wrong_before() -> None:
    model = models.linear(3)
    x = models.images(4)
    wrong = (models.answers(model, x) + 1) % 3
    result = evaluate(model, x, wrong, Threat("linf", 0.1), "autoattack")
    assert set(outcomes(result).values()) == {"not needed: nothing stood any more"}


def test_what_needs_gradients_that_are_not_there_is_told() -> None:
    body = models.linear(3)
    x = models.images(5)
    result = evaluate(
        models.without_torch(body), x, models.answers(body, x), Threat("linf", 0.4), "autoattack"
    )
    told = outcomes(result)
    assert told.pop("square") == "ran"
    assert len(told) == 3
    assert all(why.startswith("not run: it needs gradients") for why in told.values())


def test_what_does_not_know_the_norm_is_told() -> None:
    suite = suite_named("minimum")
    left = suite.without(suite.fitting(Threat("l0", 3)))
    assert {stage.name for stage in left} >= {"ddn", "deepfool"}
    assert not suite.without(suite)
    model = models.linear(3)
    x = models.images(2)
    result = evaluate(model, x, models.answers(model, x), Threat("l0", 3), "minimum")
    told = outcomes(result)
    assert len(told) == len(SUITES["minimum"][1]())
    assert told["ddn"] == "not run: does not know the norm l0"


@pytest.mark.parametrize(
    ("stored", "outcome"),
    [
        ({"broken": 0, "forwards": 0, "backwards": 0}, "not needed"),
        ({"broken": 0, "forwards": 9, "backwards": 0}, "ran"),
        ({"broken": 0, "forwards": 0, "backwards": 0, "outcome": "not run: x"}, "not run: x"),
        ({"broken": 0}, "ran"),
    ],
)
def test_results_of_before_are_read_too(stored, outcome) -> None:
    assert AttackCost.checked({"name": "a", **stored}, "result").outcome == outcome


def test_terminal_and_page_say_so(tmp_path, monkeypatch, capsys) -> None:
    out, page = tmp_path / "run", tmp_path / "page.html"
    result = evaluate(*models.digits(20), Threat("linf", 0.05), "swift", run=out)
    monkeypatch.setattr("holdfast.cli.evaluate.run", lambda options: result)
    monkeypatch.setattr(sys, "argv", ["holdfast", "evaluate", "m", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    printed = capsys.readouterr().out
    write_report([out], page)
    for name in ("apgd-ce", "square"):
        (line,) = [line for line in printed.splitlines() if line.split()[:2] == [name, "not"]]
        assert "not needed: no sign that gradients mislead" in line
        assert "broke" not in line
    assert page.read_text().count("not needed: no sign that gradients mislead") == 4


# --- figures that do not compare ------------------------------------------------------------------


def test_names_are_told_apart_by_weights() -> None:
    assert distinct_names(["a", "a", "b"], ["1" * 64, "2" * 64, "1" * 64]) == [
        "a, weights 11111111",
        "a, weights 22222222",
        "b",
    ]
    assert distinct_names(["a", "a"], ["1" * 64, "1" * 64]) == ["a", "a"]
    assert distinct_names(["a", "a"], ["", "1" * 64]) == [
        "a, weights unknown",
        "a, weights 11111111",
    ]


def test_a_leaderboard_tells_apart_models_of_one_name_and_says_which_n(tmp_path, capsys) -> None:
    for number, n in enumerate((40, 80)):
        folder = tmp_path / f"run-{number}"
        evaluation_run(folder, n=n)
        file = folder / "result.json"
        result = json.loads(file.read_text())
        result["model"]["sha256"] = str(number) * 64
        file.write_text(json.dumps(result))
    asked = leaderboard.Options(tmp_path)
    leaderboard.show(leaderboard.run(asked), asked)
    printed = " ".join(capsys.readouterr().out.split())
    assert "weights 00000000" in printed
    assert "weights 11111111" in printed
    assert "not on the same images: n = 40, 80" in printed
    page = write_report([tmp_path / "run-0", tmp_path / "run-1"], tmp_path / "p.html").read_text()
    assert "weights 00000000" in page
    assert "not on the same images" in page
