"""Muon steps equally far in all directions; what it does not step, SGD steps as PyTorch's does."""

from __future__ import annotations

import copy

import pytest
import torch
from test_training import same, tiny, trainer
from torch import Tensor, nn

from holdfast.models import SmallCNN
from holdfast.training.optimisers import Muon, optimiser_for, orthogonalised
from holdfast.training.recipe import OptimiserSpec

MUON = {"name": "muon", "matrix_rate": 0.05}


def matrix(rows: int, columns: int, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S Vᵀ-composed matrix, V with the given singular values."""
    torch.manual_seed(4)
    u = torch.linalg.qr(torch.randn(rows, len(values)))[0]
    v = torch.linalg.qr(torch.randn(columns, len(values)))[0]
    return u, (u * values) @ v.T, v


@pytest.mark.parametrize(("rows", "columns"), [(16, 60), (60, 16), (16, 16)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_values_come_near_one_and_vectors_stay(rows, columns, scale):
    values = torch.linspace(0.1, 1, 16)
    u, given, v = matrix(rows, columns, values * scale)
    made = orthogonalised(given)
    assert made.shape == given.shape
    assert made.dtype == given.dtype
    found = torch.linalg.svdvals(made)
    assert found.min() > 0.5
    assert found.max() < 1.3
    inside = u.T @ made @ v
    # In the matrix's own singular vectors it is diagonal, up to bfloat16, and positive.
    off = inside - inside.diag().diag()
    assert off.abs().max() < 0.03
    assert inside.diag().min() > 0.5


def test_directions_that_are_tiny_stay_small():
    _, given, _ = matrix(8, 8, torch.tensor([1.0] * 7 + [1e-5]))
    found = torch.linalg.svdvals(orthogonalised(given))
    assert found[6] > 0.5
    assert found[7] < 0.1


def gradients_for(parameters: list[Tensor], steps: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [[torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(steps)]


@pytest.mark.parametrize("decay", [0.0, 5e-3])
def test_groups_that_are_not_orthogonalised_are_nesterov_sgd_bit_for_bit(decay):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(9))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon([{"params": ours, "weight_decay": decay}], lr=0.3, momentum=0.8)
    sgd = torch.optim.SGD(theirs, lr=0.3, momentum=0.8, nesterov=True, weight_decay=decay)
    for step, gradients in enumerate(gradients_for(ours, 6)):
        for optimiser, parameters in ((muon, ours), (sgd, theirs)):
            for group in optimiser.param_groups:
                group["lr"] = 0.3 / (1 + step)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimiser.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_convolution_keeps_its_norm_and_moves_along_the_orthogonalised_momentum():
    torch.manual_seed(1)
    weight = nn.Parameter(7 * torch.randn(12, 5, 3, 3))
    muon = Muon([{"params": [weight], "orthogonalise": True}], lr=0.04, momentum=0.9)
    momentum = torch.zeros_like(weight)
    for (gradient,) in gradients_for([weight], 5):
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        muon.step()
        momentum = 0.9 * momentum + gradient
        direction = orthogonalised((gradient + 0.9 * momentum).flatten(1)).view_as(weight)
        expected = before * 12**0.5 / before.norm() - 0.04 * direction
        assert torch.allclose(weight, expected, atol=1e-6)
        change = (weight - before * 12**0.5 / before.norm()).norm() / 12**0.5
        assert 0.5 * 0.04 < change < 1.3 * 0.04  # the relative change that `lr` names
    assert float(weight.detach().norm()) == pytest.approx(12**0.5, rel=0.06)


@pytest.mark.parametrize("name", ["sgd", "muon", "adam"])
def test_every_weight_is_in_one_group_with_its_peak(name):
    model = SmallCNN(width=3)
    spec = OptimiserSpec(name=name, learning_rate=0.2, matrix_rate=0.03, bias_rate=16.0)
    groups = optimiser_for(model, spec).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    peaks = {id(p): group["peak"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        norm = key in ("body.1.weight", "body.4.weight", "body.7.weight")
        norm_bias = key in ("body.1.bias", "body.4.bias", "body.7.bias")
        expected = 0.03 if name == "muon" and parameter.ndim == 4 else 3.2 if norm_bias else 0.2
        assert peaks[id(parameter)] == pytest.approx(expected), key
        if norm or norm_bias or parameter.ndim == 1:
            assert decays[id(parameter)] == 0
    plain = optimiser_for(model, OptimiserSpec(name=name)).param_groups
    assert len(plain) == len(groups) - 1  # biases with the others: checkpoints keep their order


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": {"name": "sgd"}},
        {"optimiser": MUON},
        {"optimiser": {"name": "adam", "learning_rate": 0.01}},
        {"objective": {"name": "ikl", "arguments": {"steps": 2}}},  # which remembers class means
        {"objective": {"name": "dajat", "awp": 0.01, "awp_warmup": 0.1}},
    ],
    ids=["sgd", "muon", "adam", "ikl", "awp"],
)
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, changes):
    recipe = tiny(**changes)
    whole, parted = trainer(tmp_path / "a", recipe), trainer(tmp_path / "b", recipe)
    for one in (whole, parted):
        one.model.train()
        for _ in range(2):
            one._step()
            one.schedule.advance(0.1)
    parted.save("latest")
    resumed = trainer(tmp_path / "b", recipe)
    assert resumed.restore("latest")
    resumed.model.train()
    start = copy.deepcopy(resumed.tensors())
    for one in (whole, resumed):
        for _ in range(3):
            one._step()
            one.schedule.advance(0.1)
    assert same(whole.tensors(), resumed.tensors())
    assert not same(start, resumed.tensors())
