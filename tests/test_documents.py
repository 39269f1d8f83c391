"""Documents say what the result files say, and nothing that belongs to one machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "maker",
    [
        "table.py",
        "anytime_page.py",
        "attacks_page.py",
        "certificates_page.py",
        "defences_page.py",
        "hidden_gradients_page.py",
        "kinds_page.py",
        "readme_page.py",
        "speed_page.py",
        "swift_page.py",
        "training_page.py",
        "uncertainty_page.py",
        "zoo_index.py",
    ],
)
def test_tables_are_made_from_the_results(maker: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / maker, "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda f: f.name)
def test_every_recipe_is_valid(file: Path) -> None:
    from holdfast.training import load_recipe
    from holdfast.training.objectives import objective_named

    recipe = load_recipe(file)
    objective_named(recipe.objective.name, recipe.objective.arguments)
