"""How long one GPU would train for a robust accuracy, estimated from runs on a CPU.

    python benchmarks/gpu_estimate.py --data DIR [--out benchmarks/results/gpu_estimate.json]

No GPU is needed, and none is measured. Each committed training run of one family (N-FGSM at L∞
8/255, the networks that halve the resolution in their stem, images augmented as the recipe has it)
took a number of floating-point operations: its steps, times those of one step, which are counted.
Robust accuracy is fitted as a straight line over their logarithm, and the line says how many
operations a goal would take. How many of them a GPU makes in a second depends on how well small
networks fill it, which was not measured: so the estimate is given for several shares of the
published dense bfloat16 rate.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric import Fabric
from training_profile import Operations

from holdfast import data as datasets
from holdfast.data.base import DataSet
from holdfast.files import read_json, write_json
from holdfast.runs import circumstances
from holdfast.training.loop import Trainer
from holdfast.training.recipe import Recipe, load_recipe, recipe_from

RESULTS = Path(__file__).resolve().parent / "results"
SUITE = "swift"  # that all of them were judged by: figures of several would make no line
GOALS = (0.4321, 0.50)
GPU, PUBLISHED_TFLOPS = "H100 or H200 (SXM), dense bfloat16 as published", 989.0
SHARES = (0.05, 0.1, 0.2)


def operations_per_step(recipe: Recipe, dataset: DataSet) -> int:
    """Floating-point operations of one optimiser step, two a multiply-add."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    trainer = Trainer(recipe, dataset, Path("unused"), 0, fabric)
    trainer.model.train()
    trainer.schedule.progress = 0.5
    with Operations() as operations:
        trainer._step()
    return operations.count


def of_the_family(recipe: Recipe, like: Recipe) -> bool:
    return (
        recipe.augment == like.augment
        and recipe.objective.name == "n-fgsm"
        and recipe.threat.norm == "linf"
        and recipe.threat.eps == "8/255"
        and recipe.model.arguments.get("stem_stride") == 2
    )


def runs(results: Path, dataset: DataSet, like: Recipe) -> list[dict[str, Any]]:
    """Of each run of the family that was judged by `SUITE`: what it took, and what it came to."""
    verdicts = [read_json(file) for file in sorted(results.glob("*/result.json"))]
    judged = {v["model"]["sha256"]: v for v in verdicts if v.get("suite") == SUITE}
    found = []
    for folder in sorted(results.glob("*/training")):
        recipe = recipe_from(read_json(folder / "request.json")["asked"]["recipe"])
        verdict = judged.get(read_json(folder.parent / "result.json")["model"]["sha256"])
        if not of_the_family(recipe, like) or verdict is None:
            continue
        steps = read_json(folder / "result.json")["steps"]
        found.append(
            {
                "run": verdict["model"]["name"],
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


def line(found: list[dict[str, Any]]) -> tuple[float, float]:
    """Robust accuracy = intercept + slope · log2(operations), by least squares."""
    x = [math.log2(run["operations"]) for run in found]
    slope, intercept = np.polyfit(x, [run["robust_accuracy"] for run in found], 1)
    return float(intercept), float(slope)


def estimates(intercept: float, slope: float) -> list[dict[str, Any]]:
    """Of each goal: the operations that it would take, and the seconds of a GPU."""
    made = []
    for goal in GOALS:
        operations = 2 ** ((goal - intercept) / slope)
        seconds = {f"{s:.0%}": operations / (s * PUBLISHED_TFLOPS * 1e12) for s in SHARES}
        made.append({"robust_accuracy": goal, "operations": operations, "seconds": seconds})
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
    intercept, slope = line(found)
    result = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "gpu_estimate",
        "suite": SUITE,
        "runs": found,
        "points_per_doubling": 100 * slope,
        "gpu": GPU,
        "published_tflops": PUBLISHED_TFLOPS,
        "estimates": estimates(intercept, slope),
        **circumstances("cpu"),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
