"""Attacks inside a ball: how close to the optimum they come, and that they keep their promises."""

from __future__ import annotations

import json

import models
import pytest
import torch
from linear_classifiers import Linear, linear
from torch import Tensor

from holdfast import draws
from holdfast.attacks import APGD, FGSM, PGD, Attack, Items, Oracle, Square, State, suite_named
from holdfast.attacks.losses import margin, margin_loss
from holdfast.errors import InputError
from holdfast.threat import Threat

NORMS = ("linf", "l2", "l1")


def steps_of(attack: Attack, model, items: Items, threat: Threat, count: int) -> State:
    """The state of all items after `count` steps, none of them leaving early."""
    oracle, state = Oracle(model), attack.start(items, threat)
    for _ in range(count):
        state = attack.step(oracle, state, threat)
    return state


def items_for(x: Tensor, labels: Tensor, eps, targets: Tensor | None = None) -> Items:
    return Items(
        images=x,
        labels=labels,
        targets=torch.full_like(labels, -1) if targets is None else targets,
        eps=torch.as_tensor(eps, dtype=torch.float32).expand(len(x)),
        seeds=draws.item_seeds(0, torch.arange(len(x)), "test"),
    )


def found(attack: Attack, problem: Linear, norm: str, factor: float) -> Tensor:
    """bool (N,): which images the attack breaks when each ball is `factor` times the distance to
    that image's closest adversarial point. All points must be legal and beliefs true."""
    optimum = torch.tensor(problem.optimum(norm), dtype=torch.float32)
    targets = None
    if attack.targeted:  # the class of the closest adversarial point
        alone = [
            [problem._distance(norm, x, y, k) if k != y else 9e9 for k in range(len(problem.bias))]
            for x, y in zip(problem.images, problem.labels.tolist(), strict=True)
        ]
        targets = torch.tensor(alone).argmin(1)
    items = items_for(problem.images, problem.labels, factor * optimum, targets)
    threat = Threat(norm, 1)
    state = steps_of(attack, problem, items, threat, attack.iterations)
    assert state.finished.all()
    assert threat.contains(state.best, items.images, items.eps).all()
    broken = problem(state.best).argmax(1) != problem.labels
    assert torch.equal(state.score < 0, broken)
    return broken


def assert_strong(attack: Attack, problem: Linear, norm: str, factor: float) -> None:
    """The attack breaks every image at `factor` times the optimum, and none below the optimum."""
    assert not found(attack, problem, norm, 0.98).any()
    broken = found(attack, problem, norm, factor)
    assert broken.all(), f"{attack} left {(~broken).sum()} of {len(broken)} standing"


class Nothing(Attack):
    """Looks at the image again and again."""

    name, norms, iterations = "nothing", frozenset(NORMS), 5

    def start(self, items, threat):
        return State.begin(items, items.images)

    def step(self, model, state, threat):
        state = state.observe(model.logits(state.point))
        iteration = state.iteration + 1
        return state.replace(iteration=iteration, finished=iteration >= self.iterations)


class Backwards(PGD):
    """PGD with the wrong sign."""

    def __init__(self):
        super().__init__(steps=30, loss=lambda z, y, t: -margin_loss(z, y, t))


# How many times the optimum the ball is. `free`: the box does not bind, so that one step of the
# right kind is nearly the answer; `binding`: a third of the components lie on its walls.
STRONG = [
    # attack, norm, factor where the box is free, and where it binds
    (FGSM(), "linf", 1.01, 1.01),
    (FGSM(), "l2", 1.01, 1.5),
    (FGSM(), "l1", 1.01, None),  # one step moves one component here: it needs room
    (PGD(steps=40), "linf", 1.01, 1.01),
    (PGD(steps=40), "l2", 1.05, 1.1),
    (PGD(steps=100), "l1", 1.01, 1.2),
    (PGD(steps=40, momentum=0.75, loss="margin"), "linf", 1.01, 1.01),
    (PGD(steps=40, loss="dlr", start="clean"), "l2", 1.05, 1.1),
    (APGD(steps=50, loss="ce"), "linf", 1.01, 1.01),
    (APGD(steps=50, loss="ce"), "l2", 1.01, 1.02),
    (APGD(steps=100, loss="ce"), "l1", 1.05, 1.05),
    (APGD(steps=50, loss="dlr"), "linf", 1.01, 1.01),
    (APGD(steps=50, loss="margin"), "l2", 1.01, 1.02),
    (APGD(steps=100, loss="dlr"), "l1", 1.05, 1.05),
    (APGD(steps=50, loss="dlr", targeted=True), "linf", 1.01, 1.01),
    (APGD(steps=50, loss="margin", targeted=True), "l2", 1.01, 1.02),
    (APGD(steps=100, loss="dlr", targeted=True), "l1", 1.05, 1.05),
    (Square(queries=600), "linf", 1.1, 1.1),
]


