"""The patch attack: the best place and values are known where the classifier is linear."""

from __future__ import annotations

import models
import pytest
import torch
from linear_classifiers import assert_items_are_independent, linear

import holdfast as hf
from holdfast.attacks import Items, Oracle, Patch, suite_named
from holdfast.attacks.patch import best_places
from holdfast.errors import InputError
from holdfast.threat import Threat

SHAPE = (3, 8, 7)


def run(attack, model, x, labels, threat, targets=None):
    """The state at the attack's end, with no item leaving early, and the oracle."""
    items = Items(
        images=x,
        labels=labels,
        targets=torch.full_like(labels, -1) if targets is None else targets,
        eps=threat.radii(x),
        seeds=torch.arange(len(x)),
    )
    oracle, state = Oracle(model), attack.start(items, threat)
    for _ in range(attack.iterations):
        assert not state.finished.any()
        state = attack.step(oracle, state, threat)
        assert threat.contains(state.point, x).all()
    assert state.finished.all() and threat.contains(state.best, x).all()
    return state, oracle


def best_by_hand(weight, x, side):
    """Of a linear function of one image: the most that a patch can add, by trying all of them."""
    gain = torch.where(weight > 0, 1 - x, -x) * weight
    sums = {
        (row, column): float(gain[:, row : row + side, column : column + side].sum())
        for row in range(x.shape[1] - side + 1)
        for column in range(x.shape[2] - side + 1)
    }
    corner = max(sums, key=sums.get)
    return corner, sums[corner]


@pytest.mark.parametrize("side", [1, 2, 3])
def test_place_and_values_are_optimal_on_a_linear_classifier(side):
    model, x = models.linear(2, SHAPE), models.images(5, SHAPE)
    labels = models.answers(model, x)
    threat = Threat("l0", 3 * side**2)
    state, oracle = run(Patch(steps=3, places=3, trials=2), model, x, labels, threat)
    assert (oracle.forwards, oracle.backwards) == (10, 10)
    for i, label in enumerate(labels.tolist()):
        slope = (model.weight[1 - label] - model.weight[label]).float()
        (row, column), gain = best_by_hand(slope, x[i], side)
        logits = model(x[i : i + 1])[0]
        best = float(logits[label] - logits[1 - label]) - gain
        assert float(state.score[i]) == pytest.approx(best, abs=1e-4)
        inside = torch.zeros(SHAPE, dtype=torch.bool)
        inside[:, row : row + side, column : column + side] = True
        assert torch.equal(state.best[i][~inside], x[i][~inside])
        wanted = torch.where(slope > 0, 1.0, 0.0)
        assert torch.equal(state.best[i][inside], wanted[inside])


def test_targets_reach_the_best_over_all_classes():
    """The first-order gain of each pair of classes is exact, so nine targets find the optimum."""
    problem = linear(4, "binding", shape=SHAPE, count=3)
    threat = Threat("l0", 3 * 4)
    best = torch.full((3,), torch.inf)
    for shift in (1, 2, 3):
        targets = (problem.labels + shift) % 4
        attack = Patch(steps=0, places=1, trials=1, targeted=True)
        state, _ = run(attack, problem, problem.images, problem.labels, threat, targets)
        best = best.minimum(state.score)
    for i, (x, label) in enumerate(zip(problem.images, problem.labels.tolist(), strict=True)):
        by_hand = []
        for other in set(range(4)) - {label}:
            slope = (problem.weights[other] - problem.weights[label]).view(SHAPE)
            logits = problem(x[None])[0]
            by_hand.append(float(logits[label] - logits[other]) - best_by_hand(slope, x, 2)[1])
        assert float(best[i]) == pytest.approx(min(by_hand), abs=1e-4)


def corner_reader(row: int, column: int, side: int = 2):
    """Class 1 once the corner is brighter than 0.6 on average; flat where it is dark."""

    def answer(x):
        seen = x[:, :, row : row + side, column : column + side].mean((1, 2, 3))
        other = 0.01 * x.mean((1, 2, 3))  # a weak hint elsewhere
        return torch.stack([torch.full_like(seen, 0.6), seen + other], 1)

    return answer


@pytest.mark.parametrize("corner", [(0, 0), (6, 5), (3, 2)])
def test_finds_the_corner_that_a_classifier_reads(corner):
    x = 0.3 * models.images(4, SHAPE)
    labels = torch.zeros(4, dtype=torch.int64)
    points = Patch(places=2, trials=2, steps=2)(corner_reader(*corner), x, labels, Threat("l0", 12))
    row, column = corner
    changed = (points != x).any(1)
    assert changed[:, row : row + 2, column : column + 2].all()
    assert int(changed.sum()) == 4 * 4
    elsewhere = Patch(corner=(0, 3), trials=5, steps=5)
    kept = elsewhere(corner_reader(*corner), x, labels, Threat("l0", 12))
    assert (corner_reader(*corner)(kept).argmax(1) == 0).all(), "the wrong place cannot break it"


def test_a_chosen_place_is_kept():
    model, x = models.Net(3, SHAPE), models.images(4, SHAPE)
    labels = models.answers(model, x)
    attack = Patch(corner=(5, 1), side=2, trials=3, steps=4)
    assert attack.iterations == 1 + 3 + 4
    state, _ = run(attack, model, x, labels, Threat("l0", 30))
    outside = torch.ones(SHAPE, dtype=torch.bool)
    outside[:, 5:7, 1:3] = False
    assert torch.equal(state.best[:, outside], x[:, outside])
    clean = model(x).gather(1, labels[:, None]).squeeze(1)
    margin = clean - model(x).scatter(1, labels[:, None], -torch.inf).amax(1)
    assert (state.score < margin).all()


