"""The newer objectives are what their papers say, each computed here once more from its formula."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from test_objectives import LINF, batch, gradients, made, network
from torch import Tensor, nn

from holdfast.data.trivial_augment import trivial_augment
from holdfast.errors import InputError
from holdfast.models import SmallCNN, save_checkpoint
from holdfast.threat import Threat
from holdfast.training.objectives import AWP, Batch, Objective, objective_named
from holdfast.training.objectives.augmented import jensen_shannon
from holdfast.training.objectives.trades import weighted_square_error

GIVEN = batch()
N, K = len(GIVEN.labels), 10


def answers(objective: Objective, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and attacked logits of one pass over both on a copy, and the points."""
    points = objective.attacked(model, GIVEN, LINF)
    clean, attacked = copy.deepcopy(model)(points).chunk(2)
    return clean, attacked, points


def cross_entropy(logits: Tensor, labels: Tensor = GIVEN.labels, smoothing: float = 0.0) -> Tensor:
    """Mean of −Σ aim log p, with the aim written out."""
    total = torch.zeros(())
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = row.exp() / row.exp().sum()
        for k in range(K):
            aim = (1 - smoothing) * (k == label) + smoothing / K
            total = total - aim * p[k].log()
    return total / len(labels)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """(N,) Σ p log(p / q)."""
    return (p * (p / q).log()).sum(1)


def agrees(objective: Objective, model: nn.Module, expected: Tensor, twin_model: nn.Module) -> None:
    """The value and every gradient are those of the formula."""
    wanted = torch.autograd.grad(expected, list(twin_model.parameters()))
    loss = objective(model, GIVEN, LINF)
    assert float(loss.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    for ours, theirs in zip(gradients(loss.value, model), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=2e-3, atol=2e-5)


def test_mart():
    model, objective = network(), objective_named("mart", {"beta": 3.0, "steps": 2})
    fast_copy = copy.deepcopy(model)
    clean, attacked = fast_copy(objective.attacked(model, GIVEN, LINF)).chunk(2)
    p, q = clean.softmax(1), attacked.softmax(1)
    expected = torch.zeros(())
    for i, y in enumerate(GIVEN.labels.tolist()):
        wrong = [k for k in range(K) if k != y]
        other = max(wrong, key=lambda k: q[i, k].item())
        boosted = -q[i, y].log() - (1 - q[i, other]).log()
        expected = expected + boosted + 3.0 * kl(p, q)[i] * (1 - p[i, y])
    agrees(objective, model, expected / N, fast_copy)


@pytest.mark.parametrize(("progress", "weight"), [(0.2, 10.0), (0.9, 40.0)])
def test_gat(progress, weight):
    model, objective = network(), objective_named("gat", {"label_smoothing": 0.1})
    objective.progress = progress
    fast_copy = copy.deepcopy(model)
    clean, attacked = fast_copy(objective.attacked(model, GIVEN, LINF)).chunk(2)
    change = ((clean.softmax(1) - attacked.softmax(1)) ** 2).sum() / N
    agrees(objective, model, cross_entropy(clean, smoothing=0.1) + weight * change, fast_copy)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.45, 2.25), (0.95, 4.5)])
def test_nuat(progress, weight):
    model, objective = network(), objective_named("nuat", {})
    objective.progress = progress
    fast_copy = copy.deepcopy(model)
    clean, attacked = fast_copy(objective.attacked(model, GIVEN, LINF)).chunk(2)
    # The nuclear norm is the trace of the root of DᵀD.
    gram = (clean - attacked).double().T @ (clean - attacked).double()
    nuclear = torch.linalg.eigvalsh(gram).clamp_min(1e-18).sqrt().sum().float()
    agrees(objective, model, cross_entropy(clean) + weight * nuclear / N, fast_copy)


@pytest.mark.parametrize("name", ["gat", "nuat"])
def test_guided_attacks_are_one_step_from_bernoulli_noise_of_half_the_radius(name):
    middle = batch(0.4, 0.6)
    objective = objective_named(name, {})
    objective.progress = 0.9
    model = network()
    points = objective.attacked(model, middle, LINF)
    assert torch.equal(points[:N], middle.images)
    moved = (points[N:] - middle.images) / LINF.eps
    # ±1/2 and then ±1, clipped to the ball: −1, −1/2, 1/2 or 1; 0 only where no gradient was.
    near = torch.tensor([-1.0, -0.5, 0.5, 1.0])
    assert (moved[..., None] - near).abs().amin(-1).max() < 1e-4
    shares = [(moved.abs() > 0.9).float().mean(), (moved.abs() < 0.6).float().mean()]
    assert min(shares) > 0.3
    # The step climbs: a step the other way from the same noise has a lower loss.
    with torch.no_grad():
        up = copy.deepcopy(model)(points).chunk(2)[1]
        signs = torch.where(moved.abs() > 0.9, moved.sign() * 0.5, -moved.sign() * 0.5)
        start = middle.images + LINF.eps * signs
        down = copy.deepcopy(model)(start - (points[N:] - start))
    climbed = nn.functional.cross_entropy(up, middle.labels)
    assert climbed > nn.functional.cross_entropy(down, middle.labels)


