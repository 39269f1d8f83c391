"""Intervals for counted fractions."""

from __future__ import annotations

from scipy.stats import beta, binomtest


def interval(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a fraction `right` of `n`, which covers at least as promised.

    Clopper & Pearson, "The use of confidence or fiducial limits", Biometrika 1934.
    """
    found = binomtest(right, n).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def mean_interval(mean: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a mean of n shares, each in [0, 1], such as how often draws are right.

    That of a fraction counted with one draw an image: a share varies no more than a coin that
    falls right as often. Where the mean is a count, the two are the same.
    """
    right, tail = mean * n, (1 - confidence) / 2
    low = beta.ppf(tail, right, n - right + 1) if right > 0 else 0.0
    high = beta.ppf(1 - tail, right + 1, n - right) if right < n else 1.0
    return float(low), float(high)
