"""What attacks climb: signs, published formulas, invariances."""

from __future__ import annotations

import pytest
import torch

from holdfast.attacks.losses import (
    LOSSES,
    best_other,
    cross_entropy,
    difference_of_logits_ratio,
    loss_named,
    margin,
    margin_loss,
)
from holdfast.errors import InputError

NONE = torch.tensor([-1])


def logits(n: int, classes: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_the_margin_is_negative_exactly_where_the_answer_is_wrong(classes):
    z = logits(200, classes)
    labels = torch.arange(200) % classes
    assert torch.equal(margin(z, labels) < 0, z.argmax(1) != labels)


def test_best_other_leaves_the_label_out():
    z = torch.tensor([[1.0, 5.0, 3.0], [9.0, -2.0, -7.0]])
    assert best_other(z, torch.tensor([1, 0])).tolist() == [3.0, -2.0]


def test_cross_entropy_is_minus_the_log_of_the_softmax():
    z, labels = logits(20, 5), torch.arange(20) % 5
    expected = -z.softmax(1).log().gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(cross_entropy(z, labels, NONE.expand(20)), expected)


def test_dlr_is_the_published_formula():
    # Sorted: 7 (label), 4, 2, −1, −3.
    z, label = torch.tensor([[2.0, 7.0, -3.0, 4.0, -1.0]]), torch.tensor([1])
    assert float(difference_of_logits_ratio(z, label, NONE)) == pytest.approx(-(7 - 4) / (7 - 2))
    for target, other in ((3, 4.0), (0, 2.0), (2, -3.0)):
        value = float(difference_of_logits_ratio(z, label, torch.tensor([target])))
        assert value == pytest.approx(-(7 - other) / (7 - (2 - 1) / 2))
    # Misclassified: the numerator turns positive, the denominator is of the sorted logits.
    value = float(difference_of_logits_ratio(z, torch.tensor([0]), NONE))
    assert value == pytest.approx((7 - 2) / (7 - 2))


@pytest.mark.parametrize("target", [-1, 0])
def test_dlr_knows_neither_shift_nor_scale(target):
    z = logits(50, 6)
    labels, targets = torch.full((50,), 3), torch.full((50,), target)
    plain = difference_of_logits_ratio(z, labels, targets)
    torch.testing.assert_close(
        difference_of_logits_ratio(100 * z - 7, labels, targets), plain, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("classes", [2, 3, 4, 7])
def test_losses_fall_with_the_label_and_rise_towards_being_fooled(name, classes):
    z = logits(40, classes).requires_grad_()
    labels = z.argmax(1)  # all right, as where an attack begins
    loss = LOSSES[name](z, labels, NONE.expand(40))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert (gradient.gather(1, labels[:, None]) < 0).all()
    runner_up = z.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)
    assert (gradient.gather(1, runner_up[:, None]) > 0).all()


@pytest.mark.parametrize("name", ["dlr", "margin"])
@pytest.mark.parametrize("classes", [2, 3, 4, 7])
def test_targeted_losses_rise_with_the_target_and_fall_with_the_label(name, classes):
    z = logits(40, classes)
    labels = z.argmax(1)
    targets = (labels + 1 + torch.arange(40) % (classes - 1)) % classes
    rows = torch.arange(40)
    step = 1e-2

    def change(column, amount):
        moved = z.double()
        before = LOSSES[name](moved, labels, targets)
        moved = moved.index_put((rows, column), torch.tensor(amount).double(), accumulate=True)
        return LOSSES[name](moved, labels, targets) - before

    assert (change(targets, step) > 0).all()
    if name == "margin":  # for far targets, the label raises DLR's denominator even more
        assert (change(labels, step) < 0).all()


@pytest.mark.parametrize("name", ["dlr", "margin"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_targeted_loss_is_positive_once_the_target_leads_the_label(name, classes):
    z = logits(100, classes)
    labels, targets = torch.zeros(100, dtype=torch.int64), torch.full((100,), classes - 1)
    assert torch.equal(LOSSES[name](z, labels, targets) > 0, z[:, -1] > z[:, 0])


def test_untargeted_and_targeted_items_share_a_batch():
    z, labels = logits(6, 5), torch.zeros(6, dtype=torch.int64)
    targets = torch.tensor([-1, 1, -1, 2, 3, -1])
    for name in ("dlr", "margin"):
        together = LOSSES[name](z, labels, targets)
        for i in range(6):
            alone = LOSSES[name](z[i : i + 1], labels[i : i + 1], targets[i : i + 1])
            assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
def test_gradients_are_finite_where_all_logits_are_equal(name, classes, value):
    z = torch.full((2, classes), value, requires_grad=True)
    loss = LOSSES[name](z, torch.tensor([0, 1]), torch.tensor([-1, 0]))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


def test_margin_loss_is_minus_the_margin():
    z, labels = logits(30, 4), torch.arange(30) % 4
    torch.testing.assert_close(margin_loss(z, labels, NONE.expand(30)), -margin(z, labels))


def test_unknown_losses_are_refused_and_the_known_ones_named():
    with pytest.raises(InputError, match="ce, dlr, margin"):
        loss_named("cw")
