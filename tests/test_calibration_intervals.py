"""Intervals of calibration errors: they hold the truth, and their own figure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.errors import InputError
from holdfast.uncertainty import metrics as m
from holdfast.uncertainty.calibration_intervals import calibration_interval

KINDS = {  # the logits that the model says, of those that are true
    "calibrated": lambda z: z,
    "slightly sure": lambda z: 1.1 * z,
    "overconfident": lambda z: 2 * z,
    "attacked": lambda z: np.roll(z, 1, axis=1),
}


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def drawn(kind: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """True probabilities and those that the model says, (N, 10) each."""
    z = 2.5 * np.random.default_rng(seed).normal(size=(n, 10))
    return softmax(z), softmax(KINDS[kind](z))


def labels_of(true: np.ndarray, seed: int) -> np.ndarray:
    u = np.random.default_rng([1, seed]).random((len(true), 1))
    return np.minimum((u >= true.cumsum(1)).sum(1), 9)


def truth(kind: str, classwise: bool) -> float:
    """The error of the same bins on very many images, by their true probabilities."""
    true, said = drawn(kind, 400_000, 7)
    if not classwise:
        rows, answer = np.arange(len(said)), said.argmax(1)
        true, said = true[rows, answer, None], said[rows, answer, None]
    return (
        sum(
            np.abs(np.bincount(m.bin_of(s, 15, "equal-width"), t - s, 15)).sum()
            for t, s in zip(true.T, said.T, strict=True)
        )
        / len(said)
        / said.shape[1]
    )


def coverage(kind: str, classwise: bool, n: int, times: int, resamples: int) -> float:
    wanted, inside = truth(kind, classwise), 0
    for seed in range(times):
        true, said = drawn(kind, n, 100 + seed)
        found = calibration_interval(
            said, labels_of(true, seed), classwise=classwise, resamples=resamples, seed=seed
        )
        assert found.low <= found.value <= found.high
        inside += found.low <= wanted + 1e-12 and wanted <= found.high
    return inside / times


@pytest.mark.parametrize("classwise", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_true_error_lies_in_the_interval(kind: str, classwise: bool) -> None:
    # Of 20 intervals that hold 95 %, fewer than 16 come to pass once in 400 times.
    assert coverage(kind, classwise, 500, 20, 100) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("n", [500, 2000, 10_000])
@pytest.mark.parametrize("classwise", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_true_error_lies_in_the_interval_as_often_as_promised(
    kind: str, classwise: bool, n: int
) -> None:
    assert coverage(kind, classwise, n, 200, 300) >= 0.92


def test_percentiles_miss_the_measured_figure_itself() -> None:
    true, said = drawn("calibrated", 1000, 0)
    y = labels_of(true, 0)
    drawn_again = [
        m.classwise_ece(said[rows], y[rows])
        for rows in np.random.default_rng(0).integers(1000, size=(60, 1000))
    ]
    found = calibration_interval(said, y, classwise=True, resamples=100)
    assert min(drawn_again) > found.value  # what the published intervals were made of
    assert found.low == 0  # chance alone explains the figure
    assert found.by_chance == pytest.approx(found.value, rel=0.15)


@pytest.mark.parametrize("binning", ["equal-width", "equal-mass"])
def test_the_value_is_that_of_the_metric(binning) -> None:
    true, said = drawn("overconfident", 300, 3)
    y = torch.from_numpy(labels_of(true, 3))
    p = torch.from_numpy(said)
    for classwise, metric in (
        (False, m.ece),
        (True, m.classwise_ece),
    ):
        found = calibration_interval(p, y, classwise=classwise, binning=binning, resamples=20)
        assert found.value == pytest.approx(metric(p, y, binning=binning))
        again = calibration_interval(p, y, classwise=classwise, binning=binning, resamples=20)
        assert found == again


def test_a_large_error_has_a_narrow_interval() -> None:
    true, said = drawn("attacked", 2000, 0)
    found = calibration_interval(said, labels_of(true, 0), resamples=200)
    assert found.low > 0.3
    assert found.high - found.low < 0.1


ODD = {
    "one image": (np.array([[0.3, 0.7]]), np.array([0])),
    "certain and right": (np.tile([1.0, 0.0], (50, 1)), np.zeros(50, int)),
    "certain and wrong": (np.tile([1.0, 0.0], (50, 1)), np.ones(50, int)),
    "all alike": (np.full((40, 4), 0.25), np.zeros(40, int)),
    "many classes": (np.full((30, 200), 1 / 200), np.arange(30)),
    "nearly sure and right": (np.tile([0.99, 0.01], (500, 1)), np.zeros(500, int)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("classwise", [False, True])
def test_no_interval_excludes_its_own_figure(name: str, classwise: bool) -> None:
    found = calibration_interval(*ODD[name], classwise=classwise, resamples=50)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_all_right_at_99_per_cent_does_not_prove_it() -> None:
    """No image was wrong, so the bootstrap sees no noise; 97 % right would be no surprise."""
    found = calibration_interval(*ODD["nearly sure and right"], resamples=200)
    assert found.value == pytest.approx(0.01)
    assert found.low == 0
    assert found.high > 0.015


# --- the others ---------------------------------------------------------------------------------


def ranked(n: int, seed: int, accuracy: float, apart: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) >= accuracy
    return rng.normal(size=n) + apart * wrong, wrong


@pytest.mark.parametrize(("accuracy", "apart"), [(0.1, 1.0), (0.76, 1.2), (0.995, 2.0)])
@pytest.mark.parametrize(
    ("metric", "interval"),
    [
        (m.coverage_at_risk, m.coverage_at_risk_interval),
        (m.risk_at_coverage, m.risk_at_coverage_interval),
    ],
)
def test_thresholds_have_intervals_that_hold_the_truth(metric, interval, accuracy, apart) -> None:
    wanted = metric(*ranked(400_000, 5, accuracy, apart))
    inside = 0
    for seed in range(60):
        found = interval(*ranked(500, seed, accuracy, apart))
        assert found.low <= found.value <= found.high
        assert found.value == metric(*ranked(500, seed, accuracy, apart))
        inside += found.low <= wanted <= found.high
    assert inside >= 53


def test_ties_have_intervals_too() -> None:
    scores, wrong = np.repeat([0.0, 1.0], 50), np.arange(100) % 3 == 0
    assert m.risk_at_coverage_interval(scores, wrong).low < 0.33
    found = m.coverage_at_risk_interval(scores, wrong, risk=0.5)
    assert found == (1.0, 1.0, 1.0)


def test_too_few_of_a_kind_have_no_interval() -> None:
    scores, wrong = ranked(500, 0, 0.99, 2.0)
    assert wrong.sum() < m.LEAST
    with pytest.raises(InputError, match="too few for an interval"):
        m.bootstrap(m.auroc, scores, wrong)


def test_a_biased_figure_still_lies_in_its_interval() -> None:
    def largest_share(x: np.ndarray) -> float:  # which drawing again only makes larger
        return float(np.bincount(x).max() / len(x))

    found = m.bootstrap(largest_share, np.arange(200), resamples=50)
    assert found.low == found.value == 1 / 200
