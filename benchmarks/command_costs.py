"""What whole commands cost before and after a change: processor seconds, in pairs.

    python benchmarks/command_costs.py --before CHECKOUT --data datasets [--case CASE …] [--pairs 3]

`CHECKOUT` is a folder with an older state of this repository. Each case runs in a process of its
own, on one core, with the code of one side, then of the other, on the same images; which side is
first changes from pair to pair. Counted is the processor's time, which other work on the machine
changes less than the clock's; loading the model and the images is not in it. Kept are the seconds
of every run, and what came of it, so that one sees whether the verdicts are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "command_costs.json"
SLIM, UNDEFENDED = "cifar10-linf-slim", "cifar10-standard-cpu"


def evaluation(
    model: str,
    limit: int,
    suite: str,
    *,
    curve: bool = False,
    defence: str | None = None,
    attacks: str | None = None,
) -> Callable[[str], dict[str, Any]]:
    """One evaluation.

    Args:
        defence: in front of the model, as `--defence` takes it.
        attacks: a class of `holdfast.attacks` in place of the suite.
    """

    def measure(data: str) -> dict[str, Any]:
        import torch

        import holdfast as hf
        from holdfast import data as datasets

        load = hf.load

        network = load(model)
        if defence is not None:
            from holdfast.defences import defended

            network = defended(network, [defence])
        split = datasets.load(data).test
        images = datasets.to_tensor(split.images[:limit])
        labels = torch.from_numpy(split.labels[:limit].copy())
        began = time.process_time()
        result = hf.evaluate(network, images, labels, ("linf", 8 / 255), suite, curve=curve)
        cpu = time.process_time() - began
        return {
            "cpu_seconds": cpu,
            "seconds": result.seconds,
            "attacks_seconds": sum(cost.seconds for cost in result.attacks),
            "standing": int((~result.broken).sum()),
            "standard": result.standard_accuracy,
            "fired": [flag.name for flag in result.flags if flag.fired],
            "others": {each.name: each.seconds for each in getattr(result, "other_costs", ())},
        }

    return measure


CASES: dict[str, Callable[[str], dict[str, Any]]] = {
    "swift-64": evaluation(SLIM, 64, "swift"),
    "swift-64-curve": evaluation(SLIM, 64, "swift", curve=True),
    "swift-64-undefended-curve": evaluation(UNDEFENDED, 64, "swift", curve=True),
}


def measured(checkout: Path, case: str, data: str) -> dict[str, Any]:
    """One run of a case with the code of a checkout, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", case, "--data", data]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure")
    parser.add_argument("--data")
    o = parser.parse_args()
    print(json.dumps(CASES[o.measure](o.data)))
