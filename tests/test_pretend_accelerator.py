"""The pretend accelerator fails where CUDA fails, and passes what CUDA passes: else it is no test
of anything."""

from __future__ import annotations

import copy

import pretend_accelerator as pretend
import pytest
import torch
from torch import nn

HERE = pretend.DEVICE
SAME = "same device"


def there() -> torch.Tensor:
    """Three rows of two numbers on the device."""
    return torch.tensor([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0]], device=HERE)


CPU = torch.ones(3, 2)
ROWS = torch.tensor([0, 2])
MASK = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: x + CPU, SAME),
        (lambda x: CPU - x, SAME),
        (lambda x: x.add_(CPU), SAME),
        (lambda x: CPU.clone().mul_(x), SAME),
        (lambda x: x + torch.ones(1), SAME),  # one number, but of one dimension
        (lambda x: x.sum() + CPU, SAME),  # the device's is the number
        (lambda x: torch.zeros(()).add_(x[0, 0]), SAME),  # a CPU number that is written to
        (lambda x: x == CPU, SAME),
        (lambda x: torch.where(x > 0, x, CPU), SAME),
        (lambda x: torch.where(CPU > 0, x, x), SAME),
        (lambda x: torch.minimum(x, CPU), SAME),
        (lambda x: x.clamp(CPU, None), SAME),
        (lambda x: torch.cat([x, CPU]), SAME),
        (lambda x: torch.stack([CPU, x]), SAME),
        (lambda x: x @ CPU.T, SAME),
        (lambda x: x.masked_fill(CPU > 0, 0.0), SAME),
        (lambda x: x.gather(0, ROWS[:, None]), SAME),
        (lambda x: x.scatter(0, ROWS[:, None], 1.0), SAME),
        (lambda x: x.index_select(0, ROWS), SAME),
        (lambda x: x.index_add_(0, ROWS, CPU[:2]), SAME),
        (lambda x: x.index_put_((ROWS,), CPU[:2]), SAME),
        (lambda x: nn.functional.cross_entropy(x, torch.tensor([0, 1, 0])), SAME),
        (lambda x: nn.Linear(2, 2)(x), SAME),
        (lambda x: nn.Linear(2, 2).to(HERE)(CPU), SAME),
        (lambda x: nn.Conv2d(1, 1, 1)(x.view(1, 1, 3, 2)), SAME),
        (lambda x: nn.BatchNorm1d(2)(x), SAME),
        (lambda x: torch.sub(x, 1, out=torch.empty(3, 2)), SAME),
        (lambda x: CPU[ROWS.to(HERE)], "indices should be either on cpu or on the same device"),
        (lambda x: CPU[x[:, 0] > 0], "indices should be either on cpu or on the same device"),
        (lambda x: CPU.clone().index_put_((ROWS.to(HERE),), x[:2]), "indices should be either"),
        (lambda x: x.numpy(), "can't convert"),
        (lambda x: x.__array__(), "can't convert"),
        (lambda x: torch.randn(3, device=HERE, generator=torch.Generator()), "for generator"),
        (lambda x: x.uniform_(generator=torch.Generator()), "for generator"),
        (lambda x: torch.randperm(3, device=HERE, generator=torch.Generator()), "for generator"),
        (lambda x: torch.rand(3, device=HERE) + CPU[:, 0], SAME),
    ],
)
def test_what_cuda_refuses_is_refused(call, says):
    with pytest.raises((RuntimeError, TypeError), match=says):
        call(there())


