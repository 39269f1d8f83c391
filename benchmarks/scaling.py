"""How evaluations scale: measured with one process and with two, and a model of more.

    python benchmarks/scaling.py --data datasets [--model NAME] [--suite S] [--limit N] [--eps E]

Each number of processes evaluates the same images, one after the other, on a machine that should
have nothing else to do; each process computes in one thread. Kept are the clock's seconds and the
processors', from the start of the command to its end, and what the result says of where they went.

Time is then laid out as three parts: what every process does by itself (inspecting the model,
health checks, the security curve, …), the attacks, which N processes share, and what process 0
does for each image at the end. The latter two are costs an image, from the run of one process.
`model` holds what that makes of two processes, to compare with what was measured, and of more, for
as many images as `--images` says: these are a model's figures, not measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from holdfast.runs.environment import circumstances
from holdfast.runs.files import write_result

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "scaling.json"
PROCESSES = (1, 2)
MORE = (1, 2, 4, 8, 16, 32, 64, 128)
AT_THE_END = ("clean predictions", "last word", "journal and order of the search")


def command(asked: argparse.Namespace, processes: int, out: Path) -> list[str]:
    """The evaluation by so many processes."""
    several = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    options = ["--eps", asked.eps] if asked.eps else []
    return [
        sys.executable, *(several if processes > 1 else []), "-m", "holdfast", "evaluate",
        asked.model, "--data", asked.data, "--suite", asked.suite, "--limit", str(asked.limit),
        *options, "--quiet", "--out", str(out),
    ]  # fmt: skip


def measured(asked: argparse.Namespace, processes: int, folder: Path) -> dict[str, Any]:
    """What the evaluation took, and what came of it."""
    out = folder / str(processes)
    before, began = _children(), time.monotonic()
    done = subprocess.run(
        command(asked, processes, out),
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    seconds, cpu = time.monotonic() - began, _children() - before
    if done.returncode:
        sys.exit(f"{processes} processes failed: {done.stderr[-2000:]}")
    result = json.loads((out / "result.json").read_text())
    request = json.loads((out / "request.json").read_text())
    return {
        "processes": processes,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "attack_seconds": sum(attack["seconds"] for attack in result["attacks"]),
        "other_costs": {each["name"]: each["seconds"] for each in result["other_costs"]},
        "passes": result["forwards"] + result["backwards"],
        "n": result["n"],
        "robust_accuracy": result["robust_accuracy"],
        "verdicts": (out / "verdicts.csv").read_text(),
        "identity": result["identity"],
        "machine": request["machine"],
        "revision": request["git"],
    }


def _children() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def parts(alone: dict[str, Any]) -> dict[str, float]:
    """The three parts of the time of one process."""
    end = sum(alone["other_costs"].get(name, 0.0) for name in AT_THE_END)
    return {
        "each_process_seconds": max(0.0, alone["seconds"] - alone["attack_seconds"] - end),
        "attack_seconds_an_image": alone["attack_seconds"] / alone["n"],
        "end_seconds_an_image": end / alone["n"],
    }


def modelled(costs: dict[str, float], processes: int, images: int) -> float:
    """Seconds that so many processes take for so many images, by the model.

    Example:
        >>> costs = {"each_process_seconds": 10.0, "attack_seconds_an_image": 1.0,
        ...          "end_seconds_an_image": 0.01}
        >>> modelled(costs, 1, 1000), modelled(costs, 10, 1000)
        (1020.0, 120.0)
    """
    share = -(-images // processes)  # of the one that has most
    return (
        costs["each_process_seconds"]
        + costs["attack_seconds_an_image"] * share
        + costs["end_seconds_an_image"] * images
    )


def outcome(runs: list[dict[str, Any]], images: int) -> dict[str, Any]:
    """Runs, whether their verdicts are the same, and the model."""
    alone, costs = runs[0], parts(runs[0])
    told = [{key: value for key, value in run.items() if key != "verdicts"} for run in runs]
    return {
        "runs": told,
        "same_verdicts": all(run["verdicts"] == alone["verdicts"] for run in runs),
        "speed_up": {str(run["processes"]): alone["seconds"] / run["seconds"] for run in runs},
        "model": {
            "what": "each_process + attack an image · images / processes + end an image · images",
            **costs,
            "measured_images": {
                str(run["processes"]): {
                    "measured_seconds": run["seconds"],
                    "modelled_seconds": modelled(costs, run["processes"], alone["n"]),
                }
                for run in runs
            },
            "images": images,
            "not_measured": {
                str(count): {
                    "seconds": modelled(costs, count, images),
                    "speed_up": modelled(costs, 1, images) / modelled(costs, count, images),
                }
                for count in MORE
            },
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--model", default="cifar10-linf-slim")
    parser.add_argument("--suite", default="swift")
    parser.add_argument("--eps", default="")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--images", type=int, default=10_000, help="for the model of more")
    parser.add_argument("--pixels", help="what the pixels are, such as 'JPEG test images'")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [measured(asked, count, Path(folder)) for count in PROCESSES]
    told = outcome(runs, asked.images)
    named = {"benchmark": "scaling", "model_name": asked.model, "suite": asked.suite}
    limits = {"limit": asked.limit, "pixels": asked.pixels}
    about = {"schema": "holdfast/benchmark/1", **circumstances("cpu")}
    write_result(asked.out, {**about, **named, **limits, **told})
    for run in told["runs"]:
        print(
            f"{run['processes']} processes: {run['seconds']:.1f} s, processors "
            f"{run['cpu_seconds']:.1f} s, attacks {run['attack_seconds']:.1f} s"
        )
    print(f"the same verdicts: {told['same_verdicts']}; speed-up {told['speed_up']['2']:.2f}")
    for count, figures in told["model"]["not_measured"].items():
        print(
            f"model, {asked.images} images, {count:>3} processes: {figures['seconds']:9.0f} s, "
            f"{figures['speed_up']:6.1f} times as fast"
        )


if __name__ == "__main__":
    main()
