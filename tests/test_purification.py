"""Purification: its diffusion model, its exact gradients, and what it is worth on digits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast import data as datasets
from holdfast import draws
from holdfast.attacks import PGD, Stage, Suite
from holdfast.defences import parse
from holdfast.defences.purification import Purification, noise_levels
from holdfast.draws import fixed_draws, new_seeds, repeated_draws
from holdfast.errors import InputError
from holdfast.models import SmallCNN, build, save_checkpoint
from holdfast.models.unet import DenoisingUNet
from holdfast.training import load_recipe, train
from holdfast.training.objectives import Batch, objective_named

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "digits-diffusion.yaml"
SMALL = {"width": 4, "levels": 2}


def network(channels: int = 3, **changes: object) -> DenoisingUNet:
    """Random weights everywhere, also where training begins at zero."""
    torch.manual_seed(0)
    made = DenoisingUNet(mean=[0.5] * channels, std=[0.25] * channels, **{**SMALL, **changes})
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made.eval()


class Pixels(nn.Module):
    """A "model" whose logits are the pixels it is shown."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def middle(count: int = 2, size: int = 8, channels: int = 3) -> Tensor:
    """Images far from 0 and 1, where nothing is clamped."""
    generator = torch.Generator().manual_seed(1)
    return 0.5 + 0.1 * (torch.rand(count, channels, size, size, generator=generator) - 0.5)


# --- the network ------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size", "levels"), [(1, 8, 2), (3, 32, 3), (3, 13, 3)])
def test_it_keeps_the_shape_and_every_weight_learns(channels, size, levels):
    made = network(channels, levels=levels).train()
    x = torch.rand(2, channels, size, size)
    out = made(x, torch.tensor([0.05, 0.5]))
    assert out.shape == x.shape
    (out - x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())


def test_untrained_it_answers_the_best_linear_guess():
    """Without its network (which begins at zero) it is the posterior mean of Gaussian data."""
    made = DenoisingUNet(mean=[0.4], std=[0.3], **SMALL)
    x, sigma = torch.rand(3, 1, 8, 8), torch.tensor([0.01, 0.3, 1.0])
    share = 0.3**2 / (0.3**2 + sigma**2)
    expected = 0.4 + share[:, None, None, None] * (x - 0.4)
    assert torch.allclose(made(x, sigma), expected, atol=1e-6)
    # The variance that this leaves is what the weight divides by.
    left = (sigma * 0.3) ** 2 / (0.3**2 + sigma**2)
    assert torch.allclose(made.weight(sigma) * left, torch.ones(3), atol=1e-5)


def test_each_image_has_its_own_noise_level():
    made, x = network(), torch.rand(4, 3, 8, 8)
    sigma = torch.tensor([0.02, 0.1, 0.4, 1.0])
    together = made(x, sigma)
    apart = torch.cat([made(x[i : i + 1], sigma[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, apart, atol=1e-5)
    assert not torch.allclose(made(x, sigma.flip(0)), together, atol=1e-3)


def test_the_objective_is_the_weighted_error_over_log_uniform_noise():
    made, count = network(1), 400
    x = torch.rand(count, 1, 8, 8)
    batch = Batch(x, torch.zeros(count).long(), draws.item_seeds(0, torch.arange(count)))
    objective, threat = objective_named("diffusion", {}), hf.Threat("linf", 0.1)
    points = objective.points(made, batch, threat)
    sigma = (points - x).flatten(1).std(1)
    logs = sigma.log()
    low, high = torch.tensor([0.01, 1.0]).log()
    assert float(logs.mean()) == pytest.approx(float((low + high) / 2), abs=0.25)
    assert float(logs.std()) == pytest.approx(float((high - low) / 12**0.5), rel=0.1)
    loss = objective.loss(made, points, batch)
    noise = draws.normal(batch.seeds, 0, (1, 8, 8))
    exact = ((points - x) * noise).flatten(1).sum(1) / noise.square().flatten(1).sum(1)
    error = (made(points, exact) - x).square().flatten(1).mean(1)
    weight = (exact**2 + 0.25**2) / (exact * 0.25) ** 2
    assert float(loss.value.detach()) == pytest.approx(
        float((weight * error).mean().detach()), rel=1e-3
    )
    assert loss.logits is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"levels": 0}, "levels"),
        ({"least_noise": 0.0}, "least_noise must be above 0 and below most_noise"),
        ({"least_noise": 2.0}, "least_noise must be above 0 and below most_noise"),
        ({"std": [0.0]}, "std"),
        ({"depth": 3}, "no argument 'depth'"),
    ],
)
def test_bad_arguments(arguments, says):
    with pytest.raises(InputError, match=says):
        build("denoising-unet", {"mean": [0.5], "std": [0.5], **arguments})


