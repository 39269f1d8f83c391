"""Calibrators: the optimum they claim, what they keep, and what they repair."""

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from sklearn.isotonic import IsotonicRegression
from torch import nn

from holdfast.errors import InputError
from holdfast.uncertainty import metrics
from holdfast.uncertainty.calibration import (
    Calibrated,
    IsotonicScaling,
    TemperatureScaling,
    VectorScaling,
)

ALL = [TemperatureScaling, VectorScaling, IsotonicScaling]


def sample(n, seed, classes=4):
    """True logits (N, K) and labels drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, classes, dtype=torch.float64, generator=generator)
    return z, torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]


def test_temperature_is_the_optimum():
    z, y = sample(3000, 0)
    z = 3 * z
    found = TemperatureScaling.fit(z, y).temperature
    best = scipy.optimize.minimize_scalar(
        lambda t: F.cross_entropy(z / t, y).item(), bounds=(0.5, 10), method="bounded"
    )
    assert found == pytest.approx(best.x, rel=1e-3)
    assert found == pytest.approx(3, rel=0.05)


def test_vector_scaling_finds_slopes_and_offsets():
    z, y = sample(20_000, 1)
    slope = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    offset = torch.tensor([1.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    found = VectorScaling.fit((z - offset) / slope, y)
    assert found.slope.numpy() == pytest.approx(slope.numpy(), rel=0.06)
    # Only differences of offsets can be seen.
    shift = (found.offset - offset) - (found.offset - offset).mean()
    assert shift.abs().max() < 0.08
    # And it is a minimum: no small change of any parameter is likelier.
    skewed = (z - offset) / slope
    least = F.cross_entropy(found(skewed), y)
    for k in range(4):
        for step in (-0.01, 0.01):
            for part in ("slope", "offset"):
                moved = {"slope": found.slope.clone(), "offset": found.offset.clone()}
                moved[part][k] += step
                assert F.cross_entropy(VectorScaling(**moved)(skewed), y) > least - 1e-9


def test_isotonic_curves_are_sklearns():
    z, y = sample(800, 2)
    fitted = IsotonicScaling.fit(3 * z, y)
    new, _ = sample(300, 3)
    frequencies = []
    for k in range(4):
        curve = IsotonicRegression(y_min=0.5 / 800, y_max=1, out_of_bounds="clip")
        curve.fit((3 * z).softmax(1)[:, k].numpy(), (y == k).numpy())
        frequencies.append(curve.predict((3 * new).softmax(1)[:, k].numpy()))
    expected = np.stack(frequencies, 1)
    expected /= expected.sum(1, keepdims=True)
    assert fitted(3 * new).softmax(1).numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_calibrates_images_it_was_not_fitted_on(kind):
    z, y = sample(6000, 4)
    new, labels = sample(6000, 5)
    fitted = kind.fit((3 * z).float(), y)
    before = metrics.ece((3 * new).softmax(1), labels)
    after = metrics.ece(fitted((3 * new).float()).softmax(1), labels)
    assert before > 0.1
    # One against the rest, isotonic scaling cannot undo a temperature exactly.
    assert after < (0.05 if kind is IsotonicScaling else 0.03)


@pytest.mark.parametrize("kind", ALL)
def test_wraps_a_model_and_keeps_the_graph(kind):
    z, y = sample(500, 6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    wrapped = Calibrated(model, kind.fit(z, y))
    images = torch.rand(5, 3, 2, 2, requires_grad=True)
    logits = wrapped(images)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, wrapped.calibrator(model(images)))
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images)
    assert gradient.isfinite().all()
    assert kind is IsotonicScaling or gradient.abs().sum() > 0
    if kind is TemperatureScaling:
        assert torch.equal(logits.argmax(1), model(images).argmax(1))


@pytest.mark.parametrize("kind", ALL)
def test_images_that_are_all_right_leave_it_finite(kind):
    y = torch.arange(40) % 4
    fitted = kind.fit(F.one_hot(y, 4) * 5.0, y)
    logits = fitted(F.one_hot(y, 4) * 5.0)
    assert logits.isfinite().all()
    assert (logits.argmax(1) == y).all()


def test_logits_that_say_the_opposite_leave_a_positive_temperature():
    y = torch.arange(400) % 4
    temperature = TemperatureScaling.fit(-3.0 * F.one_hot(y, 4), y).temperature
    assert temperature > 10  # as flat as it may be, and never negative


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda z, y: (z, y.where(y != 2, 0)), "no image of class 2"),
        (lambda z, y: (z.where(y[:, None] != 2, torch.nan), y), "NaN or infinite"),
        (lambda z, y: (z, y + 1), "is 4, out of range"),
        (lambda z, y: (z, y[1:]), "labels must have shape (100,), not (99,)"),
        (lambda z, y: (z, y + 0.5), "must be whole numbers"),
        (lambda z, y: (z[:, 0], y), "shape (N, K)"),
    ],
)
def test_bad_input(kind, spoil, says):
    with pytest.raises(InputError) as error:
        kind.fit(*spoil(*sample(100, 7)))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
