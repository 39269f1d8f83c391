"""Intervals of calibration errors. A percentile bootstrap would give wrong ones.

A calibration error is a sum of absolute values Σ_b |g_b|. The gap g_b of bin b is the mean over all
images of (1 if the class is the true one, else 0) − confidence, counting only the images in b.
Sampling noise makes |g_b| larger on average, so the measured error is biased upwards, most for a
well calibrated model (Kumar, Liang & Ma, "Verified uncertainty calibration", NeurIPS 2019).
Resampling adds the bias a second time, so that bootstrap percentiles may lie above the measured
error.

The absolute value has no derivative at 0, where the bootstrap fails. Its directional derivative is
used instead (Fang & Santos, "Inference on directionally differentiable functions", Review of
Economic Studies 2019). Bins are divided as in Andrews & Soares, "Inference for parameters defined
by moment inequalities using generalized moment selection", Econometrica 2010:

- A bin's gap is surely not 0: noise z changes the error by sign(g)·z. The bootstrap draws z.
- The gap may be 0: noise z adds at most |z|. Here z is drawn as if the model were calibrated, with
  labels from its own probabilities (consistency resampling: Bröcker & Smith, "Increasing the
  reliability of reliability diagrams", Weather and Forecasting 2007). If this holds for every bin,
  the interval of a calibrated model begins at 0 with exactly the promised probability.

For the upper end, sign(g)·z is a bound for every g, because the absolute value is convex.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.sparse import csr_array

from .inputs import Array, checked_labels, checked_probabilities, checked_share
from .metrics import Binning, bin_of

CHUNK = 8_000_000  # largest number of entries of an array of draws


class CalibrationInterval(NamedTuple):
    """A calibration error, as `metrics` measures it, with an interval of the true one, all 0..1."""

    value: float
    low: float
    high: float
    by_chance: float  # the mean error of a calibrated model with these probabilities


def calibration_interval(
    probs: Float[Array, "n k"],
    labels: Int64[Array, " n"],
    *,
    classwise: bool = False,
    bins: int = 15,
    binning: Binning = "equal-width",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> CalibrationInterval:
    """`metrics.ece` or `metrics.classwise_ece`, with its interval.

    The interval is of the error that these bins would show on infinitely many images. The measured
    value always lies in it. An error without bins can only be larger (Kumar, Liang & Ma 2019).

    Args:
        probs: (N, K), rows summing to 1.
        labels: (N,) in 0 … K−1.
        classwise: `classwise_ece`, of every class's probability, in place of `ece`, of the largest.
        bins, binning: as in `metrics.reliability`.
        resamples: number of bootstrap draws, and of draws as if the model were calibrated.
        level: probability that the interval holds the true error, in (0, 1).
        seed: of the draws.

    Raises:
        InputError: bad probabilities, labels, bins or level.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> probabilities = rng.dirichlet(np.ones(3), 1000)
        >>> labels = (rng.random((1000, 1)) > probabilities.cumsum(1)).sum(1)  # calibrated
        >>> found = calibration_interval(probabilities, labels, resamples=200)
        >>> found.low == 0 < found.value < found.high < 0.06
        True
    """
    checked_share("level", level)
    p = checked_probabilities(probs)
    y = checked_labels(labels, *p.shape)
    classes = np.arange(p.shape[1])[None] if classwise else p.argmax(1)[:, None]
    confidence = p if classwise else p.max(1)[:, None]
    # Every measured class has bins of its own.
    binned = np.stack([bin_of(column, bins, binning) for column in confidence.T], 1)
    binned += bins * np.arange(confidence.shape[1])
    gaps = _Gaps(binned, confidence, bins * confidence.shape[1])

    measured = gaps.of(y[:, None] == classes)
    rng = np.random.default_rng(seed)
    chance = gaps.calibrated(p, classes, resamples, rng)
    noise = gaps.bootstrapped(y[:, None] == classes, resamples, rng) - measured

    spread = np.maximum(chance.std(0), noise.std(0))
    surely = np.abs(measured) > np.sqrt(2 * np.log(len(y))) * spread
    sign = np.sign(measured)
    up = np.where(surely, sign * noise, np.abs(chance)).sum(1)
    tail = (1 - level) / 2
    # Where all predictions of a bin are right, the bootstrap has no noise; a calibrated model has.
    down = max(-np.quantile(draws @ sign, tail) for draws in (noise, chance))
    value = float(np.abs(measured).sum())
    low, high = value - max(0.0, np.quantile(up, 1 - tail)), value + max(0.0, down)
    return CalibrationInterval(
        value, float(max(0.0, low)), float(min(1.0, high)), float(np.abs(chance).sum(1).mean())
    )


class _Gaps:
    """The gap g of every bin. Their absolute values sum to the calibration error.

    Args:
        binned: (N, C), the number of the bin of each confidence.
        confidence: (N, C), of C classes of each image.
        count: number of bins.
    """

    def __init__(
        self, binned: Int64[np.ndarray, "n c"], confidence: Float[np.ndarray, "n c"], count: int
    ):
        self.binned, self.confidence, self.count = binned, confidence, count

    def of(self, true: Bool[np.ndarray, "n c"]) -> Float64[np.ndarray, " bins"]:
        """The gaps, given whether each of the classes is the true one."""
        gaps = np.bincount(
            self.binned.ravel(), (true - self.confidence).ravel(), minlength=self.count
        )
        return gaps / self.confidence.size

    def bootstrapped(
        self, true: Bool[np.ndarray, "n c"], resamples: int, rng: np.random.Generator
    ) -> Float64[np.ndarray, "draws bins"]:
        """The gaps of images drawn with replacement, draw by draw."""
        n, c = self.binned.shape
        own = csr_array(
            ((true - self.confidence).ravel(), self.binned.ravel(), np.arange(0, n * c + 1, c)),
            shape=(n, self.count),
        )
        parts = []
        for draws in _chunks(resamples, n):
            times = rng.multinomial(n, np.full(n, 1 / n), size=draws)
            parts.append(times @ own / (n * c))
        return np.concatenate(parts)

    def calibrated(
        self,
        probs: Float[np.ndarray, "n k"],
        classes: Int64[np.ndarray, "_ c"],
        resamples: int,
        rng: np.random.Generator,
    ) -> Float64[np.ndarray, "draws bins"]:
        """The gaps of labels drawn from the model's own probabilities, draw by draw."""
        upto = probs.cumsum(1)
        upto[:, -1] = 1.0
        drawn = ((rng.random((len(probs), 1)) >= upto).sum(1) for _ in range(resamples))
        return np.stack([self.of(y[:, None] == classes) for y in drawn])


def _chunks(total: int, each: int) -> list[int]:
    """Numbers of draws that sum to `total`; so many draws of `each` entries stay below `CHUNK`."""
    most = max(1, CHUNK // each)
    return [min(most, total - done) for done in range(0, total, most)]
