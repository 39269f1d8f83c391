"""How soon the playground answers: its first page, and an attack of 20 steps on one image.

    python benchmarks/playground.py --out benchmarks/results/playground.json

Each is measured several times in processes of its own, in seconds of the clock and of the
processor: on a busy machine the second says what an idle one would take.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch

import holdfast as hf
from holdfast.runs.environment import circumstances
from holdfast.runs.files import write_result

MODELS = ("cifar10-standard-cpu", "cifar10-linf-slim")
STEPS = 20


def first_page() -> dict[str, float]:
    """Seconds from the start of the command to the end of the first page's answer."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "play", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    found = re.search(r"playground: (\S+)", process.stdout.readline())
    assert found is not None
    with urllib.request.urlopen(found[1]) as answer:
        size = len(answer.read())
    seconds = time.monotonic() - began
    spent = _processor(process.pid)
    process.kill()
    process.wait()
    return {"seconds": seconds, "processor_seconds": spent, "bytes": size}


def _processor(process: int) -> float:
    """Seconds of the processor that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def attack(name: str) -> dict[str, Any]:
    """PGD on one image, as the page asks for it; the second time, when everything is warm."""
    torch.manual_seed(0)
    model, image = hf.load(name), torch.rand(3, 32, 32)
    taken: dict[str, Any] = {"model": name, "steps": STEPS}
    for _ in range(2):
        began, spent = time.monotonic(), time.process_time()
        hf.try_image(model, image, ("linf", 8 / 255), attack="pgd", steps=STEPS, closest=False)
        taken["seconds"] = time.monotonic() - began
        taken["processor_seconds"] = time.process_time() - spent
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="starts of the playground")
    parser.add_argument("--out", type=Path, required=True, help="the result file")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    pages = [first_page() for _ in range(options.repeats)]
    found = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "playground",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load_before,  # of the machine over the minute before, in processes that want it
        "first_page": {
            "starts": pages,
            "median_seconds": statistics.median(page["seconds"] for page in pages),
            "median_processor_seconds": statistics.median(
                page["processor_seconds"] for page in pages
            ),
        },
        "attacks": [attack(name) for name in MODELS],
        **circumstances("cpu"),
    }
    write_result(options.out, found)
    print(found["first_page"]["median_processor_seconds"], found["attacks"])


if __name__ == "__main__":
    main()
