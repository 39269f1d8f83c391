"""Checks of what metrics, calibrators and conformal sets are given: logits, scores, shares.

Each check returns its argument as a NumPy array, in float64 where it holds real numbers, or raises
`InputError` with one line. Labels are read as everywhere (`holdfast.inputs.checked_labels`).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from .. import inputs
from ..errors import InputError

Array = Tensor | np.ndarray


def as_array(values: Array) -> np.ndarray:
    """A tensor, an array or a list as an array, on the CPU and without gradients."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    return np.asarray(values)


def checked_share(name: str, share: float) -> Fraction:
    """A number strictly between 0 and 1, as the exact fraction that was written.

    Example:
        >>> checked_share("alpha", 0.1)
        Fraction(1, 10)
    """
    if not 0 < share < 1:
        raise InputError(f"{name} must lie strictly between 0 and 1, not {share}")
    return Fraction(repr(float(share)))


def ceil_share(share: Fraction, n: int) -> int:
    """⌈share · n⌉, exactly: in floating point, 0.55 · 100 exceeds 55, and ⌈0.55 · 100⌉ is 56.

    Example:
        >>> ceil_share(checked_share("coverage", 0.55), 100)
        55
    """
    return math.ceil(share * n)


def checked_logits(logits: Array, what: str = "logits") -> Float64[np.ndarray, "n k"]:
    """Finite logits (N, K), N ≥ 1 and K ≥ 2.

    Args:
        what: their name in an error.
    """
    z = as_array(logits).astype(np.float64)
    if z.ndim != 2 or len(z) == 0 or z.shape[1] < 2:
        raise InputError(
            f"{what} must have shape (N, K) with N ≥ 1 images and K ≥ 2 classes, not {z.shape}"
        )
    bad = ~np.isfinite(z).all(1)
    if bad.any():
        raise InputError(
            f"{what} of {bad.sum()} of {len(z)} images are NaN or infinite, first of image "
            f"{bad.argmax()}: check the model's output"
        )
    return z


def checked_probabilities(probs: Array, what: str = "probabilities") -> Float64[np.ndarray, "n k"]:
    """Rows that are distributions, to 1e-3 (what half-precision files leave), scaled to sum to 1.

    Raises:
        InputError: another shape; NaN; a negative value; a row that does not sum to 1.
    """
    p = checked_logits(probs, what)
    sums = p.sum(1)
    bad = (p.min(1) < 0) | (np.abs(sums - 1) > 1e-3)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{what} of {bad.sum()} of {len(p)} images are no distribution: row {row} has "
            f"minimum {p[row].min():.4g} and sums to {sums[row]:.4g}, not 1 (logits need a softmax)"
        )
    return p / sums[:, None]


def checked_labels(labels: Array, n: int, classes: int) -> Int64[np.ndarray, " n"]:
    """Labels (N,) in 0 … K−1; as `holdfast.inputs.checked_labels` reads them."""
    return as_array(inputs.checked_labels(labels, n, classes=classes))


def check_every_class(labels: Int64[np.ndarray, " n"], classes: int) -> None:
    """InputError where a class has no image in the split that something is fitted on."""
    empty = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if len(empty):
        raise InputError(
            f"the calibration split has no image of class {', '.join(map(str, empty))}: "
            "draw it at random, or give more images"
        )


def checked_scores(scores: Array, what: str = "scores") -> Float64[np.ndarray, " n"]:
    """Scores (N,) by which images can be ranked: none is NaN, and not all are equal."""
    s = as_array(scores).astype(np.float64)
    if s.ndim != 1 or len(s) == 0:
        raise InputError(f"{what} must have shape (N,) with N ≥ 1, not {s.shape}")
    bad = np.isnan(s)
    if bad.any():
        raise InputError(
            f"{what} of {bad.sum()} of {len(s)} images are NaN, first of image {bad.argmax()}: "
            "check the model's output"
        )
    if s.min() == s.max():
        raise InputError(f"{what} of all {len(s)} images are {s[0]:g}: a constant ranks nothing")
    return s


def checked_items(items: Tensor | None, n: int) -> Int64[Tensor, " n"]:
    """The number of each image in its data set, int64 (N,) on the CPU; None: 0 … N−1."""
    if items is None:
        return torch.arange(n)
    if items.shape != (n,) or items.is_floating_point():
        raise InputError(f"items must be {n} integers, one an image, not {tuple(items.shape)}")
    return items.cpu()


def checked_flags(name: str, flags: Array, n: int) -> Bool[np.ndarray, " n"]:
    """Booleans (N,)."""
    b = as_array(flags)
    if b.shape != (n,) or b.dtype != np.bool_:
        raise InputError(
            f"{name} must be booleans of shape ({n},), one a score, not {b.dtype} {b.shape}"
        )
    return b
