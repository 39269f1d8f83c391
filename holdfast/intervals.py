"""Confidence intervals of fractions that are counted, and of means that are watched as they grow.

Where n is fixed beforehand: Clopper & Pearson, "The use of confidence or fiducial limits
illustrated in the case of the binomial", Biometrika 1934. Each end is a quantile of a beta
distribution. An interval covers the true probability at least as often as it promises, also where
few or none of the images count.

Where one looks while the sample grows, and stops by what one sees, that promise is broken: see
`anytime_interval`.
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


# What is staked, in standard deviations: the smaller, the later in a sample it serves best. These
# serve from dozens of images to ten thousand.
_STAKES = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
_MOST = 0.9  # of the capital that one bet may lose
_HALVINGS = 24  # of the range in which an end is searched


def anytime_interval(
    values: Float64[np.ndarray, " n"], population: int | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of a mean that stays valid at any time, whenever one stops and for whatever
    reason.

    Over all sizes that a growing sample takes, the chance that even one of its intervals misses the
    mean is 1 − `confidence` at most. So one may look after every value, and stop when the
    interval is narrow. The price is width: about one and a half times Clopper & Pearson's.

    Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024:
    a mean is left out once somebody who bets against it, fairly if it were the true one, has
    multiplied the stake by 1 / (1 − `confidence`). The hedged capital is split between bets that
    the mean is larger and that it is smaller, and each half among bets of several sizes (theirs is
    one size, by a formula that is wider from some hundred values on). Without replacement, a bet is
    fair for the mean of those that are left.

    Args:
        values: float64 (n,) in [0, 1], in the order in which they were drawn at random.
        population: how many there are, where they were drawn without replacement. The interval is
            then of the mean of these, and it closes to a point when all are drawn. By default they
            are independent draws, and the interval is of their expectation.
        confidence: in (0, 1).

    Returns:
        lower and upper end, 0..1; from no values, (0, 1).

    Raises:
        InputError: values outside [0, 1], more of them than there are, a confidence outside (0, 1).

    Example:
        >>> draws = np.random.default_rng(0).random(1000) < 0.4
        >>> low, high = anytime_interval(draws.astype(float))
        >>> print(f"{low:.3f} to {high:.3f}")
        0.326 to 0.423
        >>> low, high = anytime_interval(draws.astype(float), population=1200)
        >>> print(f"{low:.3f} to {high:.3f}")
        0.349 to 0.393
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if values.ndim != 1 or not bool(((values >= 0) & (values <= 1)).all()):
        raise InputError("an interval at any time needs a row of values from 0 to 1")
    if population is not None and n > population:
        raise InputError(f"{n} values cannot be drawn from {population} without replacement")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie strictly between 0 and 1, not {confidence}")
    if not n:
        return 0.0, 1.0
    limit = np.log(2 / (1 - confidence))  # half of the capital is on either side
    low = _lowest_mean(values, population, limit)
    high = 1 - _lowest_mean(1 - values, population, limit)
    if population is not None and bool((values == values.round()).all()):
        # So many of them, no parts of one; + 0.0 makes 0 of the −0 that `ceil` may give.
        low = float(np.ceil(low * population - 1e-6)) / population + 0.0
        high = float(np.floor(high * population + 1e-6)) / population
    # A mean outside would be rare, and no reader would understand it.
    mean = float(values.mean())
    return min(low, mean), max(high, mean)


def _lowest_mean(values: Float64[np.ndarray, " n"], population: int | None, limit: float) -> float:
    """The smallest mean against which bets that it is larger have not won exp(`limit`)."""
    n, drawn = len(values), np.arange(1, len(values) + 1)
    total = values.sum()
    # What is known before each draw.
    before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
    guess = (0.5 + np.cumsum(values)) / (drawn + 1)
    squares = np.concatenate([[0.0], np.cumsum((values - guess) ** 2)[:-1]])
    stakes = _STAKES[:, None] / np.sqrt((0.25 + squares) / drawn)

    def won(mean: float) -> bool:
        expected = np.full(n, mean)  # of each draw
        if population is not None:
            expected = ((population * mean - before) / (population - drawn + 1)).clip(0, 1)
        stake = np.minimum(stakes, _MOST / expected.clip(1e-12))
        capital = np.log1p(stake * (values - expected)).sum(1)
        return bool(np.logaddexp.reduce(capital) - np.log(len(_STAKES)) >= limit)

    # The larger the mean, the less such bets win: the end is where they stop to.
    low, high = 0.0, 1.0
    if population is not None:  # those that are left are 0 at least, and 1 at most
        low, high = total / population, (total + population - n) / population
    if not won(low):
        return float(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if won(middle) else (low, middle)
    return float(low)
