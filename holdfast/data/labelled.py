"""From images with labels, however they are stored, to a data set with its three splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64

from .. import draws
from ..errors import InputError
from .base import SPLITS, DataSet, Split

HELD_OUT = 0.1  # the share of a class that goes to validation


def assembled(
    name: str,
    classes: tuple[str, ...],
    given: Mapping[str, Split],
    told: Sequence[str] = (),
    *,
    where: str,
    held_out: int | None = None,
    why: Mapping[str, str] | None = None,
    **more: Any,
) -> DataSet:
    """A data set of the splits that there are.

    Without validation images, a tenth of each class of the training images becomes validation; the
    order of the rest stays. What is not there is an empty split, and asking for it says so.

    Args:
        given: `train`, `validation`, `test`, or some of them, with images of one shape.
        where: the file or folder, to begin an error with.
        why: a split has no images, where there is a reason.
        held_out: the last so many training images become validation instead.
        more: further fields of the data set.

    Raises:
        InputError: no images at all, splits of several shapes, or images of no class.
    """
    splits = {split: each for split, each in given.items() if len(each)}
    if not splits:
        raise InputError(f"{where}: holds no images")
    first = next(iter(splits.values()))
    shape = first.images.shape[1:]
    for split, each in splits.items():
        if each.images.shape[1:] != shape:
            own, other = ("×".join(map(str, s)) for s in (each.images.shape[1:], shape))
            raise InputError(
                f"{where}: the images of {split} are {own}, those of {next(iter(splits))} {other}"
            )
    lines = list(told)
    if "train" in splits and "validation" not in splits:
        train = splits["train"]
        held = _last(train, held_out) if held_out is not None else _tenth(train.labels)
        if held.any() and not held.all():
            splits["train"], splits["validation"] = _part(train, ~held), _part(train, held)
            lines.append(f"{int(held.sum())} of the {len(held)} training images are validation")
    if "validation" in splits and splits["validation"].grouped:
        # Its first images choose models and mixtures.
        splits["validation"] = replace(mixed(splits["validation"]), indices=None)
        lines.append("validation stood class after class: its order is a random one, always alike")
    empty = Split(
        np.empty((0, *shape), np.uint8), np.empty(0, "U1"), np.empty(0, np.int64), first.pixels
    )
    lacking = {split: f"{where}: has no {split} images" for split in SPLITS if split not in splits}
    lacking |= why or {}
    train, validation, test = (splits.get(split, empty) for split in SPLITS)
    return DataSet(
        name, classes, train, validation, test, told=tuple(lines), lacking=lacking, **more
    )


def _part(split: Split, chosen: Bool[np.ndarray, " n"]) -> Split:
    """Some of a split's images, as a split of its own."""
    return replace(split.rows(np.flatnonzero(chosen)), indices=None)


def mixed(split: Split) -> Split:
    """All images of a split in a random order, the same on every machine, of which the first are a
    sample."""
    keys = draws.uniform(draws.item_seeds(0, "mixed", torch.arange(len(split))), 0)
    rows = keys.argsort(stable=True).numpy()
    return replace(split.rows(rows), grouped=False)


def _last(split: Split, count: int) -> Bool[np.ndarray, " n"]:
    return np.arange(len(split)) >= len(split) - count


def _tenth(labels: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """A tenth of each class, at least one of two; the same on every machine."""
    held = np.zeros(len(labels), bool)
    keys = draws.uniform(draws.item_seeds(0, "held out", torch.arange(len(labels))), 0).numpy()
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        count = max(1, round(HELD_OUT * len(members)))
        if count < len(members):
            held[members[keys[members].argsort(kind="stable")][:count]] = True
    return held


def is_grouped(labels: Int64[np.ndarray, " n"]) -> bool:
    """Whether labels stand class after class."""
    changes = int((np.diff(labels) != 0).sum())
    return 0 < changes < min(len(np.unique(labels)), len(labels) // 2)
