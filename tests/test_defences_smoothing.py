"""Randomised smoothing against the linear classifier, whose smoothed version is known exactly."""

import pytest
import torch
from scipy import stats
from torch import nn

from holdfast.certification.smoothing import (
    ABSTAIN,
    Certificates,
    Smoothed,
    certified_accuracy,
)
from holdfast.errors import InputError

SIGMA = 0.25


def linear(classes: int = 2) -> nn.Module:
    """Classes 0 and 1 share a boundary through the middle of the box; the others never win."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).eval()
    direction = torch.randn(16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[1] = direction / direction.norm()
        model[1].bias.fill_(-100)
        model[1].bias[:2] = torch.tensor([0.0, float(-model[1].weight[1].sum() / 2)])
    return model


def images(count: int = 40) -> torch.Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_certified_radius_is_just_inside_the_distance_to_the_boundary():
    model, x = linear(3), images()
    margins = model(x)[:, 1].detach()  # signed distance in L2: the weights have norm 1
    certificates = Smoothed(model, SIGMA).certify(x, n0=50, n=4000, alpha=0.001)
    distance, sure = margins.abs().double(), certificates.prediction != ABSTAIN
    assert torch.equal(certificates.prediction[sure], (margins > 0).long()[sure])
    # True with probability 1 − 0.001 for each of 40 images: a failure of any has 4 %, and
    # the seed is fixed.
    assert (certificates.radius <= distance).all()
    # What 4000 samples can certify: σ Φ⁻¹ of a bound on an observed frequency near Φ(d / σ).
    expected = stats.norm.cdf(distance / SIGMA)
    deviation = 5 * (expected * (1 - expected) / 4000) ** 0.5 + 0.003
    reachable = SIGMA * torch.from_numpy(stats.norm.ppf((expected - deviation).clip(0.5)))
    assert (certificates.radius >= reachable).all()
    assert sure.sum() > 25 and (certificates.radius[~sure] == 0).all()


def test_it_abstains_on_the_boundary():
    model = linear()
    middle = torch.full((6, 1, 4, 4), 0.5)  # exactly on it
    smoothed = Smoothed(model, SIGMA)
    assert (smoothed.certify(middle, n=500).prediction == ABSTAIN).all()
    assert (smoothed.predict(middle, n=500) == ABSTAIN).all()


def test_predict_is_the_binomial_test_of_the_two_top_classes():
    smoothed, x = Smoothed(linear(3), 1.0), images(12)
    counts = smoothed.counts(x, 60, "predict")
    assert (counts.sum(1) == 60).all()
    answers = smoothed.predict(x, n=60, alpha=0.05)
    for row, answer in zip(counts, answers, strict=True):
        (first, second), order = row.topk(2)
        p_value = stats.binomtest(int(first), int(first + second), 0.5).pvalue
        assert answer == (order[0] if p_value <= 0.05 else ABSTAIN)
    assert 0 < (answers == ABSTAIN).sum() < len(answers)


def test_an_images_noise_depends_on_nothing_but_seed_and_index():
    model, x = linear(), images(7)
    whole = Smoothed(model, SIGMA, batch_size=512).certify(x, n=300)
    pieces = Smoothed(model, SIGMA, batch_size=13)
    parts = [
        pieces.certify(x[i : i + 1], n=300, indices=torch.tensor([i])) for i in reversed(range(7))
    ][::-1]
    assert torch.equal(whole.prediction, torch.cat([p.prediction for p in parts]))
    assert torch.equal(whole.radius, torch.cat([p.radius for p in parts]))
    other = Smoothed(model, SIGMA, seed=1)
    assert not torch.equal(other.counts(x, 300, "estimate"), pieces.counts(x, 300, "estimate"))
    assert not torch.equal(pieces.counts(x, 300, "select"), pieces.counts(x, 300, "estimate"))


class Watch(nn.Module):
    """Keeps what it is shown and always answers class 0."""

    def __init__(self):
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        self.seen.append(x)
        return torch.eye(2)[:1].expand(len(x), 2)


def test_noise_has_the_stated_width_and_is_not_clipped():
    watch = Watch()
    Smoothed(watch, 0.5).counts(torch.ones(1, 1, 4, 4), 2000, "estimate")
    seen = torch.cat(watch.seen)
    assert float(seen.std()) == pytest.approx(0.5, rel=0.02)
    assert float(seen.mean()) == pytest.approx(1, abs=0.01)
    assert len(seen.unique(dim=0)) == 2000


def test_the_class_is_chosen_and_its_probability_bounded_with_different_noise():
    watch = Watch()
    Smoothed(watch, 0.5).certify(torch.ones(2, 1, 4, 4), n0=30, n=50)
    assert len(torch.cat(watch.seen).unique(dim=0)) == 2 * (30 + 50)


def test_an_abstention_is_never_right():
    certificates = Certificates(
        torch.tensor([ABSTAIN, 1, 1, 0]), torch.tensor([0.0, 0.3, 0.1, 0.9], dtype=torch.float64)
    )
    labels = torch.tensor([0, 1, 1, 1])
    assert certified_accuracy(certificates, labels, [0, 0.2, 0.3, 0.5]) == [0.5, 0.25, 0.25, 0]
    with pytest.raises(InputError, match=r"labels\[0\] is -1"):
        certified_accuracy(certificates, torch.tensor([ABSTAIN, 1, 1, 1]), [0])


def test_the_model_is_run_in_eval_mode_and_left_as_it_was():
    class Spy(nn.Module):
        modes = ()

        def forward(self, x):
            self.modes += (self.training,)
            return torch.zeros(len(x), 2)

    model = nn.Sequential(Spy(), nn.Dropout())
    model[1].eval()
    Smoothed(model, SIGMA).counts(images(1), 5, "predict")
    assert model[0].modes == (False,)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Smoothed(linear(), -0.1), "sigma must be a number above 0, not -0.1"),
        (lambda: Smoothed(linear(), 0.1, batch_size=0), "batch_size"),
        (lambda: Smoothed(linear(), 0.1).certify(images(1), n=0), "n must be"),
        (lambda: Smoothed(linear(), 0.1).certify(images(1), n0=0), "n0 must be"),
        (lambda: Smoothed(linear(), 0.1).certify(images(1), n=9, alpha=0), "alpha must be"),
        (lambda: Smoothed(linear(), 0.1).predict(images(1) * 2), r"outside \[0, 1\]"),
        (
            lambda: Smoothed(linear(), 0.1).predict(images(2), indices=torch.arange(3)),
            r"indices must have shape \(2,\), not \(3,\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
