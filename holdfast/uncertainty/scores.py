"""Uncertainty scores: images in, one number an image out.

**Polarity: higher = less sure.** This holds for every score here, and everything that takes
scores (`metrics`, `abstaining`) relies on it.

Scores keep the graph, so that an attack can differentiate through them; `Score.over` runs one
over a whole data set without gradients. Models are put in eval mode for the call and handed back
as they were. Random scores draw from the image's own stream (`holdfast.draws`): batch size
changes nothing.
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
from ..types import Images, Logits, Model
from .batches import in_batches
from .inputs import check_calibration_split, check_items, check_labels

StoredImages = Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"]
Items = Int64[Tensor, " n"]  # the number of each image in its data set
Scores = Float[Tensor, " n"]


class Score(ABC):
    """A function from images to scores (N,), higher = less sure."""

    @abstractmethod
    def __call__(self, images: Images, items: Items | None = None) -> Scores:
        """Scores, differentiable in the images.

        Args:
            images: float (N, C, H, W) in [0, 1].
            items: (N,), the number of each image in its data set, to which random scores tie
                their draws; None: 0 … N−1. Scores without draws ignore it.
        """

    def over(
        self, images: StoredImages, items: Items | None = None, *, batch_size: int = 256
    ) -> Scores:
        """Scores of any number of images, without gradients."""
        return in_batches(self, images, check_items(items, len(images)), batch_size=batch_size)


# --- from the logits ----------------------------------------------------------------------------


def max_softmax(logits: Logits) -> Scores:
    """1 − max_k p_k, 0..1 (Hendrycks & Gimpel, "A baseline …", ICLR 2017).

    Summed over the other classes, so that it does not round to 0 where the model is very sure.
    """
    others = logits.scatter(1, logits.argmax(1, keepdim=True), -math.inf)
    return (others.logsumexp(1) - logits.logsumexp(1)).exp()


def entropy(logits: Logits) -> Scores:
    """−Σ_k p_k log p_k in nats, 0..log K."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def top_two_difference(logits: Logits) -> Scores:
    """Second minus largest logit = log(p₂/p₁), −∞..0 (Scheffer et al. 2001, in log odds)."""
    top = logits.topk(2, dim=1).values
    return top[:, 1] - top[:, 0]


def energy(logits: Logits) -> Scores:
    """−log Σ_k exp z_k, −∞..∞ (Liu et al., "Energy-based out-of-distribution detection", 2020)."""
    return -logits.logsumexp(1)


LOGIT_SCORES: dict[str, Callable[[Logits], Scores]] = {
    "max-softmax": max_softmax,
    "entropy": entropy,
    "margin": top_two_difference,
    "energy": energy,
}


class LogitScore(Score):
    """One of `LOGIT_SCORES` of a model's logits.

    Raises:
        InputError: unknown measure.
    """

    def __init__(self, model: Model, measure: str = "max-softmax") -> None:
        self.model, self.measure = model, _named(LOGIT_SCORES, measure)
        self.asked = wrapped(model)

    def __call__(self, images: Images, items: Items | None = None) -> Scores:
        with evaluating(self.model):
            return self.measure(self.asked(images))


