"""Time and memory of an evaluation of many large images, in memory and not.

    python benchmarks/large_images.py --before CHECKOUT [--images 5000] [--suite swift] [--out FILE]

`CHECKOUT` is a folder with an older state of this repository, which holds all images in memory, as
float32. The images are JPEG files of 224 × 224, made for the purpose in a temporary folder; the
model is a small convolutional network with random weights, whose own answers serve as labels.
Three processes evaluate them at the same time, so that other work on the machine meets all alike:
the older state; this one, which decodes images when they are asked for; and this one with the same
images held in memory as float32. `taskset -c 0 python …` keeps all of it on one core.
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

import numpy as np
import torch
from command_costs import outcome, revision
from PIL import Image
from torch import nn

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "large_images.json"
SIZE, CLASSES = 224, 10
SIDES = ("before", "decoded", "in memory")
ENDS = ("train", "validation")  # splits that a folder of the older state has to have


def network() -> nn.Module:
    """16, 32 and 64 channels, and the mean of the last over all pixels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, channels, kernel, stride in ((3, 16, 7, 4), (16, 32, 3, 2), (32, 64, 3, 2)):
        layers += [nn.Conv2d(before, channels, kernel, stride, kernel // 2), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * 16, CLASSES)]
    return nn.Sequential(*layers, *head).eval()


def write_images(folder: Path, count: int) -> None:
    """Textures of several scales, `count` of them in `test/`, two of each class elsewhere."""
    number = 0
    for split, images in (("test", count), *((end, 2 * CLASSES) for end in ENDS)):
        for image in range(images):
            draw, pixels = np.random.default_rng(number), np.zeros((SIZE, SIZE, 3))
            number += 1
            for side in (4, 16, 64):
                levels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
                grown = Image.fromarray(levels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                pixels += np.asarray(grown) / 3
            place = folder / split / f"class {image % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.jpg", quality=90)


def resident_gib() -> float:
    """The most that was resident at once, so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(side: str, folder: Path, suite: str, eps: str) -> dict[str, Any]:
    """An evaluation by one side, in this process."""
    import holdfast as hf
    from holdfast import data as datasets

    torch.set_num_threads(1)
    model, began, cpu = network(), time.perf_counter(), time.process_time()
    start = resident_gib()
    split = datasets.load(folder).test
    images: Any = datasets.to_tensor(split.images) if side != "decoded" else split.images
    with torch.no_grad():
        parts = (
            split.images[np.arange(i, min(i + 64, len(split)))] for i in range(0, len(split), 64)
        )
        labels = torch.cat([model(datasets.to_tensor(part)).argmax(1) for part in parts])
    if side != "decoded":
        del split
    loaded = time.perf_counter() - began
    threat = hf.Threat("linf", eps)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        result = hf.evaluate(model, images, labels, threat, suite, 64, run=Path(out) / "run")
    return {
        "side": side,
        "peak_resident_gib": resident_gib(),
        "resident_gib_before": start,
        "seconds": time.perf_counter() - began,
        "seconds_until_loaded": loaded,
        "cpu_seconds": time.process_time() - cpu,
        "robust_accuracy": result.robust_accuracy,
        "standing": [verdict.index for verdict in result.verdicts if not verdict.broken],
        "n": result.n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="a checkout of the older state")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--suite", default="swift")
    parser.add_argument("--eps", default="4/255")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        side, folder = options.measure
        print(json.dumps(measured(side, Path(folder), options.suite, options.eps)))
        return
    if options.before is None:
        parser.error("--before names a checkout of the older state")

    from holdfast.runs.environment import circumstances
    from holdfast.runs.files import write_result

    checkouts = {side: options.before if side == "before" else HERE.parent for side in SIDES}
    where = circumstances("cpu")
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.images)
        running = {}
        for side, checkout in checkouts.items():
            environment = os.environ | {
                "PYTHONPATH": str(checkout.resolve()),
                "OMP_NUM_THREADS": "1",
            }
            command = [
                sys.executable,
                __file__,
                "--measure",
                side,
                folder,
                "--suite",
                options.suite,
            ]
            running[side] = subprocess.Popen(
                [*command, "--eps", options.eps], env=environment, stdout=subprocess.PIPE, text=True
            )
        sides = [outcome(process) for process in running.values()]
    standing = [side.pop("standing") for side in sides]
    said = {
        "schema": "holdfast/large-images/1",
        **where,
        "revisions": {side: revision(checkout) for side, checkout in checkouts.items()},
        "n": options.images,
        "image_shape": [3, SIZE, SIZE],
        "suite": options.suite,
        "eps": options.eps,
        "sides": sides,
        "same_images_stand": all(each == standing[0] for each in standing),
    }
    print(json.dumps(said, indent=2))
    write_result(options.out, said)


if __name__ == "__main__":
    main()
