"""Metrics of calibration, selective prediction and detection, with intervals.

For every score, higher = less sure, as in `scores`. Arguments may be tensors, arrays or lists.
Metrics are Python floats, computed in float64. Tied scores are treated alike, so the order of the
images changes nothing. A metric without a value raises `InputError`; it is never zero.

Example:
    >>> probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    >>> labels = np.array([0, 1, 1, 0])
    >>> f"{ece(probabilities, labels):.2f}"
    '0.30'
    >>> confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    >>> auroc(scores=1 - confidence, positive=~right)
    1.0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from scipy.stats import rankdata

from ..errors import InputError
from ..intervals import clopper_pearson, lower_bound, upper_bound
from .inputs import (
    Array,
    as_array,
    ceil_share,
    checked_flags,
    checked_labels,
    checked_probabilities,
    checked_scores,
    checked_share,
)

Binning = Literal["equal-width", "equal-mass"]


# --- calibration --------------------------------------------------------------------------------


class Reliability(NamedTuple):
    """A reliability diagram: B bins of confidence."""

    images: Int64[np.ndarray, " b"]  # number of images in the bin
    confidence: Float64[np.ndarray, " b"]  # their mean confidence, 0..1; NaN for an empty bin
    frequency: Float64[np.ndarray, " b"]  # how often they are right, 0..1; NaN for an empty bin

    @property
    def error(self) -> float:
        """The calibration error Σ_b (images_b / N) · |frequency_b − confidence_b|, 0..1."""
        full = self.images > 0
        gaps = np.abs(self.frequency - self.confidence)[full]
        return float((self.images[full] * gaps).sum() / self.images.sum())


def bin_of(
    confidence: Float64[np.ndarray, " n"], bins: int, binning: str
) -> Int64[np.ndarray, " n"]:
    """The bin, 0 … bins−1, of each confidence; `bins` and `binning` as in `reliability`.

    Example:
        >>> bin_of(np.array([0.05, 0.5, 0.51, 1.0]), bins=2, binning="equal-width")
        array([0, 0, 1, 1])
    """
    if bins < 1:
        raise InputError(f"bins must be at least 1, not {bins}")
    if binning == "equal-width":
        # Bin b is (b/B, (b+1)/B], and 0 is in the first.
        return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    if binning == "equal-mass":
        # By rank among the images; equal confidences share the bin of the first of them.
        rank = np.searchsorted(np.sort(confidence), confidence, side="left")
        return rank * bins // len(confidence)
    raise InputError(f"binning {binning!r} is unknown; it is equal-width or equal-mass")


def _reliability(
    confidence: Float64[np.ndarray, " n"], true: Bool[np.ndarray, " n"], bins: int, binning: str
) -> Reliability:
    place = bin_of(confidence, bins, binning)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            count,
            np.bincount(place, confidence, bins) / count,
            np.bincount(place, true, bins) / count,
        )


def reliability(
    probs: Float[Array, "n k"],
    labels: Int64[Array, " n"],
    *,
    bins: int = 15,
    binning: Binning = "equal-width",
) -> Reliability:
    """Confidence (the largest probability) against how often the predicted class is right.

    Args:
        probs: (N, K), rows summing to 1.
        labels: (N,) in 0 … K−1.
        bins: their number B.
        binning: `equal-width`, bins of width 1/B; or `equal-mass`, bins of as many images each, as
            far as equal confidences allow.

    Raises:
        InputError: bad probabilities, labels or bins.

    Example:
        >>> diagram = reliability([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4]], [0, 0, 1], bins=2)
        >>> diagram.images, diagram.confidence.round(3), diagram.frequency.round(3)
        (array([0, 3]), array([  nan, 0.733]), array([  nan, 0.667]))
    """
    p = checked_probabilities(probs)
    y = checked_labels(labels, *p.shape)
    return _reliability(p.max(1), p.argmax(1) == y, bins, binning)


def ece(
    probs: Float[Array, "n k"],
    labels: Int64[Array, " n"],
    *,
    bins: int = 15,
    binning: Binning = "equal-width",
) -> float:
    """Expected calibration error Σ_b (|b|/N) · |accuracy_b − confidence_b|, 0..1, lower is better.

    Equal width: Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", ICML
    2017 (15 bins). Equal mass: Nguyen & O'Connor, "Posterior calibration and exploratory analysis
    for natural language processing models", EMNLP 2015. Arguments as in `reliability`.

    Example:
        >>> f"{ece([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4]], [0, 0, 1], bins=2):.4f}"
        '0.0667'
    """
    return reliability(probs, labels, bins=bins, binning=binning).error


def classwise_ece(
    probs: Float[Array, "n k"],
    labels: Int64[Array, " n"],
    *,
    bins: int = 15,
    binning: Binning = "equal-width",
) -> float:
    """Classwise ECE, (1/K) Σ_k Σ_b (|b|/N) · |share of class k in b − mean p_k in b|, 0..1.

    Kull et al., "Beyond temperature scaling: obtaining well-calibrated multi-class probabilities
    with Dirichlet calibration", NeurIPS 2019. It measures every class's probability, not the
    largest only. Arguments as in `reliability`.

    Example:
        >>> f"{classwise_ece([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4]], [0, 0, 1], bins=2):.4f}"
        '0.0667'
    """
    p = checked_probabilities(probs)
    y = checked_labels(labels, *p.shape)
    errors = [_reliability(p[:, k], y == k, bins, binning).error for k in range(p.shape[1])]
    return float(np.mean(errors))


def nll(probs: Float[Array, "n k"], labels: Int64[Array, " n"]) -> float:
    """Negative log-likelihood −(1/N) Σ log p_y in nats, 0..∞; infinite where some p_y is 0.

    Args:
        probs: (N, K), rows summing to 1.
        labels: (N,) in 0 … K−1.

    Example:
        >>> f"{nll([[0.5, 0.5], [0.8, 0.2]], [0, 0]):.4f}"
        '0.4581'
    """
    p = checked_probabilities(probs)
    y = checked_labels(labels, *p.shape)
    with np.errstate(divide="ignore"):
        return float(-np.log(p[np.arange(len(y)), y]).mean())


def brier_score(probs: Float[Array, "n k"], labels: Int64[Array, " n"]) -> float:
    """Brier score (1/N) Σ_n Σ_k (p_k − [y = k])², 0..2, lower is better.

    Brier, "Verification of forecasts expressed in terms of probability", 1950: the sum over all
    classes, twice the binary form that others use. Arguments as in `nll`.

    Example:
        >>> f"{brier_score([[0.5, 0.5], [0.8, 0.2]], [0, 0]):.2f}"
        '0.29'
    """
    p = checked_probabilities(probs)
    y = checked_labels(labels, *p.shape)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(1).mean())


# --- selective prediction -----------------------------------------------------------------------


class RiskCoverage(NamedTuple):
    """The risk–coverage curve: predict only the surest k of N images, k = 1 … N."""

    coverage: Float64[np.ndarray, " n"]  # k/N
    risk: Float64[np.ndarray, " n"]  # share of wrong predictions among these k, 0..1
    attainable: Bool[np.ndarray, " n"]  # whether a threshold selects exactly k: it splits no tie


def risk_coverage(scores: Float[Array, " n"], wrong: Bool[Array, " n"]) -> RiskCoverage:
    """Selective risk at every coverage.

    El-Yaniv & Wiener, "On the foundations of noise-free selective classification", JMLR 2010;
    Geifman & El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017. Within a
    tie, the risk is the expected one over all orders of the tied images.

    Args:
        scores: (N,), higher = less sure.
        wrong: bool (N,), whether the prediction is wrong.

    Raises:
        InputError: scores that are NaN or all equal; arrays of different length.

    Example:
        >>> curve = risk_coverage([0.1, 0.2, 0.3, 0.4], np.array([False, False, True, True]))
        >>> curve.coverage, curve.risk.round(3)
        (array([0.25, 0.5 , 0.75, 1.  ]), array([0.   , 0.   , 0.333, 0.5  ]))
    """
    s = checked_scores(scores)
    w = checked_flags("wrong", wrong, len(s))
    order = np.argsort(s, kind="stable")
    s, errors = s[order], np.concatenate([[0], np.cumsum(w[order])])
    answered = np.arange(1, len(s) + 1)
    attainable = np.append(s[1:] != s[:-1], True)
    ends = np.concatenate([[0], answered[attainable]])
    # The expected number of errors grows evenly through a tie.
    return RiskCoverage(
        answered / len(s), np.interp(answered, ends, errors[ends]) / answered, attainable
    )


def aurc(scores: Float[Array, " n"], wrong: Bool[Array, " n"]) -> float:
    """Area under the risk–coverage curve, (1/N) Σ_k risk_k, 0..1, lower is better.

    Geifman, Uziel & El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers",
    ICLR 2019. Arguments as in `risk_coverage`.

    Example:
        >>> f"{aurc([0.1, 0.2, 0.3, 0.4], np.array([False, False, True, True])):.4f}"
        '0.2083'
    """
    return float(risk_coverage(scores, wrong).risk.mean())


def excess_aurc(scores: Float[Array, " n"], wrong: Bool[Array, " n"]) -> float:
    """AURC minus the AURC of the best score, which ranks all wrong predictions last; 0..1.

    The E-AURC of Geifman et al. 2019. Its best area is the exact sum (1/N) Σ_k max(0, k − right)/k,
    where theirs is a logarithmic approximation. Arguments as in `risk_coverage`.

    Example:
        >>> f"{excess_aurc([0.1, 0.2, 0.3, 0.4], np.array([True, False, False, False])):.4f}"
        '0.4583'
    """
    area = aurc(scores, wrong)
    w = as_array(wrong)
    k = np.arange(1, len(w) + 1)
    return area - float((np.maximum(0, k - (~w).sum()) / k).mean())


def risk_at_coverage(
    scores: Float[Array, " n"], wrong: Bool[Array, " n"], coverage: float = 0.8
) -> float:
    """Share of wrong predictions among the ⌈coverage · N⌉ surest images, 0..1.

    Args:
        scores, wrong: as in `risk_coverage`.
        coverage: in (0, 1).

    Example:
        >>> risk_at_coverage([0.1, 0.2, 0.3, 0.4], np.array([False, True, False, True]), 0.5)
        0.5
    """
    share = checked_share("coverage", coverage)
    curve = risk_coverage(scores, wrong)
    return float(curve.risk[ceil_share(share, len(curve.risk)) - 1])


def coverage_at_risk(
    scores: Float[Array, " n"], wrong: Bool[Array, " n"], risk: float = 0.05
) -> float:
    """The largest coverage at which the risk is at most `risk`, 0..1; 0 if there is none.

    It is chosen on the images that it is measured on, so it promises nothing about other images;
    `abstaining.threshold_for_risk` does.

    Args:
        scores, wrong: as in `risk_coverage`.
        risk: in (0, 1).

    Example:
        >>> coverage_at_risk([0.1, 0.2, 0.3, 0.4], np.array([False, False, False, True]), 0.1)
        0.75
    """
    checked_share("risk", risk)
    curve = risk_coverage(scores, wrong)
    return float(np.max(curve.coverage, where=curve.attainable & (curve.risk <= risk), initial=0.0))


# --- detection ----------------------------------------------------------------------------------


def _check_detection(
    scores: Array, positive: Array
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    s = checked_scores(scores)
    p = checked_flags("positive", positive, len(s))
    if p.all() or not p.any():
        raise InputError(
            f"{p.sum()} of {len(p)} images are to be detected: detection needs both kinds"
        )
    return s, p


def auroc(scores: Float[Array, " n"], positive: Bool[Array, " n"]) -> float:
    """P(score of a positive > score of a negative) + ½ P(equal), 0..1; 0.5 is guessing.

    Args:
        scores: (N,), higher = less sure.
        positive: bool (N,), the images to be detected: out-of-distribution, attacked or wrong.

    Raises:
        InputError: all or none of the images are positive; scores that are NaN or all equal.

    Example:
        >>> auroc([0.1, 0.4, 0.3, 0.9], np.array([False, False, True, True]))
        0.75
    """
    s, p = _check_detection(scores, positive)
    positives, negatives = int(p.sum()), int((~p).sum())
    u = rankdata(s)[p].sum() - positives * (positives + 1) / 2  # Mann & Whitney 1947
    return float(u / (positives * negatives))


def aupr(
    scores: Float[Array, " n"],
    positive: Bool[Array, " n"],
    *,
    of: Literal["positive", "negative"] = "positive",
) -> float:
    """Area under the precision–recall curve, as average precision Σ_t (R_t − R_{t−1}) · P_t, 0..1.

    It depends on which kind of image is rare; guessing gives the share of that kind.

    Args:
        scores, positive: as in `auroc`.
        of: `positive` finds the positives by high scores, `negative` the negatives by low ones.

    Example:
        >>> f"{aupr([0.1, 0.4, 0.3, 0.9], np.array([False, False, True, True])):.4f}"
        '0.8333'
    """
    s, p = _check_detection(scores, positive)
    if of == "negative":
        s, p = -s, ~p
    elif of != "positive":
        raise InputError(f"of must be 'positive' or 'negative', not {of!r}")
    order = np.argsort(-s, kind="stable")
    s, found = s[order], np.cumsum(p[order])
    threshold = np.append(s[1:] != s[:-1], True)  # tied images are found together
    precision = found[threshold] / (np.flatnonzero(threshold) + 1)
    return float((np.diff(found[threshold], prepend=0) * precision).sum() / p.sum())


def fpr_at_tpr(scores: Float[Array, " n"], positive: Bool[Array, " n"], tpr: float = 0.95) -> float:
    """False positive rate at the threshold that finds a share `tpr` of the positives, 0..1.

    The positives are the images to be detected, as in Hendrycks, Mazeika & Dietterich, "Deep
    anomaly detection with outlier exposure", ICLR 2019. For papers in which in-distribution images
    are the positives, pass `-scores, ~positive`.

    Args:
        scores, positive: as in `auroc`.
        tpr: true positive rate, in (0, 1).

    Example:
        >>> fpr_at_tpr([0.1, 0.4, 0.3, 0.9], np.array([False, False, True, True]), tpr=0.95)
        0.5
    """
    share = checked_share("tpr", tpr)
    s, p = _check_detection(scores, positive)
    found = np.sort(s[p])[::-1]
    threshold = found[ceil_share(share, len(found)) - 1]
    return float((s[~p] >= threshold).mean())


# --- intervals ----------------------------------------------------------------------------------


LEAST = 20  # images of each kind that a bootstrap interval needs


class Interval(NamedTuple):
    """A metric and the two ends of its interval."""

    value: float
    low: float
    high: float


def bootstrap(
    metric: Callable[..., float],
    *arrays: Array,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`metric(*arrays)` with its percentile interval over images drawn with replacement.

    Efron & Tibshirani, "An introduction to the bootstrap", 1993, chapter 13. Draws in which the
    metric has no value (none of the images is wrong, say) are left out. This is correct for means
    and for metrics of ranks. Calibration errors need `calibration_intervals.calibration_interval`,
    and the best of many thresholds needs `coverage_at_risk_interval`. A biased metric may lie
    outside its percentiles: the interval is then widened to hold it.

    Args:
        metric: from the arrays to a number.
        arrays: tensors or arrays whose first dimension is the image.
        resamples: number of draws; 1000 take about a second for 10,000 images.
        level: probability of the interval, in (0, 1).
        seed: of the draws.

    Raises:
        InputError: arrays of different length; booleans of which fewer than `LEAST` are true, or
            false; a metric without a value on all images, or on more than a tenth of the draws.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> positive = np.arange(200) < 100
        >>> found = bootstrap(auroc, rng.normal(size=200) + positive, positive, resamples=100)
        >>> 0.6 < found.low < found.value < found.high < 0.9
        True
    """
    checked_share("level", level)
    data = [as_array(array) for array in arrays]
    n = len(data[0])
    if any(len(array) != n for array in data):
        raise InputError(f"arrays of {', '.join(str(len(a)) for a in data)} images: give as many")
    value = metric(*data)
    for flags in data:
        rarer = min(flags.sum(), (~flags).sum()) if flags.dtype == np.bool_ else LEAST
        if rarer < LEAST:
            raise InputError(
                f"{rarer} images of one kind are too few for an interval: give more images, so "
                f"that there are {LEAST} of each"
            )
    rng = np.random.default_rng(seed)
    figures = []
    for _ in range(resamples):
        drawn = rng.integers(n, size=n)
        try:
            figures.append(metric(*(array[drawn] for array in data)))
        except InputError:
            figures.append(math.nan)
    valued = np.array(figures)[~np.isnan(figures)]
    if len(valued) < 0.9 * resamples:
        raise InputError(
            f"the metric has no value on {resamples - len(valued)} of {resamples} bootstrap draws "
            f"of {n} images: give more images"
        )
    tail = (1 - level) / 2
    # Infinite draws (a likelihood of 0) are left as they are: interpolating them makes NaN.
    low, high = np.quantile(valued, [tail, 1 - tail], method="inverted_cdf")
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def risk_at_coverage_interval(
    scores: Float[Array, " n"],
    wrong: Bool[Array, " n"],
    coverage: float = 0.8,
    level: float = 0.95,
) -> Interval:
    """`risk_at_coverage` with the Clopper–Pearson interval over the images that are predicted.

    Args:
        scores, wrong, coverage: as in `risk_at_coverage`.
        level: probability of the interval, in (0, 1).

    Example:
        >>> risk_at_coverage_interval(np.arange(20), np.arange(20) > 16, 0.8)
        Interval(value=0.0, low=0.0, high=0.2059...)
    """
    share = checked_share("coverage", coverage)
    risk = risk_at_coverage(scores, wrong, coverage)
    answered = ceil_share(share, len(as_array(scores)))
    return Interval(risk, *clopper_pearson(risk * answered, answered, level))