@pytest.mark.parametrize(("attack", "norm", "free", "binding"), STRONG, ids=repr)
def test_attacks_come_close_to_the_optimum(attack, norm, free, binding):
    assert_strong(attack, linear(2, "free"), norm, free)
    if binding is not None:
        assert_strong(attack, linear(2, "binding"), norm, binding)


@pytest.mark.parametrize("norm", NORMS)
def test_the_right_target_is_reached_among_many_classes(norm):
    steps, factor = (100, 1.2) if norm == "l1" else (50, 1.02)
    attack = APGD(steps=steps, loss="dlr", targeted=True)
    assert_strong(attack, linear(5, "binding"), norm, factor)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [Nothing(), Backwards()], ids=repr)
def test_attacks_that_do_nothing_or_the_opposite_fail_these_tests(attack, norm):
    with pytest.raises(AssertionError, match="standing"):
        assert_strong(attack, linear(2, "free"), norm, 1.5)


# -- state: batch-first, unchanged by steps ---------------------------------------------------

ALL = [
    (FGSM(), "linf"),
    (FGSM(noise=2, clip=False, step=1.25), "linf"),
    (PGD(steps=8), "linf"),
    (PGD(steps=8, momentum=0.9, loss="dlr"), "l2"),
    (PGD(steps=8), "l1"),
    (APGD(steps=12), "linf"),
    (APGD(steps=12, loss="dlr"), "l2"),
    (APGD(steps=12, loss="margin"), "l1"),
    (APGD(steps=12, loss="dlr", targeted=True), "linf"),
    (Square(queries=12), "linf"),
    (Square(queries=12), "l2"),
    (Square(queries=12), "l1"),
]
EPS = {"linf": 0.05, "l2": 0.4, "l1": 2.0}


def net_items(n: int, norm: str, targeted: bool) -> tuple[models.Net, Items]:
    model, x = models.Net(classes=5), models.images(n)
    labels = models.answers(model, x)
    eps = EPS[norm] * torch.linspace(0.5, 1.5, n)
    return model, items_for(x, labels, eps, (labels + 1) % 5 if targeted else None)


def assert_same(a: State, b: State) -> None:
    assert type(a) is type(b)
    for name, value in a.tensors().items():
        assert torch.equal(value, b.tensors()[name]), name


@pytest.mark.parametrize(("attack", "norm"), ALL, ids=repr)
def test_items_of_different_ages_share_a_batch(attack, norm):
    threat = Threat(norm, 1)
    model, items = net_items(6, norm, attack.targeted)
    early, late = items.select(torch.arange(4)), items.select(torch.arange(4, 6))
    state = steps_of(attack, model, early, threat, 2)
    # The second item leaves, two fresh ones come, and the order is turned around.
    fresh = attack.start(late, threat)
    rows = torch.tensor([5, 4, 3, 2, 0])
    state = state.join(fresh).select(rows)
    oracle = Oracle(model)
    for _ in range(7):
        state = attack.step(oracle, state, threat)
    for row, (item, age) in enumerate([(5, 7), (4, 7), (3, 9), (2, 9), (0, 9)]):
        alone = steps_of(attack, model, items.select(torch.tensor([item])), threat, age)
        assert_same(state.select(torch.tensor([row])), alone)


