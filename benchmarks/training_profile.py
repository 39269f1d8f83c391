"""Where each millisecond of a training step goes, and how near it comes to the hardware's limit.

    python benchmarks/training_profile.py --data DIR [--recipe FILE] [--set key=value …]
        [--device D] [--out benchmarks/results/training_profile-NAME.json]

Two steps are measured on the recipe's network: the recipe's own objective, and standard training,
which is one forward and one backward pass. For both: the time of its phases and of its kinds of
work, and the floating-point operations of its convolutions and matrix products per second, beside
the rate at which this machine multiplies large bfloat16 matrices in the same process.
`benchmarks/speed_page.py` writes docs/speed.md from the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from holdfast import data as datasets
from holdfast.data.base import DataSet
from holdfast.runs.environment import circumstances
from holdfast.runs.files import write_result
from holdfast.training.job import TrainingJob
from holdfast.training.recipe import Recipe, load_recipe, recipe_from
from holdfast.training.trainer import Trainer

WARM_UP = 3  # steps: they compile, and fill caches
# What an operator's name contains → what kind of work it is; the first that fits counts.
KINDS = (
    ("convolutions", ("conv",)),
    ("matrix products", ("mm", "linear", "matmul", "gemm")),
    ("batch norm", ("batch_norm", "batchnorm")),
    ("copies and layout", ("copy", "clone", "cat", "contiguous", "to_copy", "memcpy", "index")),
    ("random draws", ("bitwise", "randperm", "shift", "ndtri")),
    ("elementwise", ("",)),
)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def matmul_rate(
    device: torch.device,
    sizes: tuple[int, ...],
    seconds: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
) -> float:
    """The most floating-point operations a second in products of square matrices."""
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        spent = 0.0
        while spent < seconds:
            taken = seconds_of(lambda a=a, b=b: a @ b, device)
            spent += taken
            best = max(best, 2 * size**3 / taken)
    return best


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of products and convolutions, two a multiply-add.

    PyTorch's own counter stands in modules' backward hooks, which attacks cannot pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        out = function(*arguments, **(named or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.count += count(*arguments, **(named or {}), out_val=out)
        return out


class Phases:
    """Times the phases of a trainer's step, by standing around what it calls."""

    def __init__(self, trainer: Trainer):
        self.device, self.seconds = trainer.fabric.device, Counter[str]()
        self._around(trainer.batches, "batch", "batch")
        self._around(trainer.objective, "points", "attack")
        self._around(trainer.objective, "loss", "forward")
        self._around(trainer.fabric, "backward", "backward")
        self._around(trainer.optimiser, "step", "optimiser")
        self._around(trainer.average, "update", "averaging")

    def _around(self, owner: Any, name: str, phase: str) -> None:
        function = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            results: list[Any] = []
            self.seconds[phase] += seconds_of(
                lambda: results.append(function(*arguments, **named)), self.device
            )
            return results[0]

        setattr(owner, name, timed)


def kind_of(operator: str) -> str:
    name = operator.lower()
    return next(kind for kind, parts in KINDS if any(part in name for part in parts))


def profiled(step: Callable[[], Any], steps: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of each kind of work in one step: what the operators themselves took."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as record:
        for _ in range(steps):
            step()
        synchronise(device)
    found: Counter[str] = Counter()
    for row in record.key_averages():
        on_cuda = device.type == "cuda"
        micro = row.self_device_time_total if on_cuda else row.self_cpu_time_total
        found[kind_of(row.key)] += micro / 1000 / steps
    return dict(found)


def measured(
    recipe: Recipe, dataset: DataSet, fabric: Fabric, steps: int, rate: float
) -> dict[str, Any]:
    """All figures of one objective's step."""
    device = fabric.device
    trainer = Trainer(TrainingJob(recipe, dataset, Path("unused"), fabric))
    trainer.model.train()
    trainer.schedule.progress = 0.5  # when everything that begins later has begun
    step = trainer._step
    for _ in range(WARM_UP):
        step()
    whole = statistics.median(seconds_of(step, device) for _ in range(steps))
    kinds = profiled(step, max(1, steps // 4), device)
    with Operations() as operations:
        step()
    phases = Phases(trainer)
    timed = statistics.fmean(seconds_of(step, device) for _ in range(steps))
    split = {name: 1000 * spent / steps for name, spent in phases.seconds.items()}
    split["rest"] = 1000 * timed - sum(split.values())
    flops = operations.count
    return {
        "objective": recipe.objective.name,
        "step_ms": 1000 * whole,
        "images_per_second": recipe.batch_size / whole,
        "phases_ms": split,
        "kinds_ms": kinds,
        "gflop_per_step": flops / 1e9,
        "tflops": flops / whole / 1e12,
        "share_of_matmul_rate": flops / whole / rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cifar10-cpu.yaml"))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=8, help="measured of each kind")
    parser.add_argument("--sizes", type=int, nargs="+", help="of the matrices")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    recipe = load_recipe(options.recipe, options.changes)
    dataset = datasets.load(options.data)
    precision = "bf16-mixed" if recipe.precision == "bf16" else "32-true"
    fabric = Fabric(accelerator=options.device, devices=1, precision=precision)
    sizes = options.sizes or ([4096, 8192] if fabric.device.type == "cuda" else [1024, 2048])
    rate = matmul_rate(fabric.device, tuple(sizes))
    plain = {**recipe.to_dict(), "objective": {"name": "standard"}}
    result = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "training_profile",
        "model": {"architecture": recipe.model.architecture, **recipe.model.arguments},
        "batch_size": recipe.batch_size,
        "precision": recipe.precision,
        "optimiser": recipe.optimiser.name,
        "matmul_tflops": rate / 1e12,
        "steps": [
            measured(each, dataset, fabric, options.steps, rate)
            for each in (recipe, recipe_from(plain))
        ],
        "pixels": dataset.train.pixels,
        **circumstances(fabric.device),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        write_result(options.out, result)


if __name__ == "__main__":
    main()
