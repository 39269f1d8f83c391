"""What an evaluation holds for each image besides its pixels, and so for 50,000 large ones.

    python benchmarks/many_images.py [--few 5000] [--many 50000] [--suite pgd] [--out FILE]

Images that do not fit into memory are read as they are needed, and adversarial ones lie in the
journal, so that what grows with their number is verdicts and what the search knows, whatever size
the images have. Two processes measure it on images of 16 × 16, which are made to be read as large
ones are; the difference of their peaks is the cost of an image. With the peak of
`benchmarks/large_images.py`, which is of real images of 224 × 224 but of fewer, this says what
50,000 of them need: a model, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from large_images import OUT as LARGE
from large_images import resident_gib
from torch import nn

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "many_images.json"
SIZE, CLASSES, CLAIMED = 16, 10, 50_000


def measured(count: int, suite: str, eps: str) -> dict[str, Any]:
    """An evaluation of so many images, in this process."""
    import holdfast as hf
    from holdfast import stored

    torch.set_num_threads(1)
    torch.manual_seed(0)
    stored.IN_MEMORY = 0  # read as large ones are
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, CLASSES)).eval()
    with tempfile.TemporaryDirectory() as folder:
        shape = (count, 3, SIZE, SIZE)
        np.save(
            Path(folder) / "images.npy",
            np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
        )
        images = np.load(Path(folder) / "images.npy", mmap_mode="r")
        with torch.no_grad():
            labels = torch.cat(
                [
                    model(torch.from_numpy(images[i : i + 500].copy()).float() / 255).argmax(1)
                    for i in range(0, count, 500)
                ]
            )
        start = resident_gib()
        result = hf.evaluate(
            model, images, labels, hf.Threat("linf", eps), suite, 128, run=Path(folder) / "run"
        )
        assert not isinstance(result.adversarial, torch.Tensor)
    return {
        "n": count,
        "resident_gib_before": start,
        "peak_resident_gib": resident_gib(),
        "robust_accuracy": result.robust_accuracy,
        "seconds": result.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=5000)
    parser.add_argument("--many", type=int, default=CLAIMED)
    parser.add_argument("--suite", default="pgd")
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure, options.suite, options.eps)))
        return

    from holdfast.runs.environment import circumstances
    from holdfast.runs.files import read_json, write_result

    where, runs = circumstances("cpu"), []
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    for count in (options.few, options.many):
        command = [sys.executable, __file__, "--measure", str(count), "--suite", options.suite]
        said = subprocess.run(
            [*command, "--eps", options.eps],
            env=environment, stdout=subprocess.PIPE, text=True, check=True,
        ).stdout  # fmt: skip
        runs.append(json.loads(said))
    few, many = runs
    per_image = (many["peak_resident_gib"] - few["peak_resident_gib"]) / (many["n"] - few["n"])
    large = read_json(LARGE)
    (real,) = (side for side in large["sides"] if side["side"] == "decoded")
    said = {
        "schema": "holdfast/many-images/1",
        **where,
        "image_shape": [3, SIZE, SIZE],
        "suite": options.suite,
        "eps": options.eps,
        "runs": runs,
        "kib_per_image": per_image * 2**20,
        "large": {
            "n": real["n"],
            "shape": large["image_shape"],
            "peak_gib": real["peak_resident_gib"],
        },
        "claimed": {
            "n": CLAIMED,
            "peak_gib": real["peak_resident_gib"] + per_image * (CLAIMED - real["n"]),
        },
    }
    print(json.dumps(said, indent=2))
    write_result(options.out, said)


if __name__ == "__main__":
    main()
