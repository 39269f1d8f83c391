"""Confidence intervals of fractions that are counted: Clopper & Pearson's, exact for every n.

Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of the
binomial", Biometrika 1934. Each end is a quantile of a beta distribution. An interval covers the
true probability at least as often as it promises, also where few or none of the images count.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import beta

from .errors import InputError

Counts = int | float | Int64[np.ndarray, "*shape"] | Float64[np.ndarray, "*shape"]


def clopper_pearson(count: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided interval of a probability, from `count` successes in n trials.

    Args:
        count: 0 … n. It need not be whole: a mean of n shares, each in [0, 1] (how often an
            image's random draws are right), times n has the interval of as large a count, for a
            share varies no more than a coin that falls right as often.
        n: number of trials, at least 1.
        confidence: in (0, 1).

    Returns:
        lower and upper end, 0..1.

    Raises:
        InputError: n below 1, a count outside 0 … n, a confidence outside (0, 1).

    Example:
        >>> low, high = clopper_pearson(45, 100)
        >>> print(f"{low:.3f} to {high:.3f}")
        0.350 to 0.553
    """
    if n < 1 or not 0 <= count <= n:
        raise InputError(f"an interval needs a count from 0 to n ≥ 1, not {count} of {n}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie strictly between 0 and 1, not {confidence}")
    error = (1 - confidence) / 2
    return float(lower_bound(count, n, error)), float(upper_bound(count, n, error))


def lower_bound(count: Counts, n: Counts, error: float) -> Float64[np.ndarray, "*shape"]:
    """The probability that is exceeded with confidence 1 − `error`, from `count` of n; one-sided.

    Args:
        count, n: numbers or arrays that broadcast; 0 ≤ count ≤ n.
        error: probability that the true value lies below the bound, in (0, 1).

    Example:
        >>> lower_bound(np.array([0, 990, 1000]), 1000, error=0.001).round(4)
        array([0.    , 0.976 , 0.9931])
    """
    count = np.asarray(count)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, beta.ppf(error, count, n - count + 1), 0.0)


def upper_bound(count: Counts, n: Counts, error: float) -> Float64[np.ndarray, "*shape"]:
    """The probability that is not exceeded with confidence 1 − `error`; as `lower_bound`.

    Example:
        >>> upper_bound(np.array([0, 3, 59]), 59, error=0.05).round(4)
        array([0.0495, 0.1262, 1.    ])
    """
    count = np.asarray(count)
    with np.errstate(invalid="ignore"):
        return np.where(count < n, beta.ppf(1 - error, count + 1, n - count), 1.0)
