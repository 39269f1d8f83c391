"""Threat models: projections against independent optimisers, membership, noise, words."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from holdfast import draws
from holdfast.errors import InputError
from holdfast.parsing import parse_number
from holdfast.threat import NORMS, Threat

SHAPE = (2, 3, 4)
quick = settings(max_examples=25, deadline=None, derandomize=True)
norms = st.sampled_from(sorted(NORMS))
seeds = st.integers(0, 2**31)
radii = st.floats(-3, 1).map(lambda power: 10**power)


def radius_in(norm: str, eps: float) -> float:
    """A radius of the norm that means about as much: counts are whole."""
    return float(1 + round(3 * eps)) if norm == "l0" else eps


def scene(seed: int, n: int = 5, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Images, some components on the walls of the box, and points around them."""
    g = torch.Generator().manual_seed(seed)
    x = ((torch.rand(n, *SHAPE, generator=g) - 0.5) * 1.4 + 0.5).clamp(0, 1)
    return x, x + spread * torch.randn(n, *SHAPE, generator=g)


# -- projections ------------------------------------------------------------------------------


@quick
@given(norms, seeds, radii, st.sampled_from([0.0, 1e-6, 0.1, 1.0, 1e4]))
def test_projections_end_in_ball_and_box(norm, seed, eps, spread):
    x, y = scene(seed, spread=spread)
    threat = Threat(norm, 1).times(radius_in(norm, eps))
    assert threat.contains(threat.project(y, x), x).all()


@quick
@given(norms, seeds, radii)
def test_projecting_twice_changes_nothing(norm, seed, eps):
    x, y = scene(seed)
    threat = Threat(norm, 1).times(radius_in(norm, eps))
    once = threat.project(y, x)
    again = threat.project(once, x)
    if norm in ("linf", "l0"):
        assert torch.equal(again, once)
    else:
        torch.testing.assert_close(again, once, rtol=0, atol=3e-7)


@quick
@given(norms, seeds, radii)
def test_points_inside_stay_where_they_are(norm, seed, eps):
    x, y = scene(seed)
    threat = Threat(norm, 1).times(radius_in(norm, eps))
    inside = threat.project(y, x)
    if norm == "l0":  # fewer components than allowed
        inside = torch.where(torch.rand(inside.shape) < 0.5, inside, x)
    elif norm != "linf":
        inside = x + 0.9 * (inside - x)
    torch.testing.assert_close(threat.project(inside, x), inside, rtol=0, atol=1e-7)


def furthest_along(norm: str, g: np.ndarray, x: np.ndarray, eps: float) -> float:
    """max ⟨g, q⟩ over all q in ball ∩ box, by linear programming."""
    if norm == "linf":
        walls = list(zip(np.maximum(x - eps, 0), np.minimum(x + eps, 1), strict=True))
        found = linprog(-g, bounds=walls)
        return -found.fun
    # q = x + a − b with a, b ≥ 0 and Σ(a + b) ≤ ε
    found = linprog(
        np.concatenate([-g, g]),
        A_ub=np.ones((1, 2 * len(g))),
        b_ub=[eps],
        bounds=[(0, 1 - v) for v in x] + [(0, v) for v in x],
    )
    return float(g @ x) - found.fun


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("eps", [0.01, 0.3, 2.0])
def test_linf_and_l1_projections_are_the_nearest_point(norm, eps):
    # p is nearest to y in a convex set iff ⟨y − p, q − p⟩ ≤ 0 for every q of the set.
    for seed in range(4):
        x, y = scene(seed, n=1)
        p = Threat(norm, 1).times(eps).project(y, x)
        x_, y_, p_ = (t.flatten().double().numpy() for t in (x, y, p))
        g = y_ - p_
        assert furthest_along(norm, g, x_, eps) <= g @ p_ + 1e-5


