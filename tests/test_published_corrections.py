"""Defences whose published figures later attacks corrected: `swift` ends where PGD on the bare
network does, because all of these leave its decisions (nearly) as they are.

Dummy classes: Wang et al., "New paradigm of adversarial training: releasing accuracy-robustness
trade-off via dummy class", 2024. Mixing weights: Bai et al., "MixedNUTS", TMLR 2024. Resampling
purifiers: Lee & Kim, "Robust evaluation of diffusion-based adversarial purification", ICCV 2023.
Sparsifiers: Dhillon et al., "Stochastic activation pruning", ICLR 2018, corrected by Athalye et
al., ICML 2018; k-winners-take-all, corrected by Tramèr et al., NeurIPS 2020.
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

THREAT = hf.Threat("linf", 0.15)
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
        self.register_buffer("mapping", torch.arange(20) % 10)

    def forward(self, images: Tensor) -> Tensor:
        z = self.network(images)
        lead = 0.3 * torch.sin(40 * images.mean((1, 2, 3)))[:, None]
        both = torch.cat([z + lead, z - lead], 1)
        if self.fold == "max":
            return torch.maximum(*both.chunk(2, 1))
        if self.fold == "logsumexp":
            return torch.logaddexp(*both.chunk(2, 1))
        if self.fold == "probabilities":
            return both.softmax(1).unflatten(1, (2, 10)).sum(1)
        if self.fold == "mapped answer":  # the class of the largest of 2K logits, and no more
            return F.one_hot(self.mapping[both.argmax(1)], 10).float()
        chosen = both.argmax(1, keepdim=True)  # "mapped logit": that logit, at its class
        return torch.zeros_like(z).scatter(
            1, self.mapping[chosen], both.gather(1, chosen).abs() + 1
        )


class MixedBySteepWeight(nn.Module):
    """Two forms of one answer, nearly flat and saturated, mixed by a weight that jumps."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        z = self.network(images)
        weight = torch.sigmoid(1e4 * torch.sin(300 * images.mean((1, 2, 3))))[:, None]
        flat, saturated = (1e-4 * z).softmax(1), (1e3 * z).softmax(1)
        return (weight * flat + (1 - weight) * saturated).clamp_min(1e-30).log()


class ResamplingPurifier(nn.Module):
    """Noise, then a step back to a coarse grid, drawn anew at every call and without a gradient."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            noisy = images + 0.02 * torch.randn_like(images)
            pure = (noisy * 32).round().clamp(0, 32) / 32
        return self.network(pure)


class Sparsifier(nn.Module):
    """Hidden activations zeroed: all but the largest, or some at random."""

    def __init__(self, network: nn.Module, kind: str):
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, images: Tensor) -> Tensor:
        body, head = self.network[:-1], self.network[-1]
        h = body(images)
        if self.kind == "top-k":
            least = h.topk(h.shape[1] * 3 // 5, 1).values[:, -1:]
            return head(h * (h >= least))
        return head(h * (torch.rand_like(h) < 0.97) / 0.97)


def by_gradients(name: str) -> Suite:
    """A suite's gradient attacks, which no gradient-free one is to save here."""
    stages = [s for s in suite_named(name).stages if s.attack.needs_gradient and s.after is None]
    return Suite(name, tuple(stages))


def standing(
    model: nn.Module, images: Tensor, labels: Tensor, name: str = "swift", repair: bool = True
) -> int:
    suite = by_gradients(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = hf.evaluate(model.eval(), images, labels, THREAT, suite, repair=repair)
    return int((~result.broken).sum())


def test_the_bare_network_is_neither_robust_nor_broken(true_standing: int) -> None:
    assert 5 <= true_standing <= N - 5


@pytest.mark.parametrize(
    "fold", ["max", "logsumexp", "probabilities", "mapped answer", "mapped logit"]
)
def test_dummy_classes_mislead_nobody(fold, network, images, labels, true_standing) -> None:
    model = DummyClasses(network, fold)
    if fold != "logsumexp" and fold != "probabilities":
        assert torch.equal(model(images).argmax(1), network(images).argmax(1))
    assert abs(standing(model, images, labels) - true_standing) <= CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["apgd", "autoattack"])
def test_dummy_classes_mislead_no_longer_suite(
    suite, network, images, labels, true_standing
) -> None:
    few, n = images[:16], 16
    bare = standing(network, few, labels[:n], suite)
    assert abs(standing(DummyClasses(network, "mapped logit"), few, labels[:n], suite) - bare) <= 1


def test_a_mixing_weight_hides_no_slope(network, images, labels, true_standing) -> None:
    model = MixedBySteepWeight(network)
    assert torch.equal(model(images).argmax(1), network(images).argmax(1))
    assert abs(standing(model, images, labels) - true_standing) <= CLOSE


def test_a_purifier_that_resamples_is_seen_through(network, images, labels, true_standing) -> None:
    assert abs(standing(ResamplingPurifier(network), images, labels) - true_standing) <= CLOSE


@pytest.mark.parametrize("kind", ["top-k", "random"])
def test_a_sparsifier_helps_nobody(kind, network, images, labels, true_standing) -> None:
    assert standing(Sparsifier(network, kind), images, labels) <= true_standing + CLOSE


def test_without_repair_they_look_robust(network, images, labels, true_standing) -> None:
    for model in (DummyClasses(network, "mapped logit"), ResamplingPurifier(network)):
        assert standing(model, images, labels, repair=False) > true_standing + CLOSE


def test_a_fast_copy_that_fails_prints_nothing(network, images, labels, capfd) -> None:
    model = DummyClasses(network, "mapped logit")  # whose copy in bf16 mixes number formats
    hf.evaluate(model.eval(), images[:4], labels[:4], THREAT, by_gradients("swift"))
    assert "Traceback" not in capfd.readouterr().err
