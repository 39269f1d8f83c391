"""Labels as people store them: numbers, names, one-hot rows; checked, and said what was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from ..errors import InputError
from ..parsing import nearest
from .class_order import MOST_CLASSES
from .names import natural

MOST_LABELS = 100_000_000


@dataclass(frozen=True)
class Column:
    """One label an image, as stored.

    Attributes:
        values: int64 or str (N,).
        told: what was done to have them; empty for nothing.
        classes: at least so many classes there are.
    """

    values: np.ndarray
    told: str = ""
    classes: int = 0


def column(values: np.ndarray, count: int, where: str) -> Column:
    """Labels of `count` images, from an array of any usual form.

    Args:
        values: whole numbers or names (N,) or (N, 1), or one-hot rows (N, K).
        where: the file and the array, to begin an error with.

    Raises:
        InputError: another shape or type, not as many as images, NaN, negative or beyond any
            number of classes, rows that are not one-hot. One line.

    Example:
        >>> column(np.eye(3)[[2, 0]], 2, "y").values.tolist()
        [2, 0]
    """
    shape = values.shape
    if not shape or shape[0] != count:
        raise InputError(f"{where}: {shape[0] if shape else 1} labels for {count} images")
    if values.dtype.kind not in "biufUS":
        raise InputError(f"{where}: {values.dtype} are no labels; whole numbers or names are")
    if len(shape) > 1 and np.prod(shape[1:]) == 1:
        values = values.reshape(count)
    if values.ndim == 2 and values.dtype.kind in "biuf":
        return _of_rows(values, where)
    if values.ndim != 1:
        raise InputError(
            f"{where}: labels of shape {'×'.join(map(str, shape))}; a class for each image is"
            " wanted, (N,), or one-hot rows (N, K)"
        )
    if values.dtype.kind in "US":
        return Column(np.array([printable(value) for value in values.tolist()]))
    return Column(checked_numbers(values, where))


def _of_rows(values: np.ndarray, where: str) -> Column:
    k = values.shape[1]
    if k > MOST_CLASSES:
        raise InputError(f"{where}: rows of {k:,} numbers are no labels")
    ones = (values == 1).sum(1) == 1
    whole = ones & ((values == 0).sum(1) == k - 1)
    if not whole.all():
        at = int((~whole).argmax())
        raise InputError(
            f"{where}: row {at} is not one-hot; give one class an image, such as its argmax"
        )
    told = f"{where}: one-hot rows taken as {k} classes"
    return Column(values.argmax(1).astype(np.int64), told, k)


def checked_numbers(values: np.ndarray, where: str) -> Int64[np.ndarray, " n"]:
    """Whole numbers from 0 on, as int64; InputError names the first that is none."""
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values) | (values != np.rint(values))
        if bad.any():
            at = int(bad.argmax())
            raise InputError(f"{where}: label {at} is {values[at]:g}, no whole number")
    outside = (values < 0) | (values >= MOST_CLASSES)
    if outside.any():
        at = int(outside.argmax())
        raise InputError(
            f"{where}: label {at} is {values[at]}, out of range; labels are numbers from 0 on"
        )
    return values.astype(np.int64)


def printable(value: str | bytes) -> str:
    """A name on one line, of a length that tables bear."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:255]


def numbered(
    columns: Mapping[str, Column], names: Sequence[str] | None, where: str
) -> tuple[dict[str, Int64[np.ndarray, " n"]], tuple[str, ...], bool]:
    """The labels of several splits as numbers of common classes.

    Args:
        columns: of each split.
        names: of the classes, in the order of the labels; None where nobody gave any.

    Returns:
        the labels of each split, the classes, and whether they have names of their own.

    Raises:
        InputError: a label that none of the names belongs to; fewer than two classes.
    """
    if any(each.values.dtype.kind == "U" for each in columns.values()):
        used = {str(v) for each in columns.values() for v in np.unique(each.values)}
        classes = tuple(names) if names is not None else tuple(sorted(used, key=natural))
        strange = sorted(used - set(classes))
        if strange:
            raise InputError(
                f"{where}: the label {strange[0]!r} is none of the {len(classes)} classes"
                f"{nearest(strange[0], classes)}"
            )
        of = {name: label for label, name in enumerate(classes)}
        labels = {
            split: np.array([of[str(v)] for v in each.values], np.int64)
            for split, each in columns.items()
        }
    else:
        labels = {split: each.values for split, each in columns.items()}
        most = max(int(each.max(initial=-1)) for each in labels.values())
        most = max(most, *(each.classes - 1 for each in columns.values()))
        least = min(int(each.min(initial=MOST_CLASSES)) for each in labels.values())
        if names is not None and most >= len(names):
            hint = " (they begin at 1: take 1 off)" if (least, most) == (1, len(names)) else ""
            raise InputError(f"{where}: labels up to {most}, but {len(names)} classes{hint}")
        classes = tuple(names) if names is not None else tuple(map(str, range(most + 1)))
    if len(classes) < 2:
        raise InputError(f"{where}: {len(classes)} class, where a classifier needs at least 2")
    named = names is not None or any(each.values.dtype.kind == "U" for each in columns.values())
    return labels, classes, named