def test_the_check_of_nearness_refuses_a_point_that_is_only_feasible():
    x, y = scene(0, n=1)
    p = x + 0.5 * (Threat("l1", 0.3).project(y, x) - x)
    x_, y_, p_ = (t.flatten().double().numpy() for t in (x, y, p))
    assert furthest_along("l1", y_ - p_, x_, 0.3) > (y_ - p_) @ p_ + 1e-3


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_far_from_the_walls_a_projection_ends_right_on_the_ball(norm):
    """The walls of the box hide a ball that is a little too large: here there are none in reach."""
    g = torch.Generator().manual_seed(4)
    x = 0.4 + 0.2 * torch.rand(20, *SHAPE, generator=g)
    threat = Threat(norm, {"linf": 0.05, "l2": 0.1, "l1": 0.3}[norm])
    point = threat.project(x + 0.3 * torch.randn(x.shape, generator=g), x)
    assert threat.distance(point, x).numpy() == pytest.approx(threat.eps, rel=2e-5)
    assert threat.contains(point, x).all()


@pytest.mark.parametrize("eps", [1, 2, 3])
def test_l0_projection_is_the_nearest_point(eps):
    g = torch.Generator().manual_seed(eps)
    x = torch.rand(1, 1, 2, 3, generator=g)
    y = x + torch.randn(1, 1, 2, 3, generator=g)
    p = Threat("l0", eps).project(y, x)

    def candidate(kept):
        point = x.flatten().clone()
        point[list(kept)] = y.flatten()[list(kept)].clamp(0, 1)
        return float((point - y.flatten()).norm())

    best = min(candidate(kept) for kept in itertools.combinations(range(6), eps))
    assert float((p - y).norm()) == pytest.approx(best, abs=1e-6)


def test_a_fractional_count_is_rounded_down():
    x, y = scene(0)
    threat = Threat("l0", 2.5)
    projected = threat.project(y, x)
    assert threat.contains(projected, x).all()
    assert (threat.distance(projected, x) == 2).all()


def test_l0_leaves_untouched_components_bit_for_bit():
    x, y = scene(3)
    projected = Threat("l0", 4).project(y, x)
    assert ((projected == x).flatten(1).sum(1) >= x[0].numel() - 4).all()


@quick
@given(norms, seeds)
def test_every_item_has_its_own_radius(norm, seed):
    x, y = scene(seed, n=3)
    eps = torch.tensor([1.0, 3.0, 7.0]) if norm == "l0" else torch.tensor([0.02, 0.3, 1.7])
    threat = Threat(norm, 1)
    together = threat.project(y, x, eps)
    assert threat.contains(together, x, eps).all()
    for i in range(3):
        alone = Threat(norm, 1).times(float(eps[i])).project(y[i : i + 1], x[i : i + 1])
        assert torch.equal(alone[0], together[i])


def test_projections_leave_their_arguments_alone():
    for norm in NORMS:
        x, y = scene(1)
        kept = x.clone(), y.clone()
        Threat(norm, 1).times(2).project(y, x)
        assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])


# -- membership -------------------------------------------------------------------------------


def test_images_at_the_wall_of_the_ball_count_as_inside():
    # Every grey level of an 8-bit image, moved by exactly ε in float32: rounding may not refuse it.
    levels = torch.arange(256, dtype=torch.float32).view(-1, 1, 1, 1) / 255
    for eps in (1 / 255, 8 / 255, 0.3):
        threat = Threat("linf", eps)
        for moved in (levels + eps, levels - eps):
            assert threat.contains(moved.clamp(0, 1), levels).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_points_a_thousandth_too_far_are_outside(norm):
    threat = Threat(norm, 0.25)
    x = torch.full((4, *SHAPE), 0.5)
    direction = threat.table.steepest(torch.randn(4, *SHAPE))
    length = threat.table.distance(direction).view(-1, 1, 1, 1)
    assert threat.contains(x + 0.25 * direction / length, x).all()
    assert not threat.contains(x + 0.25025 * direction / length, x).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_allowance_for_rounding_is_no_more_than_that(norm):
    """3 millionths of an image unit too far are outside, half a unit in the last place is not."""
    threat, x = Threat(norm, 8 / 255), torch.full((1, *SHAPE), 0.25)
    for further, inside in ((-3e-6, True), (3e-8, True), (3e-6, False), (1e-5, False)):
        point = x.clone()
        point[0, 0, 0, 0] += 8 / 255 + further
        assert bool(threat.contains(point, x)) == inside
        assert bool(threat.reaches(threat.distance(point, x), 8 / 255)) == inside


