"""What every part of this package asks of its input, and the one-line errors where it fails.

Everything here turns tensors into NumPy arrays in float64: metrics are computed once, on few
numbers, and are compared to 1e-6.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ..errors import InputError

Array = Tensor | np.ndarray


def as_array(values: Array) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    return np.asarray(values)


def check_share(name: str, share: float) -> Fraction:
    """A number strictly between 0 and 1, as the decimal its author wrote (0.1, not 0.1000…055)."""
    if not 0 < share < 1:
        raise InputError(f"{name} must lie strictly between 0 and 1, not {share}")
    return Fraction(repr(float(share)))


def ceil_share(share: Fraction, n: int) -> int:
    """⌈share · n⌉, exactly: rounding must not turn 0.55 · 100 = 55 into 56."""
    return math.ceil(share * n)


def check_logits(logits: Array, what: str = "logits") -> Float64[np.ndarray, "n k"]:
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


def check_probabilities(probs: Array, what: str = "probabilities") -> Float64[np.ndarray, "n k"]:
    """Rows that are distributions, to 1e-3 (what half-precision files leave), scaled to sum to 1.

    Raises:
        InputError: another shape; NaN; a negative value; a row that does not sum to 1.
    """
    p = check_logits(probs, what)
    sums = p.sum(1)
    bad = (p.min(1) < 0) | (np.abs(sums - 1) > 1e-3)
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"{what} of {bad.sum()} of {len(p)} images are no distribution: row {row} has "
            f"minimum {p[row].min():.4g} and sums to {sums[row]:.4g}, not 1 (logits need a softmax)"
        )
    return p / sums[:, None]


def check_labels(labels: Array, n: int, classes: int) -> Int64[np.ndarray, " n"]:
    y = as_array(labels)
    if y.shape != (n,):
        raise InputError(f"labels have shape {y.shape}, not ({n},): give one label an image")
    if y.dtype.kind not in "iu":
        raise InputError(f"labels must be integers, not {y.dtype}")
    bad = (y < 0) | (y >= classes)
    if bad.any():
        raise InputError(
            f"label {y[bad.argmax()]} of image {bad.argmax()} is not one of the classes "
            f"0 … {classes - 1}"
        )
    return y.astype(np.int64)


def check_calibration_split(labels: Int64[np.ndarray, " n"], classes: int) -> None:
    """No class may be missing from the images that something is fitted on."""
    empty = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if len(empty):
        raise InputError(
            f"the calibration split has no image of class {', '.join(map(str, empty))}: "
            "draw it at random, or give more images"
        )


def check_scores(scores: Array, what: str = "scores") -> Float64[np.ndarray, " n"]:
    """Scores (N,) that can rank: none NaN, not all the same."""
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


def check_items(items: Tensor | None, n: int) -> Int64[Tensor, " n"]:
    """The number of each image in its data set, on the CPU; None: 0 … N−1."""
    if items is None:
        return torch.arange(n)
    if items.shape != (n,) or items.is_floating_point():
        raise InputError(f"items must be {n} integers, one an image, not {tuple(items.shape)}")
    return items.cpu()


def check_flags(name: str, flags: Array, n: int) -> Bool[np.ndarray, " n"]:
    """Booleans (N,)."""
    b = as_array(flags)
    if b.shape != (n,) or b.dtype != np.bool_:
        raise InputError(
            f"{name} must be booleans of shape ({n},), one a score, not {b.dtype} {b.shape}"
        )
    return b
