"""Intervals of calibration errors, which no percentile bootstrap gives.

A calibration error is a sum of absolute values, Σ_b |g_b|, where g_b is the mean over all images
of (did it come true − confidence) within bin b. No bin's measured gap is below 0, so the sum is too
large on average, and most so for a well calibrated model; drawn with replacement it is too large
once more, so that percentiles may miss even the measured figure (Kumar, Liang & Ma, "Verified
uncertainty calibration", NeurIPS 2019, on the bias). The absolute value has no derivative at 0,
where the bootstrap fails; its directional derivative is used instead (Fang & Santos, "Inference on
directionally differentiable functions", Review of Economic Studies 2019), with bins told apart as
in Andrews & Soares, "Inference for parameters defined by moment inequalities", Econometrica 2010:

- in a bin whose gap is surely not 0, noise z moves the figure by sign(g)·z, with z drawn by the
  bootstrap;
- in any other bin it adds |z| at most, with z drawn as if the model were calibrated: labels from
  its own probabilities (consistency resampling: Bröcker & Smith, "Increasing the reliability of
  reliability diagrams", Weather and Forecasting 2007). Where that is every bin, the low end is 0
  with the promised probability for a calibrated model, exactly.

For the high end sign(g)·z is a bound whatever g is, as the absolute value is convex.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.sparse import csr_array

from .inputs import Array, check_labels, check_probabilities, check_share
from .metrics import Binning, places

CHUNK = 8_000_000  # entries of an array of draws at once


class CalibrationInterval(NamedTuple):
    """A calibration error, as `metrics` measures it, with an interval of the true one, all 0..1."""

    value: float
    low: float
    high: float
    by_chance: float  # what a calibrated model with these probabilities measures on average


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
    """`expected_calibration_error` or `classwise_calibration_error`, with its interval.

    The interval is of the error that these bins would show on infinitely many images; the value
    always lies in it. An error without bins can only be larger (Kumar, Liang & Ma 2019).

    Args:
        probs: (N, K), rows summing to 1.
        labels: (N,) in 0 … K−1.
        classwise: over every class's probability, not only the largest.
        bins, binning: as in `metrics.reliability`.
        resamples: draws of either kind.
        level: of the interval.
    """
    check_share("level", level)
    p = check_probabilities(probs)
    y = check_labels(labels, *p.shape)
    asked = np.arange(p.shape[1])[None] if classwise else p.argmax(1)[:, None]  # classes
    confidence = p if classwise else p.max(1)[:, None]
    cells = np.stack([places(column, bins, binning) for column in confidence.T], 1)
    cells += bins * np.arange(confidence.shape[1])
    gaps = _Gaps(cells, confidence, bins * confidence.shape[1])

    found = gaps.of(y[:, None] == asked)
    rng = np.random.default_rng(seed)
    chance = gaps.calibrated(p, asked, resamples, rng)
    again = gaps.bootstrapped(y[:, None] == asked, resamples, rng) - found

    spread = np.maximum(chance.std(0), again.std(0))
    surely = np.abs(found) > np.sqrt(2 * np.log(len(y))) * spread
    signed = np.sign(found)
    up = np.where(surely, signed * again, np.abs(chance)).sum(1)
    tail = (1 - level) / 2
    # The bootstrap sees no noise where all images of a bin came true: a calibrated model has some.
    down = max(-np.quantile(noise @ signed, tail) for noise in (again, chance))
    value = float(np.abs(found).sum())
    low, high = value - max(0.0, np.quantile(up, 1 - tail)), value + max(0.0, down)
    return CalibrationInterval(
        value, float(max(0.0, low)), float(min(1.0, high)), float(np.abs(chance).sum(1).mean())
    )


class _Gaps:
    """The gap g of every cell, a bin of one class: their absolute values sum to the error.

    Args:
        cells: (N, C), in which cell each confidence lies.
        confidence: (N, C).
        count: of cells.
    """

    def __init__(
        self, cells: Int64[np.ndarray, "n c"], confidence: Float[np.ndarray, "n c"], count: int
    ):
        self.cells, self.confidence, self.count = cells, confidence, count

    def of(self, true: Bool[np.ndarray, "n c"]) -> Float64[np.ndarray, " cells"]:
        gaps = np.bincount(
            self.cells.ravel(), (true - self.confidence).ravel(), minlength=self.count
        )
        return gaps / self.confidence.size

    def bootstrapped(
        self, true: Bool[np.ndarray, "n c"], resamples: int, rng: np.random.Generator
    ) -> Float64[np.ndarray, "draws cells"]:
        """Of images drawn with replacement."""
        n, c = self.cells.shape
        own = csr_array(
            ((true - self.confidence).ravel(), self.cells.ravel(), np.arange(0, n * c + 1, c)),
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
        asked: Int64[np.ndarray, "_ c"],
        resamples: int,
        rng: np.random.Generator,
    ) -> Float64[np.ndarray, "draws cells"]:
        """Of labels drawn from the model's own probabilities."""
        upto = probs.cumsum(1)
        upto[:, -1] = 1.0
        drawn = ((rng.random((len(probs), 1)) >= upto).sum(1) for _ in range(resamples))
        return np.stack([self.of(y[:, None] == asked) for y in drawn])


def _chunks(total: int, each: int) -> list[int]:
    """Numbers of draws that sum to `total`, so that draws of `each` entries fit into memory."""
    most = max(1, CHUNK // each)
    return [min(most, total - done) for done in range(0, total, most)]
