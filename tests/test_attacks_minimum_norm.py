"""Minimum-norm attacks against the closed-form optimum on linear classifiers."""

import itertools

import numpy as np
import pytest
import torch
from linear_classifiers import assert_items_are_independent, assert_minimal, linear

from holdfast.attacks import (
    DDN,
    FAB,
    FMN,
    CarliniWagner,
    DeepFool,
    Items,
    MinimumNorm,
    Oracle,
    SigmaZero,
    suite_named,
)
from holdfast.attacks.hyperplane import shortest_move
from holdfast.attacks.minimum_norm import MinimumNormState
from holdfast.errors import InputError
from holdfast.threat import NORMS, Threat, per_item

# The adversarial points are sought, not a ball's: ε plays no part.
WHOLE = {"stop_inside": False}
# Adam's step must fit the distances, which differ tenfold and more between the two kinds of box.
WEIGHING = {"free": {"length": 0.002, "weight": 0.1}, "binding": {"length": 0.1, "weight": 10.0}}
ATTACKS = {
    "fab": lambda box, targeted: FAB(steps=20, targeted=targeted, **WHOLE),
    "ddn": lambda box, targeted: DDN(
        steps=120, radius=0.3, targeted=targeted, loss="margin", **WHOLE
    ),
    "ddn-ce": lambda box, targeted: DDN(steps=120, radius=0.3, **WHOLE),
    "fmn": lambda box, targeted: FMN(steps=60, targeted=targeted, **WHOLE),
    "carlini-wagner": lambda box, targeted: CarliniWagner(
        steps=150, searches=6, targeted=targeted, **WEIGHING[box], **WHOLE
    ),
    "deepfool": lambda box, targeted: DeepFool(**WHOLE),
    "sigma-zero": lambda box, targeted: SigmaZero(steps=300, targeted=targeted, **WHOLE),
}
# σ-zero is a relaxation: beyond the 5 % it may need this many components more than the best.
COMPONENTS = {"sigma-zero": 1}
UNTARGETED_ONLY = {"deepfool", "ddn-ce"}


def make(name, box="free", targeted=False):
    return ATTACKS[name](box, targeted)


def cases(names=ATTACKS):
    return [(name, norm) for name in names for norm in sorted(make(name).norms)]


def closest_over_targets(attack, model, norm):
    """The closest point over all target classes, in one batch."""
    count, wrong = len(model.labels), len(model.bias) - 1
    shifts = torch.arange(1, wrong + 1).repeat_interleave(count)
    labels = model.labels.repeat(wrong)
    images = model.images.repeat(wrong, 1, 1, 1)
    targets = (labels + shifts) % len(model.bias)
    points = attack(model, images, labels, Threat(norm, 0.1), targets=targets)
    distance = NORMS[norm].distance(points - images)
    distance[model(points).argmax(1) == labels] = torch.inf
    nearest = distance.view(wrong, count).argmin(0)
    return points.view(wrong, *model.images.shape)[nearest, torch.arange(count)]


@pytest.mark.parametrize("box", ["free", "binding"])
@pytest.mark.parametrize(("name", "norm"), cases())
def test_two_classes_within_5_percent(name, norm, box):
    model, attack = linear(2, box), make(name, box)
    points = attack(model, model.images, model.labels, Threat(norm, 0.1))
    assert_minimal(model, norm, points, COMPONENTS.get(name, 0))


@pytest.mark.parametrize("box", ["free", "binding"])
@pytest.mark.parametrize(("name", "norm"), cases(sorted(ATTACKS.keys() - UNTARGETED_ONLY)))
def test_many_classes_within_5_percent_over_targets(name, norm, box):
    model, attack = linear(4, box), make(name, box, targeted=True)
    assert_minimal(model, norm, closest_over_targets(attack, model, norm), COMPONENTS.get(name, 0))


