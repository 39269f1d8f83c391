"""Calibrate conformal sets for the models of the zoo, which then travel with the package.

    python benchmarks/calibrations.py --data DIR            # writes what travels
    python benchmarks/calibrations.py --data DIR --check    # fails where that says otherwise

The file is holdfast/one_image/calibrations.json. For each classifier it holds the threshold of
split-conformal sets (score LAC) on the first validation images that the model was not trained on.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch

from holdfast.data import load as load_data
from holdfast.data import to_tensor
from holdfast.errors import HoldfastError
from holdfast.evaluation.cards import unseen_validation
from holdfast.figures.subject import Subject, ready
from holdfast.loading import load
from holdfast.models.registry import ARCHITECTURES
from holdfast.models.zoo import zoo_models
from holdfast.one_image import sets
from holdfast.one_image.sets import ALPHA, SCORE, SHIPPED, Calibration
from holdfast.runs.files import write_atomically
from holdfast.threat import Threat

IMAGES = 1000


def measured(data: str, pixels: str) -> dict[str, Any]:
    """What the file holds.

    Args:
        pixels: what the pixels are, in words.
    """
    dataset = load_data(data)
    models: dict[str, Any] = {}
    for name in zoo_models():
        model = load(name)
        card = model.card
        if card["architecture"] not in ARCHITECTURES or list(card["classes"]) != [*dataset.classes]:
            continue
        try:
            held = unseen_validation(dataset, {name: card})
        except HoldfastError as error:
            print(f"{name}: {error}")
            continue
        if len(held) < IMAGES:
            print(f"{name}: {len(held)} validation images were held back, not {IMAGES}")
            continue
        part = held.first(IMAGES)
        subject = Subject(model, Threat("linf", 8 / 255), seed=0)
        with ready([subject]):
            found = Calibration.fit(
                subject, to_tensor(np.asarray(part.images)), torch.from_numpy(part.labels.copy())
            )
        assert found.conformal is not None and found.conformal.n == IMAGES
        threshold = round(float(found.conformal.thresholds[0]), 6)
        models[card["weights_sha256"]] = {"name": name, "threshold": threshold}
        print(f"{name}: {threshold}")
    return {
        "alpha": ALPHA,
        "score": SCORE,
        "n": IMAGES,
        "images": f"validation images of CIFAR-10, {pixels}" if pixels else "validation images",
        "pixels": dataset.validation.pixels,
        "command": f"python benchmarks/calibrations.py --data DIR --pixels {pixels!r}",
        "models": models,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="datasets", help="the folder that holds CIFAR-10")
    parser.add_argument("--pixels", default="", help="what the pixels are, such as 'as JPEG'")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    sets.IMAGES = IMAGES
    found = measured(options.data, options.pixels)
    if options.check:
        held = json.loads(SHIPPED.read_text(encoding="utf-8"))["models"]
        for key, model in found["models"].items():
            assert abs(held[key]["threshold"] - model["threshold"]) < 1e-3, model["name"]
        return
    write_atomically(SHIPPED, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
