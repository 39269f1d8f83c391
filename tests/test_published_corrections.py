"""Defences whose published figures later attacks corrected: `swift` ends where PGD on the bare
network does, because all of these leave its decisions (nearly) as they are.

Dummy classes: Wang et al., "New paradigm of adversarial training: releasing accuracy-robustness
trade-off via dummy class", 2024.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast.attacks import PGD, Suite, run, suite_named
from holdfast.attacks.base import Oracle
from holdfast.attacks.state import Items
from holdfast.data import digits

THREAT = hf.Threat("linf", 0.1)
N = 24
CLOSE = 2  # images by which a figure may differ from that of the bare network


@pytest.fixture(scope="module")
def images() -> Tensor:
    split = digits.load().test
    return torch.from_numpy(split.images[:N]).float() / 255


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.from_numpy(digits.load().test.labels[:N].copy())


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small network, trained for a few seconds against one-step attacks."""
    split = digits.load().train
    x, y = torch.from_numpy(split.images).float() / 255, torch.from_numpy(split.labels.copy())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(384, 10),
        )  # fmt: skip
        optimiser = torch.optim.Adam(net.parameters(), 2e-3)
        for _ in range(250):
            rows = torch.randint(len(x), (128,))
            start = (x[rows] + 0.1 * (2 * torch.rand_like(x[rows]) - 1)).requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(start), y[rows]), start)
            seen = (x[rows] + (start + 0.1 * gradient.sign() - x[rows]).clamp(-0.1, 0.1)).clamp(
                0, 1
            )
            optimiser.zero_grad()
            F.cross_entropy(net(seen.detach()), y[rows]).backward()
            optimiser.step()
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def true_standing(network: nn.Module, images: Tensor, labels: Tensor) -> int:
    """How many images stand against PGD on the bare network, from four starts, on two losses."""
    stands = network(images).argmax(1) == labels
    for seed in range(4):
        attack = PGD(steps=60, step_size=0.1, loss="margin" if seed % 2 else "ce")
        items = Items(images, labels, labels * 0 - 1, THREAT.radii(images), labels * 0 + 7919 * seed
                      + torch.arange(N))  # fmt: skip
        points = run(attack, Oracle(network), items, THREAT).best
        stands &= network(points).argmax(1) == labels
    return int(stands.sum())


class DummyClasses(nn.Module):
    """2K logits, a class and its dummy twin, of which the image decides which leads; the closest
    rival of a class is then its own twin, which is no mistake."""

    def __init__(self, network: nn.Module, fold: str):
        super().__init__()
        self.network, self.fold = network, fold

    def forward(self, images: Tensor) -> Tensor:
        z = self.network(images)
        lead = 0.3 * torch.sin(40 * images.mean((1, 2, 3)))[:, None]
        both = torch.cat([z + lead, z - lead], 1)
        if self.fold == "max":
            return torch.maximum(*both.chunk(2, 1))
        if self.fold == "logsumexp":
            return torch.logaddexp(*both.chunk(2, 1))
        return both.softmax(1).unflatten(1, (2, 10)).sum(1)


def by_gradients(name: str) -> Suite:
    """A suite's gradient attacks, which no gradient-free one is to save here."""
    stages = [s for s in suite_named(name).stages if s.attack.needs_gradient and s.after is None]
    return Suite(name, tuple(stages))


def standing(model: nn.Module, images: Tensor, labels: Tensor, name: str = "swift") -> int:
    suite = by_gradients(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = hf.evaluate(model.eval(), images, labels, THREAT, suite)
    return int((~result.broken).sum())


def test_the_bare_network_is_neither_robust_nor_broken(true_standing: int) -> None:
    assert 5 <= true_standing <= N - 5


@pytest.mark.parametrize("fold", ["max", "logsumexp", "probabilities"])
def test_dummy_classes_mislead_nobody(fold, network, images, labels, true_standing) -> None:
    model = DummyClasses(network, fold)
    if fold == "max":
        assert torch.equal(model(images).argmax(1), network(images).argmax(1))
    assert abs(standing(model, images, labels) - true_standing) <= CLOSE