# --- the sampler ------------------------------------------------------------------------------


def test_noise_levels_fall_from_the_noise_to_nothing():
    assert noise_levels(0.2, 0.01, 1) == pytest.approx([0.2, 0.0])
    levels = noise_levels(0.2, 0.01, 4)
    assert levels[0] == pytest.approx(0.2) and levels[-2:] == pytest.approx([0.01, 0.0])
    roots = [level ** (1 / 7) for level in levels[:-1]]
    gaps = [a - b for a, b in pairwise(roots)]
    assert gaps == pytest.approx([gaps[0]] * 3)
    tiny = noise_levels(0.005, 0.01, 3)
    assert all(a > b for a, b in pairwise(tiny))


class KnowsAll(DenoisingUNet):
    """Always answers the same clean image."""

    def forward(self, images: Tensor, sigma: Tensor) -> Tensor:
        return torch.full_like(images, 0.5)


def test_the_noise_left_after_each_step_is_that_of_its_level():
    """With a perfect denoiser, x after a step is the clean image with noise of the next level."""
    defence = Purification(Pixels(), weights=KnowsAll(**SMALL), noise=0.8, steps=3)
    seeds = draws.item_seeds(0, torch.arange(60))
    x = 0.5 + 0.8 * draws.normal(seeds, 0, (3, 8, 8))
    for step, (level, after) in enumerate(
        zip(defence.levels[:-1], defence.levels[1:], strict=True)
    ):
        x = defence._step(x, seeds, 1 + step, level, after)
        assert float(x.std()) == pytest.approx(after, rel=0.02, abs=1e-6)
    shown = defence.defended(torch.rand(2, 3, 8, 8))
    assert torch.allclose(shown, torch.full_like(shown, 0.5))


def test_draws_belong_to_the_image_the_step_and_the_round():
    defence = Purification(Pixels(), weights=network(), noise=0.3, steps=2, rounds=2)
    x, seeds = torch.rand(3, 3, 8, 8), new_seeds(3)
    with torch.no_grad():
        assert not torch.equal(defence(x), defence(x))
        with fixed_draws(seeds):
            together = defence(x)
            assert torch.equal(defence(x), together)
        with fixed_draws(seeds[2:]):
            assert torch.allclose(defence(x[2:]), together[2:], atol=1e-5)
        with fixed_draws(seeds), repeated_draws(4):
            copies = defence(x.repeat_interleave(4, 0))
        assert len(copies[:4].unique(dim=0)) == 4
        one = Purification(Pixels(), weights=network(), noise=0.3, steps=2)
        with fixed_draws(seeds):
            again = one(one(x).view_as(x))  # the same draws twice are not two rounds
        assert not torch.allclose(again, together, atol=1e-3)


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "rounds"), [(1, 1), (3, 2)])
def test_gradients_are_exact_and_those_of_the_plain_computation(steps, rounds):
    found = []
    options = {"weights": network(), "noise": 0.05, "steps": steps, "rounds": rounds}
    seeds, way = new_seeds(2), torch.randn(2, 3 * 64)
    for checkpointing in (True, False):
        x = middle().requires_grad_()
        defence = Purification(Pixels(), checkpointing=checkpointing, **options)
        with fixed_draws(seeds):
            value = (defence(x) * way).sum()
            found.append(torch.autograd.grad(value, x)[0])
    assert torch.allclose(*found, atol=1e-4 * float(found[1].abs().max()))

    exact = Purification(Pixels(), **{**options, "weights": network().double()})

    def value_at(x: Tensor) -> Tensor:
        with fixed_draws(seeds):
            return (_in_double(exact, x) * way).sum()

    x = middle().double()
    for seed in range(3):
        step = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            ahead, back = value_at(x + 1e-5 * step), value_at(x - 1e-5 * step)
        slope = float((ahead - back) / 2e-5)
        assert float((found[0] * step).sum()) == pytest.approx(slope, rel=1e-4)


def _in_double(defence: Purification, x: Tensor) -> Tensor:
    """What `defence` computes, with no rounding to float32 in its network."""
    inner = defence.network
    floats, Tensor.float = Tensor.float, lambda self: self
    try:
        shown = defence(x)
    finally:
        Tensor.float = floats
    assert inner.least_noise and shown.dtype == torch.float64
    return shown


