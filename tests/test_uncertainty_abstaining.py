"""Abstaining: promises that hold on new images, and the rates that are reported."""

import math

import numpy as np
import pytest
import torch

from holdfast.errors import InputError
from holdfast.uncertainty.abstaining import (
    ABSTAIN,
    Abstaining,
    Threshold,
    rates,
    threshold_for_coverage,
    threshold_for_risk,
)
from holdfast.uncertainty.scores import LogitScore


def test_risk_promise_fails_no_more_often_than_delta():
    """Scores uniform in [0, 1], wrong with probability s/2: below θ the true risk is θ/4.

    Choosing by the validation risk instead of the bound would break the promise half the time.
    """
    rng = np.random.default_rng(0)
    kept, broken, naive = [], 0, 0
    for _ in range(300):
        scores = rng.random(2000)
        wrong = rng.random(2000) < scores / 2
        try:
            found = threshold_for_risk(scores, wrong, 0.1, delta=0.2)
        except InputError:  # an unlucky draw, on which nothing is promised
            kept.append(0.0)
            continue
        kept.append(found.coverage)
        broken += min(found.value, 1) / 4 > 0.1
        assert found.risk <= found.bound <= 0.1
        order = np.argsort(scores)
        risks = np.cumsum(wrong[order]) / np.arange(1, 2001)
        naive += scores[order][risks <= 0.1].max() / 4 > 0.1
    assert broken <= 0.2 * 300
    assert naive > 0.3 * 300
    assert np.mean(kept) > 0.2  # the best possible threshold answers 0.4


def test_coverage_promise_fails_no_more_often_than_delta_and_is_tight():
    rng = np.random.default_rng(1)
    true = np.array(
        [
            threshold_for_coverage(rng.random(200, dtype=np.float32), 0.8, delta=0.1).value
            for _ in range(1000)
        ]
    )
    assert 0.05 < (true < 0.8).mean() < 0.13
    assert true.mean() < 0.85


def test_ties_are_answered_together():
    scores = np.repeat([0.0, 1.0], 500)
    wrong = scores > 0.5
    found = threshold_for_risk(scores, wrong, 0.1)
    assert found.coverage == 0.5
    assert 0 < found.value <= 1
    assert threshold_for_coverage(scores, 0.4).coverage == 0.5


def test_everything_is_answered_if_the_promise_allows():
    found = threshold_for_risk(np.arange(500.0), np.arange(500) % 100 == 0, 0.1)
    assert found.value == math.inf
    assert found.coverage == 1


def test_wrong_polarity_cannot_promise():
    rng = np.random.default_rng(2)
    scores = rng.random(1000)
    wrong = rng.random(1000) < scores
    assert threshold_for_risk(scores, wrong, 0.2).coverage > 0.1
    with pytest.raises(InputError, match="no threshold promises"):
        threshold_for_risk(-scores, wrong, 0.2)


def test_the_wrapper_answers_below_its_threshold():
    def model(images):
        return images.flatten(1)

    images = torch.tensor([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8], [math.nan, 0.5]]).view(4, 2, 1, 1)
    score = LogitScore(model, "margin")  # second minus largest: −0.8, −0.1, −0.6, NaN
    wrapped = Abstaining(model, score, Threshold(-0.5, "", 0, 0, 0))
    answers = wrapped(images)
    assert answers.tolist() == [0, ABSTAIN, 1, ABSTAIN]
    at = Abstaining(model, score, Threshold(float(score(images)[2]), "", 0, 0, 0))
    assert at(images).tolist() == [0, ABSTAIN, ABSTAIN, ABSTAIN]


def test_the_promised_coverage_answers_the_score_at_the_threshold():
    scores = torch.rand(300, generator=torch.Generator().manual_seed(0))
    found = threshold_for_coverage(scores, 0.7)
    assert (scores < found.value).float().mean().item() == pytest.approx(found.coverage)
    assert (scores == scores[scores < found.value].max()).any()
    assert found.bound >= 0.7


def test_rates_by_hand():
    found = rates(torch.tensor([0, 1, ABSTAIN, 2, ABSTAIN]), torch.tensor([0, 2, 1, 2, 0]))
    assert found == (0.4, 0.2, 0.4, 5)
    assert found.risk == pytest.approx(1 / 3)
    assert math.isnan(rates(np.array([-1]), np.array([0])).risk)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s, w: threshold_for_risk(s, w, 0.001), "no threshold promises a risk of 0.001"),
        (lambda s, w: threshold_for_risk(s, w, 1.5), "risk must lie strictly between"),
        (lambda s, w: threshold_for_risk(s, w, 0.1, delta=0), "delta must lie strictly between"),
        (lambda s, w: threshold_for_risk(s * math.nan, w, 0.1), "NaN"),
        (lambda s, w: threshold_for_risk(s * 0, w, 0.1), "a constant ranks nothing"),
        (lambda s, w: threshold_for_risk(s, w[1:], 0.1), "must be booleans of shape (50,)"),
        (lambda s, w: threshold_for_risk(s, w, 0.1, candidates=0), "candidates"),
        (lambda s, w: threshold_for_coverage(s, 0.99), "too few to promise a coverage of 0.99"),
        (lambda s, w: threshold_for_coverage(s * math.nan, 0.5), "NaN"),
        (lambda s, w: rates(np.zeros(3), np.zeros(4)), "must both have shape"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(InputError) as error:
        call(np.arange(50.0), np.arange(50) % 5 == 0)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
