"""Conformal sets: the exact threshold, the promise, and the promise under attack."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from holdfast.errors import InputError
from holdfast.uncertainty.conformal import (
    NONCONFORMITY_SCORES,
    RobustConformal,
    SplitConformal,
    coverage_interval,
    report_sets,
    robust_alpha,
)


def sample(n, seed, classes=6):
    """Probabilities of a model that is overconfident, and labels."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, classes))
    labels = (z + rng.gumbel(size=z.shape)).argmax(1)
    p = np.exp(2 * z)
    return p / p.sum(1, keepdims=True), labels


# --- plain --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "alpha", "k"), [(19, 0.1, 18), (99, 0.45, 55), (20, 0.05, 20)])
def test_threshold_is_the_exact_order_statistic(n, alpha, k):
    """⌈(n+1)(1−α)⌉, where torch.quantile interpolates and floating point rounds up."""
    own = np.random.default_rng(0).permutation(np.arange(1, n + 1)) / (n + 2)  # misfits 1 − p_y
    labels = np.arange(n) % 2
    probs = np.where(np.eye(2, dtype=bool)[labels], 1 - own[:, None], own[:, None])
    fitted = SplitConformal.fit(probs, labels, alpha, score="lac")
    assert fitted.thresholds == pytest.approx(np.full(2, k / (n + 2)), abs=1e-12)


def test_misfits_by_hand():
    p = np.array([[0.2, 0.5, 0.3]])
    u = np.array([0.5])
    assert NONCONFORMITY_SCORES["lac"](p, u)[0] == pytest.approx([0.8, 0.5, 0.7])
    assert NONCONFORMITY_SCORES["aps"](p, u)[0] == pytest.approx([0.9, 0.25, 0.65])
    assert NONCONFORMITY_SCORES["raps"](p, u)[0] == pytest.approx([0.9 + 0.1, 0.25, 0.65])
    assert NONCONFORMITY_SCORES["aps"](p, np.array([1.0]))[0] == pytest.approx([1.0, 0.5, 0.8])


@pytest.mark.parametrize("class_conditional", [False, True])
@pytest.mark.parametrize("score", NONCONFORMITY_SCORES)
def test_promise_over_20_random_splits(score, class_conditional):
    probs, labels = sample(4000, 1)
    rng = np.random.default_rng(2)
    inside, coverages = 0, []
    low, high = coverage_interval(0.1, 2000, 2000)
    for split in range(20):
        order = rng.permutation(4000)
        a, b = order[:2000], order[2000:]
        fitted = SplitConformal.fit(
            probs[a], labels[a], 0.1, score=score, class_conditional=class_conditional, seed=split
        )
        report = report_sets(fitted.sets(probs[b]), labels[b])
        coverages.append(report.coverage)
        inside += low <= report.coverage <= high
    if not class_conditional:
        assert inside >= 17
    # (n+1)-fold rounding adds up to 1/301 to a class's promise.
    assert 0.895 < np.mean(coverages) < 0.91


def test_coverage_interval_is_that_of_random_scores():
    rng = np.random.default_rng(3)
    low, high = coverage_interval(0.1, 200, 500)
    hits = 0
    for _ in range(2000):
        threshold = np.sort(rng.random(200))[180]  # the ⌈201 · 0.9⌉ = 181st smallest
        hits += low <= (rng.random(500) <= threshold).mean() <= high
    assert 0.94 < hits / 2000 < 0.97


def test_class_conditional_keeps_the_promise_where_the_plain_one_breaks_it():
    a, b = slice(6000), slice(6000, None)
    held = {False: [], True: []}
    for seed in range(4):
        probs, labels = sample(12_000, seed)
        # The model hardly ever believes in class 0.
        probs = np.where(np.arange(6) == 0, 0.02 * probs, probs)
        probs /= probs.sum(1, keepdims=True)
        zero = labels[b] == 0
        for conditional, found in held.items():
            fitted = SplitConformal.fit(
                probs[a], labels[a], 0.1, score="lac", class_conditional=conditional
            )
            found.append(report_sets(fitted.sets(probs[b])[zero], labels[b][zero]).coverage)
    assert np.mean(held[False]) < 0.7
    assert np.mean(held[True]) == pytest.approx(0.9, abs=0.02)


def test_sets_are_an_images_own():
    probs, labels = sample(400, 5)
    fitted = SplitConformal.fit(probs[:200], labels[:200], 0.1)
    whole = fitted.sets(probs[200:])
    backwards = torch.arange(199, -1, -1)
    assert (fitted.sets(probs[200:][backwards], backwards)[backwards] == whole).all()
    assert (fitted.sets(probs[210:220], torch.arange(10, 20)) == whole[10:20]).all()
    assert (fitted.sets(probs[200:], torch.arange(500, 700)) != whole).any()


def test_report_by_hand():
    sets = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=bool)
    report = report_sets(sets, np.array([0, 0, 2, 1, 1]))
    assert report.n == 5
    assert report.coverage == pytest.approx(0.6)
    assert report.mean_size == pytest.approx(8 / 5)
    assert report.by_size == {0: (1, 0.0), 1: (1, 1.0), 2: (2, 0.5), 3: (1, 1.0)}
    assert report.empty == report.trivial == pytest.approx(0.2)


# --- robust -------------------------------------------------------------------------------------

DIRECTION = torch.full((1, 4, 4), 0.25)  # of length 1


class HalfSpace(nn.Module):
    """Two classes told apart by one direction: the worst attack is known, and so is its success."""

    def forward(self, x):
        along = ((x - 0.5) * DIRECTION).flatten(1).sum(1)
        return torch.stack([4 * along, -4 * along], 1)