@pytest.mark.parametrize("box", ["free", "binding"])
@pytest.mark.parametrize(("name", "norm"), cases(["fab", "deepfool"]))
def test_many_classes_within_5_percent_untargeted(name, norm, box):
    model, attack = linear(4, box), make(name, box)
    points = attack(model, model.images, model.labels, Threat(norm, 0.1))
    assert_minimal(model, norm, points)


class Nothing(MinimumNorm):
    """Looks at the image and says that it has done its work."""

    name, norms, iterations = "nothing", frozenset(NORMS), 1

    def start(self, items, threat):
        return MinimumNormState.begin(items, items.images)

    def step(self, model, state, threat):
        recorded, _ = self.record(state, model.logits(state.point), threat)
        return recorded.replace(iteration=state.iteration + 1)


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_an_attack_that_does_nothing_fails(norm):
    model = linear(2, "free")
    points = Nothing()(model, model.images, model.labels, Threat(norm, 1.0))
    with pytest.raises(AssertionError, match="still right"):
        assert_minimal(model, norm, points)


def test_an_attack_that_goes_too_far_fails():
    model = linear(2, "free")
    points = FAB(steps=3, **WHOLE)(model, model.images, model.labels, Threat("l2", 0.1))
    further = (model.images + 1.2 * (points - model.images)).clamp(0, 1)
    with pytest.raises(AssertionError, match="too far"):
        assert_minimal(model, "l2", further)


# -- states -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), cases())
def test_items_are_independent(name, norm):
    model = linear(3, "free", shape=(3, 4, 5), count=3)
    targeted = name not in UNTARGETED_ONLY
    assert_items_are_independent(make(name, targeted=targeted), model, Threat(norm, 0.05))


def test_carlini_wagner_searches_are_independent():
    model = linear(3, "binding", shape=(3, 4, 5), count=3)
    attack = CarliniWagner(steps=4, searches=4)
    assert_items_are_independent(attack, model, Threat("l2", 0.05), iterations=16)


def items_of(model, eps, targets=None):
    count = len(model.labels)
    none = torch.full((count,), -1)
    return Items(
        images=model.images,
        labels=model.labels,
        targets=none if targets is None else targets,
        eps=torch.full((count,), eps),
        seeds=torch.arange(count),
    )


def run(attack, model, items, threat, iterations):
    oracle = Oracle(model)
    state = attack.start(items, threat)
    states = []
    for _ in range(iterations):
        state = attack.step(oracle, state, threat)
        states.append(state)
    return states, oracle


@pytest.mark.parametrize(("name", "norm"), [("fab", "l2"), ("fmn", "l0"), ("ddn-ce", "l2")])
def test_score_is_distance_less_eps(name, norm):
    model, attack = linear(2, "free"), make(name)
    attack.stop_inside = True
    eps = 1.0 if norm == "l0" else float(np.median(model.optimum(norm)))
    states, _ = run(attack, model, items_of(model, eps), Threat(norm, eps), attack.iterations)
    for before, state in itertools.pairwise(states):
        assert (state.distance <= before.distance).all()
    for state in states:
        found = state.distance.isfinite()
        distance = NORMS[norm].distance(state.best - state.images)
        assert torch.equal(distance[found], state.distance[found])
        assert (distance[~found] == 0).all() and state.score[~found].isinf().all()
        inside = distance <= eps if norm == "l0" else distance < eps
        assert torch.equal(state.score < 0, found & inside)
        assert not model(state.best).argmax(1).eq(state.labels)[found].any()
    assert states[-1].finished.all() and not states[-2].finished.any()
    assert int((states[-1].score < 0).sum()) > 0, "no image is inside: the test shows nothing"


def test_stop_inside_false_hides_success_until_the_end():
    model, threat = linear(2, "free"), Threat("l2", 1.0)
    attack = FAB(steps=10, **WHOLE)
    states, _ = run(attack, model, items_of(model, 1.0), threat, attack.iterations)
    assert all((state.score > 0).all() for state in states[:-1])
    assert (states[-1].score < 0).all()
    # Stopping early is what the default does, and it costs distance.
    early = FAB(steps=10)(model, model.images, model.labels, threat)
    late = attack(model, model.images, model.labels, threat)
    assert (threat.distance(early, model.images) > threat.distance(late, model.images)).all()


