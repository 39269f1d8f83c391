"""Train a robust model on a folder of images, and evaluate it.

    python examples/train_on_your_folder.py DIR --image-size 32 --out runs/folder

DIR holds one folder of images a class, with or without `train/` and `test/` above them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import holdfast as hf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="the folder, or 'digits'")
    parser.add_argument("--image-size", type=int, help="pixels to bring images to")
    parser.add_argument("--recipe", default="digits", help="see `holdfast list recipes`")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/folder"))
    options = parser.parse_args()

    data = hf.data.load(options.data, size=options.image_size)
    trained = hf.train(options.recipe, data, options.out / "training", changes=options.set)
    result = hf.evaluate(
        hf.load(options.out / "training"),
        hf.data.to_tensor(data.test.images),
        torch.from_numpy(data.test.labels),
        hf.Threat("linf", 0.1),
        suite="swift",
        run=options.out / "verdict",
    )
    print(f"{len(data.classes)} classes, {trained.epochs:.0f} epochs")
    print(f"standard {result.standard_accuracy:.1%}, robust {result.robust_accuracy:.1%}")
    print(hf.write_report([options.out / "verdict"], options.out / "report.html"))


if __name__ == "__main__":
    main()
