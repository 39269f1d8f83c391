"""Whether intervals hold though one stops by what one sees, and budgets end when they should.

    python benchmarks/anytime.py --data DIR [--models 200] [--out benchmarks/results/anytime.json]
        [--only coverage|evaluations|budgets] [--budget 60s …]

- `coverage`: samples of simulated test sets whose robust accuracy is known. Somebody looks at
  several sizes, and stops where that suits. How often does an interval miss the truth at one look
  or more, and how often at the first look at which it is narrow enough?
- `evaluations`: `holdfast.evaluate(…, until=…)` of linear classifiers of two classes, whose robust
  accuracy is known exactly.
- `budgets`: the command line with `--budget`, by a clock outside of it, from its start to its exit.

What is there in the file already, and is not asked for, stays.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import holdfast as hf
from holdfast.intervals import anytime_interval, clopper_pearson
from holdfast.runs.environment import circumstances
from holdfast.runs.files import read_json, write_result

POPULATION = 10_000
LOOKS = np.unique(np.geomspace(8, 4000, 18).astype(int))
ACCURACIES = (0.03, 0.2, 0.41, 0.6, 0.9)
UNTIL = 0.05
MODEL = "cifar10-linf-slim"

Bounds = tuple[float, float]


def coverage(models: int) -> dict[str, Any]:
    """For each true accuracy and kind of interval, how often it misses, and how wide it is."""
    kinds: dict[str, Callable[[np.ndarray], Bounds]] = {
        "anytime": lambda drawn: anytime_interval(drawn, POPULATION),
        "clopper-pearson": lambda drawn: clopper_pearson(drawn.sum(), len(drawn)),
    }
    rows = []
    for accuracy in ACCURACIES:
        test_set = (np.arange(POPULATION) < round(accuracy * POPULATION)).astype(float)
        draw = np.random.default_rng(round(1000 * accuracy))
        samples = [draw.permutation(test_set)[: LOOKS[-1]] for _ in range(models)]
        for kind, interval in kinds.items():
            bounds = np.array([[interval(s[:n]) for n in LOOKS] for s in samples])
            missed = (bounds[..., 0] > accuracy) | (bounds[..., 1] < accuracy)
            width = (bounds[..., 1] - bounds[..., 0]) / 2
            stop = (width <= UNTIL).argmax(1)
            rows.append(
                {
                    "accuracy": accuracy,
                    "interval": kind,
                    "models": models,
                    "missed_once": float(missed.any(1).mean()),
                    "missed_when_narrow": float(missed[np.arange(models), stop].mean()),
                    "images_when_narrow": float(LOOKS[stop].mean()),
                    "half_widths": dict(zip(map(str, LOOKS), width.mean(0).round(4), strict=True)),
                }
            )
    return {"population": POPULATION, "looks": LOOKS.tolist(), "until": UNTIL, "rows": rows}


class Linear(torch.nn.Module):
    """Two classes, apart by a plane: one step of FGSM breaks whatever can be broken."""

    def __init__(self, seed: int, size: int = 64):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.linear = torch.nn.Linear(size, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(2, size, generator=draw) / size**0.5)
            self.linear.bias.copy_(-self.linear.weight.sum(1) / 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1))


def evaluations(models: int, n: int = 1000) -> dict[str, Any]:
    """How often evaluations that stop by themselves miss the robust accuracy, and of what size
    their samples are."""
    missed, sizes, usual_missed = 0, [], 0
    for seed in range(models):
        model, draw = Linear(seed), torch.Generator().manual_seed(seed)
        x = 0.4 + 0.2 * torch.rand(n, 1, 8, 8, generator=draw)
        with torch.no_grad():
            logits = model(x).double()
        y = logits.argmax(1)
        weight = model.linear.weight.double()
        # Of an image inside the box: the margin, by the most that a step of 1 may take of it.
        margin = logits.amax(1) - logits.amin(1)
        distance = margin / (weight[0] - weight[1]).abs().sum().detach()
        truth = 0.05 + 0.9 * seed / max(1, models - 1)
        eps = float(distance.quantile(1 - truth))
        clear = (distance / eps - 1).abs() > 1e-3
        truth = float((distance[clear] > eps).double().mean())
        found = hf.evaluate(
            model, x[clear], y[clear], ("linf", eps), "fgsm", until=UNTIL, seed=seed
        )
        low, high = found.robust_accuracy_anytime_interval or (0.0, 1.0)
        missed += not low <= truth <= high
        low, high = found.robust_accuracy_interval
        usual_missed += not low <= truth <= high
        sizes.append(found.n)
    return {
        "models": models,
        "images": n,
        "until": UNTIL,
        "missed": missed,
        "usual_missed": usual_missed,
        "smallest_sample": min(sizes),
        "mean_sample": sum(sizes) / models,
        "largest_sample": max(sizes),
    }


def budgets(data: str, asked: list[str]) -> list[dict[str, Any]]:
    """Commands with a budget, and when they ended."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder) / "digits"
        hf.train("digits-gaussian", data="digits", out=digits, changes=["epochs=4"])
        for number, budget in enumerate(asked):
            for name, words in (
                (MODEL, [MODEL, "--data", data, "--suite", "swift"]),
                ("digits", [str(digits), "--data", "digits", "--split", "train",
                            "--suite", "autoattack", "--norm", "linf", "--eps", "0.05"]),
            ):  # fmt: skip
                out = Path(folder) / f"{name}-{number}"
                command = [sys.executable, "-m", "holdfast", "evaluate", *words, "--quiet"]
                began = time.monotonic()
                subprocess.run(
                    [*command, "--budget", budget, "--out", str(out)],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                took, result = time.monotonic() - began, read_json(out / "result.json")
                rows.append(
                    {
                        "model": name,
                        "suite": result["suite"],
                        "budget_seconds": result["budget"],
                        "seconds": round(took, 2),
                        "stopped": result["stopped"],
                        "n": result["n"],
                        "population": result["population"],
                        "robust_accuracy": result["robust_accuracy"],
                        "anytime_interval": result["robust_accuracy_anytime_interval"],
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--budget", nargs="+", default=["60s", "120s"])
    parser.add_argument("--only", choices=["coverage", "evaluations", "budgets"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/anytime.json"))
    options = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "coverage": lambda: coverage(options.models),
        "evaluations": lambda: evaluations(options.evaluations),
        "budgets": lambda: budgets(options.data, options.budget),
    }
    schema = {"schema": "holdfast/benchmark/1"}
    result = read_json(options.out) if options.out.exists() else schema
    for name, make in parts.items():
        if options.only in (None, name):
            where = circumstances("cpu")
            result[name] = {"result": make(), **where}
            write_result(options.out, result)


if __name__ == "__main__":
    main()