def test_costs_are_as_documented():
    model, threat = linear(4, "free"), Threat("l2", 0.01)
    items = items_of(model, 0.01, (model.labels + 1) % 4)
    for attack, backwards in (
        (FAB(targeted=True), 1),
        (FAB(), 3),
        (DeepFool(), 3),
        (DDN(), 1),
        (FMN(), 1),
        (CarliniWagner(), 1),
    ):
        _, oracle = run(attack, model, items, threat, 5)
        assert (oracle.forwards, oracle.backwards) == (5, 5 * backwards), attack


def test_deepfool_stops_at_the_first_adversarial_point():
    model = linear(2, "free")
    states, _ = run(DeepFool(), model, items_of(model, 1e-4), Threat("l2", 1e-4), 2)
    assert not states[0].finished.any() and states[1].finished.all()
    assert (states[1].score > 0).all()


@pytest.mark.parametrize(("name", "norm"), cases())
def test_a_classifier_that_cannot_be_fooled(name, norm):
    """Constant logits: no success, no NaN, the image comes back."""
    model = linear(3, "free", shape=(3, 4, 4), count=2)
    model.weights = torch.zeros_like(model.weights)
    model.bias, model.labels = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0, 0])
    attack = make(name, targeted=name not in UNTARGETED_ONLY)
    items = items_of(model, 0.1, torch.tensor([1, 2]))
    states, _ = run(attack, model, items, Threat(norm, 0.1), 8)
    assert states[-1].point.isfinite().all() and states[-1].distance.isinf().all()
    assert torch.equal(states[-1].best, model.images)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_starts_at_half_the_radius(norm):
    model, threat = linear(2, "free"), Threat(norm, 0.1)
    items = items_of(model, 0.1)
    start = FAB(start="random").start(items, threat).point
    torch.testing.assert_close(
        threat.distance(start, model.images), torch.full((len(items),), 0.05), rtol=1e-3, atol=0
    )
    moves = (start - model.images).flatten(1)
    assert not torch.allclose(moves[0], moves[1])
    assert torch.equal(FAB().start(items, threat).point, model.images)


# -- the projection -----------------------------------------------------------------------


def shortest_float64(norm, slope, room, gap):
    """By bisection, in float64: another way than the code's."""
    if norm == "l1":
        moved, left = np.zeros_like(room), gap
        for i in np.argsort(-slope):
            moved[i] = min(room[i], max(left, 0) / slope[i])
            left -= slope[i] * moved[i]
        return moved
    pace = np.ones_like(slope) if norm == "linf" else slope
    low, high = 0.0, (room / pace).max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if slope @ np.minimum(middle * pace, room) < gap else (low, middle)
        )
    return np.minimum(high * pace, room)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_shortest_move_is_exact(norm):
    draw = torch.Generator().manual_seed(1)
    x = (torch.rand(12, 3, 5, 5, generator=draw) * 1.6 - 0.3).clamp(0, 1)
    normal = torch.randn(x.shape, generator=draw) ** 3
    room = torch.where(normal > 0, 1 - x, x)
    most = (normal.abs() * room).flatten(1).sum(1)
    share = torch.linspace(0.001, 0.95, 12)
    down = torch.arange(12) % 2 == 0  # these lie on the other side: the room is the other one
    normal = torch.where(per_item(down, x), -normal, normal)
    value = torch.where(down, share * most, -share * most)
    move = shortest_move(x, normal, value, norm)
    assert ((x + move).clamp(0, 1) - (x + move)).abs().max() <= 1e-7
    left = value + (normal * move).flatten(1).sum(1)
    assert (left.abs() <= 1e-5 * value.abs() + 1e-6).all()
    for i in range(12):
        best = shortest_float64(
            norm,
            normal[i].abs().flatten().double().numpy(),
            room[i].flatten().double().numpy(),
            float(value[i].abs()),
        )
        np.testing.assert_allclose(
            move[i].abs().flatten().numpy(), best, rtol=1e-3, atol=2e-5, err_msg=f"item {i}"
        )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_shortest_move_at_its_limits(norm):
    x = torch.tensor([0.0, 0.25, 1.0, 0.5]).view(1, 1, 2, 2).repeat(5, 1, 1, 1)
    normal = torch.tensor([1.0, -2.0, 1.0, 0.0]).view(1, 1, 2, 2).repeat(5, 1, 1, 1)
    normal[1] = 0  # no gradient
    normal[2] *= 1e-30  # a tiny one
    value = torch.tensor([-9.0, -1.0, -1e-30, 0.0, torch.inf])
    move = shortest_move(x, normal, value, norm).flatten(1)
    assert move.isfinite().all()
    # Out of reach: as far as the box lets it go, and components without slope stay.
    assert move[0].tolist() == [1.0, -0.25, 0.0, 0.0]
    assert (move[1] == 0).all() and (move[3] == 0).all()
    unit = shortest_move(x[2:3], normal[2:3] * 1e30, value[2:3] * 1e30, norm).flatten(1)
    torch.testing.assert_close(move[2:3], unit)


