r"""What one entry of a recipe is worth: short runs that differ in it alone, on validation images.

    python benchmarks/recipe_choices.py --data DIR (--budget 7m | --epochs 20) \
        --try augment.crop_padding=4 --try "augment.crop_padding=1 augment.pad_mode=reflect" \
        [--set KEY=VALUE] [--seeds 2] [--images 8000] [--runs runs/choices] \
        [--out benchmarks/results/recipe_choices-padding.json]

Every variation is trained with the same budget, so what makes a step dearer has to earn it. With
--epochs, which is fair on a machine with other work to do, a dearer step is given fewer of them by
hand: `--try "objective.name=nuat epochs=12"`. The averaged weights are measured once, at the end,
standard and under PGD-10. Test images stay unseen. Which images stand is kept, so that each
variation is compared with the first one image by image, which tells smaller differences from chance
than two accuracies beside each other.
With --images, training sees the first so many alone, each as often as a longer run would: what
helps then is what keeps a longer run from learning its images by heart. The same command goes on
where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from validation_runs import options_of_runs, told

import holdfast as hf
from holdfast import data as datasets
from holdfast.data.base import DataSet, Split
from holdfast.runs.files import read_json, write_result
from holdfast.threat import Threat
from holdfast.training import load_recipe
from holdfast.training.recipe import Recipe
from holdfast.training.run import fabric_for
from holdfast.training.validation import standing

KEPT = ("standard", "pgd")


def first_of(split: Split, count: int) -> Split:
    """The first `count` images, or all where there are fewer."""
    images, filenames, labels = split.images, split.filenames, split.labels
    return Split(images[:count].copy(), filenames[:count], labels[:count].copy(), split.pixels)


def row(options: argparse.Namespace, dataset: DataSet, tried: str, seed: int) -> dict[str, Any]:
    """Train one run, or find it trained, and take its accuracies, shares in [0, 1].

    Args:
        tried: `KEY=VALUE` of the recipe, several with spaces between.
    """
    run = options.runs / f"{re.sub(r'[^A-Za-z0-9.=]+', '-', tried)}-seed-{seed}"
    changes = [
        f"epochs={options.epochs}" if options.epochs else f"budget={options.budget}",
        "validation.every=1000",
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
        "right": judged(run, recipe, dataset, options, seed),
    }


def judged(
    run: Path, recipe: Recipe, dataset: DataSet, options: argparse.Namespace, seed: int
) -> dict[str, str]:
    """On which of the first validation images the kept weights are right, clean and under PGD: one
    bit an image, in hexadecimal."""
    images = datasets.to_tensor(dataset.validation.images[: options.limit])
    labels = torch.from_numpy(dataset.validation.labels[: options.limit].copy())
    fabric = fabric_for(recipe, options.device)
    model = hf.load(str(run)).to(fabric.device)
    threat = Threat(**vars(recipe.threat))
    images, labels = images.to(fabric.device), labels.to(fabric.device)
    found = standing(model, images, labels, threat, recipe.validation.steps, seed, fabric)
    return {name: np.packbits(found[name].cpu().numpy()).tobytes().hex() for name in KEPT}


def main() -> None:
    parser = options_of_runs(__doc__, budget="7m", limit=2000, runs="runs/choices")
    parser.add_argument("--try", dest="tries", action="append", required=True, metavar="CHANGES")
    parser.add_argument("--epochs", type=float, help="length of each run, in place of a budget")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, help="training images, the first of them; else all")
    options = parser.parse_args()
    if options.images is not None and options.images < 1:
        parser.error(f"--images must be at least 1, not {options.images}")
    if options.epochs is not None:
        options.budget = None

    dataset = datasets.load(options.data)
    dataset = DataSet(
        dataset.name,
        dataset.classes,
        first_of(dataset.train, options.images or len(dataset.train)),
        dataset.validation,
        test=first_of(dataset.validation, 0),
    )
    rows = []
    for tried in options.tries:
        for seed in range(options.seeds):
            rows.append(row(options, dataset, tried, seed))
            print(json.dumps(rows[-1]), flush=True)
    result = {**told("recipe_choices", options, dataset), "rows": rows}
    if options.epochs:
        result["epochs"] = options.epochs
    if options.images:
        result["train_images"] = len(dataset.train)
    if options.out:
        write_result(options.out, result)


if __name__ == "__main__":
    main()
