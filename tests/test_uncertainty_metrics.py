"""Metrics against scikit-learn, torchmetrics and values computed by hand."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from holdfast.errors import InputError
from holdfast.uncertainty import metrics as m


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def predictions():
    """Probabilities (N, K) of an overconfident model, and labels drawn from the true ones."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 5)) * 1.5
    true = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=p) for p in true])
    return torch.from_numpy(2 * z).softmax(1), torch.from_numpy(labels)


@pytest.fixture(scope="module")
def ranking():
    """Scores with many ties, and a flag that is likelier where they are high."""
    rng = np.random.default_rng(1)
    scores = np.round(rng.normal(size=1500), 1)
    return scores, rng.random(1500) < 1 / (1 + np.exp(-scores))


# --- calibration --------------------------------------------------------------------------------


def test_equal_width_ece_agrees_with_torchmetrics(predictions):
    probs, labels = predictions
    theirs = multiclass_calibration_error(probs, labels, num_classes=5, n_bins=15, norm="l1")
    assert m.ece(probs, labels) == pytest.approx(theirs.item(), abs=1e-6)


def test_ece_by_hand():
    # Confidences 0.6, 0.8 (right), 0.8 (wrong), 1.0: two bins of width ½ hold them all in (½, 1].
    probs = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.8, 0.2], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    assert m.ece(probs, labels, bins=2) == pytest.approx(0.05)
    # Three bins: {0.6} alone in (⅓, ⅔], gap 0.4; {0.8, 0.8, 1.0}, accuracy ⅔, gap 0.2.
    expected = 0.25 * 0.4 + 0.75 * (2.6 / 3 - 2 / 3)
    assert m.ece(probs, labels, bins=3) == pytest.approx(expected)
    diagram = m.reliability(probs, labels, bins=3)
    assert diagram.images.tolist() == [0, 1, 3]
    assert math.isnan(diagram.confidence[0])


def test_equal_width_bins_are_closed_above():
    probs = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    assert m.reliability(probs, torch.tensor([0, 0, 1]), bins=4).images.tolist() == [0, 1, 2, 0]


def test_equal_mass_bins_hold_as_many_images_and_keep_ties_together():
    top = np.linspace(0.55, 0.99, 30)
    probs = np.stack([top, 1 - top], 1)
    labels = np.zeros(30, dtype=np.int64)
    diagram = m.reliability(probs, labels, bins=15, binning="equal-mass")
    assert diagram.images.tolist() == [2] * 15
    assert diagram.confidence[0] == pytest.approx(top[:2].mean())

    tied = np.repeat([[0.7, 0.3], [0.9, 0.1]], 10, axis=0)
    first = m.ece(tied, np.arange(20) % 2, bins=5, binning="equal-mass")
    order = np.random.default_rng(0).permutation(20)
    again = m.ece(tied[order], (np.arange(20) % 2)[order], bins=5, binning="equal-mass")
    assert first == pytest.approx(0.5 * 0.2 + 0.5 * 0.4)
    assert again == pytest.approx(first)


def test_classwise_error_by_hand():
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])
    # One bin: mean p_k against the share of class k: |0.7−0.5|, |0.2−0.5|, |0.1−0|.
    value = m.classwise_ece(probs, torch.tensor([0, 1]), bins=1)
    assert value == pytest.approx((0.2 + 0.3 + 0.1) / 3, abs=1e-6)


def test_likelihood_and_brier_agree_with_sklearn(predictions):
    probs, labels = predictions
    p, y = probs.numpy(), labels.numpy()
    assert m.nll(probs, labels) == pytest.approx(sklearn.metrics.log_loss(y, p), abs=1e-6)
    one_hot = np.eye(5)[y]
    assert m.brier_score(probs, labels) == pytest.approx(
        sum(sklearn.metrics.brier_score_loss(one_hot[:, k], p[:, k]) for k in range(5)), abs=1e-6
    )
    assert m.nll(np.array([[1.0, 0.0]]), np.array([1])) == math.inf


# --- selective prediction -----------------------------------------------------------------------


def test_risk_coverage_by_hand():
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    wrong = np.array([False, True, False, True])
    curve = m.risk_coverage(scores, wrong)
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert m.aurc(scores, wrong) == pytest.approx(1 / 3)
    # The best order has both mistakes last: risks 0, 0, 1/3, 1/2.
    assert m.excess_aurc(scores, wrong) == pytest.approx(1 / 3 - (1 / 3 + 1 / 2) / 4)
    assert m.risk_at_coverage(scores, wrong, 0.5) == pytest.approx(0.5)
    assert m.risk_at_coverage(scores, wrong, 0.6) == pytest.approx(1 / 3)
    assert m.coverage_at_risk(scores, wrong, 0.05) == 0.25
    assert m.coverage_at_risk(scores, wrong, 0.4) == 0.75
    assert m.coverage_at_risk(scores, ~wrong, 0.05) == 0.0


def test_wrong_polarity_is_worse():
    rng = np.random.default_rng(2)
    wrong = rng.random(400) < 0.3
    scores = wrong + rng.normal(size=400)
    assert m.auroc(scores, wrong) > 0.7 > 0.3 > m.auroc(-scores, wrong)
    assert m.aurc(scores, wrong) < wrong.mean() < m.aurc(-scores, wrong)
    assert m.risk_at_coverage(scores, wrong) < wrong.mean() < m.risk_at_coverage(-scores, wrong)
    assert m.coverage_at_risk(scores, wrong, 0.25) > m.coverage_at_risk(-scores, wrong, 0.25)
    assert m.fpr_at_tpr(scores, wrong) < 0.95 < m.fpr_at_tpr(-scores, wrong)


