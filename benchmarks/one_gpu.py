"""Every figure that a GPU is needed for, in one command, each with the goal that it is held to.

    make benchmarks
    python benchmarks/one_gpu.py --data DIR [--device cuda] [--only NAME …]
        [--runs runs/one-gpu] [--out benchmarks/results/one_gpu]

Trains by each recipe within its budget, then evaluates the first test images: robust models under
`autoattack`, the accurate one as it is. Then the training profile and the race of the suites
against torchattacks, on the first model that was trained. A result file is written after each, so
that what is cut short is not lost; the same command goes on in the middle of a training run or of a
verdict. Training seconds are those of the schedule, validation among them; importing, reading and
the verdict are not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import holdfast as hf
from holdfast import data as datasets
from holdfast.data.base import DataSet
from holdfast.intervals import clopper_pearson
from holdfast.runs.environment import circumstances
from holdfast.runs.files import make_folder, read_json, write_json
from holdfast.training import load_recipe

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes"
SUITE = "autoattack"


@dataclass(frozen=True)
class Goal:
    """A model to be trained, and the accuracies it is held to; None where nothing is asked."""

    name: str
    recipe: str
    budget: str | None
    standard: float | None = None
    robust: float | None = None


GOALS = (
    # Fast-AT's figure (Wong et al., 2020), and what 100 epochs of PGD with averaging come to.
    Goal("43-percent", "cifar10-gpu-record.yaml", "30s", robust=0.4321),
    Goal("50-percent", "cifar10-gpu-10m.yaml", "4m", robust=0.50),
    Goal("10-minutes", "cifar10-gpu-10m.yaml", "9m", robust=0.50),
    Goal("25-minutes", "cifar10-gpu-25m.yaml", "25m", standard=0.85, robust=0.52),
    Goal("accurate", "cifar10-accurate-gpu.yaml", None, standard=0.94),
)
RACES = ("profile", "race")
NAMES = [*(goal.name for goal in GOALS), *RACES]


def trained(goal: Goal, options: argparse.Namespace, dataset: DataSet) -> dict[str, Any]:
    """Train one model, or find it trained, and measure what was asked of it."""
    budget = [] if goal.budget is None else [f"budget={goal.budget}"]
    recipe = load_recipe(RECIPES / goal.recipe, [*budget, *options.changes])
    run = options.runs / goal.name
    result = hf.train(recipe, dataset, run, seed=options.seed, device=options.device, progress=True)
    test, n = dataset.test, min(options.limit, len(dataset.test))
    images = datasets.to_tensor(test.images[:n])
    labels = torch.from_numpy(test.labels[:n].copy())
    told: dict[str, Any] = {
        "goal": asdict(goal),
        "recipe": recipe.to_dict(),
        "seed": options.seed,
        "epochs": result.epochs,
        "training_seconds": result.seconds,
        "n": n,
        "pixels": options.pixels or test.pixels,
        "split": "test",
    }
    if goal.robust is None:
        right = _right(result.model.to(options.device).eval(), images, labels, options.device)
        found = {
            "standard_accuracy": right / n,
            "standard_accuracy_interval": clopper_pearson(right, n),
        }
    else:
        threat = hf.Threat(recipe.threat.norm, recipe.threat.eps)
        verdict = hf.evaluate(
            result.model,
            images,
            labels,
            threat,
            SUITE,
            device=options.device,
            seed=options.seed,
            run=options.runs / f"{goal.name}-{SUITE}",
            progress=True,
        )
        kinds = ("standard_accuracy", "robust_accuracy")
        found = {key: getattr(verdict, key) for name in kinds for key in (name, f"{name}_interval")}
        found |= {
            "suite": SUITE,
            "threat": threat.describe(),
            "evaluation_seconds": verdict.seconds,
            "fired": [flag.name for flag in verdict.flags if flag.fired],
        }
    asked = {"standard_accuracy": goal.standard, "robust_accuracy": goal.robust}
    reached = all(found[key] >= least for key, least in asked.items() if least is not None)
    return told | found | {"reached": reached}


@torch.no_grad()
def _right(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, device: str) -> int:
    answers = torch.cat([model(part.to(device)).argmax(1).cpu() for part in images.split(500)])
    return int((answers == labels).sum())


def raced(name: str, options: argparse.Namespace, out: Path) -> None:
    """One of the other benchmarks, as a command of its own."""
    common = ["--data", options.data, "--out", str(out)]
    if name == "profile":
        command = [
            *(str(HERE / "training_profile.py"), "--device", options.device),
            *("--recipe", str(RECIPES / GOALS[0].recipe)),
        ]
        for change in options.changes:
            command += ["--set", change]
    else:
        models = [options.runs / goal.name for goal in GOALS if goal.robust is not None]
        model = next((run for run in models if (run / "result.json").exists()), None)
        if model is None:
            sys.exit(f"{name} needs a model that was trained before it: {models[0]}")
        command = [
            *(str(HERE / "autoattack_speed.py"), "--model", str(model)),
            *("--limit", str(options.limit), "--device", options.device),
        ]
        if options.pixels:
            command += ["--pixels", options.pixels]
    subprocess.run([sys.executable, *command, *common], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--limit", type=int, default=1000, help="test images")
    parser.add_argument("--pixels", help="what the pixels are, in words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/one-gpu"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "one_gpu")
    options = parser.parse_args()

    dataset = datasets.load(options.data)
    for goal in GOALS:
        if goal.name not in options.only:
            continue
        found = {
            "schema": "holdfast/benchmark/1",
            "benchmark": "one_gpu",
            **trained(goal, options, dataset),
            **circumstances(options.device),
        }
        print(json.dumps({key: value for key, value in found.items() if key != "recipe"}))
        write_json(make_folder(options.out) / f"{goal.name}.json", found)
    for name in RACES:
        if name in options.only:
            raced(name, options, make_folder(options.out) / f"{name}.json")
    missed = [
        name
        for name in (goal.name for goal in GOALS if goal.name in options.only)
        if not read_json(options.out / f"{name}.json")["reached"]
    ]
    print(f"goals missed: {', '.join(missed) or 'none'}")


if __name__ == "__main__":
    main()
