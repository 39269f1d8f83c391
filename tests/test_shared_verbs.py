"""`certify`, `judge` and `uncertainty` share their work among processes.

They come to what one process comes to. As in `test_workers`, this file run as a program forks the
processes and writes down what they say.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from teams import team

import holdfast as hf
from holdfast.certification import run as certifying
from holdfast.errors import InputError
from holdfast.runs.files import read_json
from holdfast.uncertainty.run import figures, measurements

N, CLASSES = 40, 4
THREAT = hf.Threat("linf", 0.02)
KEPT = 8  # images that a process certifies before it dies
OTHER = "certificates-1-0123456789abcdef.csv"  # another run's


def problem() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    model = models.Net(CLASSES, seed=2, scale=9.0)
    x = models.images(N, seed=2)
    labels = models.answers(model, x)
    labels[3] = (labels[3] + 1) % CLASSES
    return model, x, labels


# -- the program -----------------------------------------------------------------------------------


def certified(out: Path, seed: int = 0) -> Any:
    torch.set_num_threads(1)
    sys.modules[hf.certify.__module__].PASSES = 1200  # type: ignore[attr-defined]: 4 images at once
    model, x, labels = problem()
    return hf.certify(
        model, x, labels, sigma=0.1, n0=8, n=300, eps=0.1, batch_size=4096, seed=seed, run=out
    )


def rows_of(result: Any) -> list[dict[str, Any]]:
    return [asdict(replace(row, seconds=0.0)) for row in result.rows]


def twice(out: Path) -> Any:
    result = certified(out)
    again = certified(out)  # read, not certified again
    return [rows_of(result), result.identity, result.finished, again.finished]


def dying(out: Path, dies: bool) -> Any:
    """The rows, and which images this process worked on; it may die before."""
    real, parts = certifying._certified, list[int]()

    def counted(method: Any, images: Any, labels: Any, rows: torch.Tensor) -> Any:
        if dies and len(parts) == KEPT:
            os.kill(os.getpid(), signal.SIGKILL)
        parts.extend(rows.tolist())
        return real(method, images, labels, rows)

    certifying._certified, certifying.WRITE_SECONDS = counted, 0.0
    return [rows_of(certified(out)), parts]


def judged(out: Path, given: bool) -> Any:
    torch.set_num_threads(1)
    model, x, labels = problem()
    if given:
        result = hf.judge(model, x, labels, (x + 0.01).clamp(0, 1), THREAT, run=out)
    else:
        source = models.Net(CLASSES, seed=5, scale=9.0)
        result = hf.judge(model, x, labels, THREAT, source=source, suite="pgd", run=out)
    return [
        [asdict(verdict) for verdict in result.verdicts],
        result.transfer and result.transfer.to_dict(),
        result.adversarial[:].flatten().tolist(),
    ]


def deaths(folder: Path, name: str) -> list[Any]:
    """What is said by two processes of which one dies, what it leaves, what the next two say."""

    def run(rank: int) -> Path:
        return folder / name.format(rank)

    first = team(folder, 2, lambda rank: dying(run(rank), rank == 1))
    left = [len(certifying.read_rows(file)) for file in run(1).glob("certificates-1-*")]
    (run(1) / OTHER).write_text("not a table")
    return [first, left, team(folder, 2, lambda rank: dying(run(rank), False))]


def unsure(out: Path | None, dies: bool = False) -> Any:
    """The result, and which attacks this process made; it may die before the last one."""
    torch.set_num_threads(1)
    made: list[str] = []
    for name in ("attack_predictions", "attack_confidence", "attack_sets"):
        real = getattr(measurements, name)

        def counted(*given: Any, name: str = name, real: Any = real, **named: Any) -> Any:
            if dies and name == "attack_sets":
                os.kill(os.getpid(), signal.SIGKILL)
            made.append(name)
            return real(*given, **named)

        setattr(measurements, name, counted)
    for name in ("STEPS", "UNAWARE_STEPS", "SET_STEPS", "CURVE_STEPS", "OOD_STEPS", "ROBUST_STEPS"):
        setattr(measurements, name, 2)
    measurements.CURVE_IMAGES, figures.RESAMPLES = 10, 3
    sys.modules[hf.measure_uncertainty.__module__].OTHERS = 6  # type: ignore[attr-defined]
    shape = (3, 8, 8)
    body, head = models.Net(CLASSES, shape, 2, scale=9.0), torch.nn.Linear(CLASSES, CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.eye(CLASSES))
        head.bias.zero_()
    model = torch.nn.Sequential(body, head).eval()
    x = models.images(121, shape, seed=2)
    labels = models.answers(model, x)
    labels[::9] = (labels[::9] + 1) % CLASSES
    result = hf.measure_uncertainty(
        model, x[:21], labels[:21], calibration=(x[21:], labels[21:]), attack="pgd", threat=THREAT,
        ood=["noise"], run=out,
    ).to_dict()  # fmt: skip
    for changes in ("seconds", "stages", "finished", "attacks", "files", "log"):
        result.pop(changes, None)
    return [result, made]


def unsure_deaths(folder: Path, name: str) -> list[Any]:
    first = team(folder, 2, lambda rank: unsure(folder / name.format(rank), rank == 1))
    return [first, team(folder, 2, lambda rank: unsure(folder / name.format(rank)))]


def judgements(folder: Path, given: bool, size: int) -> Any:
    return team(folder, size, lambda rank: judged(folder / f"judged-{given}-{size}", given))


def scenarios(folder: Path) -> dict[str, Any]:
    return {
        "alone": team(folder, 1, lambda rank: twice(folder / "alone")),
        "both": team(folder, 2, lambda rank: twice(folder / "both")),
        "apart": team(folder, 2, lambda rank: twice(folder / f"apart-{rank}")),
        **{name: deaths(folder, name) for name in ("died", "died-{}")},
        "differ": team(folder, 2, lambda rank: certified(folder / "differ", seed=rank).n),
        **{
            f"judged-{given}-{size}": judgements(folder, given, size)
            for given in (True, False)
            for size in (1, 2)
        },
        "unsure-1": team(folder, 1, lambda rank: unsure(folder / "unsure-1")),
        "unsure-nowhere": team(folder, 2, lambda rank: unsure(None)),
        **{name: unsure_deaths(folder, name) for name in ("unsure-2", "unsure-apart-{}")},
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    (out / "told.json").write_text(json.dumps(scenarios(out)))


# -- the tests -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("teams")
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "told.json").read_text())


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("name", ["both", "apart"])
def test_certificates_of_two_processes_are_those_of_one(ran, name: str) -> None:
    folder, told = ran
    (alone,) = told["alone"]
    one, other = told[name]
    assert one == other
    rows, identity, finished, again = one["result"]
    assert [rows, identity] == alone["result"][:2] and finished == again
    assert 0 < sum(row["prediction"] == row["label"] for row in rows) < N
    out = folder / ("both" if name == "both" else "apart-0")
    assert files_in(out) == files_in(folder / "alone")
    assert read_json(out / "result.json")["finished"] == finished
    if name == "apart":
        assert not (folder / "apart-1").exists()


@pytest.mark.parametrize("name", ["died", "died-{}"], ids=["shared folder", "apart"])
def test_what_a_process_that_died_had_certified_is_not_certified_again(ran, name: str) -> None:
    folder, told = ran
    killed, left, (one, other) = told[name]
    assert killed is None and left == [KEPT]
    assert one["result"][0] == other["result"][0] == told["alone"][0]["result"][0]
    again = [row for each in (one, other) for row in each["result"][1]]
    assert len(again) == len({*again}) <= N - KEPT
    assert not {*range(1, 2 * KEPT, 2)} & {*again}  # the first of every second image
    assert files_in(folder / name.format(1)) == (
        [OTHER] if "{" in name else sorted([OTHER, *files_in(folder / "alone")])
    )


def test_processes_that_are_to_certify_different_things_are_refused(ran) -> None:
    folder, told = ran
    one, other = told["differ"]
    assert "different models, images or versions" in one["error"] and other["silent"]
    assert not (folder / "differ" / "result.json").exists()


@pytest.mark.parametrize("given", [True, False], ids=["given", "from another model"])
def test_judgements_of_two_processes_are_those_of_one(ran, given: bool) -> None:
    folder, told = ran
    alone, both = (f"judged-{given}-{size}" for size in (1, 2))
    assert told[both] == [told[alone][0]] * 2 and "result" in told[alone][0]
    assert files_in(folder / both) == files_in(folder / alone)
    result = [read_json(folder / name / "result.json") for name in (alone, both)]
    assert result[0]["identity"] == result[1]["identity"]
    assert 0 < result[0]["robust_accuracy"] < 1


@pytest.mark.parametrize("name", ["unsure-2", "unsure-apart-{}"], ids=["shared folder", "apart"])
def test_uncertainty_of_two_processes_is_that_of_one(ran, name: str) -> None:
    folder, told = ran
    ((alone, made),) = (each["result"] for each in told["unsure-1"])
    assert made == ["attack_predictions", "attack_confidence", "attack_sets"]
    killed, both = told[name]
    assert killed is None and len(both) == 2
    for said in both:
        result, again = said["result"]
        assert result == alone
        assert again == ["attack_sets"]  # what was done before one died is not made again
    assert [each["result"] for each in told["unsure-nowhere"]] == [[alone, made]] * 2
    assert files_in(folder / name.format(0)) == files_in(folder / "unsure-1")
    if "{" in name:
        assert not (folder / name.format(1)).exists()


def test_mix_says_that_it_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.cli import mix

    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "localhost"),
                        ("MASTER_PORT", "1")):  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="mix does not share its work among processes"):
        mix.run(mix.Options("one", "other", Path("run")))
