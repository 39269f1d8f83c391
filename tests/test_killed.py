"""Every command, killed at random moments, goes on and comes to the same, bit for bit.

Run as a program, this file forks a process for each try, which kills itself (SIGKILL) at a random
one of all calls and returns of Python and C functions: a moment fixed by a seed, on any machine.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import digits
from verbs import certify_command, evaluate_command, mix_command, uncertainty_command

import holdfast as hf
from holdfast import data as datasets
from holdfast.certification import certify as certification
from holdfast.certification import run as certify
from holdfast.cli import uncertainty as command
from holdfast.models import build, save_checkpoint
from holdfast.search import scheduler as search
from holdfast.training import trainer as training_loop
from holdfast.training.recipe import recipe_from
from holdfast.uncertainty.run import figures as run_figures
from holdfast.uncertainty.run import measurements

RECIPE = {
    "model": {"architecture": "small-cnn", "arguments": {"width": 4}},
    "threat": {"norm": "linf", "eps": "0.1"},
    "objective": {"name": "n-fgsm"},
    "augment": {"crop_padding": 1, "flip": "none"},
    "validation": {"steps": 2, "images": 20},
    "epochs": 2,
    "batch_size": 300,
    "precision": "float32",
}
ALIKE = {"threat": {"norm": "linf", "eps": 0.2}, "classes": [str(i) for i in range(10)]}
# What no two runs have in common.
VOLATILE = {
    "log",
    "seconds",
    "finished",
    "files",
    "images_per_second",
    "stages",
    "batch_size",
    "started",
}
# Work that is done twice is counted twice: what is spent beside the verdicts may differ.
COSTS = {"forwards", "backwards"}


def evaluate(models: Path, out: Path) -> None:
    evaluate_command(
        str(models / "robust"), "digits", out, suite="apgd", norm="linf", eps="0.1", limit=16,
        batch_size=16, precision="original", device="cpu",
    )  # fmt: skip


def sample(models: Path, out: Path) -> None:
    """Twice: the second goes on where the first was narrow enough."""
    for width in ("30%", "16%"):
        evaluate_command(
            str(models / "robust"), "digits", out, suite="pgd", norm="linf", eps="0.1", limit=40,
            batch_size=16, precision="original", device="cpu", until=width,
        )  # fmt: skip


def uncertainty(models: Path, out: Path) -> None:
    options: dict[str, Any] = {"attack": "fgsm", "limit": 12, "calibration": 200, "alpha": 0.2}
    uncertainty_command(str(models / "robust"), "digits", out, **options)


def certified(models: Path, out: Path) -> None:
    options: dict[str, Any] = {"sigma": 0.25, "n0": 10, "n": 60, "limit": 12, "alpha": 0.05}
    certify_command(str(models / "robust"), "digits", out, **options)


def mix(models: Path, out: Path) -> None:
    robust, accurate = str(models / "robust"), str(models / "accurate")
    mix_command(robust, accurate, "digits", out, limit=40, steps=3, cost=0.2)


def train(models: Path, out: Path) -> None:
    hf.train(recipe_from(RECIPE), datasets.load("digits"), out, seed=1, device="cpu")


COMMANDS: dict[str, Callable[[Path, Path], None]] = {
    "evaluate": evaluate,
    "sample": sample,
    "uncertainty": uncertainty,
    "certify": certified,
    "mix": mix,
    "train": train,
}


def small() -> None:
    """Budgets of a test; items in flight, rows and checkpoints are kept all the time."""
    for module, name, value in (
        (measurements, "STEPS", 2),
        (measurements, "SET_STEPS", 2),
        (measurements, "CURVE_IMAGES", 8),
        (measurements, "CURVE_STEPS", 2),
        (measurements, "OOD_ATTACKED", 6),
        (measurements, "OOD_STEPS", 2),
        (measurements, "ROBUST_STEPS", 2),
        (command, "OUT_OF_DISTRIBUTION", 10),
        (command, "TRAINING", 60),
        (command, "MORE", 2),
        (run_figures, "RESAMPLES", 10),
        (search, "CHECKPOINT_SECONDS", 0.0),
        (search, "CHECKPOINT_SHARE", float("inf")),
        (certify, "WRITE_SECONDS", 0.0),
        (training_loop, "CHECKPOINT_SECONDS", -1.0),
    ):
        setattr(module, name, value)
    certification.PASSES = 180  # three images at once


def made(folder: Path) -> Path:
    """Two models: one that reads digits, and one that was trained for a moment."""
    reads, _, _ = digits(1)
    for name, model, width in (("robust", reads, 8), ("accurate", None, 4)):
        model = model or build("small-cnn", {"width": width})
        card = {"architecture": "small-cnn", "arguments": {"width": width}, **ALIKE}
        save_checkpoint(folder / name, model, card)
    return folder


def child(work: Callable[[], None], moment: int | None, told: Path) -> bool:
    """Do the work in a forked process that kills itself at its `moment`-th event; whether it got
    to its end."""
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, "it failed by itself"
        return status == 0
    events = 0

    def count(frame, event, argument):
        nonlocal events
        events += 1
        if events == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        sys.setprofile(count)
        work()
        sys.setprofile(None)
        told.write_text(str(events))
        status = 0
    except BaseException as error:
        sys.setprofile(None)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def settled(value: Any, costs: bool = False) -> Any:
    """What must be the same in every run."""
    if isinstance(value, dict):
        left_out = VOLATILE | (COSTS if costs else set())
        return {k: settled(v, k == "attacks") for k, v in value.items() if k not in left_out}
    return [settled(v, costs) for v in value] if isinstance(value, list) else value


def outcome(out: Path) -> dict[str, Any]:
    """All files of a run, but for what depends on the clock."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if name.endswith(("request.json", ".svg")) or "journal" in name or "checkpoints" in name:
            found[name] = None
        elif path.suffix == ".csv":
            rows = csv.DictReader(path.read_text().splitlines())
            clock = VOLATILE | {"checksum"}
            kept = [row for row in rows if row.get("metric") != "seconds"]
            found[name] = [{k: v for k, v in row.items() if k not in clock} for row in kept]
        elif path.suffix == ".json":
            found[name] = settled(json.loads(path.read_text()))
            found[name].pop("seal", None)
            if name == "result.json":  # costs of the whole, work done twice included
                found[name] = {k: v for k, v in found[name].items() if k not in COSTS}
        else:
            found[name] = path.read_bytes()
    return found


