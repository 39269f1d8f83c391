"""Abstaining (selective prediction): a classifier that predicts only where it is sure enough.

A threshold on an uncertainty score is chosen on calibration images, so that a promise holds on new
images of the same kind with confidence 1 − δ. It is chosen by a confidence bound, because the share
measured on the calibration images would break the promise about half of the time. Under attack
nothing is promised; `rates` measures what happens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import beta
from torch import Tensor

from ..errors import InputError
from ..intervals import upper_bound
from ..models.modes import evaluating
from ..models.wrapper import predicted, wrapped
from ..types import Images
from .inputs import Array, as_array, checked_flags, checked_scores, checked_share
from .scores import Items, Score

ABSTAIN = -1  # in place of a class: no prediction


@dataclass(frozen=True)
class Threshold:
    """A threshold on scores: the class is predicted where the score is below `value`.

    Attributes:
        value: the threshold; with +∞, every image gets a prediction.
        promise: what holds on new images, as a sentence.
        coverage: share of the calibration images that get a prediction, 0..1.
        risk: share of wrong ones among these predictions, 0..1; NaN where unknown.
        bound: the confidence bound of the promised risk or coverage, 0..1.
    """

    value: float
    promise: str
    coverage: float
    risk: float
    bound: float


def threshold_for_risk(
    scores: Float[Array, " n"],
    wrong: Bool[Array, " n"],
    risk: float,
    *,
    delta: float = 0.05,
    candidates: int = 50,
) -> Threshold:
    """The threshold that predicts most images while the risk on new images is bounded.

    This is selection with guaranteed risk (Geifman & El-Yaniv, "Selective classification for deep
    neural networks", NeurIPS 2017) with one change. The m candidates are fixed ranks of the scores:
    the surest 1/m, 2/m, … of the images. The steps of a binary search, as in the paper, depend on
    the mistakes seen, and then a union bound over them is not exact. Given a threshold that is an
    order statistic, the images below it are independent draws from all images below it, so each
    candidate has a binomial bound at δ/m. Tied images are predicted together or not at all.

    Args:
        scores: (N,) of calibration images, higher = less sure.
        wrong: bool (N,), whether the prediction is wrong.
        risk: the promised share of wrong predictions among those made, in (0, 1).
        delta: probability, over the calibration images, that the promise fails, in (0, 1).
        candidates: m, at least 1.

    Raises:
        InputError: no candidate keeps the promise; scores that are NaN or constant.

    Example:
        >>> scores = np.linspace(0, 1, 1000)
        >>> wrong = np.arange(1000) >= 900  # the least sure tenth
        >>> threshold = threshold_for_risk(scores, wrong, risk=0.02)
        >>> threshold.coverage, threshold.risk, threshold.promise
        (0.9, 0.0, 'at most 0.02 of the predictions are wrong, with confidence 0.95')
    """
    checked_share("risk", risk)
    checked_share("delta", delta)
    if candidates < 1:
        raise InputError(f"candidates must be at least 1, not {candidates}")
    s = checked_scores(scores)
    w = checked_flags("wrong", wrong, len(s))
    order = np.argsort(s, kind="stable")
    ordered, mistakes = s[order], np.concatenate([[0], np.cumsum(w[order])])
    ranks = -(-np.arange(1, candidates + 1) * len(s) // candidates)
    values = np.append(ordered, math.inf)[ranks]  # the first score without a prediction
    answered = np.searchsorted(ordered, values, side="left")
    answered[-1] = len(s)  # all, those with a score of +∞ too
    bounds = upper_bound(mistakes[answered], answered, delta / candidates)
    kept = np.flatnonzero(bounds <= risk)
    if len(kept) == 0:
        lowest = bounds.argmin()
        raise InputError(
            f"no threshold promises a risk of {risk:g} from {len(s)} calibration images: the "
            f"lowest is {bounds[lowest]:.3g}, at coverage {answered[lowest] / len(s):.3g}; "
            "promise a higher risk, or give more images"
        )
    best = kept[-1]
    n = int(answered[best])
    promise = f"at most {risk:g} of the predictions are wrong, with confidence {1 - delta:g}"
    return Threshold(
        float(values[best]), promise, n / len(s), float(mistakes[n] / n), float(bounds[best])
    )


def threshold_for_coverage(
    scores: Float[Array, " n"], coverage: float, *, delta: float = 0.05
) -> Threshold:
    """The smallest threshold that predicts a promised share of new images.

    The share of new scores below the k-th smallest of n scores follows Beta(k, n + 1 − k), or is
    larger where scores tie (Wilks, "Determination of sample sizes for setting tolerance limits",
    1941). The threshold is the first k at which it exceeds `coverage` with probability 1 − δ.

    Args:
        scores: (N,) of calibration images, higher = less sure.
        coverage: the promised share of images with a prediction, in (0, 1).
        delta: probability, over the calibration images, that the promise fails, in (0, 1).

    Raises:
        InputError: too few calibration images; scores that are NaN or constant.

    Example:
        >>> threshold = threshold_for_coverage(np.linspace(0, 1, 1000), 0.8)
        >>> round(threshold.value, 3), threshold.promise
        (0.822, 'at least 0.8 of the images get a prediction, with confidence 0.95')
    """
    checked_share("coverage", coverage)
    checked_share("delta", delta)
    s = np.sort(checked_scores(scores))
    k = np.arange(1, len(s) + 1)
    kept = np.flatnonzero(beta.cdf(coverage, k, len(s) + 1 - k) <= delta)
    if len(kept) == 0:
        raise InputError(
            f"{len(s)} calibration images are too few to promise a coverage of {coverage:g} with "
            f"confidence {1 - delta:g}; promise less, or give more images"
        )
    place = int(kept[0])
    # The next float32 above, as scores are float32: the score itself gets a prediction too.
    value = float(np.nextafter(np.float32(s[place]), np.float32(math.inf)))
    bound = float(beta.ppf(delta, place + 1, len(s) - place))
    promise = f"at least {coverage:g} of the images get a prediction, with confidence {1 - delta:g}"
    return Threshold(value, promise, float((s < value).mean()), math.nan, bound)


@dataclass(frozen=True)
class Abstaining:
    """A model with a score and a threshold: the predicted class, or `ABSTAIN` (−1).

    It abstains where the score is NaN.

    Attributes:
        model: images to logits.
        score: images to scores (N,), higher = less sure.
        threshold: of `threshold_for_risk` or `threshold_for_coverage`.

    Example:
        >>> from holdfast.uncertainty.scores import LogitScore
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> score, images = LogitScore(model), torch.rand(100, 1, 2, 2)
        >>> threshold = threshold_for_coverage(score.in_batches(images), 0.8)
        >>> classifier = Abstaining(model, score, threshold)
        >>> classifier(torch.rand(5, 1, 2, 2)).shape
        torch.Size([5])
    """

    model: Callable[[Images], Float[Tensor, "n k"]]
    score: Score
    threshold: Threshold

    def __call__(self, images: Images, items: Items | None = None) -> Int64[Tensor, " n"]:
        """Predictions (N,) of images (N, C, H, W) in [0, 1]; `items` as for the score."""
        with evaluating(self.model), torch.no_grad():
            predictions = predicted(wrapped(self.model)(images))
            sure = self.score(images, items) < self.threshold.value
        return torch.where(sure, predictions, ABSTAIN)


class Rates(NamedTuple):
    """Shares of n images with a right, a wrong or no prediction; they sum to 1."""

    right: float
    wrong: float
    abstained: float
    n: int

    @property
    def risk(self) -> float:
        """Share of wrong ones among the predictions made, 0..1; NaN where none was made."""
        answered = self.right + self.wrong
        return self.wrong / answered if answered else math.nan


def rates(predictions: Int64[Array, " n"], labels: Int64[Array, " n"]) -> Rates:
    """Shares of right, wrong and withheld predictions.

    Args:
        predictions: (N,), classes or `ABSTAIN`.
        labels: (N,).

    Raises:
        InputError: arrays of different shape, or none.

    Example:
        >>> shares = rates(np.array([0, 2, ABSTAIN, 1]), np.array([0, 1, 2, 1]))
        >>> shares.right, shares.wrong, shares.abstained, round(shares.risk, 3)
        (0.5, 0.25, 0.25, 0.333)
    """
    p, y = as_array(predictions), as_array(labels)
    if p.shape != y.shape or p.ndim != 1 or len(p) == 0:
        raise InputError(
            f"predictions {p.shape} and labels {y.shape} must both have shape (N,), N ≥ 1"
        )
    right, abstained = (p == y).sum(), (p == ABSTAIN).sum()
    return Rates(
        float(right / len(p)),
        float((len(p) - right - abstained) / len(p)),
        float(abstained / len(p)),
        len(p),
    )