@pytest.mark.parametrize(
    "call",
    [
        lambda x, home: x[ROWS],
        lambda x, home: x[MASK],
        lambda x, home: x[:, 0][ROWS.to(home)],
        lambda x, home: x[x[:, 0] > 0],
        lambda x, home: x.index_put((ROWS,), torch.zeros((), device=home)),
        lambda x, home: torch.where(x > 0, x, torch.tensor(0.0)),
        lambda x, home: x * torch.tensor(2.0) + 1,
        lambda x, home: torch.arange(6, device=home).view(3, 2) // 2 % 2 * x,
        lambda x, home: torch.tensor([[2.0, 3.0]], device=home) - x,
        lambda x, home: torch.full((3, 2), 0.5, device=home).maximum(x),
        lambda x, home: torch.zeros_like(x).scatter_(1, x.argmax(1, keepdim=True), 1.0),
        lambda x, home: torch.eye(2, device=home) @ x.T,
        lambda x, home: x.new_tensor([1.0, 2.0]) * x,
        lambda x, home: x.sort(dim=0).values + x.topk(1, dim=1).values,
        lambda x, home: x.to("cpu").to(home, torch.float64).to(x),
        lambda x, home: torch.linspace(0, 1, 2, device=home) + x,
        lambda x, home: x.isfinite() & (x > 0) | (x == -1),
        lambda x, home: (x * 3).long() & 3 ^ 1,
        lambda x, home: x.t().contiguous().flatten().unfold(0, 2, 2),
        lambda x, home: copy.deepcopy(x).clamp_(-1, 1),
        lambda x, home: nn.functional.mse_loss(x, x.flip(0)),
        lambda x, home: x.clone().unsqueeze_(0).transpose_(1, 2),
        lambda x, home: torch.empty(0, device=home).resize_(2, 2).fill_(x[0, 0]),
    ],
)
def test_what_cuda_takes_gives_the_cpus_answer(call):
    found, expected = call(there(), HERE), call(there().cpu(), torch.device("cpu"))
    assert found.device == HERE
    assert found.dtype == expected.dtype
    assert torch.equal(found.cpu(), expected)


def test_numbers_and_lists_come_out_and_values_cross_by_copying():
    x = there()
    assert x.sum().item() == 5.5
    assert bool((x > -3).all())
    assert x[0].tolist() == [1.0, -2.0]
    assert x.cpu().numpy().shape == (3, 2)
    x[1] = torch.tensor([7.0, 8.0])  # copied over, as on CUDA
    x[MASK] = 0
    kept = torch.zeros(3, 2)
    kept[:] = x
    assert kept.tolist() == [[0, 0], [7, 8], [0, 0]]
    assert CPU[torch.tensor(1, device=HERE)].shape == (2,)  # a number is no index tensor
    assert "pretend:0" in repr(x)


def test_views_are_views():
    x = there()
    x[:, 0].mul_(10)
    x.view(-1)[1] = 5
    assert x[0].tolist() == [10, 5]
    assert x[1:].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_draws_repeat():
    torch.manual_seed(1)
    first = torch.rand(4, device=HERE)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(4, device=HERE), first)
    assert not torch.equal(torch.rand(4, device=HERE), first)


def test_networks_and_their_gradients_are_the_cpus():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    other = copy.deepcopy(model)
    assert other.to(HERE) is other
    x = torch.rand(6, 3, 8, 8)
    found = []
    for network in (model, copy.deepcopy(other)):
        home = next(network.parameters()).device
        images = x.detach().to(home).requires_grad_()
        network(images).logsumexp(1).sum().backward()
        assert images.grad.device == home
        found.append([images.grad.cpu(), *(p.grad.cpu() for p in network.parameters())])
        found[-1] += [b.cpu() for b in network.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_autocast_is_of_the_device():
    linear, x = nn.Linear(2, 2).to(HERE), there()
    with torch.autocast(HERE.type, torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
    assert linear(x).dtype == torch.float32


def test_it_is_used_where_it_is_named_and_nowhere_by_itself():
    assert not torch.accelerator.is_available()
    before = sum(pretend.calls.values())
    (torch.ones(3, requires_grad=True) * 2).sum().backward()
    assert sum(pretend.calls.values()) == before
    torch.ones(3, device=HERE)
    assert sum(pretend.calls.values()) > before
