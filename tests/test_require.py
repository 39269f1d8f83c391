"""Requirements: intervals decide, exit status 3, JUnit; what cannot be judged is said first."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import models
import pytest
import yaml
from command_line import command, small_checkpoint
from printed_commands import check
from run_folders import evaluation_run, training_run

import holdfast as hf
from holdfast.errors import InputError
from holdfast.report.requirements import Figure, Requirement, junit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SLIM = RESULTS / "cifar10-linf-slim-swift"  # standard 69.3 %, 66.34 to 72.15; robust 37.8 %


@pytest.mark.parametrize(
    ("text", "name", "sign", "bound"),
    [
        ("robust>=0.40", "robust", ">=", 0.4),
        (" robust  >=  40% ", "robust", ">=", 0.4),
        ("robust_accuracy≥40 %", "robust", ">=", 0.4),
        ("Standard accuracy > 3/4", "standard", ">", 0.75),
        ("certified@8/255 >= .5", "certified@8/255", ">=", 0.5),
        ("ece.suite<=5%", "ece.suite", "<=", 0.05),
        ("flags<1", "flags", "<", 1),
        ("mean_radius =>0.1", "mean-radius", ">=", 0.1),
    ],
)
def test_what_a_requirement_says(text: str, name: str, sign: str, bound: float) -> None:
    found = Requirement.parse(text)
    assert (found.figure, found.sign) == (name, sign)
    assert found.bound == pytest.approx(bound, abs=1e-15)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("robust", "in quotes: a shell takes"),
        ("robust>=", "cannot be read"),
        (">=0.4", "cannot be read"),
        ("robust>=0.4>=0.3", "cannot be read"),
        ("robust==0.4", "use >= or <="),
        ("robust!=0.4", "use >= or <="),
        ("robust=0.4", "use >= or <="),
        ("robust>=four", "'four' is no number"),
        ("robust>=nan", "no finite number"),
        ("robust>=inf", "no finite number"),
        ("robust>=1/0", "is no number"),
        ("robust>=%", "is no number"),
        ("robust>=40", "did you mean 40%?"),
        ("robust>=-0.1", "is a fraction, from 0 to 1"),
        ("robust>=140%", "is a fraction, from 0 to 1"),
        ("robst>=0.4", "did you mean 'robust'?"),
        ("certified>=0.4", "has no figure 'certified'; known: "),
        ("flags<=5%", "flags is a number, not a share"),
        ("\x1b[2Jrobust>0", "has no figure"),
        ("x" * 10_000 + ">=1", "has no figure"),
    ],
)
def test_what_cannot_be_judged_is_one_line_before_any_attack(
    text: str, says: str, monkeypatch, capsys, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        hf.require(SLIM, [text])

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("holdfast.loading.load", never)
    out = tmp_path / "run"
    assert command(monkeypatch, "evaluate", "m", "--out", out, "--require", text) == 2
    told = capsys.readouterr().err
    assert told.startswith("holdfast: requirement") and told.count("\n") == 1 and "\x1b" not in told
    assert not out.exists()


def test_the_ends_of_the_interval_decide() -> None:
    figure = Figure(0.5, (0.4, 0.6))
    for text, met in (
        ("a>=0.4", True), ("a>0.4", False), ("a>=0.41", False), ("a>=0.5", False),
        ("a<=0.6", True), ("a<0.6", False), ("a<=0.5", False), ("a<=0.59", False),
    ):  # fmt: skip
        assert Requirement.parse(text).met_by(figure) is met, text
    alone = Figure(0.5)
    assert Requirement.parse("a>=0.5").met_by(alone) and Requirement.parse("a<=0.5").met_by(alone)
    assert not Requirement.parse("a>=0").met_by(Figure(None, (0.1, 1.0)))
    assert not Requirement.parse("a<=1").met_by(Figure(None))


def test_an_evaluation_is_held_to_its_intervals(monkeypatch, capsys) -> None:
    found = hf.require(SLIM, ["robust>=0.34", "robust>=0.35", "robust>=37.8%", "standard>=2/3"])
    assert [outcome.met for outcome in found.outcomes] == [True, False, False, False]
    assert not found.met and hf.require(SLIM, "standard<=73%").met
    assert command(monkeypatch, "require", SLIM, "robust>=34%", "standard<=73%") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "met      robust>=34%: robust is 37.80% (95 %: 34.78% to 40.89%); the lower end decides"
    )
    assert "the upper end decides" in lines[1]
    assert command(monkeypatch, "require", SLIM, "robust>=34%", "--require", "robust>=37%") == 3
    told = capsys.readouterr()
    assert told.out.splitlines()[1].startswith("not met  robust>=37%")
    assert told.err == f"holdfast: 1 of 2 requirements is not met by {SLIM}\n"
    assert command(monkeypatch, "require", SLIM, "robust>=1", "--json") == 3
    held = json.loads(capsys.readouterr().out)
    assert held["met"] is False and held["requirements"][0]["value"] == 0.378


def test_an_interval_that_is_valid_at_any_time_decides(tmp_path: Path) -> None:
    wide = {"robust_accuracy_anytime_interval": [0.31, 0.52]}
    run = evaluation_run(tmp_path / "run", robust=0.41, **wide)
    (found,) = hf.require(run, "robust>=0.35").outcomes
    assert not found.met and "valid at any time: 31.00% to 52.00%" in str(found)
    assert hf.require(run, "robust>=0.31").met
    plain = evaluation_run(tmp_path / "plain", robust=0.41)
    assert hf.require(plain, "robust>=0.35").met
    # Where all images were judged after all, nothing depended on what was seen.
    whole = evaluation_run(tmp_path / "whole", robust=0.41, stopped="all images", **wide)
    assert hf.require(whole, "robust>=0.35").met
    for wrong in ([0.5], "ab", [0.6, 0.4], [-1, 2], 3):
        broken = evaluation_run(
            tmp_path / f"{wrong}", robust=0.41, robust_accuracy_anytime_interval=wrong
        )
        with pytest.raises(InputError, match="robust_accuracy_anytime_interval"):
            hf.require(broken, "robust>=0.35")


def test_flags_are_counted(tmp_path: Path) -> None:
    clear, fired = evaluation_run(tmp_path / "a"), evaluation_run(tmp_path / "b", fired=("huge",))
    held = json.loads((fired / "result.json").read_text())
    held["flags"][0]["fired"] = True
    (fired / "result.json").write_text(json.dumps(held))
    assert hf.require(clear, "flags<=0").met and not hf.require(fired, "flags<=0").met
    assert hf.require(fired, "flags<=1").met


def test_certifications_and_uncertainty_runs() -> None:
    certified = RESULTS / "certificates-gaussian"  # at 0.25: 57.6 %, 51.21 to 63.80
    at = [("certified@0.25>=0.51", True), ("certified@1/4>=52%", False), ("certified>=0.29", True)]
    for text, met in [*at, ("attacked>=0.57", True), ("mean-radius>=0.4", False)]:
        assert hf.require(certified, text).met is met, text
    with pytest.raises(InputError, match=r"has no figure 'certified@0\.3'"):
        hf.require(certified, "certified@0.3>=0.1")
    with pytest.raises(InputError, match="'x' is no radius"):
        hf.require(certified, "certified@x>=0.1")
    (radius,) = hf.require(certified, "mean-radius>=0.1").outcomes
    assert "no interval in the record" in str(radius) and "the figure itself decides" in str(radius)
    sure = RESULTS / "uncertainty-cifar10-linf-cpu-60m.json"
    found = hf.require(sure, ["coverage>=0.88", "nll.suite<=1.2", "ece<=5%"])
    met = {outcome.name: outcome.met for outcome in found.outcomes}
    assert met == {
        "coverage.lac": True, "coverage.aps": True, "coverage.raps": True,
        "nll.suite": False, "ece": True,
    }  # fmt: skip
    assert hf.require(sure, "corruptions.mean_accuracy>=0.65").met
    with pytest.raises(InputError, match="ece is a fraction"):
        hf.require(sure, "ece<=5")


def test_other_things_than_measured_runs(tmp_path: Path) -> None:
    for thing, says in (
        (training_run(tmp_path / "t"), "is a training: requirements are for"),
        (ROOT / "zoo" / "cifar10-linf-slim", "is a card"),
        (tmp_path / "gone", "does not exist"),
        (tmp_path, "is no run but a folder of 1"),
    ):
        with pytest.raises(InputError, match=says):
            hf.require(thing, "robust>=0.1")
    run = evaluation_run(tmp_path / "run")
    (run / "result.json").write_text((run / "result.json").read_text()[:-50])
    with pytest.raises(InputError, match="cannot be read"):
        hf.require(run, "robust>=0.1")
    with pytest.raises(InputError, match="no requirement is given"):
        hf.require(SLIM, [])
    with pytest.raises(InputError, match="a requirement is text, not float"):
        hf.require(SLIM, [0.4])  # type: ignore[list-item]


def test_a_result_in_memory_is_held_too() -> None:
    model, x, y = models.digits(20)
    result = hf.evaluate(model, x, y, ("linf", 0.05), suite="fgsm")
    low = result.standard_accuracy_interval[0]
    assert hf.require(result, f"standard>={low}").met
    assert not hf.require(result, f"standard>{low}").met
    with pytest.raises(InputError, match="has no figure 'unaware'"):
        hf.require(result, "unaware>=0.1")


@pytest.mark.parametrize(
    ("asked", "more", "says"),
    [
        ("unaware>=0.1", [], "'unaware' is measured behind a --defence only"),
        ("target-reached<=0.1", [], "'target-reached' is measured with --goal target only"),
        (
            "unaware>=0.1",
            ["--goal", "target", "--targets", "random", "--defence", "bit-depth"],
            "'unaware' is not measured with --goal target",
        ),
    ],
)
def test_a_figure_that_this_evaluation_will_not_have_is_told_before_any_attack(
    asked, more, says, tmp_path: Path, monkeypatch, capsys
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an evaluation began")

    monkeypatch.setattr("holdfast.evaluation.evaluate", never)
    words = ["evaluate", small_checkpoint(tmp_path / "m"), "--data", "digits", "--limit", "5"]
    out = tmp_path / "run"
    assert command(monkeypatch, *words, *more, "--out", out, "--require", asked) == 2
    assert capsys.readouterr().err == f"holdfast: requirement {asked!r}: {says}\n"
    assert not out.exists()


def test_a_sample_is_held_to_what_is_valid_at_any_time(tmp_path: Path) -> None:
    model, x, y = models.digits(250)
    result = hf.evaluate(model, x, y, ("linf", 0.03), suite="fgsm", until="12%", run=tmp_path / "r")
    assert result.stopped == "until" and result.n < 250
    low = result.robust_accuracy_anytime_interval[0]
    for run in (result, tmp_path / "r"):
        (found,) = hf.require(run, f"robust>={low}").outcomes
        assert found.met and found.figure.anytime
        assert not hf.require(run, f"robust>{low}").met


def test_evaluate_ends_with_3_and_keeps_its_run(tmp_path: Path, monkeypatch, capsys) -> None:
    out, xml = tmp_path / "run", tmp_path / "ci" / "robust.xml"
    words = ["evaluate", "own_model:build", "--data", "digits", "--limit", "20", "--suite", "fgsm",
             "--eps", "0.1", "--out", out, "--quiet", "--no-curve"]  # fmt: skip
    (tmp_path / "own_model.py").write_text(
        "import torch\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert command(monkeypatch, *words, "--require", "robust>=99%", "--junit", xml) == 3
    told = capsys.readouterr()
    assert "not met  robust>=99%" in told.out and (out / "result.json").is_file()
    assert told.err.endswith(f"holdfast: the requirement is not met by {out}\n")
    first = ET.parse(xml).getroot()
    assert first.get("failures") == "1"
    assert command(monkeypatch, *words, "--require", "robust>=0", "--junit", xml) == 0  # read again
    assert ET.parse(xml).getroot().get("failures") == "0"
    xml.write_text("mine")
    for more in (["--require", "robust>=0", "--junit", xml], ["--junit", tmp_path / "other.xml"]):
        assert command(monkeypatch, *words, *more) == 2
    assert xml.read_text() == "mine" and not (tmp_path / "other.xml").exists()


def test_junit_holds_every_requirement_whatever_the_names(tmp_path: Path) -> None:
    evil = "\x00\x1b</testsuites>\ud800]]>\ufffe&"
    run = evaluation_run(tmp_path / "run", name="m", fired=("gradients-vanish",))
    held = json.loads((run / "result.json").read_text())
    held["model"]["name"] = held["suite"] = evil
    held["flags"][0] |= {"fired": True, "detail": evil}
    (run / "result.json").write_text(json.dumps(held))
    found = hf.require(run, ["robust>=0", "standard>=99%"])
    root = ET.fromstring(junit(found, "run").encode())
    cases = root.findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["robust>=0", "standard>=99%"]
    assert [case.find("failure") is not None for case in cases] == [False, True]
    assert "95 %" in str(cases[1].find("failure").get("message"))  # type: ignore[union-attr]
    said = {p.get("name"): p.get("value") for p in root.iter("property")}
    assert said["flag gradients-vanish"] == "fired" and said["n"] == "1000"
    assert "flag: gradients-vanish" in str(cases[0].findtext("system-out"))


def test_the_workflow_of_the_docs_would_run() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (job,) = yaml.safe_load(block)["jobs"].values()
    lines = [step.get("run", "").replace("\\\n", " ") for step in job["steps"]]
    commands = [line for line in lines if line.startswith("holdfast ")]
    assert len(commands) == 2 and all("runs/robustness" in line for line in commands)
    for line in commands:
        check(line)
    asked = re.findall(r'--require "([^"]+)"', commands[0])
    assert len(asked) == 3 and [Requirement.parse(text) for text in asked]