def test_one_component_too_many_is_outside():
    x = torch.full((1, *SHAPE), 0.5)
    y = x.clone()
    y.view(-1)[:4] = 0.9
    assert not Threat("l0", 3).contains(y, x).any()
    assert Threat("l0", 4).contains(y, x).all()


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1 + 1.2e-7, -1e-9])
def test_the_box_is_exact_and_nan_is_outside(norm, bad):
    x = torch.full((2, *SHAPE), 0.5)
    y = x.clone()
    y[1, 0, 0, 0] = bad
    assert Threat(norm, 1).times(1e6).contains(y, x).tolist() == [True, False]


# -- noise and steepest steps -----------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_noise_fills_the_unit_ball(norm):
    table = NORMS[norm]
    like = torch.zeros(3000, 1, 2, 2)
    noise = table.noise(draws.item_seeds(0, torch.arange(3000)), 0, like)
    radius = table.distance(noise)
    assert float(radius.max()) <= 1 + 1e-6
    # A point uniform in a ball of dimension 4 lies within half the radius 1 time in 16.
    assert float((radius < 0.5).float().mean()) == pytest.approx(1 / 16, abs=0.015)
    assert noise.mean(0).abs().max() < 0.03


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_direction_is_steeper(norm):
    table = NORMS[norm]
    gradient = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    steepest = table.steepest(gradient)
    assert table.distance(steepest) == pytest.approx(torch.ones(3).numpy(), abs=1e-5)
    rise = (gradient * steepest).flatten(1).sum(1)
    noise = table.noise(draws.item_seeds(0, torch.arange(600)), 0, torch.zeros(600, *SHAPE))
    other = (gradient[:, None] * noise.view(3, 200, *SHAPE)).flatten(2).sum(2)
    assert (other <= rise[:, None]).all()


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("size", [0.0, 1e-37, 1e-20, 1e30])
def test_steepest_steps_are_finite_for_any_size_of_gradient(norm, size):
    step = NORMS[norm].steepest(size * torch.randn(2, *SHAPE))
    assert torch.isfinite(step).all()
    if size:
        lengths = NORMS[norm].distance(step)
        expected = lengths.new_full((2,), 1.0)
        torch.testing.assert_close(lengths, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_a_sparse_step_is_not_spent_on_components_at_the_wall(norm):
    gradient = torch.tensor([3.0, -2.0, 1.0, -0.5]).view(1, 1, 2, 2)
    at = torch.tensor([1.0, 0.0, 0.5, 0.5]).view(1, 1, 2, 2)
    step = NORMS[norm].steepest(gradient, at).flatten().tolist()
    assert step == [0, 0, 1, 0]
    assert NORMS[norm].steepest(gradient, 1 - at).flatten().tolist() == [1, 0, 0, 0]
    assert NORMS[norm].steepest(gradient).flatten().tolist() == [1, 0, 0, 0]


# -- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("0.5", 0.5), ("0.5/3", 0.5 / 3), (2, 2.0)],
)
def test_numbers(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text", ["", "/", "8/", "8/255/3", "a", "1/0", "eight/255", None, [1], "1e999999999/x"]
)
def test_what_is_no_number_is_refused_in_one_line(text):
    with pytest.raises(InputError) as refused:
        parse_number(text)
    assert "\n" not in str(refused.value)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_fractions_are_exact(a, b):
    assert parse_number(f"{a}/{b}") == a / b


@pytest.mark.parametrize("eps", [0, -1, "0/255", "-8/255", math.nan, math.inf, "inf", "1e400", "x"])
def test_radii_that_make_no_ball_are_refused(eps):
    with pytest.raises(ValueError, match=r"eps must be|is not a number") as refused:
        Threat("linf", eps)
    assert "\n" not in str(refused.value)


def test_unknown_norms_are_refused_and_the_known_ones_named():
    with pytest.raises(InputError, match="linf, l2, l1, l0"):
        Threat("l3", 1)


def test_threats_say_what_they_are():
    assert str(Threat("linf", 8 / 255)) == "L∞ 8/255"
    assert str(Threat("linf", "0.5/255")) == "L∞ 0.5/255"
    assert str(Threat("linf", 0.0123)) == "L∞ 0.0123"
    assert str(Threat("l2", 0.5)) == "L2 0.5"
    assert str(Threat("l0", 24)) == "L0 24"
    assert Threat("linf", "8/255") == Threat("linf", 8 / 255)
