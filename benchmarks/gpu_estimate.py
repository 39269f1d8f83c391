"""How long one GPU would train for a robust accuracy, estimated from runs on a CPU.

    python benchmarks/gpu_estimate.py --data DIR [--out benchmarks/results/gpu_estimate.json]

No GPU is needed, and none is measured. Each committed training run of one family (N-FGSM at L∞
8/255, the networks that halve the resolution in their stem, the optimiser and the augmentation of
today's recipe) took a number of floating-point operations: its steps, times those of one step,
which are counted. Robust accuracy is fitted as a straight line over their logarithm, and the line
says how many operations a goal would take. How many of them a GPU makes in a second depends on how
well small networks fill it, which was not measured: so the estimate is given for several shares of
the published dense bfloat16 rate.

Intervals hold 95 % of what the line says when the test images are drawn again, with replacement,
the same for all runs (Efron & Tibshirani, "An introduction to the bootstrap", 1993). What other
seeds of the runs would change is not in them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from lightning_fabric import Fabric
from published import read
from training_profile import Operations

from holdfast import data as datasets
from holdfast.data.base import DataSet
from holdfast.errors import InputError
from holdfast.report.runs import EvaluationRun, read_run
from holdfast.runs.environment import circumstances
from holdfast.runs.files import write_result
from holdfast.training.job import TrainingJob
from holdfast.training.recipe import Recipe, load_recipe, recipe_from
from holdfast.training.trainer import Trainer

RESULTS = Path(__file__).resolve().parent / "results"
SUITE = "swift"  # that all of them were judged by: figures of several would make no line
GOALS = (0.4321, 0.50)
GPU, PUBLISHED_TFLOPS = "H100 or H200 (SXM), dense bfloat16 as published", 989.0
SHARES = (0.05, 0.1, 0.2)


def operations_per_step(recipe: Recipe, dataset: DataSet) -> int:
    """Floating-point operations of one optimiser step, two a multiply-add."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    trainer = Trainer(TrainingJob(recipe, dataset, Path("unused"), fabric))
    trainer.model.train()
    trainer.schedule.progress = 0.5
    with Operations() as operations:
        trainer._step()
    return operations.count


def of_the_family(recipe: Recipe, like: Recipe) -> bool:
    return (
        recipe.augment == like.augment
        and recipe.optimiser == like.optimiser
        and recipe.objective.name == "n-fgsm"
        and recipe.threat.norm == "linf"
        and recipe.threat.eps == "8/255"
        and recipe.model.arguments.get("stem_stride") == 2
    )


def runs(results: Path, dataset: DataSet, like: Recipe) -> list[dict[str, Any]]:
    """Of each run of the family that was judged by `SUITE`: what it took, and what it came to."""
    verdicts = [(file.parent, read(file)) for file in sorted(results.glob("*/result.json"))]
    judged = {v["model"]["sha256"]: (place, v) for place, v in verdicts if v.get("suite") == SUITE}
    found = []
    for folder in sorted(results.glob("*/training")):
        recipe = recipe_from(read(folder / "request.json")["asked"]["recipe"])
        judgement = judged.get(read(folder.parent / "result.json")["model"]["sha256"])
        if not of_the_family(recipe, like) or judgement is None:
            continue
        place, verdict = judgement
        read(place / "request.json")
        steps = read(folder / "result.json")["steps"]
        found.append(
            {
                "run": verdict["model"]["name"],
                "verdicts": place.name,
                "width": recipe.model.arguments["width"],
                "steps": steps,
                "operations": steps * operations_per_step(recipe, dataset),
                "robust_accuracy": verdict["robust_accuracy"],
                "standard_accuracy": verdict["standard_accuracy"],
                "n": verdict["n"],
                "pixels": verdict["data"]["pixels"],
            }
        )
    return found


def standing(evaluated: Path) -> Bool[np.ndarray, " n"]:
    """Which of the test images an evaluation's model answers rightly, attacked or not."""
    run = read_run(evaluated)
    if not isinstance(run, EvaluationRun) or run.verdicts is None:
        raise InputError(f"{evaluated} holds no evaluation with verdicts")
    return run.verdicts.clean_right & ~run.verdicts.broken


def drawn_again(
    stand: Bool[np.ndarray, "runs n"], draws: int = 2000, seed: int = 0
) -> Float[np.ndarray, "runs draws"]:
    """Robust accuracies of all runs on images drawn with replacement, the same for all."""
    n = stand.shape[1]
    chosen = np.random.default_rng(seed).integers(n, size=(draws, n))
    return np.stack([run[chosen].mean(1) for run in stand])


def line(
    operations: Sequence[float], accuracies: Float[np.ndarray, "runs ..."]
) -> tuple[np.ndarray, np.ndarray]:
    """Robust accuracy = intercept + slope · log2(operations), by least squares.

    Returns:
        intercept and slope, one for each column of `accuracies`.
    """
    slope, intercept = np.polyfit(np.log2(operations), accuracies, 1)
    return intercept, slope


def needed(goal: float, intercept: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Operations at which the line comes to `goal`; infinite where it does not rise."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(slope > 0, 2 ** ((goal - intercept) / slope), np.inf)


def interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Where the middle 95 % of the values lie; None for an infinite end."""
    low, high = np.quantile(values, (0.025, 0.975), method="inverted_cdf")
    return tuple(float(end) if np.isfinite(end) else None for end in (low, high))


def estimates(
    fitted: tuple[np.ndarray, np.ndarray], again: tuple[np.ndarray, np.ndarray]
) -> list[dict[str, Any]]:
    """Of each goal: the operations that it would take, and the seconds of a GPU.

    Args:
        fitted: intercept and slope of the line.
        again: those of its draws.
    """
    made = []
    for goal in GOALS:
        operations = float(needed(goal, *fitted))
        made.append(
            {
                "robust_accuracy": goal,
                "operations": operations,
                "interval": interval(needed(goal, *again)),
                "seconds": {f"{s:.0%}": operations / (s * PUBLISHED_TFLOPS * 1e12) for s in SHARES},
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cifar10-cpu.yaml"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = runs(options.results, datasets.load(options.data), load_recipe(options.recipe))
    if len({run["operations"] for run in found}) < 2:
        parser.error(f"{options.results} holds fewer than two runs of the family")
    if len({run["n"] for run in found}) > 1:
        parser.error("the runs were judged on different numbers of images")
    operations = [run["operations"] for run in found]
    stand = np.stack([standing(options.results / run["verdicts"]) for run in found])
    fitted = line(operations, stand.mean(1))
    again = line(operations, drawn_again(stand))
    result = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "gpu_estimate",
        "suite": SUITE,
        "runs": found,
        "points_per_doubling": 100 * float(fitted[1]),
        "points_per_doubling_interval": interval(100 * again[1]),
        "gpu": GPU,
        "published_tflops": PUBLISHED_TFLOPS,
        "estimates": estimates(fitted, again),
        **circumstances("cpu"),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        write_result(options.out, result)


if __name__ == "__main__":
    main()
