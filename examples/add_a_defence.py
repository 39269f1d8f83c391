"""A defence of your own, and what is left of it under an attacker who knows it.

    python examples/add_a_defence.py --model runs/demo/undefended

A defence is a class. What it declares about itself, such as a surrogate gradient, the suite
`adaptive` uses against it. What it does not declare is found by the repair of hidden gradients.
"""

from __future__ import annotations

import argparse

import torch

import holdfast as hf
from holdfast.types import Model


class Stripes(hf.defences.Defence):
    """Sets every second row to the mean of its neighbours, and rounds to 8 levels."""

    name = "stripes"
    backwards = ("identity",)

    def __init__(self, model: Model, *, levels: int = 8):
        self.levels = levels
        super().__init__(model, levels=levels)

    def transform(self, images: torch.Tensor) -> torch.Tensor:
        smooth = images.clone()
        smooth[..., 1:-1:2, :] = (images[..., :-2:2, :] + images[..., 2::2, :]) / 2
        return torch.round(smooth * self.levels) / self.levels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/demo/undefended")
    parser.add_argument("--limit", type=int, default=100)
    options = parser.parse_args()
    model = hf.load(options.model)
    test = hf.data.load("digits").test.first(options.limit)
    images, labels = hf.data.to_tensor(test.images), torch.from_numpy(test.labels)
    threat = hf.Threat("linf", 0.1)
    bare = hf.evaluate(model, images, labels, threat, "swift")
    behind = hf.evaluate(Stripes(model), images, labels, threat, "adaptive")
    print(f"bare model:              robust {bare.robust_accuracy:.1%}")
    if behind.unaware is not None:
        print(f"defence not known:       robust {behind.unaware.robust_accuracy:.1%}")
    print(f"defence known:           robust {behind.robust_accuracy:.1%}")


if __name__ == "__main__":
    main()
