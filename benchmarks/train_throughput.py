"""Images per second of Holdfast's training step beside a plain float32 PyTorch loop, in one run.

    python benchmarks/train_throughput.py --data DIR [--width 64] [--out FILE]

Both train the same PreAct ResNet-18 with the same objective (N-FGSM) on the same images. The plain
loop is what a first version would be: float32, default layout, `loss.backward()` for the attack's
gradient too (so weight gradients are computed and thrown away). The two take turns, several times,
so that a machine whose speed drifts treats them alike; the ratio of the medians is the figure.
Beside it: how much faster this machine multiplies bfloat16 matrices than float32 ones at all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from training_profile import matmul_rate

from holdfast import data as datasets
from holdfast.data.augment import Augment
from holdfast.models import build
from holdfast.runs.environment import circumstances
from holdfast.runs.files import write_result
from holdfast.training.job import TrainingJob
from holdfast.training.recipe import recipe_from
from holdfast.training.trainer import Trainer

EPS = 8 / 255
SIZES = (1024, 2048)  # of the matrices that are multiplied


class PlainLoop:
    """N-FGSM as a first version would be written: float32, default layout."""

    def __init__(self, arguments: dict[str, object], images: torch.Tensor, labels: torch.Tensor):
        self.model = build("preact-resnet", arguments).train()
        self.images, self.labels = images, labels
        self.augment = Augment()
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        )

    def step(self, batch_size: int) -> None:
        rows = torch.randperm(len(self.images))[:batch_size]
        x, y = self._augmented(rows), self.labels[rows]
        delta = torch.empty_like(x).uniform_(-2 * EPS, 2 * EPS).requires_grad_()
        F.cross_entropy(self.model((x + delta).clamp(0, 1)), y).backward()
        with torch.no_grad():
            x_adv = (x + delta + EPS * delta.grad.sign()).clamp(0, 1)
        self.optimiser.zero_grad()
        F.cross_entropy(self.model(x_adv), y).backward()
        self.optimiser.step()

    def _augmented(self, rows: torch.Tensor) -> torch.Tensor:
        # The same batched augmentation as Holdfast's: the comparison is of the loops alone.
        return self.augment(self.images[rows], rows, 0, 0).float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each loop in a round")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    dataset = datasets.load(options.data)
    arguments = {"depth": 18, "width": options.width}
    recipe = recipe_from(
        {"model": {"arguments": arguments}, "batch_size": options.batch_size, "precision": "bf16"}
    )
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    trainer = Trainer(TrainingJob(recipe, dataset, Path("unused"), fabric))
    trainer.model.train()
    plain = PlainLoop(
        arguments,
        torch.from_numpy(dataset.train.images),
        torch.from_numpy(dataset.train.labels),
    )

    def holdfast_step() -> None:
        trainer._step()

    loops = {"plain float32": lambda: plain.step(options.batch_size), "holdfast": holdfast_step}
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(options.rounds + 1):
        for name, step in loops.items():
            began = time.perf_counter()
            for _ in range(options.steps):
                step()
            speed = options.steps * options.batch_size / (time.perf_counter() - began)
            if round_:  # the first round warms up
                speeds[name].append(speed)
    device = torch.device("cpu")
    rates = {
        str(dtype).removeprefix("torch."): matmul_rate(device, SIZES, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    result = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "train_throughput",
        "model": f"preact-resnet depth 18 width {options.width}",
        "objective": "n-fgsm",
        "batch_size": options.batch_size,
        "images_per_second": medians,
        "rounds": speeds,
        "ratio": medians["holdfast"] / medians["plain float32"],
        "matrix_operations_per_second": rates,
        "matrix_ratio": rates["bfloat16"] / rates["float32"],
        "pixels": dataset.train.pixels,
        **circumstances("cpu"),
    }
    shown = ("model", "images_per_second", "ratio", "matrix_ratio", "machine")
    print(json.dumps({name: result[name] for name in shown}, indent=2))
    if options.out:
        write_result(options.out, result)


if __name__ == "__main__":
    main()