def test_gradient_steps_improve_on_the_first_order_guess():
    """Class 1 likes values in the middle: the walls, best to first order, are not the optimum."""

    def answer(x):
        values = (x - 0.2).sum((1, 2, 3)) - 0.9 * (x.square() - 0.04).sum((1, 2, 3))
        return torch.stack([torch.full_like(values, 10.0), values], 1)

    x = torch.full((2, *SHAPE), 0.2)
    labels = torch.zeros(2, dtype=torch.int64)
    few, _ = run(Patch(places=1, trials=1, steps=0), answer, x, labels, Threat("l0", 12))
    more, _ = run(Patch(places=1, trials=5, steps=30), answer, x, labels, Threat("l0", 12))
    best = 10 - 12 * ((1 / 1.8 - 0.2) - 0.9 * (1 / 1.8**2 - 0.04))  # every component at 1 / 1.8
    assert (more.score < few.score - 0.5).all()
    torch.testing.assert_close(more.score, torch.full((2,), best), atol=0.02, rtol=0)


def test_random_places_need_no_slope():
    """Where the gradient at the image is 0, the first-order places are all alike."""

    def answer(x):
        seen = (x[:, :, 4:6, 4:6].mean((1, 2, 3)) - 0.4).clamp_min(0)
        return torch.stack([torch.full_like(seen, 0.1), seen], 1)

    x, labels = 0.2 * models.images(3, SHAPE), torch.zeros(3, dtype=torch.int64)
    threat = Threat("l0", 12)
    blind, _ = run(Patch(places=1, trials=1, steps=0), answer, x, labels, threat)
    assert (blind.score > 0).all()
    lucky, _ = run(Patch(places=150, trials=4, steps=5, start="random"), answer, x, labels, threat)
    assert (lucky.score < 0).all()


def test_places_are_apart_and_the_best_first():
    slope = torch.zeros(1, 1, 8, 8)
    slope[0, 0, 1, 1], slope[0, 0, 1, 2], slope[0, 0, 6, 5] = 3.0, 1.0, 2.0
    x = torch.zeros(1, 1, 8, 8)
    (places,) = best_places(x, slope, 3, 3).tolist()
    # Squares that hold 3 + 1 begin here; those that would hold 3 again overlap too much.
    assert max(places[0]) <= 1
    assert places[1][0] in (4, 5) and places[1][1] in (3, 4, 5)
    assert best_places(x, slope, 8, 3).tolist() == [[[0, 0]] * 3]  # one place alone


@pytest.mark.parametrize(("eps", "side"), [(3, 1), (11.9, 1), (12, 2), (27, 3), (1e6, 7)])
def test_the_side_is_the_largest_that_fits(eps, side):
    model, x = models.linear(2, SHAPE), models.images(1, SHAPE)
    threat = Threat("l0", eps)
    state, _ = run(Patch(places=1, trials=1, steps=0), model, x, models.answers(model, x), threat)
    changed = (state.best != x).any(1)[0]
    assert int(changed.any(1).sum()) == int(changed.any(0).sum()) == side


@pytest.mark.parametrize("attack", [Patch(places=2, trials=2, steps=8), Patch(start="random")])
def test_items_are_independent(attack):
    model = linear(3, "free", shape=SHAPE, count=3)
    assert_items_are_independent(attack, model, Threat("l0", 12), iterations=12)


@pytest.mark.parametrize(
    ("settings", "eps", "says"),
    [
        ({"places": 0}, 12, "places must be at least 1"),
        ({"trials": 0}, 12, "trials must be at least 1"),
        ({"side": 0}, 12, "side must be at least 1"),
        ({"steps": -1}, 12, "steps must be at least 0"),
        ({"start": "here"}, 12, "start must be"),
        ({}, 2, "a patch of side 1 changes up to 3 components"),
        ({"side": 3}, 12, "a patch of side 3 changes up to 27 components"),
        ({"side": 8}, 1000, "8 × 7"),
        ({"corner": (7, 0)}, 12, "leaves images of 8 × 7 pixels"),
    ],
)
def test_bad_settings(settings, eps, says):
    model, x = models.linear(2, SHAPE), models.images(1, SHAPE)
    with pytest.raises(InputError, match=says):
        Patch(**settings)(model, x, models.answers(model, x), Threat("l0", eps))


def test_the_suite_and_its_verdicts():
    model, x = models.Net(4, SHAPE, scale=6), models.images(8, SHAPE)
    labels, threat = models.answers(model, x), Threat("l0", 27)
    result = hf.evaluate(model, x, labels, threat, "patch", precision="original")
    assert torch.equal(result.broken, models.answers(model, result.adversarial) != labels)
    assert threat.contains(result.adversarial, x).all() and result.broken.any()
    assert result.threat == {"norm": "l0", "eps": 27}
    assert {cost.name for cost in result.attacks} == {"patch", "patch-targeted", "patch-random"}
    assert all(row.distance <= 27 for row in result.verdicts)
    with pytest.raises(InputError, match="patch knows the norms l0, not linf"):
        hf.evaluate(model, x, labels, Threat("linf", 0.1), "patch")
    assert suite_named("patch").stages[1].targets == 9
