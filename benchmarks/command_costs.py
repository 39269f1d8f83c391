"""What whole commands cost before and after a change: processor seconds, in pairs.

    python benchmarks/command_costs.py --before CHECKOUT --data datasets [--case CASE …] [--pairs 3]

`CHECKOUT` is a folder with an older state of this repository. Each case runs in two processes at
the same time, one with the code of each side, on the same images, so that other work on the
machine meets both alike; `taskset -c 0 python …` keeps all of it on one core. Counted is the
processor's time, which other work changes less than the clock's; loading the model and the images
is not in it. Kept are the seconds of every run, and what came of it, so that one sees whether the
verdicts are the same.
"""

from __future__ import annotations

import argparse
import csv
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
SLIM = "cifar10-linf-slim"


def evaluation(
    model: str, limit: int, suite: str, *, curve: bool
) -> Callable[[str], dict[str, Any]]:
    """An evaluation of the first test images, at ε = 8/255 in L∞."""

    def measure(data: str) -> dict[str, Any]:
        import torch

        import holdfast as hf
        from holdfast import data as datasets
        from holdfast.search import Search

        torch.set_num_threads(1)
        evaluate, network, split = hf.evaluate, hf.load(model), datasets.load(data).test
        images = datasets.to_tensor(split.images[:limit])
        labels = torch.from_numpy(split.labels[:limit].copy())
        attacks, search = [0.0], Search.run

        def timed(self: Search) -> None:
            began = time.process_time()
            search(self)
            attacks[0] += time.process_time() - began

        Search.run = timed  # type: ignore[method-assign]
        began = time.process_time()
        result = evaluate(network, images, labels, ("linf", 8 / 255), suite, curve=curve)
        cpu = time.process_time() - began
        return {
            "cpu_seconds": cpu,
            "attacks_cpu_seconds": attacks[0],
            "besides_cpu_seconds": cpu - attacks[0],
            "standing": int((~result.broken).sum()),
            "n": result.n,
            "fired": [flag.name for flag in result.flags if flag.fired],
            "curve": [round(p.robust_accuracy * limit) for p in result.curve.points]
            if result.curve
            else [],
        }

    return measure


def random_defence(
    model: str, defence: str, limit: int, stages: slice
) -> Callable[[str], dict[str, Any]]:
    """An evaluation behind a random defence by the suite `adaptive`.

    Args:
        stages: which of its stages.
    """

    def measure(data: str) -> dict[str, Any]:
        import torch

        import holdfast as hf
        from holdfast import data as datasets
        from holdfast.attacks import Suite, adaptive
        from holdfast.defences import chain

        torch.set_num_threads(1)
        network, split = chain(hf.load(model), [defence]), datasets.load(data).test
        images = datasets.to_tensor(split.images[:limit])
        labels = torch.from_numpy(split.labels[:limit].copy())
        suite = Suite("part of adaptive", adaptive(["undefended"], random=True).stages[stages])
        began = time.process_time()
        result = hf.evaluate(network, images, labels, hf.Threat("linf", 8 / 255), suite)
        return {
            "cpu_seconds": time.process_time() - began,
            "standing": int((~result.broken).sum()),
            "broken": result.broken.int().tolist(),
            "n": result.n,
            "forwards": sum(cost.forwards for cost in result.attacks),
            "backwards": sum(cost.backwards for cost in result.attacks),
        }

    return measure


def uncertainty(model: str, limit: int) -> Callable[[str], dict[str, Any]]:
    """All that `holdfast uncertainty` measures on the first test images."""

    def measure(data: str) -> dict[str, Any]:
        import tempfile

        import torch

        from holdfast.cli import uncertainty as verb

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            options = verb.Options(
                model=model, out=Path(folder) / "run", data=data, limit=limit, quiet=True
            )
            began = time.process_time()
            record = verb.run(options).to_dict()
            cpu = time.process_time() - began
            with open(Path(folder) / "run" / "images.csv") as file:
                rows = list(csv.DictReader(file))
        return {
            "cpu_seconds": cpu,
            "n": limit,
            "attacked": attacked_figures(record),
            "per_image": {name: [float(row[name]) for row in rows] for name in rows[0]},
        }

    return measure


def attacked_figures(record: dict[str, Any]) -> dict[str, float]:
    """What each attack on uncertainty has reached, by name."""
    detectors, sets = record["detectors"], record["sets"]["by_score"]["lac"]["attacked"]
    reached = {
        "calibration error, confidence attacked": record["conditions"]["miscalibrate"]["ece"],
        "90 % sets (lac), coverage": sets["covered"]["coverage"],
        "robust sets, coverage": record["robust_sets"]["inside"]["coverage"],
    }
    for name, told in (("unaware", "unknown"), ("aware", "known")):
        for detector in ("max-softmax", "mahalanobis"):
            rates = detectors[detector][name]["robust_error"]
            reached[f"{detector}, {told} to the attacker, robust error at 5 %"] = rates["0.05"]
    figures = {name: float(figure["value"]) for name, figure in reached.items()}
    return figures | {"90 % sets (lac), enlarged": float(sets["enlarged"]["mean_size"])}


CASES: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "swift-64-curve": (
        f"`evaluate {SLIM} --suite swift --limit 64 --curve`",
        evaluation(SLIM, 64, "swift", curve=True),
    ),
    "swift-64": (
        f"`evaluate {SLIM} --suite swift --limit 64`",
        evaluation(SLIM, 64, "swift", curve=False),
    ),
    "uncertainty-60": (f"`uncertainty {SLIM} --limit 60`", uncertainty(SLIM, 60)),
    # The gradient attacks: HopSkipJump failed on random models before.
    "adaptive-noise": (
        f"`adaptive`, gradients, {SLIM} behind noise, 8 images",
        random_defence(SLIM, "noise:sigma=0.05", 8, slice(0, 4)),
    ),
    "adaptive-resize-pad": (
        f"`adaptive`, gradients, {SLIM} behind resize-pad, 8 images",
        random_defence(SLIM, "resize-pad", 8, slice(0, 4)),
    ),
}


def started(checkout: Path, case: str, data: str) -> subprocess.Popen[str]:
    """A run of a case with the code of a checkout, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", case, "--data", data]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a run has measured, once it is over."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def revision(checkout: Path) -> str:
    """The commit of a checkout, and whether it was edited."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *words], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()

    edited = git("status", "--porcelain", "--untracked-files=no", "--", "holdfast", "benchmarks")
    return git("rev-parse", "HEAD") + ("+changes" if edited else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="a checkout of the older state")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--case", action="append", choices=CASES, help="by default all")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(CASES[options.measure][1](options.data)))
        return
    if options.before is None:
        parser.error("--before names a checkout of the older state")
    sides = {"before": options.before, "after": HERE.parent}
    revisions = {side: revision(checkout) for side, checkout in sides.items()}

    from holdfast.runs.environment import circumstances
    from holdfast.runs.files import write_result

    where = circumstances("cpu")
    cases = []
    for name in options.case or CASES:
        pairs = []
        for _ in range(options.pairs):
            running = {s: started(sides[s], name, options.data) for s in sides}
            pairs.append({side: outcome(process) for side, process in running.items()})
            print(name, json.dumps(pairs[-1]), flush=True)
        cases.append({"name": name, "title": CASES[name][0], "pairs": pairs})
    schema = "holdfast/command-costs/1"
    write_result(options.out, {"schema": schema, **where, "revisions": revisions, "cases": cases})


if __name__ == "__main__":
    main()
