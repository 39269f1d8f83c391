"""Averages forget the random start, and batch-norm statistics belong to the weights they serve."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from holdfast.training.averaging import (
    WeightAverage,
    batch_norms,
    estimate_statistics,
    frozen_statistics,
)


class Scalar(nn.Module):
    def __init__(self, value: float):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value, dtype=torch.float64))


def network(momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False),
        nn.BatchNorm2d(3, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
        nn.BatchNorm1d(5, momentum=momentum),
    )


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.998])
def test_the_average_is_the_closed_form(decay):
    start, values = 1e6, [math.sin(k) for k in range(60)]
    live = Scalar(start)
    average = WeightAverage(live, decay)
    # Each value's share by hand: what it brought in, times what all later steps left of it.
    decays = [min(decay, t / (t + 9)) for t in range(1, len(values) + 1)]
    for t, value in enumerate(values):
        with torch.no_grad():
            live.weight.fill_(value)
        average.update(live)
        left = math.prod(decays[: t + 1])
        shares = [(1 - decays[k]) * math.prod(decays[k + 1 : t + 1]) for k in range(t + 1)]
        assert left + sum(shares) == pytest.approx(1)
        expected = start * left + sum(s * v for s, v in zip(shares, values[: t + 1], strict=True))
        assert float(average.model.weight) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_random_start_is_gone_within_the_first_steps():
    live = Scalar(1.0)
    average = WeightAverage(live, 0.999)
    with torch.no_grad():
        live.weight.zero_()
    left = []
    for _ in range(10):
        average.update(live)
        left.append(float(average.model.weight))
    assert left[0] == pytest.approx(0.1)
    assert left[1] == pytest.approx(0.1 * 2 / 11)
    assert left[-1] < 2e-5


def test_the_average_is_the_models_own_copy():
    live = network()
    flags = [p.requires_grad for p in live.parameters()]
    live[0].weight.requires_grad_(False)
    flags[0] = False
    average = WeightAverage(live, 0.9)
    before = state(live)
    average.update(live)
    assert same(state(live), before)
    assert [p.requires_grad for p in live.parameters()] == flags
    assert not any(p.requires_grad for p in average.model.parameters())
    assert not {p.data_ptr() for p in live.parameters()} & {
        p.data_ptr() for p in average.model.parameters()
    }


def test_batch_norm_statistics_are_not_averaged():
    live = network().train()
    average = WeightAverage(live, 0.9)
    untouched = [norm.running_mean.clone() for norm in batch_norms(average.model)]
    for _ in range(3):
        live(torch.rand(8, 2, 6, 6))
        average.update(live)
    for norm, own, start in zip(
        batch_norms(average.model), batch_norms(live), untouched, strict=True
    ):
        assert torch.equal(norm.running_mean, start)
        assert not torch.equal(own.running_mean, start)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_estimated_statistics_equal_those_by_hand(momentum):
    model = network(momentum)
    model(torch.rand(4, 2, 6, 6) * 9)  # statistics that must be forgotten
    batches = [
        torch.rand(16, 2, 6, 6, generator=torch.Generator().manual_seed(k)) for k in range(4)
    ]
    convolved = [model[0](b) for b in batches]
    mean = torch.stack([c.mean((0, 2, 3)) for c in convolved]).mean(0)
    var = torch.stack([c.var((0, 2, 3), unbiased=True) for c in convolved]).mean(0)
    estimate_statistics(model, iter(batches))
    assert torch.allclose(model[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(model[1].running_var, var, atol=1e-6)
    assert not model.training
    assert [norm.momentum for norm in batch_norms(model)] == [momentum] * 2
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    # The second norm sees the first one normalising by the batch, not by running averages.
    hidden = [
        model[4](torch.relu(nn.functional.batch_norm(c, None, None, training=True)).flatten(1))
        for c in convolved
    ]
    assert torch.allclose(
        model[5].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0), atol=1e-5
    )


def test_estimating_without_batch_norms_only_sets_eval_mode():
    model = nn.Linear(2, 2).train()

    def never():
        raise AssertionError("there is nothing to estimate")
        yield

    estimate_statistics(model, never())
    assert not model.training


def test_an_error_while_estimating_leaves_the_momentum_as_it_was():
    model = network()
    with pytest.raises(RuntimeError):
        estimate_statistics(model, [torch.rand(4, 7, 6, 6)])
    assert [norm.momentum for norm in batch_norms(model)] == [0.1, 0.1]


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_frozen_statistics_stay_bit_for_bit(momentum):
    model = network(momentum).train()
    model(torch.rand(8, 2, 6, 6))
    before = state(model)
    with frozen_statistics(model):
        frozen = model(torch.rand(8, 2, 6, 6) * 50)
        model(torch.full((8, 2, 6, 6), torch.nan))  # 0 × NaN must not get in either
    assert same(state(model), before)
    assert model.training
    # Inside, the batch's own statistics were used.
    assert torch.allclose(frozen.mean(0), torch.zeros(5), atol=1e-4)
    model(torch.rand(8, 2, 6, 6))
    assert not same(state(model), before)  # outside, they move again


def test_frozen_statistics_are_released_after_an_exception():
    model = network().train()
    fast_copy = copy.deepcopy(model)
    with pytest.raises(KeyError), frozen_statistics(model):
        raise KeyError
    x = torch.rand(8, 2, 6, 6)
    model(x)
    fast_copy(x)
    assert same(state(model), state(fast_copy))


def test_frozen_statistics_are_those_of_eval_mode_too():
    model = network().eval()
    x = torch.rand(8, 2, 6, 6)
    with frozen_statistics(model):
        inside = model(x)
    assert torch.equal(inside, model(x))


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_a_memory_that_is_a_share_of_the_run(share: float) -> None:
    """Step s of t has the weight s^(1/share − 1), whatever t is; its mean age is a share of t."""
    live = nn.Linear(1, 1, bias=False)
    average = WeightAverage(live, 0.999, share)
    for steps in (200, 800):
        while average.steps < steps:
            with torch.no_grad():
                live.weight.fill_(average.steps + 1)
            average.update(live)
        power = 1 / share - 1
        weights = (torch.arange(1, steps + 1) / steps).double() ** power
        expected = (weights * torch.arange(1, steps + 1)).sum() / weights.sum()
        assert average.model.weight.item() == pytest.approx(float(expected), rel=0.005)
        age = 1 - average.model.weight.item() / steps
        assert age == pytest.approx(share / (1 + share), abs=0.005)
