"""Uncertainty scores: what they compute, their one polarity, and whose draws they use."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from torch import nn

from holdfast import draws
from holdfast.errors import InputError
from holdfast.uncertainty import scores as s
from holdfast.uncertainty.metrics import auroc


def train(images, labels, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(432, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = torch.from_numpy(data.images[:, None] / 16).float()
    return images, torch.from_numpy(data.target).long()


@pytest.fixture(scope="module")
def models(digits):
    images, labels = digits
    return [train(images[:600], labels[:600], seed) for seed in range(3)]


def every_score(models, images, labels):
    model = models[0]
    last = s.LayerFeatures(model, "2")
    return {
        **{name: s.LogitScore(model, name) for name in s.LOGIT_SCORES},
        **{f"ensemble {name}": s.deep_ensemble(models, name) for name in s.DISAGREEMENT_MEASURES},
        **{
            f"dropout {name}": s.mc_dropout(model, name, samples=8)
            for name in s.DISAGREEMENT_MEASURES
        },
        "smoothing": s.smoothing_spread(model, 0.15, samples=8),
        "mahalanobis": s.Mahalanobis(last, images, labels, classes=10),
        "nearest neighbour": s.NearestNeighbour(last, images, k=5),
    }


NAMES = [
    "max-softmax",
    "entropy",
    "margin",
    "energy",
    *(f"{kind} {name}" for kind in ("ensemble", "dropout") for name in s.DISAGREEMENT_MEASURES),
    "smoothing",
    "mahalanobis",
    "nearest neighbour",
]


@pytest.fixture(scope="module")
def scores(models, digits):
    images, labels = digits
    found = every_score(models, images[:600], labels[:600])
    assert list(found) == NAMES
    return found


@pytest.mark.parametrize("name", NAMES)
def test_polarity_higher_is_less_sure(name, scores, digits):
    """Less sure of two digits, one laid over the other, and of what is no digit at all."""
    images, labels = digits
    clear, others = images[600:800], images[800:1000]
    different = labels[600:800] != labels[800:1000]
    unclear = ((clear + others) / 2)[different]
    if name in (
        "mahalanobis",
        "nearest neighbour",
    ):  # these find the out-of-distribution, not the ambiguous
        unclear = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = torch.cat([scores[name].in_batches(clear), scores[name].in_batches(unclear)])
    unsure = torch.arange(len(found)) >= len(clear)
    assert auroc(found, unsure) > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_an_images_own(name, scores, digits):
    """One number an image, whatever the batch it is in, and differentiable in the image."""
    images = digits[0][600:640]
    whole = scores[name].in_batches(images, batch_size=40)
    assert whole.shape == (40,)
    assert torch.allclose(
        scores[name].in_batches(images, batch_size=7), whole, rtol=1e-4, atol=1e-6
    )
    backwards = torch.arange(39, -1, -1)
    again = scores[name].in_batches(images[backwards], backwards)
    assert torch.allclose(again[backwards], whole, rtol=1e-4, atol=1e-6)

    x = images[:4].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scores[name](x).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_draws_differ_between_seeds_and_images(models, digits):
    same = digits[0][600:601].expand(5, -1, -1, -1)
    for make in (
        lambda seed: s.mc_dropout(models[0], samples=4, seed=seed),
        lambda seed: s.smoothing_spread(models[0], 0.2, samples=4, seed=seed),
    ):
        found = make(0)(same)
        assert len(found.unique()) == 5
        assert not torch.isclose(found, make(1)(same)).any()


def test_models_are_evaluated_in_eval_mode_and_handed_back(digits):
    images = digits[0][:32]
    norm = nn.BatchNorm2d(1)
    model = nn.Sequential(norm, nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).train()
    norm.eval()  # a part frozen by its owner stays frozen
    before = norm.running_mean.clone()
    score = s.LogitScore(model, "entropy")
    assert torch.equal(score(images), score(images))
    assert model.training and not norm.training
    norm.train()
    s.LogitScore(model).in_batches(images)
    assert norm.training and torch.equal(norm.running_mean, before)


# --- what they compute --------------------------------------------------------------------------


def test_logit_scores_by_their_formulas():
    z = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    p = z.softmax(1)
    top = p.sort(1, descending=True).values
    assert torch.allclose(s.max_softmax(z), 1 - top[:, 0])
    assert np.allclose(s.entropy(z), scipy.stats.entropy(p, axis=1))
    assert torch.allclose(s.top_two_difference(z), (top[:, 1] / top[:, 0]).log())
    assert torch.allclose(s.energy(z), -z.exp().sum(1).log())


def test_max_softmax_still_ranks_where_one_minus_p_rounds_to_zero():
    found = s.max_softmax(torch.tensor([[60.0, 0.0], [40.0, 0.0]]))
    assert torch.allclose(found.log(), torch.tensor([-60.0, -40.0]))


def test_opinion_scores_by_hand():
    sure = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).clamp(1e-12).log()  # certain, and opposed
    vague = torch.full((2, 1, 2), 0.5).log()  # agreed on not knowing
    log_2 = math.log(2)
    assert s.mutual_information(sure).item() == pytest.approx(log_2, abs=1e-5)
    assert s.predictive_entropy(sure).item() == pytest.approx(log_2, abs=1e-5)
    assert s.spread(sure).item() == pytest.approx(0.5, abs=1e-5)
    assert s.mutual_information(vague).item() == pytest.approx(0, abs=1e-6)
    assert s.predictive_entropy(vague).item() == pytest.approx(log_2, abs=1e-6)
    assert s.spread(vague).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("layer", "per_channel"), [(nn.Dropout(0.3), 0), (nn.Dropout2d(0.3), 1)])
def test_dropout_keeps_its_share_and_its_mean(layer, per_channel):
    x = torch.ones(200, 10, 4, 4)
    score = s.mc_dropout(nn.Sequential(layer, nn.Flatten()), samples=2)
    kept = score.members[0](x, draws.item_seeds(0, torch.arange(200))).view(200, 10, 16)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    whole_channels = (kept == kept[:, :, :1]).all().item()
    assert whole_channels == bool(per_channel)


def test_a_random_defence_draws_from_its_seeds(digits):
    """A defence whose logits are its draws: the variance of a uniform p is known."""

    def member(images, seeds):
        p = draws.uniform(seeds, 0).clamp(1e-6, 1 - 1e-6)
        return torch.stack([p.log(), (1 - p).log()], 1)

    found = s.draws_disagreement(member, samples=400)(digits[0][:20])
    assert found.numpy() == pytest.approx(np.full(20, 2 / 12), abs=0.03)


def test_mahalanobis_agrees_with_sklearn(models, digits):
    images, labels = digits
    features = s.LayerFeatures(models[0], "1")
    score = s.Mahalanobis(features, images[:600], labels[:600], classes=10)
    with torch.no_grad():
        train_f, f = (features(x).double().numpy() for x in (images[:600], images[600:620]))
    y = labels[:600].numpy()
    means = np.stack([train_f[y == k].mean(0) for k in range(10)])
    tied = LedoitWolf(assume_centered=True).fit(train_f - means[y])
    expected = np.min([tied.mahalanobis(f - mean) for mean in means], axis=0)
    assert score.in_batches(images[600:620]).numpy() == pytest.approx(expected, rel=1e-3)


def test_nearest_neighbour_agrees_with_sklearn(models, digits):
    images = digits[0]
    features = s.LayerFeatures(models[0], "2")
    score = s.NearestNeighbour(features, images[:600], k=7)
    with torch.no_grad():
        bank, f = (F.normalize(features(x), dim=1).numpy() for x in (images[:600], images[600:620]))
    expected = NearestNeighbors(n_neighbors=7).fit(bank).kneighbors(f)[0][:, -1]
    assert score.in_batches(images[600:620]).numpy() == pytest.approx(expected, rel=1e-4)
    first = s.NearestNeighbour(features, images[:600], k=1)
    assert first.in_batches(images[:50]).max() < 1e-4  # a training image is its own neighbour


def test_stored_images_are_scaled(models, digits):
    stored = (digits[0][:20] * 255).round().byte()
    score = s.LogitScore(models[0])
    assert torch.allclose(score.in_batches(stored), score.in_batches(stored.float() / 255))


def test_layer_features(models, digits):
    images = digits[0][:3]
    maps = models[0][0](images)
    assert torch.allclose(s.LayerFeatures(models[0], "0")(images), maps.mean((2, 3)))
    flat = s.LayerFeatures(models[0], "4", take="input")(images)
    assert torch.allclose(flat, maps.relu().flatten(1))


# --- bad input ----------------------------------------------------------------------------------


def test_bad_input(models, digits):
    images, labels = digits[0][:50], digits[1][:50]
    model = models[0]

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(2, 2)

        def forward(self, x):
            return x.flatten(1)

    def nan_features(x):
        return x.flatten(1) * math.nan

    def constant(x):
        return torch.ones(len(x), 3)

    flat = nn.Flatten()
    cases = [
        (lambda: s.LogitScore(model, "softmax"), "'softmax' is unknown"),
        (lambda: s.deep_ensemble(models[:1]), "at least 2 members"),
        (lambda: s.deep_ensemble(models, "entropy"), "'entropy' is unknown"),
        (lambda: s.mc_dropout(flat), "needs a model with nn.Dropout"),
        (lambda: s.smoothing_spread(model, 0), "must be above 0"),
        (lambda: s.LayerFeatures(model, "body"), "no layer 'body'"),
        (lambda: s.LayerFeatures(Unused(), "spare")(images), "gave no tensor"),
        (lambda: s.LayerFeatures(model, "0", take="gradient"), "must be 'output' or 'input'"),
        (lambda: s.Mahalanobis(flat, images, labels % 9, classes=10), "no image of class 9"),
        (lambda: s.Mahalanobis(flat, images, labels, classes=9), "is 9, out of range"),
        (lambda: s.Mahalanobis(nan_features, images, labels, classes=10), "NaN or infinite"),
        (lambda: s.Mahalanobis(constant, images, labels, classes=10), "do not vary"),
        (lambda: s.NearestNeighbour(nan_features, images), "NaN or infinite"),
        (lambda: s.NearestNeighbour(flat, images, k=51), "1 … 50"),
        (lambda: s.LogitScore(model).in_batches(images[:0]), "no images"),
        (lambda: s.LogitScore(model).in_batches(images * 255), "outside [0, 1]"),
        (lambda: s.LogitScore(model).in_batches(images, torch.arange(3)), "50 integers"),
    ]
    for call, says in cases:
        with pytest.raises(InputError) as error:
            call()
        assert says in str(error.value)
        assert "\n" not in str(error.value)
