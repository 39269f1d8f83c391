"""Evaluate a model of your own, and write a page about it.

    python examples/evaluate_your_model.py --out runs/mine

Put your own model and images in place of these, which are small, so that it takes seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import holdfast as hf


def model() -> nn.Module:
    """Images (N, C, H, W) in [0, 1] → logits (N, K). Here a linear classifier, fitted at once."""
    train = hf.data.load("digits").train
    images = hf.data.to_tensor(train.images).flatten(1)
    targets = torch.nn.functional.one_hot(torch.from_numpy(train.labels)).float()
    weights = torch.linalg.lstsq(images, targets, driver="gelsd").solution
    linear = nn.Linear(64, 10)
    linear.weight.data, linear.bias.data = weights.T.clone(), torch.zeros(10)
    return nn.Sequential(nn.Flatten(), linear).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=300, help="test images")
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    options = parser.parse_args()
    test = hf.data.load("digits").test.first(options.limit)
    result = hf.evaluate(
        model(),
        hf.data.to_tensor(test.images),
        torch.from_numpy(test.labels),
        hf.Threat("linf", 0.1),
        suite="swift",
        run=options.out,
    )
    low, high = result.robust_accuracy_interval
    print(f"standard {result.standard_accuracy:.1%}, robust {result.robust_accuracy:.1%}")
    print(f"95 % interval of the latter: {low:.1%} to {high:.1%}, n = {result.n}")
    for flag in result.flags:
        if flag.fired:
            print(f"{flag.name}: {flag.detail}")
    print(hf.write_report([options.out], options.out / "report.html"))


if __name__ == "__main__":
    main()