@pytest.mark.parametrize(("attack", "norm"), ALL, ids=repr)
def test_steps_leave_the_old_state_alone(attack, norm):
    threat = Threat(norm, 1)
    model, items = net_items(3, norm, attack.targeted)
    oracle, state = Oracle(model), attack.start(items, threat)
    for _ in range(6):
        kept = {name: value.clone() for name, value in state.tensors().items()}
        new = attack.step(oracle, state, threat)
        assert_same(state, state.replace(**kept))
        state = new


@pytest.mark.parametrize(("attack", "norm"), ALL, ids=repr)
def test_an_attack_costs_what_it_says(attack, norm):
    threat = Threat(norm, 1)
    model, items = net_items(2, norm, attack.targeted)
    counted = models.Counted(model)
    oracle, state, iterations = Oracle(counted), attack.start(items, threat), 0
    while not state.finished.all():
        state, iterations = attack.step(oracle, state, threat), iterations + 1
    assert iterations == attack.iterations == oracle.forwards
    assert counted.forwards == 2 * iterations
    assert (
        counted.backwards
        == 2 * oracle.backwards
        == (2 * iterations if attack.needs_gradient else 0)
    )
    assert torch.equal(state.iteration, torch.full((2,), iterations))


@pytest.mark.parametrize(("attack", "norm"), ALL, ids=repr)
def test_best_is_the_least_margin_that_was_looked_at(attack, norm):
    threat = Threat(norm, 1)
    model, items = net_items(4, norm, attack.targeted)
    state, seen = attack.start(items, threat), []
    for _ in range(attack.iterations):
        if norm != "l1" or threat.contains(state.point, items.images, items.eps).all():
            seen.append(margin(model(state.point), items.labels))
        state = attack.step(Oracle(model), state, threat)
    least = torch.stack(seen).amin(0)
    assert torch.equal(state.score, least)
    assert torch.equal(margin(model(state.best), items.labels), least)


# -- APGD as published ------------------------------------------------------------------------


def test_apgd_looks_back_at_the_papers_checkpoints():
    # p₁ = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06): section 3 of the paper.
    before, here, expected = 0, 22, []
    while here <= 100:
        expected.append(here)
        before, here = here, here + max(here - before - 3, 6)
    model, items = net_items(2, "linf", False)
    attack, threat = APGD(steps=100), Threat("linf", 1)
    state, seen = attack.start(items, threat), []
    for look in range(attack.iterations):
        old, state = state.until_checkpoint, attack.step(Oracle(model), state, threat)
        if look and (state.until_checkpoint != old - 1).all():
            seen.append(look)
    assert seen == expected == [22, 41, 57, 70, 80, 87, 93, 99]


