"""The table of kinds: what it says was found, and the script that finds it can fail."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kinds.json"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location("kinds_page", f"{folder}/kinds_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(folder)
    return module


def test_no_kind_ends_in_a_traceback_and_what_is_refused_is_said() -> None:
    if not RESULTS.exists():
        pytest.skip("no results yet")
    kinds = json.loads(RESULTS.read_text())["kinds"]
    assert len(kinds) > 60
    for kind in kinds:
        assert not kind["traceback"] and kind["status"] in (0, 2, None), kind
        assert kind["same"] is not False or kind["status"] == 2, kind
        if kind["section"].endswith("refused") or kind["status"] == 2:
            assert kind["status"] == 2 and kind["said"], kind


@pytest.mark.parametrize(
    ("status", "same", "word"),
    [
        (0, None, "works"),
        (0, True, "works, = folder"),
        (2, None, "refused"),
        (1, None, "**fails**"),
    ],
)
def test_the_page_tells_outcomes_apart(page: ModuleType, status, same, word) -> None:
    assert page.outcome({"status": status, "same": same}).startswith(word)


def test_the_script_tries_a_kind_as_the_command_line_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "kinds.py", "--show", "--only", "whole model"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "0 Weights alone: the whole model, pickled" in done.stdout
    assert "whose weights are read and code is not" in done.stdout
    assert not list(tmp_path.iterdir())