def coverage_at_risk_interval(
    scores: Float[Array, " n"], wrong: Bool[Array, " n"], risk: float = 0.05, level: float = 0.95
) -> Interval:
    """`coverage_at_risk` with its interval.

    The best of many thresholds looks better than it is, and a bootstrap does not correct that. The
    low and high end are the largest coverages at which the upper and the lower end of the risk's
    own Clopper–Pearson interval are at most `risk`. The high end keeps its promise: it is too low
    only if the interval at the true threshold misses the true risk.

    Args:
        scores, wrong, risk: as in `coverage_at_risk`.
        level: probability of the interval, in (0, 1).

    Example:
        >>> coverage_at_risk_interval(np.arange(200), np.arange(200) > 160, 0.05)
        Interval(value=0.845, low=0.815, high=0.88)
    """
    checked_share("risk", risk)
    curve = risk_coverage(scores, wrong)
    checked_share("level", level)
    answered = np.arange(1, len(curve.risk) + 1)
    # Within ties, counts are expected ones, and not whole.
    lower, upper = (
        bound(curve.risk * answered, answered, (1 - level) / 2)
        for bound in (lower_bound, upper_bound)
    )

    def largest(risks: Float64[np.ndarray, " n"]) -> float:
        kept = curve.attainable & (risks <= risk)
        return float(np.max(curve.coverage, where=kept, initial=0.0))

    return Interval(largest(curve.risk), largest(upper), largest(lower))


# Names of version 0.1.0.
expected_calibration_error = ece
classwise_calibration_error = classwise_ece
negative_log_likelihood = nll