def published_apgd(model, x, y, start, eps, steps, norm):
    """Algorithm 1 of the paper, for one image, as plainly as it is written there."""

    def value(point):
        point = point.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(point), y, reduction="sum")
        return loss.item(), torch.autograd.grad(loss, point)[0]

    def project(point):
        if norm == "linf":
            return (x + (point - x).clamp(-eps, eps)).clamp(0, 1)
        return (x + (point - x) * min(1, eps / float((point - x).norm()))).clamp(0, 1)

    checkpoints, before, here = [], 0, 0.22
    while here <= 1:
        checkpoints.append(-int(-here * steps // 1))
        before, here = here, here + max(here - before - 0.03, 0.06)
    eta, points, losses = 2 * eps, [start, start], []
    best, f_best, last, halved, f_last = start, -1e9, 0, True, -1e9
    for k in range(steps + 1):
        f, gradient = value(points[-1])
        losses.append(f)
        if f > f_best:
            best, f_best, g_best = points[-1], f, gradient
        if k == 0:
            f_last = f
        x_k = points[-1]
        if k in checkpoints:
            window = range(last, k)
            rises = sum(losses[i + 1] > losses[i] for i in window)
            one, two = rises < 0.75 * (k - last) + 1e-9, not halved and f_last >= f_best
            halved, f_last, last = one or two, f_best, k
            if halved:
                eta, x_k, gradient = eta / 2, best, g_best
        direction = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        z = project(x_k + eta * direction)
        alpha = 0.75 if k else 1.0
        new = project(x_k + alpha * (z - x_k) + (1 - alpha) * (x_k - points[-2]))
        points = [*points[:-1], x_k, new]
    return losses


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_walks_as_the_published_algorithm(norm):
    steps, threat = 100, Threat(norm, 1)
    model, items = net_items(4, norm, False)
    attack = APGD(steps=steps)
    state = attack.start(items, threat)
    start, values = state.point, []
    for _ in range(attack.iterations):
        state = attack.step(Oracle(model), state, threat)
        values.append(state.last_loss)
    for i in range(4):
        one = slice(i, i + 1)
        expected = published_apgd(
            model,
            items.images[one],
            items.labels[one],
            start[one],
            float(items.eps[i]),
            steps,
            norm,
        )
        # Where the search has converged, rounding decides which of two equal points is the best.
        same = torch.isclose(
            torch.stack(values)[:, i], torch.tensor(expected), rtol=1e-3, atol=1e-4
        )
        assert same[:57].all() and same.float().mean() > 0.9


def test_l1_apgd_shrinks_its_ball_and_counts_only_points_of_the_last_one():
    attack, threat = APGD(steps=20), Threat("l1", 1)
    model, items = net_items(3, "l1", False)
    state, radii = attack.start(items, threat), []
    for look in range(attack.iterations):
        radii.append((threat.distance(state.point, items.images) / items.eps).amax().item())
        state = attack.step(Oracle(model), state, threat)
        assert bool(state.score.isinf().all()) == (look < 12)
    assert max(radii[:6]) <= 3 * (1 + 1e-5) and max(radii[:6]) > 2
    assert max(radii[6:12]) <= 2 * (1 + 1e-5)
    assert max(radii[12:]) <= 1 + 1e-5


# -- called alone -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "norm"), [case for case in ALL if not getattr(case[0], "noise", 0)], ids=repr
)
def test_an_attack_called_alone_returns_legal_points(attack, norm):
    model, x = models.Net(classes=5), models.images(9)
    labels = models.answers(model, x)
    labels[3] = (labels[3] + 1) % 5  # a clean mistake
    threat = Threat(norm, EPS[norm])
    whole = attack(model, x, labels, threat)
    assert whole.shape == x.shape and whole.dtype == torch.float32
    assert threat.contains(whole, x).all()
    assert torch.equal(whole[3], x[3])
    assert not torch.equal(whole[0], x[0])
    assert torch.equal(attack(model, x, labels, threat, batch_size=4), whole)
    assert torch.equal(attack(model, x, labels, threat, seed=0), whole)


def test_seeds_change_random_starts():
    model, x = models.Net(classes=5, scale=0.1), models.images(3)
    labels = models.answers(model, x)
    threat = Threat("linf", 0.01)
    a, b = (APGD(steps=2)(model, x, labels, threat, seed=s) for s in (0, 1))
    assert not torch.equal(a, b)


def test_a_targeted_attack_takes_targets():
    model, x = models.linear(4), models.images(6)
    labels = models.answers(model, x)
    targets = (labels + 2) % 4
    attack = APGD(steps=30, loss="margin", targeted=True)
    points = attack(model, x, labels, Threat("linf", 0.5), targets=targets)
    reached = models.answers(model, points)
    assert (reached != labels).all() and (reached == targets).sum() >= 4


def test_nothing_of_the_model_or_the_world_is_changed():
    model, x = models.Net(classes=5), models.images(2)
    labels = models.answers(model, x)
    kept, state = x.clone(), torch.get_rng_state()
    APGD(steps=3)(model, x, labels, Threat("linf", 0.1))
    assert torch.equal(x, kept) and not x.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 4, 9), (1, 9, 2), (2, 1, 7)], ids=lambda s: "x".join(map(str, s))
)
@pytest.mark.parametrize(("attack", "norm"), ALL[2:], ids=repr)
def test_images_of_any_shape(attack, norm, shape):
    model, x = models.Net(classes=3, shape=shape), models.images(3, shape)
    labels = models.answers(model, x)
    threat = Threat(norm, 0.2)
    assert threat.contains(attack(model, x, labels, threat), x).all()


