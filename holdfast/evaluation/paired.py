"""Two models on the same images, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import stats

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
        """Of the difference: Wald's, with ½ added to each of the four counts (Agresti & Min,
        "Simple improved confidence intervals for comparing matched proportions", Stat. Med. 2005).
        """
        n, b, c = self.n + 2, self.first_only + 0.5, self.second_only + 0.5
        middle = (c - b) / n
        error = (b + c - (c - b) ** 2 / n) ** 0.5 / n
        reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
        return max(middle - reach, -1.0), min(middle + reach, 1.0)

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
