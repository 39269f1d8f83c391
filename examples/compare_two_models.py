"""Compare two models on the same images, image by image.

    python examples/compare_two_models.py runs/demo/undefended runs/demo/defended --out runs/pair

Prints how many images are right with both, one or none, and whether chance explains the difference.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import holdfast as hf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs=2)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--eps", type=float, default=0.2)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/pair"))
    options = parser.parse_args()
    test = hf.data.load(options.data).test.first(options.limit)
    images, labels = hf.data.to_tensor(test.images), torch.from_numpy(test.labels)
    runs = []
    for number, source in enumerate(options.models):
        runs.append(options.out / f"{number}-{Path(source).name}")
        threat = hf.Threat("linf", options.eps)
        hf.evaluate(hf.load(source), images, labels, threat, "swift", run=runs[-1])
    pair = hf.compare(runs).pairs[0]
    for name, figure in (("standard", pair.standard), ("robust", pair.robust)):
        low, high = (100 * end for end in figure.interval)
        points = f"{100 * figure.difference:+.1f} points ({low:+.1f} to {high:+.1f})"
        print(f"{name:8} {points}, p = {figure.p_value:.2g}")
    print(hf.write_report(runs, options.out / "report.html"))


if __name__ == "__main__":
    main()