@pytest.mark.parametrize(("attack", "norm"), ALL[2:], ids=repr)
def test_a_model_without_gradient_leaves_points_legal(attack, norm):
    flat = models.Wrapped(models.linear(3), before=torch.round)
    x = models.images(4)
    labels = models.answers(flat, x)
    threat = Threat(norm, EPS[norm])
    assert threat.contains(attack(flat, x, labels, threat), x).all()


@pytest.mark.parametrize("norm", NORMS)
def test_without_gradient_apgd_looks_somewhere_else_every_time(norm):
    net, x = models.Net(seed=1), models.images(4, seed=1)
    looked: list[Tensor] = []

    def flat(points):  # steps without slopes, as behind a rounded input
        looked.append(points.detach())
        return (net(points).detach() * 1e3).round() / 1e3 + 0 * points.sum()

    threat = Threat(norm, {"linf": 0.1, "l2": 0.5, "l1": 3.0}[norm])
    items = items_for(x, models.answers(net, x), threat.eps)
    steps_of(APGD(steps=20), flat, items, threat, 20)
    for image in range(len(x)):
        assert len({tuple(points[image].flatten().tolist()) for points in looked}) == 20
    alone = items_for(x[:1], items.labels[:1], threat.eps)
    apart = steps_of(APGD(steps=20), flat, alone, threat, 20)
    together = steps_of(APGD(steps=20), flat, items, threat, 20)
    torch.testing.assert_close(apart.best[0], together.best[0])


def test_expectation_over_transformation_averages_and_counts_copies():
    model = models.Counted(models.linear(3))
    x = models.images(2)
    oracle = Oracle(model, samples=5)
    torch.testing.assert_close(oracle.logits(x), models.linear(3)(x))
    gradient, _, _ = oracle.gradient(x, lambda z: z[:, 0])
    expected = models.linear(3).weight[0].float().expand_as(gradient)
    torch.testing.assert_close(gradient, expected)
    assert (oracle.forwards, oracle.backwards) == (10, 5)
    assert (model.forwards, model.backwards) == (20, 10)


def test_settings_are_json():
    # They are part of a run's identity.
    def own(z, labels, targets):
        return margin_loss(z, labels, targets)

    for attack in [*(case[0] for case in ALL), PGD(loss=own)]:
        described = suite_named(attack).describe()
        assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize(
    "make",
    [
        lambda: PGD(steps=0),
        lambda: PGD(start="middle"),
        lambda: PGD(loss="cw"),
        lambda: APGD(steps=0),
        lambda: APGD(loss="ce", targeted=True),
        lambda: Square(queries=0),
        lambda: Square(area=1.5),
        lambda: suite_named("apdg"),
        lambda: PGD()(models.linear(2), models.images(1), torch.tensor([0]), Threat("l0", 3)),
        lambda: PGD()(models.linear(2), models.images(1), torch.tensor([2]), Threat("l2", 3)),
        lambda: PGD()(models.linear(2), models.images(2), torch.tensor([0]), Threat("l2", 3)),
        lambda: PGD()(models.linear(2), models.images(1) + 1, torch.tensor([0]), Threat("l2", 3)),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make):
    with pytest.raises(InputError) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_the_message_names_the_image_in_the_whole():
    broken = models.Wrapped(
        models.linear(2), after=lambda z: torch.where(z[:, :1] > 1e6, torch.nan, z)
    )
    x = models.images(7)
    spoilt = models.Wrapped(broken, after=lambda z: z)
    bad = x[5].clone()

    def model(images):
        z = spoilt(images)
        return torch.where((images == bad).flatten(1).all(1)[:, None], torch.nan, z)

    labels = models.answers(model, x)
    with pytest.raises(InputError, match="image 5"):
        PGD(steps=1)(model, x, labels, Threat("linf", 0.1), batch_size=2)
