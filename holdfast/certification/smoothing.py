"""Randomised smoothing: certificates in L2 for any model.

Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019.
The smoothed classifier g(x) predicts the class that the model most probably predicts for
x + N(0, σ²I). Its prediction and its certified radius are estimated from samples. Each holds with a
stated probability, and where the samples do not suffice, g abstains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy import stats
from torch import Tensor, nn

from .. import draws
from ..errors import InputError
from ..inputs import check_images, check_labels, real_number, whole_number
from ..intervals import lower_bound
from ..models.modes import evaluating
from ..models.wrapper import NO_PREDICTION, predicted, wrapped
from ..types import Images, Model

ABSTAIN = -1  # no class has this number, so an abstention never equals a label


@dataclass(frozen=True)
class Certificates:
    """The certificates of N images, on the CPU.

    Attributes:
        prediction: int64 (N,), the class, or `ABSTAIN` (−1).
        radius: float64 (N,), in image units: inside this radius around the image, g predicts
            `prediction`; 0 where it abstains.
    """

    prediction: Int64[Tensor, " n"]
    radius: Float[Tensor, " n"]


class Smoothed:
    """The smoothed version of a model.

    Noisy images are not clamped to [0, 1], because the theorem needs the whole Gaussian: with
    σ = 0.25, a black pixel becomes −0.25 or lower in 16 % of the samples. An image's noise depends
    on the seed and its index alone, so certificates do not depend on order or batch size.

    Args:
        model: images → logits (N, K); run in eval mode. It should be trained with Gaussian noise
            of about the same σ: other models lose most of their accuracy under noise.
        sigma: standard deviation of the noise in image units, above 0. A larger σ certifies
            larger radii and costs accuracy.
        batch_size: noisy images in a pass of the model.
        seed: of the noise.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> smoothed, images = Smoothed(model, sigma=0.25), torch.rand(5, 1, 2, 2)
        >>> certificates = smoothed.certify(images, n=200)
        >>> certificates.radius.shape, bool((certificates.radius >= 0).all())
        (torch.Size([5]), True)
        >>> smoothed.predict(images, n=100).shape
        torch.Size([5])
    """

    def __init__(self, model: Model, sigma: float, *, batch_size: int = 512, seed: int = 0):
        self.model = wrapped(model)
        self.sigma = real_number("smoothing: sigma", sigma, above=0)
        self.batch_size = whole_number("smoothing: batch_size", batch_size, 1)
        self.seed = seed

    def certify(
        self,
        images: Images,
        *,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        indices: Int64[Tensor, " n"] | None = None,
    ) -> Certificates:
        """For each image, a class and a radius inside which g predicts it, or `ABSTAIN`.

        For each image by itself, the certificate is true with a probability of at least 1 − alpha
        over the noise. The first n0 samples choose the class. n others bound its probability from
        below (Clopper–Pearson).

        Args:
            images: float32 (N, C, H, W) in [0, 1].
            n0: samples that choose the class, at least 1.
            n: samples that certify it, at least 1.
            alpha: above 0 and at most 0.5.
            indices: int64 (N,), the number of each image in its data set; by default 0, 1, ….

        Raises:
            InputError: bad images, or an argument out of its range.

        Cost: N × (n0 + n) forwards.
        """
        whole_number("smoothing: n0", n0, 1)
        whole_number("smoothing: n", n, 1)
        real_number("smoothing: alpha", alpha, above=0, at_most=0.5)
        chosen = self.counts(images, n0, "select", indices).argmax(1)
        votes = self.counts(images, n, "estimate", indices).gather(1, chosen[:, None]).squeeze(1)
        bound = lower_bound(votes.numpy(), n, alpha)
        certain = torch.from_numpy(bound > 0.5)
        radius = torch.from_numpy(self.sigma * stats.norm.ppf(bound))
        return Certificates(
            prediction=torch.where(certain, chosen, ABSTAIN),
            radius=torch.where(certain, radius, 0.0),
        )

    def predict(
        self,
        images: Images,
        *,
        n: int = 1000,
        alpha: float = 0.001,
        indices: Int64[Tensor, " n"] | None = None,
    ) -> Int64[Tensor, " n"]:
        """g's prediction for each image, or `ABSTAIN`: int64 (N,), on the CPU.

        For each image by itself, a class that g does not predict is returned with a probability of
        at most alpha. The two most frequent classes must differ by a two-sided binomial test (Hung
        & Fithian, "Rank verification for exponential families", 2019).

        Arguments and errors are as in `certify`. Cost: N × n forwards.
        """
        whole_number("smoothing: n", n, 1)
        real_number("smoothing: alpha", alpha, above=0, at_most=0.5)
        top = self.counts(images, n, "predict", indices).topk(2, dim=1)
        first, second = top.values.numpy().T
        p_value = 2 * stats.binom.sf(first - 1, first + second, 0.5)
        return torch.where(torch.from_numpy(p_value <= alpha), top.indices[:, 0], ABSTAIN)

    def soft(self, samples: int = 16) -> SoftlySmoothed:
        """A differentiable stand-in for g, for attacks."""
        return SoftlySmoothed(self.model, self.sigma, samples, self.seed)

    def counts(
        self, images: Images, n: int, purpose: str, indices: Int64[Tensor, " n"] | None = None
    ) -> Int64[Tensor, "n k"]:
        """How often the model predicts each class under noise: int64 (N, K), on the CPU.

        Args:
            images: float32 (N, C, H, W) in [0, 1].
            n: samples an image. Those for which the model predicts nothing count for no class.
            purpose: the name of the stream of noise. Streams are independent.
            indices: as in `certify`.
        """
        check_images(images)
        if indices is None:
            indices = torch.arange(len(images))
        elif indices.shape != (len(images),):
            raise InputError(
                f"indices must have shape ({len(images)},), not {tuple(indices.shape)}"
            )
        seeds = draws.item_seeds(self.seed, "smoothing", purpose, indices.cpu()).to(images.device)
        counts: Tensor | None = None
        with torch.no_grad(), evaluating(self.model):
            # A batch may hold samples of several images, so that it is full whatever n is.
            for start in range(0, len(images) * n, self.batch_size):
                stop = min(start + self.batch_size, len(images) * n)
                pair = torch.arange(start, stop, device=images.device)
                row, sample = pair // n, pair % n
                noise = draws.normal(seeds[row], sample, images.shape[1:])
                logits = self.model(images[row] + self.sigma * noise)
                if counts is None:
                    counts = torch.zeros(len(images), logits.shape[1], dtype=torch.int64)
                prediction = predicted(logits).cpu()
                votes = (prediction != NO_PREDICTION).long()
                counts.index_put_((row.cpu(), prediction.clamp_min(0)), votes, accumulate=True)
        assert counts is not None  # there is at least one image and one sample
        return counts


class SoftlySmoothed(nn.Module):
    """The logarithm of the model's mean probabilities under noise, differentiable in the images.

    Attacks on g maximise a loss of this (Salman et al., "Provably robust deep learning via
    adversarially trained smoothed classifiers", NeurIPS 2019, equation 5); `Smoothed.predict`
    decides whether they succeed. All images and calls have the same draws of noise, because some
    attacks compare the losses of several calls.

    Args:
        model, sigma, seed: as in `Smoothed`.
        samples: number of draws.

    Cost: a pass takes `samples` passes of the model, in one batch.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> SoftlySmoothed(model, sigma=0.25)(torch.rand(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, model: Model, sigma: float, samples: int = 16, seed: int = 0):
        super().__init__()
        self.model, self.sigma = wrapped(model), real_number("smoothing: sigma", sigma, above=0)
        self.samples = whole_number("smoothing: samples", samples, 1)
        self.seeds = draws.item_seeds(seed, "smoothing", "soft", torch.arange(samples))

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        noise = draws.normal(self.seeds.to(images.device), 0, images.shape[1:]).to(images)
        copies = (images.unsqueeze(1) + self.sigma * noise).flatten(0, 1)
        votes = self.model(copies).float().log_softmax(1)
        # A draw for which the model predicts nothing counts for every class alike.
        votes = torch.where(votes.isnan(), -math.log(votes.shape[1]), votes)
        votes = votes.unflatten(0, (-1, self.samples))
        return votes.logsumexp(1) - math.log(self.samples)


def certified_accuracy(
    certificates: Certificates, labels: Int64[Tensor, " n"], radii: Sequence[float]
) -> list[float]:
    """For each radius, the fraction of images with a right prediction that is certified there.

    An abstention is never right, not even at radius 0.

    Args:
        certificates: of N images.
        labels: (N,).
        radii: in image units.

    Example:
        >>> certificates = Certificates(torch.tensor([1, ABSTAIN]), torch.tensor([0.5, 0.0]))
        >>> certified_accuracy(certificates, torch.tensor([1, 1]), radii=[0.0, 0.25, 1.0])
        [0.5, 0.5, 0.0]
    """
    check_labels(labels, len(certificates.prediction))
    right = certificates.prediction == labels.cpu()
    return [float((right & (certificates.radius >= radius)).double().mean()) for radius in radii]
