"""Which images of a split are used: named ones, a part of it, as many of each class."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from .. import draws
from ..errors import InputError
from ..runs.files import read_text
from .arrays import Header, Wrong, read_array
from .base import ALL, DataSet

MOST_INDICES = 100_000_000


def choose(
    dataset: DataSet,
    split: str,
    *,
    indices: str | Path | Sequence[int] | np.ndarray | None = None,
    limit: int | None = None,
    balanced: bool = False,
) -> DataSet:
    """The data set with some images of one split in place of it.

    Args:
        split: `train`, `validation`, `test` or `all`.
        indices: which images of the split, counted from 0, and in which order: numbers, or a file
            that `read_indices` reads.
        limit: how many at most, of those; the first, or, where labels stand class after class, a
            sample in the order of the split.
        balanced: as many of each class that has images: its first.

    Raises:
        InputError: an index out of range or twice; a limit below 1, or with `balanced` below the
            number of classes.

    Example:
        >>> from holdfast.data import load
        >>> few = choose(load("digits"), "test", limit=20, balanced=True)
        >>> len(few.test), few.test.labels.tolist().count(7)
        (20, 2)
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InputError(f"--limit must be at least 1, not {limit!r}")
    if indices is None and limit is None and not balanced:
        return dataset
    chosen, told = dataset.split(split), []
    total = len(chosen)
    if indices is not None:
        rows, where = _asked(indices, total)
        chosen = chosen.rows(rows)
        told.append(f"{where}: {len(rows)} of the {total} images of {split}, in its order")
    if balanced:
        rows, each, k = _balanced(chosen.labels, limit, dataset)
        chosen = chosen.rows(rows)
        told.append(f"balanced: {each} images of each of {k} classes, {len(rows)} in all")
    elif limit is not None and limit < len(chosen):
        if chosen.grouped and indices is None:
            chosen = chosen.rows(_sample(len(chosen), limit))
            told.append(f"the labels of {split} stand class after class: a sample of {limit} taken")
        else:
            chosen = chosen.first(limit)
    changed: dict[str, Any] = {"everything" if split == ALL else split: chosen}
    return replace(dataset, **changed, told=(*dataset.told, *told))


def _asked(indices: Any, total: int) -> tuple[Int64[np.ndarray, " n"], str]:
    """The rows that are asked for, checked, and where they come from."""
    if isinstance(indices, str | Path):
        rows, where = read_indices(indices), str(indices)
    else:
        rows, where = _whole(np.asarray(indices), "indices"), "indices"
    if not len(rows):
        raise InputError(f"{where}: names no image")
    outside = (rows < 0) | (rows >= total)
    if outside.any():
        at = int(outside.argmax())
        raise InputError(
            f"{where}: index {rows[at]}, the {_ordinal(at)}, is out of range; the split has"
            f" {total} images, 0 to {total - 1}"
        )
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        at = int((counts > 1).argmax())
        raise InputError(f"{where}: index {values[at]} stands there {counts[at]} times; once each")
    return rows, where


def _ordinal(at: int) -> str:
    number = at + 1
    end = "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{end}"


def _balanced(
    labels: Int64[np.ndarray, " n"], limit: int | None, dataset: DataSet
) -> tuple[Int64[np.ndarray, " m"], int, int]:
    """Rows with as many of each class, in order; how many that is; of how many classes."""
    counts = np.bincount(labels, minlength=len(dataset.classes))
    k = int((counts > 0).sum())
    each = int(counts[counts > 0].min())
    if limit is not None:
        if limit < k:
            raise InputError(
                f"--balanced: {limit} images are fewer than the {k} classes; raise --limit"
            )
        each = min(each, limit // k)
    order = labels.argsort(kind="stable")
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    place = np.arange(len(labels)) - begins[labels[order]]
    return np.sort(order[place < each]), each, k


def _sample(total: int, count: int) -> Int64[np.ndarray, " m"]:
    """`count` rows in their order, the same on every machine."""
    keys = draws.uniform(draws.item_seeds(0, "sample", torch.arange(total)), 0)
    return np.sort(keys.argsort(stable=True)[:count].numpy())


def read_indices(path: str | Path) -> Int64[np.ndarray, " n"]:
    """Numbers of images from a file, in its order.

    Args:
        path: `.npy`, of whole numbers (N,); `.json`, a list; else text, a number a line.

    Raises:
        InputError: no such file, damaged, or something else than whole numbers. One line.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".npy":
        return _whole(read_array(path, "indices", _check_column), str(path))
    text = read_text(path)
    if kind == ".json":
        try:
            held = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"{path}: is damaged, or no JSON") from None
        if not isinstance(held, list) or not all(type(each) is int for each in held):
            raise InputError(f"{path}: a list of whole numbers is wanted, such as [3, 1, 4]")
        if any(abs(each) >= 2**62 for each in held):
            raise InputError(f"{path}: holds a number that no index is")
        return np.array(held, np.int64)
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip().rstrip(",")
        if word and not re.fullmatch(r"[+-]?[0-9]{1,18}", word):
            raise InputError(f"{path}: line {number}: {word[:40]!r} is no whole number")
        if word:
            rows.append(int(word))
    return np.array(rows, np.int64)


def _check_column(header: Header) -> None:
    if len(header.shape) != 1 or header.dtype.kind not in "iuf":
        raise Wrong(f"holds {header.dtype} of shape {header.shape}; whole numbers (N,) are wanted")
    if header.shape[0] > MOST_INDICES:
        raise Wrong(f"holds {header.shape[0]:,} numbers, more than any split has images")


def _whole(values: np.ndarray, what: str) -> Int64[np.ndarray, " n"]:
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iuf"):
        raise InputError(f"{what}: whole numbers, one an image, are wanted")
    if values.dtype.kind == "f" and not (
        np.isfinite(values).all() and (values == values.round()).all()
    ):
        raise InputError(f"{what}: holds numbers that are not whole")
    return values.clip(-(2**62), 2**62).astype(np.int64)
