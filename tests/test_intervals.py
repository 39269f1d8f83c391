"""Intervals of counted fractions: those of Clopper & Pearson, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from holdfast.errors import InputError
from holdfast.intervals import anytime_interval, clopper_pearson, lower_bound, upper_bound


@pytest.mark.parametrize(("count", "n"), [(0, 9), (4, 9), (9, 9), (410, 1000), (9999, 10_000)])
def test_the_interval_is_scipys_exact_one(count, n):
    for confidence in (0.95, 0.9):
        reference = stats.binomtest(count, n).proportion_ci(confidence, method="exact")
        expected = (reference.low, reference.high)
        assert clopper_pearson(count, n, confidence) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize(("n", "population"), [(1, 300), (40, 300), (300, 300), (40, None)])
def test_no_end_of_an_interval_at_any_time_is_negative(share, n, population):
    low, high = anytime_interval(np.full(n, share), population)
    assert f"{low:.2%} {high:.2%}".count("-") == 0 and 0 <= low <= share <= high <= 1


def test_a_mean_of_shares_lies_between_the_counts_beside_it():
    low, high = clopper_pearson(0.45 * 9, 9)
    assert clopper_pearson(4, 9)[0] < low < 0.45 < high < clopper_pearson(5, 9)[1]


def test_bounds_are_the_roots_that_define_them():
    assert stats.binom.cdf(7, 200, upper_bound(7, 200, 0.05)) == pytest.approx(0.05)
    assert upper_bound(0, 59, 0.05) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_bound(5, 5, 0.05) == 1
    for count, n, error in [(90, 100, 0.001), (1, 7, 0.05), (50, 50, 0.01)]:
        assert stats.binom.sf(count - 1, n, lower_bound(count, n, error)) == pytest.approx(error)
    assert lower_bound(0, 10, 0.05) == 0


@pytest.mark.parametrize("p", [0.3, 0.72, 0.99])
def test_bounds_cover_as_often_as_they_say(p):
    counts = np.arange(0, 81)
    chance = stats.binom.pmf(counts, 80, p)
    for missed in (lower_bound(counts, 80, 0.05) > p, upper_bound(counts, 80, 0.05) < p):
        assert chance[missed].sum() <= 0.05


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((1, 0), "1 of 0"), ((3, 2), "3 of 2"), ((-1, 2), "-1 of 2"), ((1, 2, 1.0), "confidence")],
)
def test_what_is_no_count_is_refused(arguments, says):
    with pytest.raises(InputError, match=says):
        clopper_pearson(*arguments)
