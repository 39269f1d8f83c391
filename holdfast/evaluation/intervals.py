"""Intervals for counted fractions."""

from __future__ import annotations

from scipy.stats import binomtest


def interval(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a fraction `right` of `n`, which covers at least as promised.

    Clopper & Pearson, "The use of confidence or fiducial limits", Biometrika 1934.
    """
    found = binomtest(right, n).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)