def die_and_resume(folder: Path, kills: int, *names: str) -> None:
    """Forking is safe only before torch has started threads: a process of its own."""
    import lightning_fabric  # noqa: F401 - before the forks: it takes seconds

    torch.set_num_threads(1)
    small()
    models, chance = made(folder / "models"), random.Random(0)
    for name in names:
        work, told = COMMANDS[name], folder / "events"
        whole = folder / f"{name}-whole"
        assert child(lambda w=work, o=whole: w(models, o), None, told)
        expected, events = outcome(whole), int(told.read_text())
        # The same command again reads what it did, and changes nothing.
        before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
        assert child(lambda w=work, o=whole: w(models, o), None, told)
        again = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
        changed = {p.name for p in before.keys() | again.keys() if before.get(p) != again.get(p)}
        changed.discard("journal.sqlite")  # SQLite counts how often it was opened
        assert changed == set(), f"{name}: a finished run changed {changed}"
        fewer = int(told.read_text()) / events
        hits, midst, runs = 0, 0, 0
        while hits < kills:
            out = folder / f"{name}-{runs}"
            tries = 0
            while True:
                # After ten kills in a row a run is let to its end.
                moment = chance.randrange(1, events) if hits < kills and tries < 10 else None
                if child(lambda w=work, o=out: w(models, o), moment, told):
                    break
                hits, tries = hits + 1, tries + 1
                # Between its request and its last result: something was under way.
                midst += (out / "request.json").exists() and outcome(out) != expected
            found = outcome(out)
            wrong = [k for k in expected.keys() | found if expected.get(k) != found.get(k)]
            assert not wrong, f"{name}: run {runs} differs in {wrong} after {hits} kills"
            runs += 1
        print(f"{name}: {hits} kills, {midst} in the midst, {runs} runs, again {fewer:.3f}")


def killed(folder: Path, kills: int, *names: str) -> dict[str, list[float]]:
    """What came of it: kills, those in the midst of work, runs, and the share of the events that a
    finished run takes when it is asked for again."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(kills), *names],
        capture_output=True,
        text=True,
        timeout=3000,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (line.split(": ") for line in done.stdout.splitlines())
    lines = ((name, told) for name, *rest in lines if name in COMMANDS for told in rest)
    return {
        name: [float(word) for word in told.replace(",", "").split() if word[0].isdigit()]
        for name, told in lines
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_few_kills_change_nothing(name: str, tmp_path: Path) -> None:
    hits, midst, _, again = killed(tmp_path, 3, name)[name]
    assert hits == 3 and midst >= 1  # the others fell while the model was loaded and checked
    assert again < 1


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    found = killed(tmp_path, 10, *COMMANDS)
    assert found.keys() == COMMANDS.keys()
    assert sum(hits for hits, *_ in found.values()) >= 50
    assert sum(midst for _, midst, *_ in found.values()) >= 25


if __name__ == "__main__":
    die_and_resume(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
