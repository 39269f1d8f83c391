"""Two models on the same images, image by image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import stats
from scipy.optimize import brentq

from ..errors import InputError


@dataclass(frozen=True)
class Paired:
    """On how many of the same images only one of two models is right.

    Comparing image by image sees smaller differences than two intervals beside each other: images
    on which both are right, or both wrong, say nothing about the difference.

    Attributes:
        n: images.
        first_only, second_only: on how many only the first, only the second is right.
    """

    n: int
    first_only: int
    second_only: int

    @property
    def difference(self) -> float:
        """Accuracy of the second minus that of the first, −1 to 1."""
        return (self.second_only - self.first_only) / self.n

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how likely at least such a difference is by chance where
        both models are equally accurate (McNemar, Psychometrika 1947)."""
        apart = self.first_only + self.second_only
        return float(stats.binomtest(self.second_only, apart).pvalue) if apart else 1.0

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of the difference: all values that a score test does not reject (Tango, "Equivalence test
        and confidence interval for the difference in proportions for the paired-sample design",
        Stat. Med. 1998). It keeps its promise also where hardly any image tells the two apart.
        """
        reach = float(stats.norm.ppf((1 + confidence) / 2))

        def end(side: float, low: float, high: float) -> float:
            if self._score(low) - side * reach <= 0:  # the range's own end is not rejected
                return low
            if self._score(high) - side * reach >= 0:
                return high
            return float(brentq(lambda value: self._score(value) - side * reach, low, high))

        tiny, found = 1e-12, self.difference
        return min(end(1, tiny - 1, found), found), max(end(-1, found, 1 - tiny), found)

    def _score(self, value: float) -> float:
        """Tango's statistic of the hypothesis that the true difference is this; it falls in it."""
        n, b, c = self.n, self.first_only, self.second_only
        # Under the hypothesis, how often only the first is right, by maximum likelihood.
        middle = (2 * n - c + b) * value - b - c
        product = b * value * (1 - value)
        only_first = ((middle**2 + 8 * n * product) ** 0.5 - middle) / (4 * n)
        variance = n * (2 * only_first + value * (1 - value))
        surplus = c - b - n * value
        if variance > 0:
            return surplus / variance**0.5
        return math.copysign(math.inf, surplus) if surplus else 0.0

    def __add__(self, other: Paired) -> Paired:
        """Of further pairs, such as those of another seed."""
        return Paired(
            self.n + other.n,
            self.first_only + other.first_only,
            self.second_only + other.second_only,
        )


def paired(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> Paired:
    """Compare two models by where each is right.

    Args:
        first, second: whether it is right on each of the same images, in the same order.

    Raises:
        InputError: not as many of one as of the other, or none.

    Example:
        >>> paired(np.array([True, True, False]), np.array([True, False, False]))
        Paired(n=3, first_only=1, second_only=0)
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise InputError(
            f"the same images are needed of both, not {first.shape} and {second.shape}"
        )
    return Paired(len(first), int((first & ~second).sum()), int((second & ~first).sum()))
