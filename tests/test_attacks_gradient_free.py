"""Attacks without gradients: Square, HopSkipJump, SPSA."""

import itertools

import pytest
import torch
from linear_classifiers import assert_items_are_independent, assert_minimal, linear

from holdfast import draws
from holdfast.attacks import SPSA, HopSkipJump, Items, Oracle, RayS, Square
from holdfast.attacks.square import _bumps
from holdfast.errors import InputError
from holdfast.threat import NORMS, Threat

SQUARE_NORMS = ["linf", "l2", "l1"]


def items_of(model, eps):
    count = len(model.labels)
    return Items(
        images=model.images,
        labels=model.labels,
        targets=torch.full((count,), -1),
        eps=torch.as_tensor(eps, dtype=torch.float32).expand(count),
        seeds=draws.item_seeds(0, torch.arange(count)),
    )


def run(attack, model, items, threat, iterations=None):
    """The states after each step, the points queried, and the oracle."""
    oracle = Oracle(model)
    state, states, looked = attack.start(items, threat), [], []
    for _ in range(iterations or attack.iterations):
        looked.append(state.point)
        state = attack.step(oracle, state, threat)
        states.append(state)
    return states, looked, oracle


def broken(attack, model, threat):
    """Share of images for which a wrongly classified point inside ball and box came back."""
    points = attack(model, model.images, model.labels, threat)
    assert threat.contains(points, model.images).all()
    return float((model(points).argmax(1) != model.labels).float().mean())


# -- inside a ball ------------------------------------------------------------------------

# Radii in units of the smallest at which an image can be broken; random search needs more room
# where few components matter.
INSIDE = [
    (Square(queries=300), "linf", 1.5),
    (Square(queries=400), "l2", 4.0),
    (Square(queries=300), "l1", 5.0),
    (SPSA(steps=30, samples=24, length=0.003), "linf", 1.3),
    (SPSA(steps=30, samples=24, length=0.01), "l2", 1.3),
]


@pytest.mark.parametrize(("attack", "norm", "room"), INSIDE, ids=str)
def test_breaks_what_can_be_broken_and_nothing_else(attack, norm, room):
    model = linear(2, "free", shape=(3, 8, 8), count=4)
    optimum = model.optimum(norm)
    assert broken(attack, model, Threat(norm, room * optimum.max())) == 1
    assert broken(attack, model, Threat(norm, 0.95 * optimum.min())) == 0


def test_an_attack_that_does_nothing_breaks_nothing():
    class Nothing(Square):
        def start(self, items, threat):
            return super().start(items, threat).replace(point=items.images)

        def step(self, model, state, threat):
            return super().step(model, state, threat).replace(point=state.images)

    model = linear(2, "free", shape=(3, 8, 8), count=4)
    assert broken(Nothing(queries=5), model, Threat("linf", 1.5 * model.optimum("linf").max())) == 0


@pytest.mark.parametrize("norm", SQUARE_NORMS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 5), (3, 11, 7), (1, 1, 2)])
def test_square_stays_in_ball_and_box_and_uses_the_ball(norm, shape):
    model = linear(3, "binding", shape=shape, count=5)
    eps = {"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm]
    threat = Threat(norm, eps)
    states, looked, oracle = run(Square(queries=40), model, items_of(model, eps), threat)
    assert (oracle.forwards, oracle.backwards) == (41, 0)
    for point in looked:
        assert threat.contains(point, model.images).all()
    for before, state in itertools.pairwise(states):
        assert (state.score <= before.score).all()
    assert (states[-1].score < states[0].score).any()
    if shape[2] > 2:  # the box cuts some of the ball off, but no search crouches at the centre
        assert (threat.distance(states[-1].best, model.images) > 0.3 * eps).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])  # L1's projection drops most of a window