def _named(table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise InputError(f"score {name!r} is unknown; here it is one of {', '.join(table)}")
    return table[name]


# --- from several opinions ----------------------------------------------------------------------

Opinions = Float[Tensor, "m n k"]  # log-probabilities of M members


def predictive_entropy(log_p: Opinions) -> Scores:
    """Entropy of the members' mean distribution in nats, 0..log K."""
    return entropy(log_p.logsumexp(0))  # the constant log M does not change a softmax


def mutual_information(log_p: Opinions) -> Scores:
    """Entropy of the mean minus mean of the entropies, 0..log K: what the members disagree on.

    Depeweg et al., "Decomposition of uncertainty in Bayesian deep learning", ICML 2018.
    """
    return predictive_entropy(log_p) + (log_p.exp() * log_p).sum(2).mean(0)


def spread(log_p: Opinions) -> Scores:
    """Σ_k variance over the members of p_k, 0..1."""
    return log_p.exp().var(0, correction=0).sum(1)


OPINION_SCORES: dict[str, Callable[[Opinions], Scores]] = {
    "predictive-entropy": predictive_entropy,
    "mutual-information": mutual_information,
    "spread": spread,
}

# Logits of one member; a member that draws at random uses these seeds (N,) and nothing else.
Member = Callable[[Images, Int64[Tensor, " n"]], Logits]


class OpinionScore(Score):
    """One of `OPINION_SCORES` over members that each give their logits.

    Raises:
        InputError: unknown measure; fewer than two members.
    """

    def __init__(self, members: Sequence[Member], measure: str, *, seed: int = 0) -> None:
        if len(members) < 2:
            raise InputError(f"disagreement needs at least 2 members or draws, not {len(members)}")
        self.members, self.seed = members, seed
        self.measure = _named(OPINION_SCORES, measure)

    def opinions(self, images: Images, items: Items | None = None) -> Opinions:
        """Log-probabilities (M, N, K)."""
        items = check_items(items, len(images))
        opinions = []
        for i, member in enumerate(self.members):
            seeds = draws.item_seeds(self.seed, "opinion", items, i).to(images.device)
            opinions.append(member(images, seeds).log_softmax(1))
        return torch.stack(opinions)

    def __call__(self, images: Images, items: Items | None = None) -> Scores:
        return self.measure(self.opinions(images, items))


def deep_ensemble(models: Sequence[Model], measure: str = "mutual-information") -> OpinionScore:
    """Models trained from different starts (Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017)."""

    def member(model: Model) -> Member:
        def opinion(images: Images, seeds: Int64[Tensor, " n"]) -> Logits:
            with evaluating(model):
                return model(images)

        return opinion

    return OpinionScore([member(wrapped(model)) for model in models], measure)


def mc_dropout(
    model: nn.Module, measure: str = "mutual-information", *, samples: int = 20, seed: int = 0
) -> OpinionScore:
    """Dropout left on (Gal & Ghahramani, "Dropout as a Bayesian approximation", ICML 2016).

    Only dropout modules are seen (`nn.Dropout`, `nn.Dropout1d/2d/3d`), not calls of
    `F.dropout`; their inputs have the image first. Everything else, batch norm included, stays in
    eval mode.

    Raises:
        InputError: a model without such modules.
    """
    if not has_dropout(model):
        raise InputError("MC dropout needs a model with nn.Dropout layers; this one has none")
    look = wrapped(model)

    def opinion(images: Images, seeds: Int64[Tensor, " n"]) -> Logits:
        with evaluating(model), _item_dropout(model, seeds):
            return look(images)

    return OpinionScore([opinion] * samples, measure, seed=seed)


def has_dropout(model: nn.Module) -> bool:
    """Whether `mc_dropout` has anything to leave on."""
    return bool(_dropouts(model))


def _dropouts(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    return [part for part in model.modules() if isinstance(part, kinds) and part.p > 0]


@contextmanager
def _item_dropout(model: nn.Module, seeds: Int64[Tensor, " n"]) -> Iterator[None]:
    """Dropout that is a function of each image's seed, on top of a model in eval mode."""
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


def repeated(
    member: Member, measure: str = "spread", *, samples: int = 20, seed: int = 0
) -> OpinionScore:
    """Disagreement between draws of one random defence, such as a purification.

    Args:
        member: images and one seed an image to logits (N, K), random in the seeds alone.
        samples: how many draws an image.
    """
    return OpinionScore([member] * samples, measure, seed=seed)


def defence_spread(
    model: Model, measure: str = "spread", *, samples: int = 20, seed: int = 0
) -> OpinionScore:
    """Disagreement between draws of a model's own random defences (`holdfast.defences`).

    Purification, random views and the like draw from each image's seed; whatever else is random
    in the model is not seen here.
    """

    look = wrapped(model)

    def drawn(images: Images, seeds: Int64[Tensor, " n"]) -> Logits:
        with evaluating(model), draws.fixed_draws(seeds):
            return look(images)

    return repeated(drawn, measure, samples=samples, seed=seed)


def smoothing_spread(
    model: Model, sigma: float, measure: str = "spread", *, samples: int = 20, seed: int = 0
) -> OpinionScore:
    """Disagreement under Gaussian noise of standard deviation `sigma` (image units).

    Raises:
        InputError: a sigma that is not above 0.
    """
    if not sigma > 0:
        raise InputError(f"sigma of the smoothing noise must be above 0, not {sigma}")

    look = wrapped(model)

    def noisy(images: Images, seeds: Int64[Tensor, " n"]) -> Logits:
        with evaluating(model):
            return look(images + sigma * draws.normal(seeds, 0, images.shape[1:]))

    return repeated(noisy, measure, samples=samples, seed=seed)


# --- from the features --------------------------------------------------------------------------

Features = Callable[[Images], Float[Tensor, "n d"]]


class LayerFeatures:
    """What a named layer puts out (or takes in), one vector an image.

    Maps (N, C, H, W) are averaged over their positions; anything else is flattened.

    Args:
        model: run in eval mode.
        layer: a name from `model.named_modules()`.
        take: `output`, or `input` for what the layer is given (the features before the last
            linear layer, say).

    Raises:
        InputError: a layer the model does not have, or (on a call) does not run.
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
        self.asked = wrapped(model)

    def __call__(self, images: Images) -> Float[Tensor, "n d"]:
        return self.with_output(images)[0]

    def with_output(self, images: Images) -> tuple[Float[Tensor, "n d"], Tensor]:
        """The features, and what the model answers in the same pass."""
        seen: list[Any] = []

        def see(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            seen.append(output if self.take == "output" else given[0] if given else None)

        hook = part_named(self.model, self.layer).register_forward_hook(see)
        try:
            with evaluating(self.model):
                answer = self.asked(images)
        finally:
            hook.remove()
        if not seen or not isinstance(seen[-1], Tensor):
            raise InputError(f"layer {self.layer!r} gave no tensor: name a layer that is run")
        maps = seen[-1]
        return maps.mean((2, 3)) if maps.ndim == 4 else maps.flatten(1), answer


def _training_features(
    features: Features, images: StoredImages, batch_size: int
) -> Float[Tensor, "n d"]:
    found = in_batches(features, images, batch_size=batch_size)
    if found.ndim != 2:
        raise InputError(f"features have shape {tuple(found.shape)}, not (N, D): flatten them")
    bad = ~found.isfinite().all(1)
    if bad.any():
        raise InputError(
            f"features of {int(bad.sum())} of {len(found)} training images are NaN or infinite"
        )
    return found


class FeatureScore(Score):
    """A score of the features alone.

    Attributes:
        features: images to (N, D), such as `LayerFeatures`.
    """

    features: Features

    @abstractmethod
    def of(self, features: Float[Tensor, "n d"]) -> Scores:
        """Scores of features that are at hand."""

    def __call__(self, images: Images, items: Items | None = None) -> Scores:
        return self.of(self.features(images))


class Mahalanobis(FeatureScore):
    """min_k (f − μ_k)ᵀ Σ⁻¹ (f − μ_k), 0..∞: squared distance to the nearest class.

    Lee et al., "A simple unified framework for detecting out-of-distribution samples and
    adversarial attacks", NeurIPS 2018: class means and one shared covariance of training
    features; here with Ledoit–Wolf shrinkage (2004), which stays invertible.

    Args:
        features: images to (N, D), such as `LayerFeatures`.
        images, labels: of the training split; every class must occur.

    Raises:
        InputError: an empty class; features that are NaN or do not vary.
    """

    def __init__(
        self,
        features: Features,
        images: StoredImages,
        labels: Int64[Tensor, " n"],
        *,
        classes: int,
        batch_size: int = 256,
    ) -> None:
        y = check_labels(labels, len(images), classes)
        check_calibration_split(y, classes)
        self.features = features
        found = _training_features(features, images, batch_size)
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

    def of(self, features: Float[Tensor, "n d"]) -> Scores:
        white = features @ self.whiten.T
        return (white[:, None] - self.means).square().sum(2).amin(1)


class NearestNeighbour(FeatureScore):
    """Distance to the k-th nearest training feature, all of length 1; 0..2.

    Sun, Ming, Zhu & Li, "Out-of-distribution detection with deep nearest neighbors", ICML 2022
    (k = 50 for CIFAR-10).

    Args:
        features: images to (N, D), such as `LayerFeatures`.
        images: of the training split.

    Raises:
        InputError: k below 1 or above the number of images; features that are NaN.
    """

    def __init__(
        self, features: Features, images: StoredImages, *, k: int = 50, batch_size: int = 256
    ) -> None:
        if not 1 <= k <= len(images):
            raise InputError(f"k must lie in 1 … {len(images)} (the training images), not {k}")
        self.features, self.k = features, k
        self.bank = F.normalize(_training_features(features, images, batch_size), dim=1)

    def of(self, features: Float[Tensor, "n d"]) -> Scores:
        f = F.normalize(features, dim=1)
        nearest = (f.detach() @ self.bank.T).topk(self.k, dim=1).indices[:, -1]
        # From the difference: √(2 − 2·cosine) has no digits left where features almost agree.
        return (f - self.bank[nearest]).norm(dim=1)
