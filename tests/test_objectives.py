"""Each objective is what its paper says, computed here by hand, and it does what it is for."""

from __future__ import annotations

import copy
from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import data, draws
from holdfast.attacks import PGD
from holdfast.errors import InputError
from holdfast.models import SmallCNN
from holdfast.threat import Threat
from holdfast.training.objectives import OBJECTIVES, Batch, Objective, objective_named, perturb

LINF = Threat("linf", 0.05)
# Those that want other networks than a plain classifier are tested on their own.
NAMES = sorted(set(OBJECTIVES) - {"denoising", "diffusion", "interval"})
STEPPED = [name for name in NAMES if "steps" in signature(OBJECTIVES[name]).parameters]


def network(seed: int = 0) -> SmallCNN:
    torch.manual_seed(seed)
    return SmallCNN(width=4).train()


def made(name: str, arguments: dict | None = None) -> Objective:
    """The objective; that which needs a helper model has one."""
    arguments = dict(arguments or {})
    if name == "hat":
        objective = objective_named(name, {"helper": "a standard model", **arguments})
        objective.standard = network(8).eval()
        return objective
    return objective_named(name, arguments)


def batch(low: float = 0.0, high: float = 1.0, n: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = low + (high - low) * torch.rand(n, 1, 8, 8, generator=generator)
    return Batch(images, torch.arange(n) % 10, draws.item_seeds(5, torch.arange(n)))


def input_gradient(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Of the summed cross-entropy, with the batch's own statistics, on a copy of the model."""
    x = x.clone().requires_grad_()
    F.cross_entropy(copy.deepcopy(model).train()(x), labels, reduction="sum").backward()
    return x.grad


def noisy(given: Batch, eps: float, times: float) -> Tensor:
    noise = draws.uniform(given.seeds, 0, given.images.shape[1:]) * 2 - 1
    return given.images + times * eps * noise


@pytest.mark.parametrize("box_is_reached", [False, True])
def test_n_fgsm_is_noise_then_one_step_and_never_clipped_to_the_ball(box_is_reached):
    given = batch() if box_is_reached else batch(0.4, 0.6)
    model = network()
    start = noisy(given, LINF.eps, 2.0)
    if box_is_reached:
        start = start.clamp(0, 1)
    expected = start + LINF.eps * input_gradient(model, start, given.labels).sign()
    if box_is_reached:
        expected = expected.clamp(0, 1)
    point = objective_named("n-fgsm", {}).attacked(model, given, LINF)
    assert torch.allclose(point, expected, atol=1e-6)
    farthest = LINF.distance(point, given.images)
    assert (farthest > 2.5 * LINF.eps).all()  # noise of 2ε and a step of ε, near 3ε somewhere
    assert (farthest <= 3 * LINF.eps * (1 + 1e-5)).all()
    assert point.min() >= 0
    assert point.max() <= 1


def test_n_fgsm_takes_its_arguments_in_units_of_eps():
    given, model = batch(0.4, 0.6), network()
    start = noisy(given, LINF.eps, 0.5)
    expected = start + 1.25 * LINF.eps * input_gradient(model, start, given.labels).sign()
    point = objective_named("n-fgsm", {"noise": 0.5, "step": 1.25}).attacked(model, given, LINF)
    assert torch.allclose(point, expected, atol=1e-6)


def test_after_a_collapse_n_fgsm_takes_its_step_in_parts():
    given, model = batch(0.4, 0.6), network()
    objective = objective_named("n-fgsm", {})
    objective.caution = 1
    point = noisy(given, LINF.eps, 2.0)
    for _ in range(2):
        point = point + 0.5 * LINF.eps * input_gradient(model, point, given.labels).sign()
    assert torch.allclose(objective.attacked(model, given, LINF), point, atol=1e-6)


def test_pgd_training_is_projected_steps_by_hand():
    given, model = batch(), network()
    point = noisy(given, LINF.eps, 1.0).clamp(0, 1)
    low, high = (given.images - LINF.eps).clamp_min(0), (given.images + LINF.eps).clamp_max(1)
    for _ in range(3):
        point = point + 0.4 * LINF.eps * input_gradient(model, point, given.labels).sign()
        point = point.clamp(low, high)
    objective = objective_named("pgd", {"steps": 3, "step_size": 0.4})
    assert torch.allclose(objective.attacked(model, given, LINF), point, atol=1e-6)


@pytest.mark.parametrize("threat", [LINF, Threat("l2", 0.7), Threat("l1", 6)], ids=str)
@pytest.mark.parametrize("name", ["pgd", "trades"])
def test_pgd_points_lie_in_the_ball_and_move(name, threat):
    given, model = batch(), network()
    point = objective_named(name, {"steps": 4}).attacked(model, given, threat)[-len(given.images) :]
    assert threat.contains(point, given.images).all()
    assert (threat.distance(point, given.images) > 0.2 * threat.eps).all()
    noise = threat.table.noise(given.seeds, 0, given.images)
    random = threat.project(given.images + threat.eps * noise, given.images)
    with torch.no_grad():
        clean, started, attacked = (copy.deepcopy(model)(x) for x in (given.images, random, point))
    if name == "pgd":
        gain = F.cross_entropy(attacked, given.labels) - F.cross_entropy(started, given.labels)
        assert gain > 0.1
    else:
        assert divergence(clean, attacked) > 2 * divergence(clean, started)


def divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    p = clean.softmax(1)
    return (p * (p.log() - attacked.softmax(1).log())).sum(1).mean()


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_trades_is_the_loss_by_hand_and_flows_through_both_halves():
    given, model = batch(), network()
    objective = objective_named("trades", {"beta": 4.0, "steps": 3})
    both = objective.attacked(model, given, LINF)
    assert torch.equal(both[: len(given.images)], given.images)
    fast_copy = copy.deepcopy(model)
    clean, attacked = fast_copy(both).chunk(2)  # one batch: batch norm sees the mixture
    expected = F.cross_entropy(clean, given.labels) + 4.0 * divergence(clean, attacked)
    loss = objective(model, given, LINF)
    assert float(loss.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(loss.logits, clean, atol=1e-5)
    assert not loss.logits.requires_grad

    found = gradients(loss.value, model)
    retained = [
        F.cross_entropy(clean, given.labels) + 4.0 * divergence(*halves)
        for halves in ((clean, attacked), (clean.detach(), attacked), (clean, attacked.detach()))
    ]
    whole, without_clean, without_attacked = (
        list(torch.autograd.grad(value, list(fast_copy.parameters()), retain_graph=True))
        for value in retained
    )
    assert close(found, whole)
    assert not close(found, without_clean)
    assert not close(found, without_attacked)


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-3, atol=1e-5) for x, y in zip(a, b, strict=True))


def test_trades_attacks_the_divergence_and_not_the_label():
    given, model = batch(), network()
    objective = objective_named("trades", {"steps": 5})
    wrong = given._replace(labels=(given.labels + 1) % 10)
    assert torch.equal(
        objective.attacked(model, given, LINF), objective.attacked(model, wrong, LINF)
    )


@pytest.mark.parametrize("name", ["n-fgsm", "pgd"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_others_are_cross_entropy_on_their_attacked_images(name, smoothing):
    given, model = batch(), network()
    objective = objective_named(name, {"label_smoothing": smoothing})
    logits = copy.deepcopy(model)(objective.attacked(model, given, LINF))
    aim = F.one_hot(given.labels, 10) * (1 - smoothing) + smoothing / 10
    expected = -(aim * logits.log_softmax(1)).sum(1).mean()
    loss = objective(model, given, LINF)
    assert float(loss.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert not close(gradients(loss.value, model), [torch.zeros(1)] * 12)


def test_standard_looks_at_the_clean_images():
    given, model = batch(), network()
    expected = F.cross_entropy(copy.deepcopy(model)(given.images), given.labels)
    loss = objective_named("standard", {})(model, given, LINF)
    assert float(loss.value.detach()) == pytest.approx(float(expected.detach()))


@pytest.mark.parametrize("name", NAMES)
def test_inner_attacks_leave_no_trace_in_the_model(name):
    objective, given, model = made(name), batch(), network()
    model(torch.rand(8, 1, 8, 8))
    next(iter(model.parameters())).requires_grad_(False)
    for parameter in list(model.parameters())[2:]:
        parameter.grad = torch.full_like(parameter, 7.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    objective.attacked(model, given, LINF)
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert flags == [False] + [True] * (len(flags) - 1)
    grads = [parameter.grad for parameter in model.parameters()]
    assert grads[:2] == [None, None]
    assert all(bool((grad == 7).all()) for grad in grads[2:])
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name", NAMES)
def test_training_statistics_come_from_one_pass(name):
    given, model = batch(), network()
    objective = made(name)
    fast_copy = copy.deepcopy(model)
    fast_copy(objective.attacked(model, given, LINF))
    objective(model, given, LINF)
    assert torch.allclose(model.body[1].running_mean, fast_copy.body[1].running_mean, atol=1e-6)
    assert int(model.body[1].num_batches_tracked) == 1


def test_what_an_image_draws_does_not_depend_on_its_batch():
    given, model = batch(), network().eval()  # in eval mode images do not see each other
    part = Batch(*(field[4:7] for field in given[:3]))
    whole = perturb(model, given, PGD(steps=2, step_size=0.5), LINF, 2)
    alone = perturb(model, part, PGD(steps=2, step_size=0.5), LINF, 2)
    assert torch.allclose(whole[4:7], alone, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_weight_learns_also_under_autocast(name, dtype):
    # A pass without gradients inside autocast must not leave gradient-less copies of the weights.
    given, model = batch(), network()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = made(name)(model, given, LINF)
    loss.value.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


def fitted(name: str, arguments: dict, steps: int, threat: Threat, width: int = 8) -> SmallCNN:
    """A network after `steps` steps of SGD on the digits."""
    split = data.load("digits").train
    images, labels = data.to_tensor(split.images), torch.from_numpy(split.labels)
    torch.manual_seed(1)
    model = SmallCNN(width=width).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    objective = objective_named(name, arguments)
    for step in range(steps):
        rows = torch.arange(step * 64, (step + 1) * 64) % len(images)
        given = Batch(images[rows], labels[rows], draws.item_seeds(0, step, rows))
        loss = objective(model, given, threat)
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_each_objective_lowers_its_own_loss(name):
    split = data.load("digits").train
    images, labels = data.to_tensor(split.images[:64]), torch.from_numpy(split.labels[:64])
    given = Batch(images, labels, draws.item_seeds(0, torch.arange(64)))
    model = network()
    objective = made(name, {"steps": 2} if name in STEPPED else {})
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    values = []
    for _ in range(25):
        loss = objective(model, given, LINF)
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
        values.append(float(loss.value.detach()))
    assert values[-1] < 0.6 * values[0]


@pytest.fixture(scope="module")
def undefended() -> float:
    return standing(fitted("standard", {}, 60, DIGITS))


DIGITS = Threat("linf", 0.15)


def standing(model: nn.Module) -> float:
    """PGD-10 accuracy on validation digits."""
    split = data.load("digits").validation
    images, labels = data.to_tensor(split.images[:150]), torch.from_numpy(split.labels[:150])
    attacked = PGD(steps=10, step_size=0.25, loss="margin")(model, images, labels, DIGITS)
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.8
        return float((model(attacked).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("n-fgsm", {"noise": 1.0}),
        ("pgd", {"steps": 4, "step_size": 0.5}),
        ("trades", {"steps": 3, "step_size": 0.5, "beta": 2.0}),
    ],
)
def test_adversarial_objectives_raise_pgd_accuracy_by_20_points(name, arguments, undefended):
    assert standing(fitted(name, arguments, 60, DIGITS)) > undefended + 0.2


@pytest.mark.parametrize(
    ("name", "arguments", "hint"),
    [
        ("trade", {}, "'trades'"),
        ("n-fgsm", {"nois": 1}, "'noise'"),
        ("pgd", {"steps": 1.5}, "whole number"),
        ("pgd", {"steps": True}, "whole number"),
        ("pgd", {"steps": 0}, "at least 1"),
        ("trades", {"beta": -1}, "at least 0"),
        ("trades", {"beta": float("nan")}, "at least 0"),
        ("n-fgsm", {"step": float("inf")}, "at least 0"),
        ("n-fgsm", {"step": "1"}, "number"),
        ("standard", {"label_smoothing": 1.0}, "below 1"),
        ("dajat", {"views": 0}, "at least 1"),
        ("hat", {}, "needs the argument 'helper'"),
        ("hat", {"helper": 3}, "helper must be text"),
    ],
)
def test_bad_objectives_are_refused(name, arguments, hint):
    with pytest.raises(InputError, match=hint):
        objective_named(name, arguments)


# -- mixed labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_are_certain_are_labels(name):
    """A probability of 1 for the label is the label, in the attack and in the loss."""
    given = batch()
    certain = given._replace(truth=F.one_hot(given.labels, 10).float())
    values = []
    for each in (given, certain):
        objective = made(name)
        objective.progress = 0.5
        torch.manual_seed(0)
        values.append(objective(network(), each, LINF).value.detach())
    assert torch.allclose(values[0], values[1], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_labels_change_what_is_learnt(name):
    given = batch()
    mixed = 0.6 * F.one_hot(given.labels, 10) + 0.4 * F.one_hot((given.labels + 3) % 10, 10)
    objective, model = made(name), network()
    objective.progress = 0.5
    points = objective.points(model, given, LINF)
    plain, other = (
        objective.loss(model, points, each).value.detach()
        for each in (given, given._replace(truth=mixed))
    )
    assert abs(float(plain - other)) > 1e-4


def test_the_attack_climbs_the_cross_entropy_of_mixed_labels():
    given, model = batch(0.4, 0.6), network()
    truth = 0.5 * F.one_hot(given.labels, 10) + 0.5 * F.one_hot((given.labels + 3) % 10, 10)
    start = noisy(given, LINF.eps, 2.0).requires_grad_()
    loss = -(truth * copy.deepcopy(model).train()(start).log_softmax(1)).sum()
    (gradient,) = torch.autograd.grad(loss, start)
    point = objective_named("n-fgsm", {}).attacked(model, given._replace(truth=truth), LINF)
    assert torch.allclose(point, start.detach() + LINF.eps * gradient.sign(), atol=1e-6)
    plain = objective_named("n-fgsm", {}).attacked(model, given, LINF)
    assert not torch.allclose(point, plain, atol=1e-6)


def test_copies_of_a_batch_keep_their_labels_together():
    given = batch()._replace(truth=torch.rand(12, 10), weights=torch.rand(12))
    twice = given.repeated(2)
    for part, copies in zip(given, twice, strict=True):
        assert part is not None and copies is not None
        assert torch.equal(copies[0::2], part) and torch.equal(copies[1::2], part)
