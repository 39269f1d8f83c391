"""What is published: figures of clean commits, with intervals that hold them, of models that are
shipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import holdfast as hf
from holdfast.cli.tables import evaluations
from holdfast.runs.identity import weights_digest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MADE_FROM = {  # page maker → a page, and files that it reads
    "readme_page.py": ("README.md", ["cifar10-linf-2h-swift/request.json"]),
    "table.py": ("docs/measured.md", ["cifar10-linf-2h-swift/request.json", "memory.json"]),
    "anytime_page.py": ("docs/budgets.md", ["anytime.json"]),
    "attacks_page.py": ("docs/attacks.md", ["attacks.json"]),
    "certificates_page.py": ("docs/certificates.md", ["certificates-gaussian/request.json"]),
    "defences_page.py": ("docs/defences.md", ["defences-cifar10-linf-slim.json"]),
    "hidden_gradients_page.py": ("docs/hidden-gradients.md", ["hidden_gradients-one.json"]),
    "kinds_page.py": ("docs/kinds.md", ["kinds.json"]),
    "swift_page.py": ("docs/swift.md", ["autoattack_speed-one.json"]),
    "speed_page.py": ("docs/speed.md", ["training_profile-one.json"]),
    "training_page.py": (
        "docs/training.md",
        ["collapse.json", "cifar10-linf-1h-seed-1-swift/training/request.json"],
    ),
    "uncertainty_page.py": ("docs/uncertainty.md", ["uncertainty-cifar10-standard-cpu.json"]),
}


def files() -> list[Path]:
    return sorted(RESULTS.rglob("*.json"))


def test_every_page_maker_is_tried_here() -> None:
    fills = re.compile(r"\bfill\(")
    makers = {f.name for f in ROOT.glob("benchmarks/*.py") if fills.search(f.read_text())}
    assert makers == set(MADE_FROM)


@pytest.mark.parametrize(
    ("maker", "file"), [(maker, file) for maker, (_, read) in MADE_FROM.items() for file in read]
)
def test_a_page_maker_refuses_a_result_of_an_edited_checkout(
    maker: str, file: str, tmp_path: Path
) -> None:
    for part in ("benchmarks", "docs", "recipes"):
        shutil.copytree(ROOT / part, tmp_path / part)
    for beside in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / beside, tmp_path)
    shutil.copytree(ROOT / "zoo", tmp_path / "zoo", ignore=shutil.ignore_patterns("*.safetensors"))
    edited = tmp_path / "benchmarks" / "results" / file
    result = json.loads(edited.read_text()) if edited.exists() else {}
    # Also where only one part of a result is, such as one contender of several.
    edited.write_text(json.dumps({**result, "parts": [{"git": "0a1b2c3d4e5f6a7b+changes"}]}))
    page = tmp_path / MADE_FROM[maker][0]
    before = page.read_text()
    done = subprocess.run(
        [sys.executable, tmp_path / "benchmarks" / maker],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert str(edited) in line
    assert "0a1b2c3d4e5f…+changes" in line
    assert "clean commit" in line
    assert page.read_text() == before


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(RESULTS)))
def test_no_committed_result_is_of_an_edited_checkout(file: Path) -> None:
    assert "+changes" not in file.read_text()


# --- intervals ----------------------------------------------------------------------------------


def intervals(
    value: Any, path: str = ""
) -> Iterator[tuple[str, float, float | None, float | None]]:
    """Every figure that has an interval: where, the figure, and both ends."""
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from intervals(inner, f"{path}[{number}]")
    if not isinstance(value, dict):
        return
    if "low" in value and isinstance(value.get("value"), int | float):
        yield path, value["value"], value["low"], value["high"]
    for key, inner in value.items():
        ends = value.get(f"{key}_interval")
        if isinstance(inner, int | float) and ends:
            yield f"{path}.{key}", inner, *ends
        yield from intervals(inner, f"{path}.{key}")
    for key in ("operations", "robust_accuracy", "certified_accuracy"):
        if key in value and "interval" in value:
            yield f"{path}.{key}", value[key], *value["interval"]
            break


def outside(result: Any) -> list[str]:
    return [
        f"{where}: {figure} in {low} … {high}"
        for where, figure, low, high in intervals(result)
        if not (low is None or low <= figure + 1e-12)
        or not (high is None or figure <= high + 1e-12)
    ]


def test_no_interval_of_a_committed_result_excludes_its_own_figure() -> None:
    told = {file: json.loads(file.read_text()) for file in files()}
    assert sum(1 for result in told.values() for _ in intervals(result)) > 300
    assert {file: wrong for file, result in told.items() if (wrong := outside(result))} == {}


def test_an_interval_that_excludes_its_figure_is_noticed() -> None:
    assert outside({"conditions": {"clean": {"ece": {"value": 1.8, "low": 2.2, "high": 2.7}}}})
    assert outside({"robust_accuracy": 0.5, "robust_accuracy_interval": [0.6, 0.7]})
    assert outside({"points": [{"robust_accuracy": 0.5, "interval": [0.1, 0.4]}]})
    assert not outside({"robust_accuracy": 0.5, "robust_accuracy_interval": [0.4, None]})


# --- shipped models -----------------------------------------------------------------------------


def test_the_figures_list_only_models_that_are_shipped() -> None:
    shipped = {card.parent.name for card in ROOT.glob("zoo/*/card.json")}
    page = (ROOT / "docs" / "measured.md").read_text()
    _, _, rest = page.partition("<!-- table: begin -->")
    rows = rest.partition("<!-- table: end -->")[0].splitlines()
    listed = {row.split("|")[1].strip() for row in rows if row.startswith("| ")} - {"model", "---"}
    assert listed
    assert listed <= shipped
    other = {result["model"]["name"] for result in evaluations(RESULTS)} - shipped
    text = (ROOT / "README.md").read_text()
    assert not [name for name in other if name in text + page]
    training = (ROOT / "docs" / "training.md").read_text()
    for name in other:  # what they show of recipes is told, and that nobody can load them
        assert f"| {name} |" in training.partition("### Runs that are not shipped")[2]


def test_figures_under_a_shipped_name_are_of_the_shipped_weights() -> None:
    shipped = {card.parent.name for card in ROOT.glob("zoo/*/card.json")}
    digests: dict[str, str | None] = {}
    for result in evaluations(RESULTS):
        name = result["model"]["name"]
        if name in shipped:
            if name not in digests:
                digests[name] = weights_digest(hf.load(name))
            assert result["model"]["sha256"] == digests[name], name
