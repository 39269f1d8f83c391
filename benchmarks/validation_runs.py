"""What benchmarks share that train short runs by a recipe and measure them on validation images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from holdfast.data.base import DataSet
from holdfast.runs.environment import circumstances
from holdfast.training import load_recipe


def options_of_runs(doc: str, *, budget: str, limit: int, runs: str) -> argparse.ArgumentParser:
    """A parser with what all of them take.

    Args:
        doc: the benchmark's docstring; its first line describes it.
        budget, limit, runs: defaults of a run's budget, the number of validation images, and the
            folder that run folders go into.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cifar10-cpu.yaml"))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--budget", default=budget, help="of each run")
    parser.add_argument("--limit", type=int, default=limit, help="validation images")
    parser.add_argument("--pixels", help="what the pixels are, in words")
    parser.add_argument("--device")
    parser.add_argument("--runs", type=Path, default=Path(runs))
    parser.add_argument("--out", type=Path)
    return parser


def told(name: str, options: argparse.Namespace, dataset: DataSet) -> dict[str, Any]:
    """What a result file says besides its rows: the recipe, the images, the circumstances."""
    return {
        "schema": "holdfast/benchmark/1",
        "benchmark": name,
        "recipe": load_recipe(options.recipe, options.changes).to_dict(),
        "budget": options.budget,
        "n": min(options.limit, len(dataset.validation)),
        "pixels": options.pixels or dataset.validation.pixels,
        "split": "validation",
        **circumstances(options.device or "cpu"),
    }
