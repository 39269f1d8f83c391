"""Does the cheap recipe keep what it reaches? Seeds × ε, the last weights beside the best ones.

    python benchmarks/collapse.py --data DIR [--budget 15m] [--eps 8/255:4 --eps 12/255:2]
        [--runs runs/collapse] [--out benchmarks/results/collapse.json]

One-step adversarial training can lose all its robustness within an epoch (catastrophic
overfitting), and go on to look fine under one-step attacks. Each run is trained by the recipe with
its own budget; then the averaged weights of its end and those of its best epoch face PGD with 50
steps of ε/10 on the margin, on the first validation images: the test images stay unseen. A run is
said to hold if its end is at most 3 points below its best. The same command goes on where it was
interrupted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from validation_runs import options_of_runs, told

import holdfast as hf
from holdfast import data as datasets
from holdfast.attacks import PGD
from holdfast.data.base import DataSet
from holdfast.models import build, load_checkpoint
from holdfast.runs.files import read_json, write_json, write_result
from holdfast.training import load_recipe
from holdfast.training.checkpoints import part

ALLOWED = 0.03  # points of PGD-50 accuracy that a run may end below its best


def final_model(run: Path) -> nn.Module:
    """The averaged weights of a run's end, in eval mode."""
    card = read_json(run / "model" / "card.json")
    model = build(card["architecture"], card["arguments"])
    held = load_file(run / "checkpoints" / "latest.safetensors")
    model.load_state_dict(part(held, "average."))
    return model.eval()


def accuracies(
    model: nn.Module, images: Tensor, labels: Tensor, threat: hf.Threat, seed: int
) -> dict[str, float]:
    """Standard and PGD-50 accuracy, float32, on the device of the images."""
    model = model.to(images.device)
    attacked = PGD(steps=50, step_size=0.1, loss="margin")(
        model, images, labels, threat, seed=seed, batch_size=250
    )
    found = {}
    with torch.no_grad():
        for name, points in (("standard_accuracy", images), ("pgd50_accuracy", attacked)):
            answers = torch.cat([model(x).argmax(1) for x in points.split(250)])
            found[name] = float((answers == labels).float().mean())
    return found


def row(options: argparse.Namespace, dataset: DataSet, eps: str, seed: int) -> dict[str, Any]:
    """Train one run, or find it trained, and measure its two ends."""
    run = options.runs / f"eps-{eps.replace('/', '-')}-seed-{seed}"
    changes = [f"budget={options.budget}", f"threat.eps={eps}", *options.changes]
    recipe = load_recipe(options.recipe, changes)
    result = hf.train(recipe, dataset, run, seed=seed, device=options.device, progress=True)
    kept = run / f"collapse-{options.limit}.json"
    trained = {"machine": read_json(run / "request.json")["machine"]}
    if kept.exists():
        return read_json(kept) | trained
    held_out = dataset.validation
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    images = datasets.to_tensor(held_out.images[: options.limit]).to(device)
    labels = torch.from_numpy(held_out.labels[: options.limit].copy()).to(device)
    threat = hf.Threat(recipe.threat.norm, recipe.threat.eps)
    best, last = (
        accuracies(model, images, labels, threat, seed)
        for model in (load_checkpoint(run / "model"), final_model(run))
    )
    fall = best["pgd50_accuracy"] - last["pgd50_accuracy"]
    ended = read_json(run / "result.json")
    measured = {
        "eps": eps,
        "seed": seed,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "best_epoch": ended["best_epoch"],
        "best": best,
        "last": last,
        "fall": fall,
        "holds": fall <= ALLOWED,
        "events": result.events,
    }
    write_json(kept, measured)
    return measured | trained


def main() -> None:
    parser = options_of_runs(__doc__, budget="15m", limit=1000, runs="runs/collapse")
    parser.add_argument(
        "--eps", action="append", metavar="EPS:SEEDS", help="such as 8/255:4; may be given again"
    )
    options = parser.parse_args()

    dataset = datasets.load(options.data)
    rows = []
    for plan in options.eps or ["8/255:4", "12/255:2"]:
        eps, _, seeds = plan.partition(":")
        for seed in range(int(seeds or 1)):
            rows.append(row(options, dataset, eps, seed))
            print(json.dumps(rows[-1]))
    result = {
        **told("collapse", options, dataset),
        "attack": "PGD on the margin, 50 steps of ε/10, one random start",
        "rows": rows,
        "all_hold": all(each["holds"] for each in rows),
    }
    print(f"{sum(each['holds'] for each in rows)} of {len(rows)} runs hold")
    if options.out:
        write_result(options.out, result)


if __name__ == "__main__":
    main()