def test_perfect_score_has_no_excess_area():
    wrong = np.arange(50) >= 37
    assert m.excess_aurc(np.arange(50.0), wrong) == pytest.approx(0, abs=1e-12)


def test_ties_count_as_the_mean_over_their_orders():
    scores = np.array([0.0, 1.0, 1.0, 1.0, 2.0])
    wrong = np.array([False, True, False, False, True])
    rng = np.random.default_rng(3)
    broken = [m.aurc(scores + 1e-6 * rng.random(5), wrong) for _ in range(3000)]
    assert m.aurc(scores, wrong) == pytest.approx(np.mean(broken), abs=5e-3)
    flipped = [0, 3, 2, 1, 4]
    assert m.aurc(scores[flipped], wrong[flipped]) == m.aurc(scores, wrong)
    # A threshold answers the tied three together: 1 of 4 wrong, though 1 of 3 might have been 0.
    assert m.coverage_at_risk(scores, wrong, 0.2) == 0.2
    assert m.coverage_at_risk(scores, wrong, 0.25) == 0.8


def test_share_of_the_images_is_exact():
    # 0.55 · 100 = 55.00000000000001 in floating point; the 56th image is the wrong one.
    wrong = np.arange(100) == 55
    assert m.risk_at_coverage(np.arange(100.0), wrong, 0.55) == 0


# --- detection ----------------------------------------------------------------------------------


def test_detection_agrees_with_sklearn(ranking):
    scores, positive = ranking
    assert m.auroc(scores, positive) == pytest.approx(
        sklearn.metrics.roc_auc_score(positive, scores), abs=1e-6
    )
    assert m.aupr(scores, positive) == pytest.approx(
        sklearn.metrics.average_precision_score(positive, scores), abs=1e-6
    )
    assert m.aupr(scores, positive, of="negative") == pytest.approx(
        sklearn.metrics.average_precision_score(~positive, -scores), abs=1e-6
    )
    fpr, tpr, _ = sklearn.metrics.roc_curve(positive, scores, drop_intermediate=False)
    assert m.fpr_at_tpr(scores, positive) == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-6)


def test_fpr_by_hand():
    scores = np.concatenate([np.arange(1.0, 21), [0.5, 1.5, 2.5, 10.5]])
    positive = np.arange(24) < 20
    # 19 of the 20 positives lie at 2 or above, as do two of the four negatives.
    assert m.fpr_at_tpr(scores, positive) == 0.5


# --- intervals ----------------------------------------------------------------------------------


def test_bootstrap_of_a_mean_is_the_normal_interval():
    x = np.random.default_rng(4).normal(size=2000)
    interval = m.bootstrap(lambda v: float(v.mean()), x, resamples=2000)
    half = 1.96 * x.std() / math.sqrt(2000)
    assert interval.value == pytest.approx(x.mean())
    assert interval.low == pytest.approx(x.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(x.mean() + half, abs=0.15 * half)
    assert m.bootstrap(lambda v: float(v.mean()), x, resamples=2000) == interval


def test_bootstrap_keeps_images_together(ranking):
    scores, positive = ranking
    interval = m.bootstrap(m.auroc, torch.from_numpy(scores), positive, resamples=200)
    assert interval.low < interval.value < interval.high
    assert interval.high - interval.low < 0.1  # shuffled apart, it would be 0.5 everywhere
    assert interval.low > 0.6


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [m.aurc, m.excess_aurc, m.auroc, m.aupr, m.fpr_at_tpr])
@pytest.mark.parametrize(
    ("scores", "says"), [([0.1, math.nan, 0.3], "NaN, first of image 1"), ([0.5] * 3, "are 0.5")]
)
def test_scores_that_are_nan_or_constant(metric, scores, says):
    with pytest.raises(InputError) as error:
        metric(np.array(scores), np.array([True, False, True]))
    assert says in one_line(error)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: m.auroc(np.arange(3.0), np.zeros(3, bool)), "0 of 3 images are to be detected"),
        (lambda: m.aurc(np.arange(3.0), np.array([0, 1, 0])), "must be booleans of shape (3,)"),
        (lambda: m.aurc(np.arange(3.0), np.zeros(4, bool)), "must be booleans of shape (3,)"),
        (lambda: m.brier_score(np.array([[2.0, 1.0]]), np.array([0])), "need a softmax"),
        (lambda: m.brier_score(np.array([[1.1, -0.1]]), np.array([0])), "no distribution"),
        (lambda: m.brier_score(np.array([[math.nan, 1]]), np.array([0])), "NaN"),
        (
            lambda: m.brier_score(np.array([[0.5, 0.5]]), np.array([2])),
            "labels[0] is 2, out of range",
        ),
        (
            lambda: m.brier_score(np.array([[0.5, 0.5]]), np.array([0, 1])),
            "must have shape (1,), not (2,)",
        ),
        (lambda: m.brier_score(np.array([0.5, 0.5]), np.array([0])), "shape (N, K)"),
        (lambda: m.risk_at_coverage(np.arange(2.0), np.array([True, False]), 80), "not 80"),
        (lambda: m.bootstrap(np.mean, np.zeros(3), np.zeros(4)), "3, 4 images"),
        (
            lambda: m.bootstrap(m.auroc, np.arange(3.0), np.array([True, False, False])),
            "give more images",
        ),
        (
            lambda: m.reliability(np.array([[0.5, 0.5]]), np.array([0]), binning="equal"),  # type: ignore[arg-type]
            "binning 'equal' is unknown",
        ),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(InputError) as error:
        call()
    assert says in one_line(error)
