"""What one entry of a recipe is worth: short runs that differ in it alone, on validation images.

    python benchmarks/recipe_choices.py --data DIR --budget 7m
        --try augment.crop_padding=4 --try "augment.crop_padding=1 augment.pad_mode=reflect"
        [--set KEY=VALUE] [--seeds 2] [--runs runs/choices]
        [--out benchmarks/results/recipe_choices-padding.json]

Every variation is trained with the same budget, so what makes a step dearer has to earn it. Its
averaged weights are measured once, at the end, standard and under PGD-10. Test images stay unseen.
The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import holdfast as hf
from holdfast import data as datasets
from holdfast.data.base import DataSet
from holdfast.files import read_json, write_json
from holdfast.runs import circumstances
from holdfast.training import load_recipe


def row(options: argparse.Namespace, dataset: DataSet, tried: str, seed: int) -> dict[str, Any]:
    """Train one run, or find it trained."""
    run = options.runs / f"{re.sub(r'[^A-Za-z0-9.=]+', '-', tried)}-seed-{seed}"
    changes = [
        *(f"budget={options.budget}", "validation.every=1000"),
        *(f"validation.images={options.limit}", *options.changes, *tried.split()),
    ]
    recipe = load_recipe(options.recipe, changes)
    result = hf.train(recipe, dataset, run, seed=seed, device=options.device, progress=True)
    return {
        "tried": tried,
        "seed": seed,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "standard_accuracy": result.validation["standard_accuracy"],
        "pgd_accuracy": result.validation["pgd_accuracy"],
        "machine": read_json(run / "request.json")["machine"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cifar10-cpu.yaml"))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--try", dest="tries", action="append", required=True, metavar="CHANGES")
    parser.add_argument("--budget", default="7m", help="of each run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, default=2000, help="validation images")
    parser.add_argument("--pixels", help="what the pixels are, in words")
    parser.add_argument("--device")
    parser.add_argument("--runs", type=Path, default=Path("runs/choices"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    dataset = datasets.load(options.data)
    rows = []
    for tried in options.tries:
        for seed in range(options.seeds):
            rows.append(row(options, dataset, tried, seed))
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "recipe_choices",
        "recipe": load_recipe(options.recipe, options.changes).to_dict(),
        "budget": options.budget,
        "n": min(options.limit, len(dataset.validation)),
        "pixels": options.pixels or dataset.validation.pixels,
        "split": "validation",
        "rows": rows,
        **circumstances(options.device or "cpu"),
    }
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
