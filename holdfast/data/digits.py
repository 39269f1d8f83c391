"""The embedded data set: scikit-learn's handwritten digits, which need no network.

1,797 real images of 8×8 pixels with 17 grey levels, written by 13 people: the test part of the
UCI set "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak, 1998).
"""

from __future__ import annotations

import numpy as np
import torch

from .. import draws
from .base import DataSet, Split

HELD_OUT_PER_CLASS = 30  # in validation and again in test


def load() -> DataSet:
    """The digits, always split the same way: 1,197 train / 300 validation / 300 test.

    Returns:
        Images uint8 (N, 1, 8, 8), the grey levels 0..16 stretched to 0..255; validation and test
        hold 30 of each digit. An image's file name is `digit_` and its number in the original.
    """
    # scikit-learn takes a second to import, which only those who ask for digits should wait.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # 255/16 is no integer, so the levels are rounded.
    levels = np.rint(images.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    filenames = np.array([f"digit_{i:04d}" for i in range(len(labels))])
    place = _place_in_class(labels)

    def split(chosen: np.ndarray) -> Split:
        pixels = "scikit-learn's handwritten digits, 17 grey levels stretched to 0..255"
        return Split(levels[chosen], filenames[chosen], labels[chosen], pixels)

    return DataSet(
        name="digits",
        classes=tuple("0123456789"),
        train=split(place >= 2 * HELD_OUT_PER_CLASS),
        validation=split((place >= HELD_OUT_PER_CLASS) & (place < 2 * HELD_OUT_PER_CLASS)),
        test=split(place < HELD_OUT_PER_CLASS),
    )


def _place_in_class(labels: np.ndarray) -> np.ndarray:
    """Where each image stands when its class is shuffled, int64 (N,); the same on every machine."""
    seeds = draws.item_seeds(0, "digits", torch.arange(len(labels)))
    keys = draws.uniform(seeds, 0).numpy()
    place = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        place[members[keys[members].argsort(kind="stable")]] = np.arange(len(members))
    return place