def test_decoupled_terms_have_the_gradient_of_the_divergence():
    """Theorem 1 of Cui et al.: KL(p ‖ q) is soft cross-entropy + weighted square error."""
    torch.manual_seed(3)
    a = torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    b = torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    p, q = a.softmax(1), b.softmax(1)
    whole = torch.autograd.grad(kl(p, q).mean(), (a, b), retain_graph=True)
    soft = -(p.detach() * q.log()).sum(1).mean()
    decoupled = soft + weighted_square_error(a, b.detach(), p.detach())
    for x, y in zip(whole, torch.autograd.grad(decoupled, (a, b)), strict=True):
        assert torch.allclose(x, y, atol=1e-12)


def test_ikl():
    model, objective = network(), objective_named("ikl", {"alpha": 2.0, "beta": 5.0, "steps": 2})
    means = torch.rand(K, K)
    objective.restore({"class_means": means / means.sum(1, keepdim=True)})
    means = objective.means.clone()
    fast_copy = copy.deepcopy(model)
    clean, attacked = fast_copy(objective.attacked(model, GIVEN, LINF)).chunk(2)
    expected = cross_entropy(clean)
    for i, y in enumerate(GIVEN.labels.tolist()):
        fixed, log_q = clean[i].detach().softmax(0), attacked[i].log_softmax(0)
        expected = expected - 2.0 / N * (fixed * log_q).sum()
        for j in range(K):
            for k in range(K):
                gap = (clean[i, j] - clean[i, k]) - (attacked[i, j] - attacked[i, k])
                expected = expected + 5.0 / N * 0.25 * means[y, j] * means[y, k] * gap**2
    agrees(objective, model, expected, fast_copy)

    # One step later the means of the classes that occurred have moved by 1 %.
    p = clean.detach().softmax(1)
    for c in range(K):
        now = p[GIVEN.labels == c].mean(0)
        assert torch.allclose(objective.means[c], 0.99 * means[c] + 0.01 * now, atol=1e-6)
    assert objective.state()["class_means"] is objective.means


def test_ikl_leaves_classes_that_do_not_occur():
    model, objective = network(), objective_named("ikl", {"steps": 1})
    part = Batch(*(field[:3] for field in GIVEN[:3]))  # the classes 0, 1, 2
    objective(model, part, LINF)
    assert torch.equal(objective.means[3:], torch.full((7, K), 0.1))
    assert not torch.equal(objective.means[:3], torch.full((3, K), 0.1))


# -- HAT ----------------------------------------------------------------------------------------


def test_hat():
    model = network()
    objective = made("hat", {"beta": 2.0, "gamma": 0.7, "reach": 3.0, "steps": 2})
    fast_copy = copy.deepcopy(model)
    points = objective.attacked(model, GIVEN, LINF)
    clean, attacked = fast_copy(points).chunk(2)
    expected = cross_entropy(clean) + 2.0 * kl(clean.softmax(1), attacked.softmax(1)).mean()
    x, x_adv = points.chunk(2)
    with torch.no_grad():
        labels = network(8).eval()(x_adv).argmax(1)
    expected = expected + 0.7 * cross_entropy(fast_copy(x + 3.0 * (x_adv - x)), labels)
    agrees(objective, model, expected, fast_copy)
    assert all(p.grad is None for p in objective.standard.parameters())


@pytest.fixture
def helper(tmp_path) -> Path:
    card = {"architecture": "small-cnn", "arguments": {"width": 4}, "classes": list("0123456789")}
    return save_checkpoint(tmp_path / "helper", network(5), card)


def test_a_helper_is_loaded_and_its_weights_count(helper):
    objective = objective_named("hat", {"helper": str(helper), "steps": 1})
    objective.prepare(GIVEN.images, 10)
    assert not objective.standard.training
    assert torch.equal(objective.standard.linear.weight, network(5).linear.weight)
    assert len(objective.fingerprint) == 64
    wrapped = objective_named("hat", {"helper": str(helper)}, awp=0.01)
    wrapped.prepare(GIVEN.images, 10)
    assert wrapped.fingerprint == objective.fingerprint
    assert math.isfinite(float(objective(network(), GIVEN, LINF).value.detach()))


@pytest.mark.parametrize("fault", ["missing", "classes", "channels"])
def test_a_helper_that_does_not_fit_is_one_line(helper, fault):
    objective = objective_named("hat", {"helper": "no/such" if fault == "missing" else str(helper)})
    images = GIVEN.images.expand(-1, 3, -1, -1) if fault == "channels" else GIVEN.images
    with pytest.raises(InputError, match="objective 'hat': helper") as error:
        objective.prepare(images, 7 if fault == "classes" else 10)
    assert "\n" not in str(error.value)