def test_checkpointing_keeps_one_step_in_memory():
    kept = []

    def count(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for steps in (2, 6):
        for checkpointing in (True, False):
            defence = Purification(
                Pixels(), weights=network(), noise=0.3, steps=steps, checkpointing=checkpointing
            )
            kept.append(0)
            with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
                defence(middle().requires_grad_())
    (short, short_plain), (long, long_plain) = kept[:2], kept[2:]
    assert long_plain > 2.5 * short_plain  # grows with every step
    assert long - short < 0.1 * (long_plain - short_plain)


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("purification", "purification:weights=FOLDER"),
        ("purification:weights=nowhere", "purification: weights folder nowhere does not exist"),
        ("purification:weights=OTHER", "holds a SmallCNN, not a denoising-unet"),
        ("purification:weights=OWN,noise=2", "noise 2 is more than the 1 that its network"),
        ("purification:weights=OWN,noise=0", "noise must be a number above 0"),
        ("purification:weights=OWN,steps=0", "steps must be a whole number of at least 1"),
        ("purification:weights=OWN,rounds=0", "rounds must be a whole number of at least 1"),
        ("purification:weights=OWN", "trained on images of 1 channels, given 3"),
    ],
)
def test_bad_options(text, says, tmp_path):
    card = {"classes": ["a"], "arguments": {"width": 2}, "architecture": "small-cnn"}
    save_checkpoint(tmp_path / "other", SmallCNN(width=2), card)
    arguments = {**SMALL, "mean": [0.5], "std": [0.25]}
    card = {"classes": [], "arguments": arguments, "architecture": "denoising-unet"}
    save_checkpoint(tmp_path / "own", network(1), card)
    text = text.replace("OTHER", str(tmp_path / "other")).replace("OWN", str(tmp_path / "own"))
    with pytest.raises(InputError, match=says) as raised:
        parse(text)(Pixels())(torch.rand(1, 3, 8, 8))
    assert "\n" not in str(raised.value)


def test_an_objective_that_does_not_fit_its_architecture_is_refused():
    batch = Batch(torch.rand(2, 1, 8, 8), torch.zeros(2).long(), torch.arange(2))
    for name in ("diffusion", "denoising"):
        with pytest.raises(InputError, match=f"objective '{name}' trains the architecture"):
            objective_named(name, {})(SmallCNN(width=2), batch, hf.Threat("linf", 0.1))


# --- what it is worth -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the digits' recipe, cut short; an undefended reader of digits; test images."""
    held = datasets.load("digits")
    run = tmp_path_factory.mktemp("diffusion") / "run"
    changes = ["epochs=12", "model.arguments.width=16", "validation.every=12"]
    recipe = load_recipe(RECIPE, [*changes, "validation.images=60", "averaging=0.95"])
    result = train(recipe, held, run)
    x, y = datasets.to_tensor(held.train.images), torch.from_numpy(held.train.labels)
    torch.manual_seed(1)
    model = SmallCNN(width=8)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(80):
        rows = torch.randint(0, len(x), (96,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    test = datasets.to_tensor(held.test.images[:100])
    return result, model.eval(), test, torch.from_numpy(held.test.labels[:100].copy())


def test_the_recipe_makes_a_network_that_denoises(trained):
    result, _, images, _ = trained
    assert result.validation.keys() == {"psnr", "n"} and result.model.training is False
    noisy = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        after = F.mse_loss(result.model(noisy, torch.full((len(images),), 0.2)), images)
    best_linear = 1 / (1 / 0.376**2 + 1 / 0.2**2)  # knowing each pixel's variance, no more
    assert float(after) < 0.7 * best_linear


def test_purified_digits_are_read_and_the_exact_gradient_finds_less_robustness(trained):
    """Standard accuracy within 8 points of the undefended model's, and worst of 10 reported."""
    result, model, images, labels = trained
    defended = parse(f"purification:weights={result.run},noise=0.2,steps=2")(model)
    with torch.no_grad():
        bare = float((model(images).argmax(1) == labels).float().mean())
        with fixed_draws(0):
            purified = float((defended(images).argmax(1) == labels).float().mean())
    assert bare > 0.93 and purified > bare - 0.08
    suite = Suite("pgd", (Stage(PGD(steps=5, step_size=0.4, loss="margin"), samples=3),))
    threat, found = hf.Threat("linf", 0.15), {}
    for backward in ("exact", "identity"):
        found[backward] = hf.evaluate(
            defended.with_backward(backward),
            images[:30],
            labels[:30],
            threat,
            suite=suite,
            precision="original",
            batch_size=30,
        )
    exact, identity = found["exact"], found["identity"]
    assert exact.robust_accuracy < identity.robust_accuracy
    worst = {figure.kind: figure for figure in exact.draws}["worst"]
    assert worst.draws == 10 and worst.robust_accuracy <= exact.robust_accuracy
