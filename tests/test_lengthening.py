"""A finished run goes on; one whose robust accuracy no longer rises stops."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import command
from test_training import (
    Fuse,
    Played,
    contents,
    digits,
    figures,
    in_a_process,
    one_line,
    outcome,
    same,
    tiny,
    weights,
)

import holdfast as hf
from holdfast.errors import InputError
from holdfast.training import train
from holdfast.training import trainer as training_loop
from holdfast.training.recipe import Recipe, recipe_from

__all__ = ["in_a_process"]  # a fixture

SHORT, LONG = tiny(epochs=2), tiny(epochs=5)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("lengthening") / "short"
    train(SHORT, digits(), run, device="cpu")
    return run


@pytest.fixture
def run(short, tmp_path) -> Path:
    """A copy of a finished run of two epochs."""
    return Path(shutil.copytree(short, tmp_path / "run"))


def read(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / name).read_text())


def events(run: Path) -> list[dict[str, Any]]:
    """Those of being lengthened, without their dates."""
    held = [e for e in read(run, "result.json")["events"] if e["kind"] == "lengthened"]
    return [{**e, "detail": e["detail"].partition(" on ")[0]} for e in held]


# -- longer -------------------------------------------------------------------------------------


def test_a_finished_run_goes_on_and_says_so(short, run, capsys):
    result = train(LONG, digits(), run, device="cpu", progress=True)
    said = capsys.readouterr().err
    assert "going on from epoch 2.00" in said and "lengthened from 2 epochs to 5 epochs" in said
    assert "goes on at 40% of its new length, with a learning rate of 75% of its peak" in said
    assert result.epochs == 5 and result.steps == 15
    # What was measured before stands; what comes after is new.
    assert figures(run)[:2] == figures(short)
    assert len(figures(run)) == 5
    (event,) = events(run)
    assert event["epoch"] == 2
    # Its first steps were those of a shorter schedule: it is no run of five epochs from the start.
    asked = read(run, "request.json")["asked"]
    assert asked["recipe"]["epochs"] == 5
    assert asked["lengthened"] == [{"epochs": 2, "steps": 6}]
    assert read(run, "result.json")["identity"] == read(run, "request.json")["identity"]
    assert read(run, "request.json")["identity"] != read(short, "request.json")["identity"]
    assert hf.read(run).epochs == 5  # every checksum holds
    hf.load(run)


def test_the_same_command_again_reads_it(run, capsys):
    train(LONG, digits(), run, device="cpu")
    before = contents(run)
    again = train(LONG, digits(), run, device="cpu", progress=True)
    assert contents(run) == before and again.epochs == 5
    assert "was finished on" in capsys.readouterr().err
    train(tiny(epochs=6), digits(), run, device="cpu")  # and once more
    assert read(run, "request.json")["asked"]["lengthened"] == [
        {"epochs": 2, "steps": 6},
        {"epochs": 5, "steps": 15},
    ]
    assert [event["epoch"] for event in events(run)] == [2, 5]


def test_the_learning_rate_is_that_of_the_longer_schedule_at_this_point(run):
    train(LONG, digits(), run, device="cpu")
    rates = [float(row["learning_rate"]) for row in figures(run)]
    # Peak 0.1 at 20 % of the schedule, then linear to 0; the last step of each epoch.
    spot = [(3 * epoch - 1) / 15 for epoch in (3, 4, 5)]
    assert rates[2:] == pytest.approx([0.1 * (1 - p) / 0.8 for p in spot], abs=1e-5)
    assert rates[1] == pytest.approx(0.1 * (1 - 5 / 6) / 0.8, abs=1e-5)


def test_two_copies_lengthened_are_the_same_bit_for_bit(short, run, tmp_path):
    other = Path(shutil.copytree(short, tmp_path / "other"))
    for each in (run, other):
        train(LONG, digits(), each, device="cpu")
    assert same(weights(run), weights(other))
    assert figures(run) == figures(other)


def test_batches_are_those_of_a_long_run_from_the_start(run, tmp_path, monkeypatch):
    """With a constant rate and nothing that goes by the schedule, lengthening changes no bit."""
    constant = {"optimiser": {"warmup": 1e-9, "hold": 1.0}, "averaging": 0.5}
    train(tiny(epochs=2, **constant), digits(), tmp_path / "a", device="cpu")
    train(tiny(epochs=4, **constant), digits(), tmp_path / "a", device="cpu")
    train(tiny(epochs=4, **constant), digits(), tmp_path / "b", device="cpu")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert figures(tmp_path / "a") == figures(tmp_path / "b")


def test_eps_that_grows_is_said(tmp_path, capsys):
    warm = {"objective": {"eps_warmup": 0.8}}
    train(tiny(epochs=2, **warm), digits(), tmp_path, device="cpu")
    train(tiny(epochs=4, **warm), digits(), tmp_path, device="cpu", progress=True)
    assert "and ε 62% of its last value" in capsys.readouterr().err


def test_the_report_says_so_without_alarm(run, tmp_path):
    train(LONG, digits(), run, device="cpu")
    page = hf.write_report([run], tmp_path / "page.html").read_text()
    assert "lengthened from 2 epochs to 5 epochs" in page
    assert "went wrong" not in page  # nothing did
    (card,) = re.findall(r'<div class="([\w-]+)">\s*<h4>Epoch 2: lengthened', page)
    assert card == "card"


# -- what is refused ----------------------------------------------------------------------------


def test_a_shorter_run_is_refused(run):
    before = contents(run)
    for epochs in (1, 1.5):
        with pytest.raises(InputError, match="lengthened, not shortened") as error:
            train(tiny(epochs=epochs), digits(), run, device="cpu")
        assert "--set epochs=2" in one_line(error)
    assert contents(run) == before
    train(LONG, digits(), run, device="cpu")
    before = contents(run)
    with pytest.raises(InputError, match="5 epochs, not 2 epochs"):  # its own old command
        train(SHORT, digits(), run, device="cpu")
    assert contents(run) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 5, "batch_size": 8},
        {"epochs": 5, "optimiser": {"learning_rate": 0.2}},
        {"epochs": 2, "budget": "10h"},
        {"epochs": 5, "patience": 3},
    ],
)
def test_whatever_else_differs_is_another_run(run, changes):
    before = contents(run)
    with pytest.raises(InputError, match="another run"):
        train(tiny(**changes), digits(), run, device="cpu")
    with pytest.raises(InputError, match="another run"):
        train(LONG, digits(48), run, device="cpu")
    with pytest.raises(InputError, match="another run"):
        train(LONG, digits(), run, device="cpu", seed=1)
    assert contents(run) == before


def test_an_unfinished_run_is_finished_first(run):
    (run / "result.json").unlink()
    before = contents(run)
    with pytest.raises(InputError, match="not finished: finish it as it was begun") as error:
        train(LONG, digits(), run, device="cpu")
    one_line(error)
    assert contents(run) == before


def test_without_its_checkpoint_it_cannot_go_on(run):
    (run / "checkpoints" / "latest.safetensors").unlink()
    before = contents(run)
    with pytest.raises(InputError, match=r"its last checkpoint.*is gone") as error:
        train(LONG, digits(), run, device="cpu")
    one_line(error)
    assert contents(run) == before


@pytest.mark.parametrize("name", ["request.json", "result.json"])
def test_damaged_files_are_one_line_and_left_as_they_are(run, name):
    (run / name).write_bytes((run / name).read_bytes()[:-9])
    before = contents(run)
    with pytest.raises(InputError) as error:
        train(LONG, digits(), run, device="cpu")
    one_line(error)
    assert contents(run) == before


def test_a_budget_is_lengthened_too(tmp_path, monkeypatch):
    """By a clock of its own: every lap takes a second."""
    monkeypatch.setattr(training_loop.Trainer, "_lap", lambda self: 1.0)
    result = train(tiny(budget="40s"), digits(), tmp_path, device="cpu")
    steps = result.steps
    with pytest.raises(InputError, match="another run \\(40s, not 30s\\)"):
        train(tiny(budget="30s"), digits(), tmp_path, device="cpu")
    longer = train(tiny(budget="1m20s"), digits(), tmp_path, device="cpu")
    assert longer.steps > steps + 5 and 70 <= longer.seconds <= 82
    assert events(tmp_path)[0]["detail"] == "lengthened from 0:40 to 1:20"
    assert read(tmp_path, "request.json")["asked"]["lengthened"] == [
        {"budget": "40s", "steps": steps}
    ]


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(tiny(epochs=1).to_dict()))
    words = ["train", file, "--data", "digits", "--out", tmp_path / "run", "--quiet"]
    assert command(monkeypatch, *words) == 0
    assert command(monkeypatch, *words, "--set", "epochs=2") == 0
    assert "lengthened from 1 epoch to 2 epochs" in capsys.readouterr().out
    assert command(monkeypatch, *words, "--set", "epochs=1") == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- kills --------------------------------------------------------------------------------------


def lengthen(burns_at: int, run: str, log: str) -> None:
    torch.set_num_threads(1)
    training_loop.CHECKPOINT_SECONDS = -1
    Fuse(burns_at, Path(log))
    train(LONG, digits(), run, device="cpu")


def test_kills_while_it_is_lengthened_change_nothing(short, run, tmp_path, in_a_process):
    log, whole = str(tmp_path / "log"), shutil.copytree(short, tmp_path / "whole")
    assert in_a_process(lengthen, 0, str(whole), log) == 0
    # Before and while the request is written, right after it, and on the way.
    for moment in (1, 2, 3, 4, 5, 9, 17, 6):
        assert in_a_process(lengthen, moment, str(run), log) != 0
        names = {path.name for path in run.iterdir()}
        assert {"request.json", "model", "metrics.csv"} <= names
    assert in_a_process(lengthen, 0, str(run), log) == 0
    assert same(weights(run), weights(Path(whole)))
    assert figures(run) == figures(Path(whole))
    assert events(run) == events(Path(whole))
    found, wanted = outcome(run), outcome(Path(whole))
    assert {**found, "events": 0} == {**wanted, "events": 0}
    assert contents(run).keys() == contents(Path(whole)).keys()


# -- patience -----------------------------------------------------------------------------------

HEALTHY = 0.6, 0.5  # live figures


def robust(*pgd: float) -> list[tuple[float, float, float]]:
    return [(value, *HEALTHY) for value in pgd]


@pytest.mark.parametrize(
    ("patience", "measured", "stops_after"),
    [
        (1, (0.3, 0.4, 0.4, 0.9), 3),  # the same again is no rise
        (2, (0.3, 0.4, 0.2, 0.41, 0.4, 0.4, 0.9), 6),
        (2, (0.5, 0.4, 0.3, 0.9), 3),
        (3, (0.1, 0.2, 0.3, 0.4, 0.5), 5),  # it always rises
        (9, (0.5, 0.4, 0.4, 0.4), 4),  # the schedule ends first
        (0, (0.5, 0.4, 0.4, 0.4), 4),
    ],
)
def test_patience_stops_at_the_right_moment(tmp_path, monkeypatch, patience, measured, stops_after):
    Played(monkeypatch, *robust(*measured))
    recipe = tiny(epochs=len(measured), patience=patience)
    result = train(recipe, digits(), tmp_path, device="cpu")
    assert result.epochs == stops_after
    stopped = [event for event in result.events if event["kind"] == "patience"]
    assert len(stopped) == (stops_after < len(measured))
    best = max(measured[:stops_after])
    assert result.validation["pgd_accuracy"] == best  # the best weights are kept
    if stopped:
        assert stopped[0]["epoch"] == stops_after
        assert f"{best:.1%}" in stopped[0]["detail"]


def test_it_is_said_on_the_way_and_on_the_terminal(tmp_path, monkeypatch, capsys):
    Played(monkeypatch, *robust(0.5, 0.4))
    train(tiny(epochs=4, patience=1), digits(), tmp_path, device="cpu", progress=True)
    said = capsys.readouterr().err
    assert "epoch 2.0: stopped after 50% of the schedule: PGD 40.0% is the 1. validation" in said
    assert "50.0%" in said


def test_a_run_that_stopped_can_be_lengthened_and_waits_anew(tmp_path, monkeypatch):
    Played(monkeypatch, *robust(0.5, 0.4, 0.4, 0.4))
    assert train(tiny(epochs=4, patience=1), digits(), tmp_path, device="cpu").epochs == 2
    # The same command reads it; a longer one goes on until it has waited again.
    assert train(tiny(epochs=4, patience=1), digits(), tmp_path, device="cpu").epochs == 2
    longer = train(tiny(epochs=9, patience=1), digits(), tmp_path, device="cpu")
    assert longer.epochs == 4  # 0.4 is the first to compare with, then 0.4 again
    kinds = [event["kind"] for event in longer.events]
    assert kinds == ["patience", "lengthened", "patience"]
    assert longer.validation["pgd_accuracy"] == 0.5


@pytest.mark.parametrize("objective", ["standard", "gaussian"])
def test_where_no_robustness_is_trained_what_chooses_the_weights_counts(
    tmp_path, monkeypatch, objective
):
    rows = iter([0.3, 0.5, 0.4, 0.4, 0.9])
    figures_of = training_loop.Validator.figures

    def played(self, *models):
        value = next(rows)
        held = figures_of(self, *models)
        return {**held, "validation_accuracy": value, **self_of(held, value)}

    def self_of(held, value):
        return {k: value for k in held if k == "validation_noisy_accuracy"}

    monkeypatch.setattr(training_loop.Validator, "figures", played)
    recipe = tiny(epochs=5, patience=2, objective={"name": objective}, threat={"norm": "l2"})
    assert train(recipe, digits(), tmp_path, device="cpu").epochs == 4


@pytest.mark.parametrize("value", [-1, 1.5, "many", True])
def test_what_is_no_patience_is_one_line(value):
    with pytest.raises(InputError, match="patience") as error:
        recipe_from({"patience": value})
    one_line(error)


def test_patience_needs_images_that_are_not_trained_on():
    with pytest.raises(InputError, match="patience needs validation images"):
        tiny(patience=2, train_on="train+validation")
    assert isinstance(tiny(patience=2, train_on="train+validation-20"), Recipe)


PATIENT = tiny(epochs=12, patience=2, optimiser={"learning_rate": 1e-6})


def patient(burns_at: int, run: str, log: str) -> None:
    torch.set_num_threads(1)
    training_loop.CHECKPOINT_SECONDS = -1
    Fuse(burns_at, Path(log))
    train(PATIENT, digits(), run, device="cpu")


def test_what_was_waited_survives_kills(tmp_path, in_a_process):
    log, whole, killed = (str(tmp_path / name) for name in ("log", "whole", "killed"))
    assert in_a_process(patient, 0, whole, log) == 0
    assert hf.read(whole).epochs < 12
    for moment in (11, 20, 14):
        assert in_a_process(patient, moment, killed, log) != 0
    assert in_a_process(patient, 0, killed, log) == 0
    assert outcome(Path(killed)) == outcome(Path(whole))
    assert same(weights(Path(whole)), weights(Path(killed)))