def half_space_images(n):
    """Images 0.1 to either side of the boundary, labels, and the way to the boundary."""
    labels = torch.arange(n) % 2
    side = (1 - 2 * labels).view(-1, 1, 1, 1)
    return 0.5 + 0.1 * side * DIRECTION, labels, -side * DIRECTION


@pytest.mark.parametrize("class_conditional", [False, True])
def test_robust_promise_is_kept_and_tight(class_conditional):
    """Where every image is alike, the worst attack brings coverage to exactly 1 − α.

    Sets calibrated without the radius fall to Φ(Φ⁻¹(0.9) − 0.5) = 0.782.
    """
    images, labels, toward = half_space_images(4000)
    attacked = images + 0.125 * toward
    plain, robust, clean = [], [], []
    for seed in range(4):
        made = {
            radius: RobustConformal.fit(
                HalfSpace(),
                images,
                labels,
                0.1,
                radius=radius,
                sigma=0.25,
                score="lac",
                class_conditional=class_conditional,
                seed=seed,
            )
            for radius in (0.0, 0.125)
        }
        plain.append(report_sets(made[0.0].sets(attacked), labels).coverage)
        robust.append(report_sets(made[0.125].sets(attacked), labels).coverage)
        clean.append(report_sets(made[0.125].sets(images), labels).coverage)
    assert np.mean(plain) == pytest.approx(norm.cdf(norm.ppf(0.9) - 0.5), abs=0.015)
    assert np.mean(robust) == pytest.approx(0.9, abs=0.012)
    assert np.mean(clean) == pytest.approx(norm.cdf(norm.ppf(0.9) + 0.5), abs=0.012)


def test_robust_alpha():
    assert robust_alpha(0.1, 0, 0.25) == pytest.approx(0.1)
    assert robust_alpha(0.1, 0.25, 0.25) == pytest.approx(1 - norm.cdf(norm.ppf(0.9) + 1))


def test_robust_sets_are_an_images_own():
    images, labels, _ = half_space_images(200)
    made = RobustConformal.fit(HalfSpace(), images, labels, 0.1, radius=0.1, sigma=0.25)
    again = RobustConformal.fit(
        HalfSpace(), images, labels, 0.1, radius=0.1, sigma=0.25, batch_size=7
    )
    assert (made.plain.thresholds == again.plain.thresholds).all()
    whole = made.sets(images)
    assert (made.sets(images, batch_size=9) == whole).all()
    assert (made.sets(images[50:60], torch.arange(50, 60)) == whole[50:60]).all()
    assert (made.sets(images, torch.arange(200, 400)) != whole).any()


def test_noise_of_test_images_is_not_that_of_calibration_images():
    """With the same noise, the calibration images would be covered exactly k times of n."""
    images, labels, _ = half_space_images(200)
    coverages = set()
    for seed in range(4):
        made = RobustConformal.fit(
            HalfSpace(), images, labels, 0.1, radius=0.1, sigma=0.25, score="lac", seed=seed
        )
        coverages.add(report_sets(made.sets(images), labels).coverage)
    assert len(coverages) > 1


# --- bad input ----------------------------------------------------------------------------------

PROBS, LABELS = sample(60, 6)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan])
def test_alpha_outside_0_and_1(alpha):
    with pytest.raises(InputError, match="alpha must lie strictly between 0 and 1"):
        SplitConformal.fit(PROBS, LABELS, alpha)
    with pytest.raises(InputError, match="alpha must lie strictly between 0 and 1"):
        robust_alpha(alpha, 0.1, 0.25)


def test_bad_input():
    images, labels, _ = half_space_images(60)
    rare = np.where(LABELS == 0, 1, LABELS)
    rare[0] = 0

    def robust(**changes):
        options = {"radius": 0.1, "sigma": 0.25, **changes}
        return RobustConformal.fit(HalfSpace(), images, labels, 0.1, **options)

    cases = [
        (lambda: SplitConformal.fit(PROBS, LABELS, 0.01), "give at least 100"),
        (
            lambda: SplitConformal.fit(PROBS, rare, 0.1, class_conditional=True),
            "1 calibration images of class 0 are too few",
        ),
        (
            lambda: SplitConformal.fit(PROBS, np.where(LABELS == 3, 4, LABELS), 0.1),
            "no image of class 3",
        ),
        (lambda: SplitConformal.fit(PROBS, LABELS, 0.1, score="thr"), "'thr' is unknown"),
        (lambda: SplitConformal.fit(PROBS * math.nan, LABELS, 0.1), "NaN"),
        (lambda: SplitConformal.fit(np.log(PROBS), LABELS, 0.1), "need a softmax"),
        (
            lambda: SplitConformal.fit(PROBS, LABELS, 0.1, items=torch.arange(3)),
            "items must be 60 integers",
        ),
        (
            lambda: SplitConformal.fit(PROBS, LABELS, 0.1).sets(np.full((2, 5), 0.2)),
            "calibrated for 6",
        ),
        (lambda: robust(radius=0.5), "needs at least 1,938 calibration images, not 60"),
        (lambda: robust(radius=5), "far more"),
        (lambda: robust(radius=0.15, class_conditional=True), "calibration images a class, not 30"),
        (lambda: robust(radius=-0.1), "must be 0 or more"),
        (lambda: robust(sigma=0), "must be above 0"),
        (lambda: report_sets(PROBS, LABELS), "must be booleans"),
        (lambda: coverage_interval(0.01, 50, 100), "too few"),
    ]
    for call, says in cases:
        with pytest.raises(InputError) as error:
            call()
        assert says in str(error.value)
        assert "\n" not in str(error.value)
