"""Peak resident memory of an evaluation of many images.

    python benchmarks/memory.py --data DIR [--suite swift] [--images 10000] [--out FILE]

The model is the width-32 PreAct ResNet-18 with random weights unless --model names another: what
an evaluation holds in memory depends on the architecture, not on what it has learnt. Its own
answers serve as labels, so that every image is searched. Nearly all of them stand, which takes
hours; a few minutes of training make a network that falls in minutes:

    holdfast train recipes/cifar10-accurate-cpu.yaml --data DIR --budget 4m --out RUN
        --set model.arguments.depth=18 --set model.arguments.stages=4
        --set model.arguments.width=32 --set model.arguments.stem_stride=1
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch

import holdfast as hf
from holdfast import data as datasets
from holdfast.models import build
from holdfast.runs.environment import circumstances
from holdfast.runs.files import write_result
from holdfast.runs.identity import weights_digest

OWN = {"depth": 18, "width": 32}  # the network that is taken unless another is named


def peak_gib() -> float:
    """The most that was resident at once, so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def described(model: torch.nn.Module) -> str:
    """Its architecture, and whatever arguments shape it, in words."""
    card = getattr(model, "card", {"architecture": "preact-resnet", "arguments": OWN})
    told = card["arguments"]
    shape = [f"{key} {told[key]}" for key in ("depth", "width", "stem_stride") if key in told]
    return " ".join([card["architecture"], *shape])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or zoo name; by default random weights")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--suite", default="swift")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pixels", help="what the pixels are, in words")
    parser.add_argument("--run", type=Path, help="also keep a run folder")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    test = datasets.load(options.data).test
    images = datasets.to_tensor(test.images[: options.images])
    if options.model:
        model, labels = hf.load(options.model), torch.from_numpy(test.labels[: len(images)].copy())
    else:
        torch.manual_seed(options.seed)
        # The same body takes grey images too.
        own = {} if images.shape[1] == 3 else {"mean": [0.5], "std": [0.25]}
        model = build("preact-resnet", {**OWN, **own}).eval()
        with torch.no_grad():
            labels = torch.cat([model(x).argmax(1) for x in images.split(256)])
    before, began = peak_gib(), time.perf_counter()
    result = hf.evaluate(
        model,
        images,
        labels,
        hf.Threat("linf", options.eps),
        options.suite,
        seed=options.seed,
        run=options.run,
        progress=True,
    )
    said = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "memory",
        "model": {
            "source": options.model or "random weights",
            "network": described(model),
            "sha256": weights_digest(model),
        },
        "n": len(images),
        "image_shape": list(images.shape[1:]),
        "pixels": options.pixels or test.pixels,
        "suite": options.suite,
        "precision": result.precision,
        "batch_size": result.batch_size,
        "robust_accuracy": result.robust_accuracy,
        "peak_resident_gib": peak_gib(),
        "peak_resident_gib_before": before,
        "images_gib": images.numel() * 4 / 2**30,
        "seconds": time.perf_counter() - began,
        **circumstances("cpu"),
    }
    print(json.dumps(said, indent=2))
    if options.out:
        write_result(options.out, said)


if __name__ == "__main__":
    main()
