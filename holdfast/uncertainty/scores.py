"""Uncertainty scores: images in, one number an image out.

**Polarity: higher = less sure.** This holds for every score here, and everything that takes
scores (`metrics`, `abstaining`) relies on it.

A score can be differentiated in the images, so an attack can use its gradient. `Score.in_batches`
computes it for a whole data set without gradients. Models are in eval mode during a call, and then
in the mode they were in before. A random score draws from each image's own stream
(`holdfast.draws`), so the batch size does not change it.

Example:
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    >>> images = torch.rand(5, 3, 8, 8)
    >>> LogitScore(model, "entropy").in_batches(images).shape
    torch.Size([5])
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn

from .. import draws
from ..errors import InputError
from ..models.modes import evaluating
from ..models.wrapper import part_named, unwrapped, wrapped
from ..types import Images, Logits, Model, Stored
from .batches import in_batches
from .inputs import check_every_class, checked_items, checked_labels

StoredImages = Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"] | Stored
Items = Int64[Tensor, " n"]  # the number of each image in its data set
Scores = Float[Tensor, " n"]


class Score(ABC):
    """A function from images to scores (N,), higher = less sure.

    A subclass gives `__call__`.
    """

    @abstractmethod
    def __call__(self, images: Images, items: Items | None = None) -> Scores:
        """Scores (N,), differentiable in the images.

        Args:
            images: float (N, C, H, W) in [0, 1].
            items: (N,), the number of each image in its data set, to which the draws of a random
                score belong; None: 0 … N−1. Other scores ignore it.
        """

    def in_batches(
        self, images: StoredImages, items: Items | None = None, *, batch_size: int = 256
    ) -> Scores:
        """Scores (N,) of any number of images, without gradients.

        Args:
            images: float in [0, 1], or uint8.
            items: as in a call.
            batch_size: images in a pass.
        """
        return in_batches(self, images, checked_items(items, len(images)), batch_size=batch_size)


# --- from the logits ----------------------------------------------------------------------------


def max_softmax(logits: Logits) -> Scores:
    """1 − max_k p_k, 0..1: one minus the confidence.

    Hendrycks & Gimpel, "A baseline for detecting misclassified and out-of-distribution examples in
    neural networks", ICLR 2017. It is computed as the sum over the other classes, which does not
    round to 0 where the model is very sure.

    Example:
        >>> max_softmax(torch.tensor([[2.0, 0.0], [40.0, 0.0]]))
        tensor([1.1920e-01, 4.2484e-18])
    """
    others = logits.scatter(1, logits.argmax(1, keepdim=True), -math.inf)
    return (others.logsumexp(1) - logits.logsumexp(1)).exp()


def entropy(logits: Logits) -> Scores:
    """The entropy −Σ_k p_k log p_k in nats, 0..log K.

    Example:
        >>> entropy(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
        tensor([0.6931, 0.0012])
    """
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def top_two_difference(logits: Logits) -> Scores:
    """The second largest logit minus the largest, log(p₂/p₁), −∞..0.

    Scheffer, Decomain & Wrobel, "Active hidden Markov models for information extraction", 2001,
    with logarithms of the probabilities.

    Example:
        >>> top_two_difference(torch.tensor([[1.0, 4.0, 2.0]]))
        tensor([-2.])
    """
    top = logits.topk(2, dim=1).values
    return top[:, 1] - top[:, 0]


def energy(logits: Logits) -> Scores:
    """The energy −log Σ_k exp z_k, −∞..∞.

    Liu, Wang, Owens & Li, "Energy-based out-of-distribution detection", NeurIPS 2020.

    Example:
        >>> energy(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
        tensor([-0.6931, -9.0001])
    """
    return -logits.logsumexp(1)


LOGIT_SCORES: dict[str, Callable[[Logits], Scores]] = {
    "max-softmax": max_softmax,
    "entropy": entropy,
    "margin": top_two_difference,
    "energy": energy,
}


class LogitScore(Score):
    """A function of the model's logits.

    Args:
        model: images to logits.
        measure: a key of `LOGIT_SCORES`: `max-softmax`, `entropy`, `energy`, or `margin`, which
            is `top_two_difference`.

    Raises:
        InputError: unknown measure.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> LogitScore(model, "energy")(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2])
    """

    def __init__(self, model: Model, measure: str = "max-softmax") -> None:
        self.model, self.measure = model, _named(LOGIT_SCORES, measure)
        self.wrapped_model = wrapped(model)

    def __call__(self, images: Images, items: Items | None = None) -> Scores:
        with evaluating(self.model):
            return self.measure(self.wrapped_model(images))


def _named(table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise InputError(f"score {name!r} is unknown; here it is one of {', '.join(table)}")
    return table[name]


# --- from several predictions of one image ------------------------------------------------------

MemberLogProbs = Float[Tensor, "m n k"]  # log-probabilities of M members or draws


def predictive_entropy(log_p: MemberLogProbs) -> Scores:
    """Entropy of the members' mean probabilities in nats, 0..log K.

    Example:
        >>> two = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]]).log()  # 2 members, 1 image
        >>> predictive_entropy(two)
        tensor([0.6931])
    """
    return entropy(log_p.logsumexp(0))  # the constant log M does not change a softmax


def mutual_information(log_p: MemberLogProbs) -> Scores:
    """Entropy of the mean minus mean of the entropies in nats, 0..log K; 0 where members agree.

    Depeweg et al., "Decomposition of uncertainty in Bayesian deep learning for efficient and
    risk-sensitive learning", ICML 2018.

    Example:
        >>> two = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]]).log()  # 2 members, 1 image
        >>> mutual_information(two)
        tensor([0.3681])
    """
    return predictive_entropy(log_p) + (log_p.exp() * log_p).sum(2).mean(0)


def spread(log_p: MemberLogProbs) -> Scores:
    """Σ_k of the variance of p_k over the members, 0..1.

    Example:
        >>> spread(torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]]).log())  # 2 members, 1 image
        tensor([0.3200])
    """
    return log_p.exp().var(0, correction=0).sum(1)


DISAGREEMENT_MEASURES: dict[str, Callable[[MemberLogProbs], Scores]] = {
    "predictive-entropy": predictive_entropy,
    "mutual-information": mutual_information,
    "spread": spread,
}

# Images and one seed an image to logits. All randomness of a member comes from these seeds.
Member = Callable[[Images, Int64[Tensor, " n"]], Logits]


class DisagreementScore(Score):
    """How much several members, or several random draws of one, disagree on an image.

    Args:
        members: each from images and seeds to logits.
        measure: a key of `DISAGREEMENT_MEASURES`: `predictive-entropy`, `mutual-information` or
            `spread`.
        seed: of the draws.

    Raises:
        InputError: unknown measure; fewer than two members.

    Example:
        >>> def member(images, seeds):
        ...     return draws.normal(seeds, 0, (3,))
        >>> DisagreementScore([member, member], "spread")(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2])
    """

    def __init__(self, members: Sequence[Member], measure: str, *, seed: int = 0) -> None:
        if len(members) < 2:
            raise InputError(f"disagreement needs at least 2 members or draws, not {len(members)}")
        self.members, self.seed = members, seed
        self.measure = _named(DISAGREEMENT_MEASURES, measure)

    def log_probabilities(self, images: Images, items: Items | None = None) -> MemberLogProbs:
        """Log-probabilities (M, N, K) of every member."""
        items = checked_items(items, len(images))
        members = []
        for i, member in enumerate(self.members):
            # The stream's name decides the draws: another one would change published figures.
            seeds = draws.item_seeds(self.seed, "opinion", items, i).to(images.device)
            members.append(member(images, seeds).log_softmax(1))
        return torch.stack(members)

    def __call__(self, images: Images, items: Items | None = None) -> Scores:
        return self.measure(self.log_probabilities(images, items))


def deep_ensemble(
    models: Sequence[Model], measure: str = "mutual-information"
) -> DisagreementScore:
    """Disagreement between models that were trained from different initialisations.

    Lakshminarayanan, Pritzel & Blundell, "Simple and scalable predictive uncertainty estimation
    using deep ensembles", NeurIPS 2017.

    Example:
        >>> models = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(5)]
        >>> deep_ensemble(models)(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2])
    """

    def member(model: Model) -> Member:
        def predict(images: Images, seeds: Int64[Tensor, " n"]) -> Logits:
            with evaluating(model):
                return model(images)

        return predict

    return DisagreementScore([member(wrapped(model)) for model in models], measure)


def mc_dropout(
    model: nn.Module, measure: str = "mutual-information", *, samples: int = 20, seed: int = 0
) -> DisagreementScore:
    """Disagreement between passes with dropout on, in a model that is in eval mode otherwise.

    Gal & Ghahramani, "Dropout as a Bayesian approximation", ICML 2016. Dropout is switched on in
    `nn.Dropout` and `nn.Dropout1d/2d/3d` modules, whose inputs have the image first; calls of
    `F.dropout` stay off.

    Args:
        model: images to logits.
        measure: a key of `DISAGREEMENT_MEASURES`.
        samples: passes, at least 2.
        seed: of the dropout masks.

    Raises:
        InputError: a model without such modules.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))
        >>> mc_dropout(model, samples=8)(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2])
    """
    if not has_dropout(model):
        raise InputError("MC dropout needs a model with nn.Dropout layers; this one has none")
    wrapped_model = wrapped(model)

    def predict(images: Images, seeds: Int64[Tensor, " n"]) -> Logits:
        with evaluating(model), _item_dropout(model, seeds):
            return wrapped_model(images)

    return DisagreementScore([predict] * samples, measure, seed=seed)


def has_dropout(model: nn.Module) -> bool:
    """Whether a model has dropout modules, which `mc_dropout` needs.

    Example:
        >>> has_dropout(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)))
        True
    """
    return bool(_dropouts(model))


def _dropouts(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    return [part for part in model.modules() if isinstance(part, kinds) and part.p > 0]


@contextmanager
def _item_dropout(model: nn.Module, seeds: Int64[Tensor, " n"]) -> Iterator[None]:
    """Inside, dropout is on, and its masks depend on each image's seed alone."""
    calls = 0

    def drop(layer: Any, _: Any, x: Tensor) -> Tensor:
        nonlocal calls
        # Dropout2d and its kin drop whole channels.
        shape = x.shape[1:] if isinstance(layer, nn.Dropout) else (x.shape[1], *[1] * (x.ndim - 2))
        kept = draws.uniform(seeds, calls, shape) >= layer.p
        calls += 1
        return x * kept / (1 - layer.p) if layer.p < 1 else torch.zeros_like(x)

    hooks = [layer.register_forward_hook(drop) for layer in _dropouts(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def draws_disagreement(
    member: Member, measure: str = "spread", *, samples: int = 20, seed: int = 0
) -> DisagreementScore:
    """Disagreement between several draws of one random model.

    Args:
        member: images and one seed an image to logits (N, K); the seeds alone decide its draws.
        measure: a key of `DISAGREEMENT_MEASURES`.
        samples: draws an image, at least 2.
        seed: of the draws.

    Example:
        >>> def member(images, seeds):
        ...     return draws.normal(seeds, 0, (3,))
        >>> draws_disagreement(member)(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2])
    """
    return DisagreementScore([member] * samples, measure, seed=seed)


def defence_spread(
    model: Model, measure: str = "spread", *, samples: int = 20, seed: int = 0
) -> DisagreementScore:
    """Disagreement between draws of a model's random defences (`holdfast.defences`).

    Purification, random views and the like draw from each image's seed. Randomness of any other
    kind is not averaged over here.

    Args:
        model: a model behind at least one random defence.
        measure: a key of `DISAGREEMENT_MEASURES`.
        samples: draws an image, at least 2.
        seed: of the draws.

    Example:
        >>> from holdfast.defences import Noise
        >>> model = Noise(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), sigma=0.1)
        >>> defence_spread(model, samples=4)(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2])
    """
    wrapped_model = wrapped(model)

    def predict(images: Images, seeds: Int64[Tensor, " n"]) -> Logits:
        with evaluating(model), draws.fixed_draws(seeds):
            return wrapped_model(images)

    return draws_disagreement(predict, measure, samples=samples, seed=seed)


def smoothing_spread(
    model: Model, sigma: float, measure: str = "spread", *, samples: int = 20, seed: int = 0
) -> DisagreementScore:
    """Disagreement between predictions under Gaussian noise.

    Args:
        model: images to logits.
        sigma: standard deviation of the noise in image units, above 0.
        measure: a key of `DISAGREEMENT_MEASURES`.
        samples: noisy passes an image, at least 2.
        seed: of the noise.

    Raises:
        InputError: a sigma that is not above 0.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> smoothing_spread(model, 0.25, samples=4)(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2])
    """
    if not sigma > 0:
        raise InputError(f"sigma of the smoothing noise must be above 0, not {sigma}")
    wrapped_model = wrapped(model)

    def predict(images: Images, seeds: Int64[Tensor, " n"]) -> Logits:
        with evaluating(model):
            return wrapped_model(images + sigma * draws.normal(seeds, 0, images.shape[1:]))

    return draws_disagreement(predict, measure, samples=samples, seed=seed)


# --- from the features --------------------------------------------------------------------------

Features = Callable[[Images], Float[Tensor, "n d"]]


class LayerFeatures:
    """The output or the input of a named layer, as one vector (D,) an image.

    Feature maps (N, C, H, W) are averaged over their positions; anything else is flattened.

    Args:
        model: run in eval mode.
        layer: a name from `model.named_modules()`.
        take: `output` or `input`. The input of the last linear layer is what papers usually call
            the features.

    Raises:
        InputError: a layer that the model does not have, or (on a call) does not run.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> LayerFeatures(model, "3", take="input")(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2, 8])
    """

    def __init__(self, model: nn.Module, layer: str, *, take: str = "output") -> None:
        names = [name for name, _ in cast(nn.Module, unwrapped(model)).named_modules() if name]
        if layer not in names:
            raise InputError(
                f"the model has no layer {layer!r}; its last are {', '.join(names[-5:])}"
            )
        if take not in ("output", "input"):
            raise InputError(f"take must be 'output' or 'input', not {take!r}")
        self.model, self.layer, self.take = model, layer, take
        self.wrapped_model = wrapped(model)

    def __call__(self, images: Images) -> Float[Tensor, "n d"]:
        return self.with_output(images)[0]

    def with_output(self, images: Images) -> tuple[Float[Tensor, "n d"], Tensor]:
        """The features (N, D), and the model's output in the same pass."""
        kept: list[Any] = []

        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            kept.append(output if self.take == "output" else inputs[0] if inputs else None)

        hook = part_named(self.model, self.layer).register_forward_hook(keep)
        try:
            with evaluating(self.model):
                logits = self.wrapped_model(images)
        finally:
            hook.remove()
        if not kept or not isinstance(kept[-1], Tensor):
            raise InputError(f"layer {self.layer!r} gave no tensor: name a layer that is run")
        maps = kept[-1]
        return maps.mean((2, 3)) if maps.ndim == 4 else maps.flatten(1), logits


def _training_features(
    features: Features,
    images: StoredImages,
    batch_size: int,
    known: Float[Tensor, "n d"] | None,
) -> Float[Tensor, "n d"]:
    found = in_batches(features, images, batch_size=batch_size) if known is None else known
    if found.ndim != 2:
        raise InputError(f"features have shape {tuple(found.shape)}, not (N, D): flatten them")
    bad = ~found.isfinite().all(1)
    if bad.any():
        raise InputError(
            f"features of {int(bad.sum())} of {len(found)} training images are NaN or infinite"
        )
    return found


class FeatureScore(Score):
    """A score that depends on an image's features alone.

    Attributes:
        features: images to (N, D), such as `LayerFeatures`.
    """

    features: Features

    @abstractmethod
    def from_features(self, features: Float[Tensor, "n d"]) -> Scores:
        """Scores (N,) of features (N, D)."""

    def __call__(self, images: Images, items: Items | None = None) -> Scores:
        return self.from_features(self.features(images))


class Mahalanobis(FeatureScore):
    """Squared Mahalanobis distance to the nearest class, min_k (f − μ_k)ᵀ Σ⁻¹ (f − μ_k), 0..∞.

    Lee, Lee, Lee & Shin, "A simple unified framework for detecting out-of-distribution samples and
    adversarial attacks", NeurIPS 2018. Class means and one covariance are those of training
    features. The covariance is shrunk (Ledoit & Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", 2004), so that it can be inverted.

    Args:
        features: images to (N, D), such as `LayerFeatures`.
        images: of the training split.
        labels: (N,); every class must occur.
        classes: K.
        batch_size: images in a pass.
        known: (N, D), the features of the training images, where they are known already.

    Raises:
        InputError: an empty class; features that are NaN or do not vary.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> images, labels = torch.rand(40, 1, 2, 2), torch.arange(40) % 2
        >>> score = Mahalanobis(LayerFeatures(model, "0"), images, labels, classes=2)
        >>> score(images[:3]).shape
        torch.Size([3])
    """

    def __init__(
        self,
        features: Features,
        images: StoredImages,
        labels: Int64[Tensor, " n"],
        *,
        classes: int,
        batch_size: int = 256,
        known: Float[Tensor, "n d"] | None = None,
    ) -> None:
        y = checked_labels(labels, len(images), classes)
        check_every_class(y, classes)
        self.features = features
        found = _training_features(features, images, batch_size, known)
        f = found.double().cpu().numpy()
        means = np.stack([f[y == k].mean(0) for k in range(classes)])
        covariance, _ = ledoit_wolf(f - means[y], assume_centered=True)
        try:
            # With Σ = LLᵀ, the distance is the Euclidean one after L⁻¹.
            whiten = np.linalg.inv(np.linalg.cholesky(covariance))
        except np.linalg.LinAlgError:
            raise InputError("training features do not vary within the classes") from None
        self.whiten = torch.from_numpy(whiten).to(found)
        self.means = torch.from_numpy(means @ whiten.T).to(found)

    def from_features(self, features: Float[Tensor, "n d"]) -> Scores:
        white = features @ self.whiten.T
        return (white[:, None] - self.means).square().sum(2).amin(1)


class NearestNeighbour(FeatureScore):
    """Distance to the k-th nearest training feature, 0..2; features are scaled to length 1.

    Sun, Ming, Zhu & Li, "Out-of-distribution detection with deep nearest neighbors", ICML 2022
    (k = 50 for CIFAR-10).

    Args:
        features: images to (N, D), such as `LayerFeatures`.
        images: of the training split.
        k: which neighbour, 1 … N.
        batch_size: images in a pass.
        known: (N, D), the features of the training images, where they are known already.

    Raises:
        InputError: k below 1 or above the number of images; features that are NaN.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> images = torch.rand(40, 1, 2, 2)
        >>> NearestNeighbour(LayerFeatures(model, "0"), images, k=5)(images[:3]).shape
        torch.Size([3])
    """

    def __init__(
        self,
        features: Features,
        images: StoredImages,
        *,
        k: int = 50,
        batch_size: int = 256,
        known: Float[Tensor, "n d"] | None = None,
    ) -> None:
        if not 1 <= k <= len(images):
            raise InputError(f"k must lie in 1 … {len(images)} (the training images), not {k}")
        self.features, self.k = features, k
        self.bank = F.normalize(_training_features(features, images, batch_size, known), dim=1)

    def from_features(self, features: Float[Tensor, "n d"]) -> Scores:
        f = F.normalize(features, dim=1)
        nearest = (f.detach() @ self.bank.T).topk(self.k, dim=1).indices[:, -1]
        # From the difference: √(2 − 2·cosine) has no digits left where features almost agree.
        return (f - self.bank[nearest]).norm(dim=1)
