"""Abstaining: a classifier that answers "unsure" where it would break a promise.

Thresholds are chosen on validation images and promised for new images of the same kind: for a
promise to hold with confidence 1 − δ, a bound and not the validation figure decides. Under attack
nothing is promised; the rates are then measured (`rates`).
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
from .inputs import Array, as_array, check_flags, check_scores, check_share
from .scores import Images, Items, Score

ABSTAIN = -1  # the answer "unsure"


@dataclass(frozen=True)
class Threshold:
    """Answer an image when its score is below `value`.

    Attributes:
        value: threshold on scores; +∞ answers everything.
        promise: what holds on new images, in words.
        coverage: share of the validation images that it answers, 0..1.
        risk: share of those answered wrongly, 0..1; NaN where unknown.
        bound: the bound on the promised figure, 0..1, with confidence 1 − δ.
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
    """The threshold that answers most while its risk on new images is bounded.

    Selection with guaranteed risk, Geifman & El-Yaniv, "Selective classification for deep neural
    networks", NeurIPS 2017, with one change: the candidates are fixed ranks of the validation
    scores (the surest 1/m, 2/m, …, all) rather than the steps of a binary search, which depend on
    the mistakes seen, so the union bound over them is exact. Given a threshold that is an order
    statistic, the images below it are independent draws from those it answers, so each
    candidate has a binomial bound at δ/m; ties are answered together or not at all.

    Args:
        scores: (N,) of validation images, higher = less sure.
        wrong: bool (N,), whether the prediction is wrong.
        risk: promised share of wrong answers among those given, in (0, 1).
        delta: probability, over the validation images, that the promise fails, in (0, 1).
        candidates: m.

    Raises:
        InputError: no candidate keeps the promise; scores that are NaN or constant.
    """
    check_share("risk", risk)
    check_share("delta", delta)
    if candidates < 1:
        raise InputError(f"candidates must be at least 1, not {candidates}")
    s = check_scores(scores)
    w = check_flags("wrong", wrong, len(s))
    order = np.argsort(s, kind="stable")
    ordered, mistakes = s[order], np.concatenate([[0], np.cumsum(w[order])])
    ranks = -(-np.arange(1, candidates + 1) * len(s) // candidates)
    values = np.append(ordered, math.inf)[ranks]  # the first score that is not answered
    answered = np.searchsorted(ordered, values, side="left")
    answered[-1] = len(s)  # all, those with a score of +∞ too
    bounds = upper_bound(mistakes[answered], answered, delta / candidates)
    kept = np.flatnonzero(bounds <= risk)
    if len(kept) == 0:
        lowest = bounds.argmin()
        raise InputError(
            f"no threshold promises a risk of {risk:g} from {len(s)} validation images: the lowest "
            f"is {bounds[lowest]:.3g}, at coverage {answered[lowest] / len(s):.3g}; "
            "promise more, or give more images"
        )
    best = kept[-1]
    n = int(answered[best])
    promise = f"at most {risk:g} of the answers are wrong, with confidence {1 - delta:g}"
    return Threshold(
        float(values[best]), promise, n / len(s), float(mistakes[n] / n), float(bounds[best])
    )


def threshold_for_coverage(
    scores: Float[Array, " n"], coverage: float, *, delta: float = 0.05
) -> Threshold:
    """The smallest threshold that answers a promised share of new images.

    The share below the k-th smallest of n scores is at least Beta(k, n + 1 − k) distributed
    (Wilks 1941); k is the first for which it exceeds `coverage` with probability 1 − δ.

    Raises:
        InputError: too few validation images; scores that are NaN or constant.
    """
    check_share("coverage", coverage)
    check_share("delta", delta)
    s = np.sort(check_scores(scores))
    k = np.arange(1, len(s) + 1)
    kept = np.flatnonzero(beta.cdf(coverage, k, len(s) + 1 - k) <= delta)
    if len(kept) == 0:
        raise InputError(
            f"{len(s)} validation images are too few to promise a coverage of {coverage:g} with "
            f"confidence {1 - delta:g}; promise less, or give more images"
        )
    place = int(kept[0])
    # The next float32, which scores are: the score itself is answered too.
    value = float(np.nextafter(np.float32(s[place]), np.float32(math.inf)))
    bound = float(beta.ppf(delta, place + 1, len(s) - place))
    promise = f"at least {coverage:g} of the images are answered, with confidence {1 - delta:g}"
    return Threshold(value, promise, float((s < value).mean()), math.nan, bound)


@dataclass(frozen=True)
class Abstaining:
    """A model with a score and a threshold: the predicted class, or `ABSTAIN` (−1).

    An image whose score is NaN is not answered.
    """

    model: Callable[[Images], Float[Tensor, "n k"]]
    score: Score
    threshold: Threshold

    def __call__(self, images: Images, items: Items | None = None) -> Int64[Tensor, " n"]:
        """Answers (N,), for images in [0, 1]; `items` as for the score."""
        with evaluating(self.model), torch.no_grad():
            answers = predicted(wrapped(self.model)(images))
            sure = self.score(images, items) < self.threshold.value
        return torch.where(sure, answers, ABSTAIN)


class Rates(NamedTuple):
    """Shares of n images; they sum to 1."""

    right: float
    wrong: float
    abstained: float
    n: int

    @property
    def risk(self) -> float:
        """Share wrong among the answers given; NaN if none was."""
        answered = self.right + self.wrong
        return self.wrong / answered if answered else math.nan


def rates(answers: Int64[Array, " n"], labels: Int64[Array, " n"]) -> Rates:
    """Right, wrong and abstained; on attacked images an abstention counts as neither."""
    a, y = as_array(answers), as_array(labels)
    if a.shape != y.shape or a.ndim != 1 or len(a) == 0:
        raise InputError(f"answers {a.shape} and labels {y.shape} must both have shape (N,), N ≥ 1")
    right, abstained = (a == y).sum(), (a == ABSTAIN).sum()
    return Rates(
        float(right / len(a)),
        float((len(a) - right - abstained) / len(a)),
        float(abstained / len(a)),
        len(a),
    )
