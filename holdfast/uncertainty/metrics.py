"""Metrics of calibration, selective prediction and detection, with intervals.

Scores follow the one polarity of this package (`scores`): higher = less sure. Arguments may be
tensors or arrays; figures are Python floats, computed in float64. Ties never depend on the order
of the images. A metric without a value raises `InputError`; it is not zero.
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
    check_flags,
    check_labels,
    check_probabilities,
    check_scores,
    check_share,
)

Binning = Literal["equal-width", "equal-mass"]


# --- calibration --------------------------------------------------------------------------------


class Reliability(NamedTuple):
    """A reliability diagram: B bins of confidence."""

    images: Int64[np.ndarray, " b"]  # how many are in the bin
    confidence: Float64[np.ndarray, " b"]  # mean in the bin, 0..1; NaN where it is empty
    frequency: Float64[np.ndarray, " b"]  # how often it came true, 0..1; NaN where empty

    @property
    def error(self) -> float:
        """Σ_b (images_b / N) · |frequency_b − confidence_b|, 0..1."""
        full = self.images > 0
        gaps = np.abs(self.frequency - self.confidence)[full]
        return float((self.images[full] * gaps).sum() / self.images.sum())


def places(
    confidence: Float64[np.ndarray, " n"], bins: int, binning: str
) -> Int64[np.ndarray, " n"]:
    """In which bin, 0 … bins−1, each confidence lies; `bins` and `binning` as in `reliability`."""
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
    place = places(confidence, bins, binning)
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
    """The largest probability against how often that class was right.

    Args:
        probs: (N, K), rows summing to 1.
        labels: (N,) in 0 … K−1.
        bins: B, of equal width in [0, 1], or of equal mass (as many images in each, as far as
            equal confidences allow).
    """
    p = check_probabilities(probs)
    y = check_labels(labels, *p.shape)
    return _reliability(p.max(1), p.argmax(1) == y, bins, binning)


def expected_calibration_error(
    probs: Float[Array, "n k"],
    labels: Int64[Array, " n"],
    *,
    bins: int = 15,
    binning: Binning = "equal-width",
) -> float:
    """ECE = Σ_b (|b|/N) · |accuracy_b − confidence_b| of the top class, 0..1, lower is better.

    Equal width: Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", ICML
    2017 (15 bins). Equal mass: Nguyen & O'Connor, EMNLP 2015. Arguments as in `reliability`.
    """
    return reliability(probs, labels, bins=bins, binning=binning).error


def classwise_calibration_error(
    probs: Float[Array, "n k"],
    labels: Int64[Array, " n"],
    *,
    bins: int = 15,
    binning: Binning = "equal-width",
) -> float:
    """cwECE = (1/K) Σ_k Σ_b (|b|/N) · |share of class k in b − mean p_k in b|, 0..1.

    Kull et al., "Beyond temperature scaling", NeurIPS 2019. It looks at every class's probability
    rather than at the largest only. Arguments as in `reliability`.
    """
    p = check_probabilities(probs)
    y = check_labels(labels, *p.shape)
    errors = [_reliability(p[:, k], y == k, bins, binning).error for k in range(p.shape[1])]
    return float(np.mean(errors))


def negative_log_likelihood(probs: Float[Array, "n k"], labels: Int64[Array, " n"]) -> float:
    """NLL = −(1/N) Σ log p_y in nats, 0..∞; infinite when a true class was called impossible."""
    p = check_probabilities(probs)
    y = check_labels(labels, *p.shape)
    with np.errstate(divide="ignore"):
        return float(-np.log(p[np.arange(len(y)), y]).mean())


def brier_score(probs: Float[Array, "n k"], labels: Int64[Array, " n"]) -> float:
    """(1/N) Σ_n Σ_k (p_k − [y = k])², 0..2 (Brier, 1950: the original sum over all classes)."""
    p = check_probabilities(probs)
    y = check_labels(labels, *p.shape)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(1).mean())


# --- selective prediction -----------------------------------------------------------------------


class RiskCoverage(NamedTuple):
    """The risk–coverage curve: answer the surest k of N images, k = 1 … N."""

    coverage: Float64[np.ndarray, " n"]  # k/N
    risk: Float64[np.ndarray, " n"]  # share wrong among those k, 0..1
    attainable: Bool[np.ndarray, " n"]  # whether a threshold answers just k (it splits no tie)


def risk_coverage(scores: Float[Array, " n"], wrong: Bool[Array, " n"]) -> RiskCoverage:
    """The curve of selective risk (El-Yaniv & Wiener, JMLR 2010; Geifman & El-Yaniv, NeurIPS 2017).

    Within a tie, the risk is the expected one over the orders in which the tied images may be
    answered.

    Args:
        scores: (N,), higher = less sure.
        wrong: bool (N,), whether the prediction is wrong.
    """
    s = check_scores(scores)
    w = check_flags("wrong", wrong, len(s))
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

    Geifman, Uziel & El-Yaniv, "Bias-reduced uncertainty estimation", ICLR 2019.
    """
    return float(risk_coverage(scores, wrong).risk.mean())


