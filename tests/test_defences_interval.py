"""Interval bounds: sound everywhere, exact where they can be, and caught when they are wrong."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from holdfast.certification import bounds as interval
from holdfast.certification.bounds import (
    ibp_loss,
    logit_bounds,
    margin_bounds,
    outside_bounds,
    verified,
)
from holdfast.errors import InputError
from holdfast.models.layers import Normalise


def network(seed: int, channels: int = 2, classes: int = 4) -> nn.Module:
    """Every layer there is a rule for, with batch norm of either sign, on 8×8 images."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        Normalise([0.4] * channels, [0.3] * channels),
        nn.Conv2d(channels, 6, 3, stride=1, padding=1, groups=2 if channels % 2 == 0 else 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(6, 4, 2, dilation=2, bias=False), nn.ReLU()),
        nn.Identity(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.ReLU(),
        nn.Linear(12, classes, bias=bool(seed % 2)),
    ).eval()
    with torch.no_grad():
        norm = model[2]
        norm.weight.normal_()
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1 / 255, 8 / 255, 0.3, 1.0]))
def test_no_point_of_the_ball_leaves_the_bounds(seed, eps):
    model, images = network(seed), torch.rand(4, 2, 8, 8)
    bounds = logit_bounds(model, images, eps)
    assert (bounds[0] <= bounds[1]).all()
    assert not outside_bounds(model, images, eps, bounds, points=8, seed=seed).any()
    labels = torch.randint(0, 4, (4,))
    margins = margin_bounds(model, images, labels, eps)
    own = (torch.arange(4), labels)
    # Taking the difference inside the last layer never loosens it.
    assert (
        (margins >= bounds[0][own].unsqueeze(1) - bounds[1] - 1e-4)
        .scatter(1, labels[:, None], True)
        .all()
    )
    for _ in range(4):
        inside = (images + eps * (torch.rand_like(images) * 2 - 1)).clamp(0, 1)
        logits = model(inside)
        assert (logits[own].unsqueeze(1) - logits >= margins - 1e-4).all()


def test_a_linear_models_bounds_are_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    images = torch.rand(5, 2, 2, 2) * 0.6 + 0.2  # the ball stays clear of the box
    lower, upper = logit_bounds(model, images, 0.1)
    reach = 0.1 * model[1].weight.abs().sum(1)
    assert torch.allclose(upper, model(images) + reach, atol=1e-6)
    assert torch.allclose(lower, model(images) - reach, atol=1e-6)
    labels = torch.tensor([0, 1, 2, 0, 1])
    gaps = model[1].weight[labels].unsqueeze(1) - model[1].weight
    logits = model(images)
    exact = logits.gather(1, labels[:, None]) - logits - 0.1 * gaps.abs().sum(2)
    assert torch.allclose(margin_bounds(model, images, labels, 0.1), exact, atol=1e-6)


def test_the_box_cuts_the_ball():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    black = torch.zeros(1, 1, 2, 2)
    assert torch.equal(logit_bounds(model, black, 1.0)[0], logit_bounds(model, black, 5.0)[0])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_wrong_bound_is_caught(monkeypatch, share):
    """Intervals that come out of every affine layer narrower than they are."""
    model, images = network(1), torch.rand(8, 2, 8, 8)
    honest = interval._affine

    def too_narrow(bounds, apply, spread):
        return honest(bounds, apply, lambda radius: share * spread(radius))

    monkeypatch.setattr(interval, "_affine", too_narrow)
    # One linear layer, whose bounds are tight, shows any shortfall; a deep one a large one.
    shallow = nn.Sequential(nn.Flatten(), nn.Linear(128, 4))
    assert outside_bounds(shallow, images, 0.1, logit_bounds(shallow, images, 0.1)).all()
    if share == 0:
        assert outside_bounds(model, images, 0.1, logit_bounds(model, images, 0.1)).all()


def test_a_forgotten_absolute_value_is_caught(monkeypatch):
    model, images = network(2), torch.rand(8, 2, 8, 8)
    honest = interval._affine

    def signed(bounds, apply, spread):
        lower, upper = bounds
        return apply(lower), apply(upper)

    assert not outside_bounds(model, images, 0.1, logit_bounds(model, images, 0.1)).any()
    monkeypatch.setattr(interval, "_affine", signed)
    assert outside_bounds(model, images, 0.1, logit_bounds(model, images, 0.1)).any()
    monkeypatch.setattr(interval, "_affine", honest)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images / 16).float().unsqueeze(1), torch.from_numpy(data.target)


def train(digits, eps: float) -> nn.Module:
    images, labels = digits[0][:1200], digits[1][:1200]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    steps = 200
    for step in range(steps):
        rows = torch.randint(0, len(images), (100,))
        ramp = min(1.0, 2 * step / steps)
        loss = ibp_loss(model, images[rows], labels[rows], ramp * eps, 1 - ramp / 2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def test_interval_training_makes_a_network_that_can_be_verified(digits):
    images, labels = digits[0][1200:], digits[1][1200:]
    plain, certified = train(digits, 0.0), train(digits, 0.08)
    eps = 0.08
    before = verified(plain, images, labels, eps)
    after = verified(certified, images, labels, eps)
    assert before.float().mean() < 0.2
    assert after.float().mean() > 0.5

    # certified ≤ attacked: what is verified stands against an attack that does break others
    x = images.clone()
    for _ in range(20):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(certified(x), labels), x)
        x = (x.detach() + 0.02 * gradient.sign()).clamp(images - eps, images + eps).clamp(0, 1)
    standing = certified(x).argmax(1) == labels
    right = certified(images).argmax(1) == labels
    assert not (after & ~standing).any()
    assert after.sum() <= standing.sum() < right.sum()


def test_radius_zero_verifies_what_is_right(digits):
    images, labels = digits[0][:200], digits[1][:200]
    model = train(digits, 0.0)
    right = model(images).argmax(1) == labels
    assert torch.equal(verified(model, images, labels, 0), right)
    clean = F.cross_entropy(model(images), labels)
    assert torch.allclose(ibp_loss(model, images, labels, 0), clean, atol=1e-4)
    assert torch.allclose(ibp_loss(model, images, labels, 0.2, clean_share=1), clean)
    assert ibp_loss(model, images, labels, 0.2) > clean


@pytest.mark.parametrize(
    ("model", "eps", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(4, 2)), 0.1, "no rule for GELU"),
        (nn.Linear(4, 2), 0.1, "need an nn.Sequential .* this is a Linear"),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()), 0.1, r"call model.eval\(\)"),
        (nn.Sequential(nn.Flatten()), -0.1, "eps must be a number above 0, not -0.1"),
    ],
)
def test_bad_input(model, eps, message):
    with pytest.raises(InputError, match=message):
        logit_bounds(model, torch.rand(1, 1, 2, 2), eps)


def test_labels_out_of_range_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"labels\[0\] is 2"):
        verified(model, torch.rand(1, 1, 2, 2), torch.tensor([2]), 0.1)
