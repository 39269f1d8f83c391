"""The scripts in `examples/` are short, and do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
MOST_LINES = 60


def ran(name: str, *arguments: str | Path, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the example that trains, much shorter."""
    out = tmp_path_factory.mktemp("folder")
    said = ran("train_on_your_folder.py", "digits", "--set", "epochs=3", "--out", out)
    assert "10 classes, 3 epochs" in said and (out / "report.html").is_file()
    return out / "training"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_scripts_are_short(script: Path) -> None:
    if script.name != "photographs.py":  # it makes data for the tutorials
        assert len(script.read_text().splitlines()) <= MOST_LINES


def test_one_evaluates_a_model(tmp_path: Path) -> None:
    said = ran("evaluate_your_model.py", "--limit", 40, "--out", tmp_path / "run")
    assert "standard" in said and "n = 40" in said
    assert (tmp_path / "run" / "report.html").is_file()


def test_one_attacks_a_defence_that_it_adds(trained: Path) -> None:
    said = ran("add_a_defence.py", "--model", trained, "--limit", 12)
    figures = [float(line.split()[-1].rstrip("%")) for line in said.splitlines()]
    bare, unaware, known = figures
    assert 0 <= known <= unaware <= 100 and 0 <= bare <= 100


def test_one_compares_a_model_with_itself(trained: Path, tmp_path: Path) -> None:
    said = ran("compare_two_models.py", trained, trained, "--limit", 30, "--out", tmp_path)
    assert said.count("+0.0 points") == 2 and "p = 1" in said


def test_one_stops_a_job(trained: Path, tmp_path: Path) -> None:
    given = ("gate_a_job.py", trained, "--limit", 20, "--out", tmp_path / "run")
    said = ran(*given, "--require", "standard>=1%", "--require", "robust>=99.9%", status=3)
    assert "not met" in said
    assert "failures=" in (tmp_path / "run" / "robustness.xml").read_text()
    assert "met" in ran(*given, "--require", "standard>=1%")