# -- settings and suites ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: FAB(steps=0), "steps"),
        (lambda: FAB(start="here"), "start"),
        (lambda: FAB(image_share=1.0), "image_share"),
        (lambda: FAB(overshoot=0.9), "overshoot"),
        (lambda: FAB(pull_back=0.0), "pull_back"),
        (lambda: DDN(rate=1.0), "rate"),
        (lambda: DDN(targeted=True), "ce"),
        (lambda: FMN(rate=0.01, last_rate=0.1), "last_rate"),
        (lambda: FMN(length=0.0), "length"),
        (lambda: CarliniWagner(searches=0), "searches"),
        (lambda: CarliniWagner(weight=0.0), "weight"),
        (lambda: DeepFool(overshoot=-0.1), "overshoot"),
        (lambda: SigmaZero(threshold=2.0), "threshold"),
        (lambda: suite_named("autoatack"), "autoattack"),
    ],
)
def test_bad_settings(wrong, said):
    with pytest.raises(InputError, match=said):
        wrong()


def test_unknown_norm():
    model = linear(2, "free")
    with pytest.raises(InputError, match="fab knows the norms l1, l2, linf, not l0"):
        FAB()(model, model.images, model.labels, Threat("l0", 3))


def test_autoattack_is_the_published_sequence():
    def stages(name):
        return [
            (s.attack.name, s.attack.iterations - 1, s.restarts, s.targets, s.samples)
            for s in suite_named(name).stages
        ]

    assert stages("autoattack") == [
        ("apgd-ce", 100, 1, None, 1),
        ("apgd-dlr-targeted", 100, 1, 9, 1),
        ("fab-targeted", 100, 1, 9, 1),
        ("square", 5000, 1, None, 1),
    ]
    assert stages("autoattack-plus") == [
        ("apgd-ce", 100, 5, None, 1),
        ("apgd-dlr", 100, 5, None, 1),
        ("fab", 100, 1, None, 1),
        ("fab", 100, 4, None, 1),
        ("square", 5000, 1, None, 1),
        ("apgd-dlr-targeted", 100, 1, 9, 1),
        ("fab-targeted", 100, 1, 9, 1),
    ]
    assert stages("autoattack-rand") == [
        ("apgd-ce", 100, 1, None, 20),
        ("apgd-dlr", 100, 1, None, 20),
    ]
    for name in ("autoattack", "autoattack-plus", "autoattack-rand"):
        for stage in suite_named(name).stages:
            assert {"linf", "l2", "l1"} <= stage.attack.norms
