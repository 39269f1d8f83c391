"""What ways to hide a gradient are worth against an attacker who repairs it.

    python benchmarks/hidden_gradients.py MODEL --data DIR [--limit 200] [--out FILE]

Each way of `hiding.py` is put before or behind the network, and attacked by PGD of 40 steps through
the model's own gradient, and by `swift`, which repairs it. Some ways, which differ in kind, are
attacked by the suite `autoattack` without repair, too; on the first images only, as it takes long.
The bare network's figures stand beside. Rows are kept as they come: the same command goes on where
it stopped. Seconds are the processor's, which other programs do not lengthen.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from hiding import INPUTS, LOGITS, Hiding
from torch import Tensor, nn

import holdfast as hf
from holdfast import data as datasets
from holdfast.attacks import PGD
from holdfast.evaluation.cards import threat_of
from holdfast.runs.environment import circumstances
from holdfast.runs.files import json_text, read_json, write_atomically
from holdfast.runs.identity import weights_digest
from holdfast.threat import Threat

OWN = PGD(steps=40, step_size=0.1, loss="margin")
# Ways that leave a network useless, which was not trained behind them.
LEFT_OUT = {"thermometer", "inverted by numpy", "clamped", "backward by numpy"}
# Ways that `autoattack` is tried on, of every kind one.
LONG = (
    "nothing",
    "images: round",
    "images: detach",
    "images: zero backward",
    "images: jpeg",
    "images: scipy",
    "images: hook",
    "logits: rounded",
    "logits: one-hot",
    "logits: tanh",
    "logits: softmax",
    "logits: blind if differentiated",
)
LOGIT_WAYS: dict[str, Any] = {
    **LOGITS,
    "rounded": lambda z: (z * 4).round() / 4,
    "numpy": lambda z: torch.from_numpy((z.detach().numpy() * 4).round() / 4),
    "tanh": lambda z: torch.tanh(3 * z),
    "softmax": lambda z: (20 * z).softmax(1),
}


def ways(network: nn.Module) -> dict[str, nn.Module]:
    """Every way around the network, by its name."""
    found: dict[str, nn.Module] = {}
    for name in INPUTS:
        found[f"images: {name}"] = Hiding(network, before=name)
    for name, after in LOGIT_WAYS.items():
        hiding = Hiding(network)
        hiding.after = after
        found[f"logits: {name}"] = hiding
    return {n: model.eval() for n, model in found.items() if n.split(": ")[1] not in LEFT_OUT}


class Clock:
    """Processor seconds since it was last asked."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def passed(self) -> float:
        now = time.process_time()
        passed, self.last = now - self.last, now
        return passed


def accuracy(model: nn.Module, points: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(points).float().argmax(1) == labels).float().mean())


def own_gradient(model: nn.Module, images: Tensor, labels: Tensor, threat: Threat) -> float:
    """Robust accuracy under PGD by the model's own gradient; without one, the standard accuracy."""
    try:
        points = OWN(model, images, labels, threat)
    except Exception:  # no gradient: of torch, or of the way itself
        points = images
    return accuracy(model, points, labels)


def row(
    name: str,
    model: nn.Module,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    first: int,
) -> dict[str, Any]:
    """One way, attacked three times."""
    clock = Clock()
    own = own_gradient(model, images, labels, threat)
    own_seconds = clock.passed()
    swift = hf.evaluate(model, images, labels, threat, "swift")
    swift_seconds = clock.passed()
    long = long_seconds = None
    if first and name in LONG:
        long = hf.evaluate(
            model, images[:first], labels[:first], threat, "autoattack", repair=False
        )
        long_seconds = clock.passed()
    return {
        "way": name,
        # On clean images and on those found: how often it predicts what the network predicts.
        "predicts_alike": _alike(model, network, torch.cat([images, swift.adversarial])),
        "standard_accuracy": swift.standard_accuracy,
        "own": own,
        "own_seconds": own_seconds,
        "repaired": swift.robust_accuracy,
        "repaired_interval": swift.robust_accuracy_interval,
        "repaired_first": float((~swift.broken[:first]).float().mean()) if long else None,
        "repaired_seconds": swift_seconds,
        "repairs": [str(repair) for repair in swift.repairs],
        "flags": [flag.name for flag in swift.flags if flag.fired],
        "autoattack": None if long is None else long.robust_accuracy,
        "autoattack_seconds": long_seconds,
    }


def _alike(model: nn.Module, network: nn.Module, points: Tensor) -> float:
    with torch.no_grad():
        found = [m(points).float().argmax(1) for m in (model, network)]
    return float((found[0] == found[1]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--first", type=int, default=16, help="images for autoattack; 0: none")
    parser.add_argument("--only", help="ways, separated by commas")
    parser.add_argument("--pixels", help="what the images are, such as 'JPEG test images'")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    network = hf.load(options.model).eval()
    threat = threat_of(None, None, getattr(network, "card", {}))
    test = datasets.load(options.data).test
    images = datasets.to_tensor(test.images[: options.limit])
    labels = torch.from_numpy(test.labels[: options.limit].copy())
    result: dict[str, Any] = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "hidden_gradients",
        "model": {"source": options.model, "sha256": weights_digest(network)},
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "n": len(images),
        "first": options.first,
        "pixels": options.pixels or test.pixels,
        **circumstances("cpu"),
        "rows": [],
    }
    if options.out is not None and options.out.is_file():
        before = read_json(options.out)
        if before["model"] == result["model"] and before["git"] == result["git"]:
            result["rows"] = before["rows"]
    done = {each["way"] for each in result["rows"]}
    models = {"nothing": network, **ways(network)}
    for name, model in models.items():
        if name in done or (options.only and name not in options.only.split(",")):
            continue
        result["rows"].append(row(name, model, network, images, labels, threat, options.first))
        print(json.dumps(result["rows"][-1]), flush=True)
        if options.out is not None:
            write_atomically(options.out, json_text(result))


if __name__ == "__main__":
    main()