# -- DAJAT --------------------------------------------------------------------------------------


def test_dajat():
    model = network()
    objective = objective_named("dajat", {"views": 2, "beta": 3.0, "js": 1.5})
    objective.progress = 0.5
    points = objective.points(model, GIVEN, LINF)
    pairs = points.chunk(3)
    grown = Threat("linf", LINF.eps / 2)
    assert torch.equal(pairs[0][:N], GIVEN.images)
    for view, pair in enumerate(pairs):
        clean, attacked = pair.chunk(2)
        if view:
            assert torch.equal(clean, trivial_augment(GIVEN.images, GIVEN.seeds, view - 1))
        assert grown.contains(attacked, clean).all()
        assert (grown.distance(attacked, clean) > 0.8 * grown.eps).all()
    fast_copy = copy.deepcopy(model)
    halves = [fast_copy(pair).chunk(2) for pair in pairs]  # each by statistics of its own
    expected = torch.zeros(())
    for clean, attacked in halves:
        divergence = kl(clean.softmax(1), attacked.softmax(1)).mean()
        expected = expected + (cross_entropy(clean) + 3.0 * divergence) / 3
    p = [clean.softmax(1) for clean, _ in halves]
    mixture = (p[0] + p[1] + p[2]) / 3
    expected = expected + 1.5 * sum(kl(q, mixture).mean() for q in p) / 3
    agrees(objective, model, expected, fast_copy)

    # Statistics of the simple view alone are kept.
    lone = copy.deepcopy(network())
    lone(pairs[0])
    assert torch.allclose(model.body[1].running_mean, lone.body[1].running_mean, atol=1e-6)
    assert torch.equal(objective.attacked(network(), GIVEN, LINF), pairs[0])


def test_jensen_shannon_is_zero_between_equals_and_log_2_between_opposites():
    sure = torch.tensor([[30.0, 0.0]])
    assert float(jensen_shannon(torch.stack([sure, sure]))) == pytest.approx(0, abs=1e-6)
    opposites = torch.stack([sure, sure.flip(1)])
    assert float(jensen_shannon(opposites)) == pytest.approx(math.log(2), rel=1e-4)


# -- adversarial weight perturbation ------------------------------------------------------------


@pytest.mark.parametrize("name", ["n-fgsm", "trades", "dajat"])
def test_awp_is_the_loss_and_the_gradient_at_the_moved_weights(name):
    model, inner = network(), made(name)
    points = inner.points(model, GIVEN, LINF)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    moved = copy.deepcopy(model)
    value = inner.loss(copy.deepcopy(model), points, GIVEN).value
    probe = copy.deepcopy(model)
    slopes = gradients(inner.loss(probe, points, GIVEN).value, probe)
    lengths = []
    with torch.no_grad():
        for weight, slope in zip(moved.parameters(), slopes, strict=True):
            if weight.ndim > 1:
                step = 0.05 * weight.norm() * slope / slope.norm()
                lengths.append(float(step.norm() / weight.norm()))
                weight += step
    expected = inner.loss(moved, points, GIVEN).value
    wanted = gradients(expected, moved)

    loss = AWP(inner, 0.05, 0.0)(model, GIVEN, LINF)
    assert lengths == pytest.approx([0.05] * len(lengths))
    assert expected > value  # uphill
    assert float(loss.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    loss.value.backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=2e-3, atol=2e-5)
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key])  # never written to, bit for bit
    assert int(model.body[1].num_batches_tracked) == 1  # one pass counts, the one that trains


def test_awp_waits_for_its_warmup_and_hands_on_what_it_is_told():
    model, wrapped = network(), objective_named("ikl", {"steps": 2}, awp=0.5, awp_warmup=0.3)
    plain = objective_named("ikl", {"steps": 2})
    wrapped.progress, wrapped.caution = 0.2, 3
    plain.progress, plain.caution = 0.2, 3
    ours, theirs = (o(copy.deepcopy(model), GIVEN, LINF).value for o in (wrapped, plain))
    assert torch.equal(ours, theirs)
    assert wrapped.state().keys() == {"class_means"}
    assert torch.equal(wrapped.state()["class_means"], plain.means)
    wrapped.progress = plain.progress = 0.4
    ours, theirs = (o(copy.deepcopy(model), GIVEN, LINF).value for o in (wrapped, plain))
    assert ours > theirs + 0.01
    again = objective_named("ikl", {}, awp=0.5)
    again.restore(wrapped.state())
    assert torch.equal(again.objective.means, wrapped.objective.means)


def test_every_weight_learns_under_awp_and_autocast():
    model = SmallCNN(width=4).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective_named("trades", {"steps": 1}, awp=0.01, awp_warmup=0.0)(model, GIVEN, LINF)
    loss.value.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0
