"""The command line: contract, errors of one line, exit statuses, nothing half-written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from holdfast import cli
from holdfast.certification.certify import trained_otherwise
from holdfast.evaluation.cards import threat_of
from holdfast.models import build, save_checkpoint
from holdfast.runs.lock import claimed
from holdfast.threat import Threat

CARD = {
    "architecture": "small-cnn",
    "arguments": {"width": 4},
    "classes": [str(i) for i in range(10)],
    "threat": {"norm": "linf", "eps": 0.1},
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit status of `holdfast ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["holdfast", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_checkpoint(tmp_path / "model", build("small-cnn", {"width": 4}), CARD)


def one_line(text: str) -> str:
    assert text.startswith("holdfast: "), text
    assert text.count("\n") == 1 and text.endswith("\n"), text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "--data", "/no/such/folder"], "/no/such/folder"),
        (["train", "no.yaml", "--data", "digits", "--out", "OUT"], "no.yaml"),
        (["evaluate", "no-model", "--data", "digits", "--out", "OUT"], "no-model"),
        (["evaluate", "MODEL", "--data", "digits", "--eps", "0", "--out", "OUT"], "above 0"),
        (["evaluate", "MODEL", "--data", "digits", "--eps", "x", "--out", "OUT"], "'x'"),
        (
            ["evaluate", "MODEL", "--data", "digits", "--norm", "l7", "--eps", "1", "--out", "OUT"],
            "l7",
        ),
        (["evaluate", "MODEL", "--data", "digits", "--suite", "apgdd", "--out", "OUT"], "'apgd'"),
        (["evaluate", "MODEL", "--data", "digits", "--limit", "0", "--out", "OUT"], "--limit"),
        (["evaluate", "MODEL", "--data", "digits", "--split", "devset", "--out", "OUT"], "devset"),
        (["evaluate", "os:nothing_here", "--data", "digits", "--out", "OUT"], "nothing_here"),
        (["evaluate", "no_such_module:f", "--data", "digits", "--out", "OUT"], "no_such_module"),
        (["mix", "MODEL", "no-model", "--data", "digits", "--out", "OUT"], "no-model"),
        (["mix", "MODEL", "MODEL", "--data", "digits", "--limit", "0", "--out", "OUT"], "--limit"),
        (["certify", "MODEL", "--data", "digits", "--sigma", "-1", "--out", "OUT"], "sigma"),
        (["certify", "MODEL", "--data", "digits", "--out", "OUT"], "nn.Sequential"),
        (["report", "/no/such/run"], "/no/such/run"),
        (["leaderboard", "/no/such/folder"], "/no/such/folder"),
        (["frobnicate"], "frobnicate"),
        (["evalaute"], "id you mean 'evaluate'"),
        (["report", "EMPTY"], "is empty"),
        (["report", "ABOVE"], "is no run but a folder of 1 (a)"),
        (["report", "FILE"], "is a file; give the run's folder"),
        (["evaluate", "FILE", "--data", "digits", "--out", "OUT"], "is a file; what can be loaded"),
        (
            ["evaluate", "MODEL", "--data", "digits", "--norm", "Lnif", "--out", "OUT"],
            "the norms are linf, l2",
        ),
        (
            ["evaluate", "cifar10-linf-cpu-60", "--data", "digits", "--out", "OUT"],
            "did you mean 'cifar10-linf-cpu-60m'",
        ),
        (["evaluate", "MODEL", "--out", "OUT", "--epss", "1"], "--eps"),
        (["evaluate", "--out", "OUT"], "model"),
        (["evaluate", "MODEL", "--out", "OUT", "--frob"], "--frob"),
        (["evaluate", "MODEL", "--out", "OUT", "--seed", str(2**63)], "--seed must lie between"),
        (["train", "cifar10-cp", "--data", "digits", "--out", "OUT"], "did you mean 'cifar10-cpu'"),
        (["models", "--fetch", "cifar10-linf-sli"], "did you mean 'cifar10-linf-slim'"),
        (["list", "recipe"], "'recipes'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str],
    says: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out")}
    for name in ("EMPTY", "ABOVE/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ABOVE/a/result.json").write_text("{}")
    (tmp_path / "FILE").write_text("weights")
    places |= {name: str(tmp_path / name) for name in ("EMPTY", "ABOVE", "FILE")}
    assert run(monkeypatch, *(places.get(a, a) for a in arguments)) == 2
    assert says in one_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("train_on", ["train", "train+validation", "train+validation-10"])
def test_a_figure_of_images_that_were_trained_on_says_so(
    train_on: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"{{model: {{architecture: small-cnn, arguments: {{width: 4}}}}, train_on: {train_on}, "
        "epochs: 1, batch_size: 300, precision: float32, validation: {images: 10, steps: 1}}\n"
    )
    line = ("train", recipe, "--data", "digits", "--device", "cpu", "--out", tmp_path / "out")
    assert run(monkeypatch, *line) == 0
    said = capsys.readouterr().out
    assert "(n = 10" in said
    assert ("these images were trained on" in said) == (train_on == "train+validation")


def test_unknown_recipe_key_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("optimiser: {learning_rat: 0.1}\n")
    status = run(monkeypatch, "train", recipe, "--data", "digits", "--out", tmp_path / "out")
    assert status == 2
    error = one_line(capsys.readouterr().err)
    assert "'learning_rat'" in error and "'learning_rate'" in error and "recipe.yaml" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_unwritable_folder(
    verb: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("in the way")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {architecture: small-cnn}\n")
    what = recipe if verb == "train" else model
    status = run(
        monkeypatch, verb, what, "--data", "digits", "--out", tmp_path / "file" / "out", "--quiet"
    )
    assert status == 2
    assert "file" in one_line(capsys.readouterr().err)


def test_a_folder_with_another_run_is_refused_and_left_alone(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    common = ["evaluate", model, "--data", "digits", "--suite", "fgsm", "--quiet", "--no-curve"]
    assert run(monkeypatch, *common, "--limit", 8, "--out", out) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    capsys.readouterr()
    assert run(monkeypatch, *common, "--limit", 9, "--out", out) == 2
    assert "another run" in one_line(capsys.readouterr().err)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_evaluate_writes_what_the_contract_says(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    status = run(
        monkeypatch, "evaluate", model, "--data", "digits", "--suite", "pgd", "--eps", "0.2",
        "--limit", 12, "--out", out, "--pixels", "digits as they are", "--quiet",
    )  # fmt: skip
    assert status == 0
    assert "robust accuracy" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    for key in (
        "schema", "status", "identity", "model", "data", "n", "standard_accuracy",
        "standard_accuracy_interval", "robust_accuracy", "robust_accuracy_interval", "threat",
        "suite", "attacks", "flags", "seconds",
    ):  # fmt: skip
        assert key in result, key
    assert result["threat"] == {"norm": "linf", "eps": 0.2}
    assert result["data"]["pixels"] == "digits as they are"
    assert result["n"] == 12
    for cost in result["attacks"]:
        assert {"name", "broken", "forwards", "backwards", "seconds"} <= cost.keys()
    rows = (out / "verdicts.csv").read_text().splitlines()
    assert len(rows) == 13
    request = json.loads((out / "request.json").read_text())
    assert request["identity"] == result["identity"]
    assert {"versions", "device", "git", "command"} <= request.keys()

    page = tmp_path / "page.html"
    assert run(monkeypatch, "report", out, "--out", page) == 0
    assert "<html" in page.read_text()
    assert run(monkeypatch, "leaderboard", tmp_path) == 0
    assert "pgd" in capsys.readouterr().out


def test_ctrl_c_is_one_line_and_status_130(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.evaluation.evaluate", interrupted)
    command = ["evaluate", model, "--data", "digits", "--out", tmp_path / "out"]
    assert run(monkeypatch, *command) == 130
    assert "the same command goes on" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_one_process_does_is_refused_to_several_in_one_line(
    rank: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(monkeypatch, "mix", model, model, "--data", "digits", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert ("without torchrun" in one_line(said)) if rank == "0" else not said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["certify", "uncertainty", "mix", "evaluate"])
def test_two_of_a_command_at_one_folder_give_one_line(
    verb: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    out, options = tmp_path / "out", ["--sigma", "0.25"] if verb == "certify" else []
    models = [model] * (2 if verb == "mix" else 1)
    with claimed(out):
        status = run(monkeypatch, verb, *models, *options, "--data", "digits", "--out", out)
        assert status == 2
        assert "is being worked on by process" in capsys.readouterr().err


def test_norms_are_known_in_any_case() -> None:
    assert threat_of("Linf", None, {}) == Threat("LINF", 8 / 255) == Threat("linf", 8 / 255)


@pytest.mark.parametrize(
    ("objective", "sigma", "says"),
    [
        (
            {"name": "gaussian", "arguments": {"sigma": 0.25}},
            1.0,
            "trained at σ = 0.25, certified at 1",
        ),
        ({"name": "gaussian", "arguments": {}}, 0.25, ""),
        ({"name": "n-fgsm", "arguments": {}}, 0.25, "trained without noise"),
        ({"name": "interval", "arguments": {}}, None, "trained at L∞ 0.1, certified at L∞ 0.2"),
        (None, 1.0, ""),
    ],
)
def test_certificates_at_what_a_model_was_not_trained_for_say_so(objective, sigma, says) -> None:
    card = {"threat": {"norm": "linf", "eps": 0.1}}
    if objective:
        card["recipe"] = {"objective": objective}
    found = trained_otherwise(card, sigma, Threat("linf", 0.2))
    assert says in found and bool(says) == bool(found)


def test_help_needs_no_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 0
    assert "evaluate" in capsys.readouterr().out


def test_data_lists_digits_exactly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "data", "--data", "digits") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Training data:  (1197, 1, 8, 8)"
    assert lines[9] == "Label names:  (10,)"
    assert lines[-1].split() == ["9", "9", "120", "30", "30"]
    assert len(lines) == 21


def test_a_mixture_that_gains_nothing_says_so(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a model and itself: every mixture answers alike."""
    asked = ["mix", model, model, "--data", "digits", "--limit", 20, "--steps", 2, "--quiet"]
    assert run(monkeypatch, *asked, "--out", tmp_path / "mixed") == 0
    assert "this is the robust model alone" in capsys.readouterr().out


@pytest.mark.parametrize(("split", "seen"), [("validation", True), ("test", False)])
def test_a_verdict_on_images_that_were_trained_on_says_so(
    split: str,
    seen: bool,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    card = shutil.copytree(model, tmp_path / "knows") / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"trained_on": "train+validation"}))
    asked = ["--data", "digits", "--suite", "fgsm", "--limit", "20", "--split", split, "--quiet"]
    out = tmp_path / "out"
    assert run(monkeypatch, "evaluate", str(tmp_path / "knows"), *asked, "--out", str(out)) == 0
    told = "the model was trained on train+validation"
    assert (told in " ".join(capsys.readouterr().out.split())) == seen
    result = json.loads((out / "result.json").read_text())
    assert result["data"]["seen_in_training"] == seen
    assert result["model"]["trained_on"] == "train+validation"
