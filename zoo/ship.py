"""Put a trained model into the zoo, in half the space.

    python zoo/ship.py RUN NAME
    holdfast evaluate NAME --data DIR --out zoo/NAME/SUITE …

Weights are stored as float16 and loaded as float32; what is evaluated is what is shipped, so
evaluate the model from the zoo, not from its run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from holdfast.errors import InputError
from holdfast.models import load_checkpoint, save_checkpoint

ZOO = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a training run's folder")
    parser.add_argument("name", help="such as cifar10-linf-cpu-60m")
    options = parser.parse_args()
    if (ZOO / options.name).exists():
        raise InputError(f"the zoo has a model {options.name} already")
    model = load_checkpoint(options.run / "model")
    card = {k: v for k, v in model.card.items() if k not in ("schema", "weights_sha256")}
    save_checkpoint(ZOO / options.name, model, card, torch.float16)
    print(ZOO / options.name)


if __name__ == "__main__":
    main()
