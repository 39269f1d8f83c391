"""Pairs of models: what differs is found, and what does not is hardly ever "found"."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from holdfast.errors import InputError
from holdfast.evaluation import paired as module
from holdfast.evaluation.paired import Paired, paired


def test_what_is_counted():
    first = np.array([True, True, True, False, False])
    second = np.array([True, False, False, True, False])
    assert paired(first, second) == Paired(5, 2, 1)
    assert paired(first, second).difference == pytest.approx(-0.2)
    assert paired(first, second) + Paired(5, 0, 4) == Paired(10, 2, 5)
    assert not doctest.testmod(module).failed


def test_mcnemar_by_hand():
    # 2 · (C(8,0) + C(8,1)) / 2⁸
    assert Paired(100, 1, 7).p_value == pytest.approx(2 * 9 / 256)
    assert Paired(100, 7, 1).p_value == Paired(100, 1, 7).p_value
    assert Paired(100, 0, 0).p_value == 1


@pytest.mark.parametrize("gain", [0.0, 0.01, 0.05])
def test_interval_and_test_keep_their_promises(gain: float):
    """2,000 pairs of models that differ on 8 % of 1,000 images."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(1000, [0.04 - gain / 2, 0.04 + gain / 2, 0.92], size=2000)
    found = [Paired(1000, int(b), int(c)) for b, c, _ in counts]
    covered = np.mean([low <= gain <= high for low, high in (f.interval() for f in found)])
    assert 0.93 < covered < 0.97
    low, high = found[0].interval(0.5)
    assert low > found[0].interval()[0] and high < found[0].interval()[1]
    alarmed = np.mean([f.p_value < 0.05 for f in found])
    assert alarmed < 0.05 if gain == 0 else alarmed > 0.15


def by_grid(n: int, b: int, c: int, value: float) -> float:
    """Tango's statistic, its maximum of the likelihood found by trying."""
    only_first = np.linspace(max(0.0, -value), (1 - value) / 2, 200_001)[1:-1]
    with np.errstate(divide="ignore"):
        parts = [(b, only_first), (c, only_first + value), (n - b - c, 1 - 2 * only_first - value)]
        likelihood = sum(k * np.log(p) for k, p in parts if k)
    q = only_first[np.argmax(likelihood)]
    return float((c - b - n * value) / np.sqrt(n * (2 * q + value * (1 - value))))


@pytest.mark.parametrize("counts", [(50, 12, 2), (1600, 150, 86), (100, 0, 3), (44, 1, 0)])
def test_the_ends_are_where_tangos_test_rejects(counts: tuple[int, int, int]):
    low, high = Paired(*counts).interval()
    assert by_grid(*counts, low) == pytest.approx(1.96, abs=1e-3)
    assert by_grid(*counts, high) == pytest.approx(-1.96, abs=1e-3)
    n, b, c = counts
    assert Paired(n, c, b).interval() == pytest.approx((-high, -low))


def test_intervals_at_the_ends():
    assert Paired(10, 0, 10).interval()[1] == 1 and Paired(10, 10, 0).interval()[0] == -1
    # Nothing tells the two apart: z² / (n + z²), not 0.
    assert Paired(100, 0, 0).interval() == pytest.approx((-0.036993, 0.036993), abs=1e-5)
    assert Paired(1, 0, 1).interval()[0] < 0


def test_unlike_images_are_refused():
    with pytest.raises(InputError, match="same images"):
        paired(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(InputError, match="same images"):
        paired(np.ones(0, bool), np.ones(0, bool))