def test_square_queries_shrink_with_age(norm):
    """A late query changes fewer pixels than an early one."""
    model = linear(3, "free", shape=(3, 12, 12), count=3)
    states, looked, _ = run(Square(queries=100), model, items_of(model, 0.5), Threat(norm, 0.5))
    changed = [
        float(((after - before.best).abs().amax(1) > 0.01).float().mean())
        for before, after in zip(states, looked[1:], strict=False)
    ]
    assert sum(changed[-10:]) / 10 < sum(changed[:5]) / 5 / 2


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_square_moves_the_norm_of_two_windows_into_one(norm):
    model = linear(2, "free", shape=(1, 9, 9), count=5)
    direction = torch.randn(model.images.shape, generator=torch.Generator().manual_seed(0))
    length = NORMS[norm].distance(direction).view(-1, 1, 1, 1)
    delta = 0.1 * direction / length
    attack = Square(queries=10)
    state = attack.start(items_of(model, 0.1), Threat(norm, 0.1))
    # Windows of 3 × 3.
    state = state.replace(best=model.images + delta, iteration=torch.full((5,), 9))
    after = attack._windows(state, NORMS[norm]) - model.images
    # The ball was used up, and is again; nothing changes but the two windows.
    torch.testing.assert_close(NORMS[norm].distance(after), torch.full((5,), 0.1))
    changed = ((after - delta).abs() > 1e-5).flatten(1).sum(1)
    assert (changed > 3).all() and (changed <= 18).all()
    assert ((after.abs() < 1e-6) & (delta.abs() > 1e-5)).flatten(1).any(1).sum() >= 3  # cleared


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_bumps_are_a_positive_and_a_negative_one_of_norm_1(norm):
    place = torch.arange(7)
    upright, turned = _bumps(
        place.view(1, 1, -1, 1),
        place.view(1, 1, 1, -1),
        torch.tensor([7, 7]),
        torch.tensor([False, True]),
        NORMS[norm],
    )[:, 0]
    torch.testing.assert_close(turned, upright.T)
    upper, lower = upright[:3], upright[3:]
    assert (upper > 0).all() and (lower < 0).all()
    for half in (upper, lower):
        torch.testing.assert_close(NORMS[norm].distance(half[None]), torch.ones(1))
        # Highest in the middle: (1, 3) of three rows, (2, 3) of four.
        assert half.abs().flatten().argmax() == (len(half) // 2) * 7 + 3


def test_spsa_costs_as_documented():
    model = linear(2, "free", shape=(1, 3, 3))
    _, _, oracle = run(SPSA(steps=2, samples=5), model, items_of(model, 0.1), Threat("linf", 0.1))
    assert (oracle.forwards, oracle.backwards) == (3 * 11, 0)


def test_spsa_moves_along_the_gradient():
    model = linear(2, "free", shape=(1, 3, 3), count=3)
    attack = SPSA(steps=1, samples=300, length=1e-3)
    _, looked, _ = run(attack, model, items_of(model, 0.1), Threat("linf", 0.1))
    moves = (looked[1] - looked[0]).flatten(1)
    slope = model.weights[1] - model.weights[0]
    uphill = torch.where(model.labels[:, None] == 0, slope, -slope)
    large = slope.abs() > 0.2
    assert large.any()
    # Adam's first step has length 1e-3 in every component, with the gradient's sign.
    torch.testing.assert_close(
        moves[:, large], 1e-3 * uphill.sign()[:, large], rtol=1e-2, atol=1e-6
    )


# -- decisions alone ----------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "queries"), [("l2", 800), ("linf", 2500)])
@pytest.mark.parametrize(("box", "classes"), [("free", 2), ("edges", 3)])
def test_hop_skip_jump_within_5_percent(norm, queries, box, classes):
    model = linear(classes, box, shape=(1, 3, 3), count=4)
    attack = HopSkipJump(queries=queries, probes=15, most_probes=60, stop_inside=False)
    points = attack(model, model.images, model.labels, Threat(norm, 0.1))
    assert_minimal(model, norm, points)


def test_hop_skip_jump_sees_decisions_alone():
    model = linear(3, "free", shape=(1, 4, 4), count=3)

    def decisions(x):
        return torch.nn.functional.one_hot(model(x).argmax(1), 3).float()

    attack = HopSkipJump(queries=150, probes=10, stop_inside=False)
    arguments = (model.images, model.labels, Threat("l2", 0.1))
    assert torch.equal(attack(model, *arguments), attack(decisions, *arguments))


def test_hop_skip_jump_keeps_to_its_queries_and_never_gets_worse():
    model = linear(3, "free", shape=(1, 4, 4), count=3)
    queried = [0]

    def counted(x):
        queried[0] += len(x)
        return model(x)

    attack = HopSkipJump(queries=120, probes=10)
    items = items_of(model, 0.1)
    states, looked, oracle = run(attack, counted, items, Threat("l2", 0.1))
    # Each item asks 120 times, and no more once it is finished, however often it is stepped.
    assert oracle.own.tolist() == [120] * 3 and queried == [360]
    assert (oracle.forwards, oracle.backwards) == (0, 0)
    assert (attack.iterations_left(states[-1]) == 0).all()
    for before, state in itertools.pairwise(states):
        assert (state.distance <= before.distance).all()
        left = attack.iterations_left(state)
        assert torch.equal(state.finished, left == 0)
    for point in looked:
        assert point.min() >= 0 and point.max() <= 1
    # Several rounds were made, by items that are not in step.
    assert (states[-1].round >= 2).all()
    assert any(len(state.phase.unique()) > 1 for state in states)


def test_hop_skip_jump_asks_for_its_probes_at_once():
    """A lone item: many queries, few calls, and the same search whatever fits into a call."""
    model = linear(3, "free", shape=(3, 4, 4), count=1)
    sizes = []

    def watched(x):
        sizes.append(len(x))
        return model(x)

    attack, items = HopSkipJump(queries=2000, stop_inside=False), items_of(model, 0.1)
    threat, found = Threat("l2", 0.1), []
    for at_once in (1, 128):
        oracle, state = Oracle(watched), attack.start(items, threat)
        oracle.at_once = at_once
        while not state.finished.all():
            state = attack.step(oracle, state, threat)
        found.append(state.best)
    assert torch.equal(*found)
    assert sum(sizes) == 4000 and max(sizes) == 100 and len(sizes) < 4000 / 8


def test_hop_skip_jump_without_an_adversarial_point():
    model = linear(2, "free", shape=(1, 4, 4), count=2)
    attack = HopSkipJump(queries=30)
    states, _, _ = run(
        attack,
        lambda x: torch.eye(2)[model.labels],
        items_of(model, 0.1),
        Threat("l2", 0.1),
    )
    assert states[-1].distance.isinf().all() and torch.equal(states[-1].best, model.images)


# -- RayS ---------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("box", ["free", "edges"])
def test_rays_within_5_percent(box, classes):
    """Of the closest point that is known, with many queries; and beyond it by no more than its
    tolerance where few values make the blocks small."""
    model = linear(classes, box, shape=(1, 3, 3), count=4)
    attack = RayS(queries=3000, tolerance=1e-5, stop_inside=False)
    threat = Threat("linf", 0.1)
    points = attack(model, model.images, model.labels, threat)
    assert_minimal(model, "linf", points)


def test_rays_sees_decisions_alone_and_is_over_inside_the_ball():
    model = linear(3, "free", shape=(1, 4, 4), count=3)

    def decisions(x):
        return torch.nn.functional.one_hot(model(x).argmax(1), 3).float()

    closest = model.optimum("linf")
    for share, broken in ((1.5, True), (0.95, False)):
        threat = Threat("linf", float(share * (closest.max() if broken else closest.min())))
        oracles, found = [Oracle(model), Oracle(decisions)], []
        for oracle in oracles:
            state, attack = None, RayS(queries=600)
            state = attack.start(items_of(model, threat.eps), threat)
            while not (state.finished | (state.score < 0)).all():
                state = attack.step(oracle, state, threat)
            found.append(state)
        assert torch.equal(found[0].best, found[1].best)
        assert bool((found[0].score < 0).all()) == broken
        assert (oracles[0].forwards < 600) == broken


def test_rays_goes_through_halves_quarters_and_values_and_begins_again():
    """What is flipped against the signs so far, on a model that is never fooled."""
    model = linear(2, "free", shape=(1, 1, 4), count=1)
    states, looked, _ = run(
        RayS(queries=9),
        lambda x: torch.eye(2)[model.labels].repeat(len(x), 1),
        items_of(model, 0.1),
        Threat("linf", 0.1),
    )
    flipped = [(point < 0.5).flatten().int().tolist() for point in looked]
    assert flipped == [
        [0, 0, 0, 0],
        [1, 1, 1, 1],
        [1, 1, 0, 0], [0, 0, 1, 1],
        [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1],
        [1, 1, 1, 1],
    ]  # fmt: skip
    assert states[-1].distance.isinf().all() and states[-1].finished.all()


# -- states and settings ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "norm", "iterations"),
    [
        *((Square(queries=30), norm, 30) for norm in SQUARE_NORMS),
        (HopSkipJump(queries=200, probes=4), "l2", 90),
        (HopSkipJump(queries=200, probes=4), "linf", 90),
        (RayS(queries=200), "linf", 90),
        (SPSA(steps=6, samples=3), "linf", 6),
    ],
    ids=str,
)
def test_items_are_independent(attack, norm, iterations):
    model = linear(3, "free", shape=(3, 5, 4), count=3)
    assert_items_are_independent(attack, model, Threat(norm, 0.01), iterations)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Square(queries=0), "queries"),
        (lambda: Square(area=0.0), "area"),
        (lambda: HopSkipJump(queries=0), "queries"),
        (lambda: HopSkipJump(probes=9, most_probes=8), "probes"),
        (lambda: RayS(queries=0), "queries"),
        (lambda: RayS(tolerance=1.5), "tolerance"),
        (lambda: SPSA(samples=0), "samples"),
        (lambda: SPSA(radius=0.0), "radius"),
    ],
)
def test_bad_settings(wrong, said):
    with pytest.raises(InputError, match=said):
        wrong()