def excess_aurc(scores: Float[Array, " n"], wrong: Bool[Array, " n"]) -> float:
    """AURC minus that of the best score with the same mistakes (all of them last), 0..1.

    E-AURC of Geifman et al. 2019, with their logarithmic approximation of the best area replaced
    by its exact sum (1/N) Σ_k max(0, k − right)/k.
    """
    area = aurc(scores, wrong)
    w = as_array(wrong)
    k = np.arange(1, len(w) + 1)
    return area - float((np.maximum(0, k - (~w).sum()) / k).mean())


def risk_at_coverage(
    scores: Float[Array, " n"], wrong: Bool[Array, " n"], coverage: float = 0.8
) -> float:
    """Share wrong among the ⌈coverage · N⌉ surest images, 0..1; ties as in `risk_coverage`."""
    share = check_share("coverage", coverage)
    curve = risk_coverage(scores, wrong)
    return float(curve.risk[ceil_share(share, len(curve.risk)) - 1])


def coverage_at_risk(
    scores: Float[Array, " n"], wrong: Bool[Array, " n"], risk: float = 0.05
) -> float:
    """The largest share of images that a threshold answers with at most this risk, 0..1.

    0 if no threshold does. Chosen on the images it is measured on, it promises nothing about
    others: `abstaining.threshold_for_risk` does.
    """
    check_share("risk", risk)
    curve = risk_coverage(scores, wrong)
    return float(np.max(curve.coverage, where=curve.attainable & (curve.risk <= risk), initial=0.0))


# --- detection ----------------------------------------------------------------------------------


def _check_detection(
    scores: Array, positive: Array
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    s = check_scores(scores)
    p = check_flags("positive", positive, len(s))
    if p.all() or not p.any():
        raise InputError(
            f"{p.sum()} of {len(p)} images are to be detected: detection needs both kinds"
        )
    return s, p


def auroc(scores: Float[Array, " n"], positive: Bool[Array, " n"]) -> float:
    """P(score of a positive > score of a negative) + ½ P(equal), 0..1; 0.5 is guessing.

    Args:
        scores: (N,), higher = less sure.
        positive: bool (N,), the images to be detected: foreign, attacked, wrong.
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
    """Area under precision–recall as the average precision Σ_t (R_t − R_{t−1}) · P_t, 0..1.

    Both ways, since it depends on which kind is rare: `of="positive"` finds the positives by high
    scores, `of="negative"` the negatives by low ones. Guessing gives that kind's share.
    Arguments as in `auroc`.
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
    """Share of negatives called positive where the threshold just finds `tpr` of the positives.

    The positives are the images to be detected, as in Hendrycks, Mazeika & Dietterich, "Deep
    anomaly detection with outlier exposure", ICLR 2019; where in-distribution images are the
    positives, pass `-scores, ~positive`. Arguments as in `auroc`.
    """
    share = check_share("tpr", tpr)
    s, p = _check_detection(scores, positive)
    found = np.sort(s[p])[::-1]
    threshold = found[ceil_share(share, len(found)) - 1]
    return float((s[~p] >= threshold).mean())


# --- intervals ----------------------------------------------------------------------------------


LEAST = 20  # images of either kind, below which drawing them again says nothing


class Interval(NamedTuple):
    """A figure and its interval."""

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
    metric has no value (say, none of the images is wrong) are left out. Right for means and for
    how well scores rank; not for calibration errors, which have `calibration_interval`, nor for
    the best of many thresholds, which has `coverage_at_risk_interval`. Should the figure lie
    outside the percentiles, as a biased one may, the interval is widened to hold it.

    Args:
        metric: takes the arrays, returns a figure.
        arrays: tensors or arrays whose first dimension is the image.
        resamples: number of draws; 1000 cost about a second for 10,000 images.
        level: of the interval.

    Raises:
        InputError: arrays of different length; flags of which fewer than `LEAST` are true, or
            false; a metric without a value on all images, or on more than a tenth of the draws.
    """
    check_share("level", level)
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
    """`risk_at_coverage` with the interval of Clopper & Pearson (Biometrika 1934) for the images
    answered: right also where few or none of them are wrong."""
    share = check_share("coverage", coverage)
    risk = risk_at_coverage(scores, wrong, coverage)
    answered = ceil_share(share, len(as_array(scores)))
    return Interval(risk, *clopper_pearson(risk * answered, answered, level))


def coverage_at_risk_interval(
    scores: Float[Array, " n"], wrong: Bool[Array, " n"], risk: float = 0.05, level: float = 0.95
) -> Interval:
    """`coverage_at_risk` with its interval: the best of many thresholds looks too good, and no
    bootstrap undoes that.

    The ends are the largest coverages at which the upper and the lower end of the risk's own
    interval (Clopper & Pearson, Biometrika 1934) keep to `risk`. The high end holds as promised: it
    is too low only if the interval at the true threshold misses its risk.
    """
    check_share("risk", risk)
    curve = risk_coverage(scores, wrong)
    check_share("level", level)
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
