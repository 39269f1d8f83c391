"""Randomised smoothing (Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via
randomized smoothing", ICML 2019).

The smoothed classifier g(x) answers the class that the model most probably gives for
x + N(0, σ²I). Both its answer and its certified radius are estimated from samples, so each holds
with a stated probability, and where the samples do not suffice it abstains.
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
from ..defences.base import real_number, whole_number
from ..errors import InputError
from ..inputs import check_images, check_labels
from ..intervals import lower_bound
from ..models.modes import evaluating
from ..models.wrapper import NO_PREDICTION, predicted, wrapped
from ..types import Images, Model

ABSTAIN = -1  # no class has this number, so an abstention never equals a label


@dataclass(frozen=True)
class Certificates:
    """What `Smoothed.certify` says of each image, on the CPU.

    Attributes:
        prediction: int64 (N,), the class, or `ABSTAIN`.
        radius: float64 (N,), the L2 radius in image units inside which g answers `prediction`;
            0 where it abstains.
    """

    prediction: Int64[Tensor, " n"]
    radius: Float[Tensor, " n"]


class Smoothed:
    """The smoothed version of a model.

    Noise is not clamped to [0, 1]: the theorem needs the whole Gaussian. An image's noise depends
    on (seed, its index) alone, so images may be certified one by one, in any order and batch
    size, with the same outcome.

    Args:
        model: images → logits (N, K); run in eval mode. A model trained with Gaussian noise of
            the same σ is worth smoothing, others hardly.
        sigma: standard deviation of the noise in image units, above 0. A larger σ certifies
            larger radii and costs accuracy.
        batch_size: images per pass of the model.
        seed: of the noise.
    """

    def __init__(self, model: Model, sigma: float, *, batch_size: int = 512, seed: int = 0):
        self.model = wrapped(model)
        self.sigma = real_number("smoothing", "sigma", sigma, above=0)
        self.batch_size = whole_number("smoothing", "batch_size", batch_size, 1)
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
        """For each image: a class and a radius inside which g answers it, or `ABSTAIN`.

        With probability of at least 1 − alpha over the noise, for each image by itself, what is
        returned is true of g. The class is chosen with the first n0 samples, and its probability
        bounded from below (Clopper–Pearson) with n others.

        Args:
            images: float32 (N, C, H, W) in [0, 1].
            indices: what number each image has in its data set, int64 (N,); 0, 1, … by default.

        Cost: N × (n0 + n) forwards.
        """
        whole_number("smoothing", "n0", n0, 1)
        whole_number("smoothing", "n", n, 1)
        real_number("smoothing", "alpha", alpha, above=0, at_most=0.5)
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
        """g's answer for each image, or `ABSTAIN`: int64 (N,), on the CPU.

        For each image by itself, an answer other than g's is returned with probability of at
        most alpha: the two most frequent classes must differ by a two-sided binomial test (Hung &
        Fithian, 2019).

        Args and cost as in `certify`, without n0.
        """
        whole_number("smoothing", "n", n, 1)
        real_number("smoothing", "alpha", alpha, above=0, at_most=0.5)
        top = self.counts(images, n, "predict", indices).topk(2, dim=1)
        first, second = top.values.numpy().T
        p_value = 2 * stats.binom.sf(first - 1, first + second, 0.5)
        return torch.where(torch.from_numpy(p_value <= alpha), top.indices[:, 0], ABSTAIN)

    def soft(self, samples: int = 16) -> SoftlySmoothed:
        """A differentiable stand-in for g, which any attack can climb."""
        return SoftlySmoothed(self.model, self.sigma, samples, self.seed)

    def counts(
        self, images: Images, n: int, purpose: str, indices: Int64[Tensor, " n"] | None = None
    ) -> Int64[Tensor, "n k"]:
        """How often the model answers each class under noise, n samples an image, on the CPU.

        Args:
            purpose: names the stream of noise; different purposes draw independently.
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
            # Batches run across images, so they are full whatever n is.
            for start in range(0, len(images) * n, self.batch_size):
                stop = min(start + self.batch_size, len(images) * n)
                pair = torch.arange(start, stop, device=images.device)
                row, sample = pair // n, pair % n
                noise = draws.normal(seeds[row], sample, images.shape[1:])
                logits = self.model(images[row] + self.sigma * noise)
                if counts is None:
                    counts = torch.zeros(len(images), logits.shape[1], dtype=torch.int64)
                # A sample that gets no answer is a vote for none.
                said = predicted(logits).cpu()
                votes = (said != NO_PREDICTION).long()
                counts.index_put_((row.cpu(), said.clamp_min(0)), votes, accumulate=True)
        assert counts is not None  # there is at least one image and one sample
        return counts


class SoftlySmoothed(nn.Module):
    """log of the model's mean probabilities over the same draws of noise for every image.

    What an attacker of g climbs (Salman et al., "Provably robust deep learning via adversarially
    trained smoothed classifiers", NeurIPS 2019, eq. 5); whether g is fooled, `Smoothed.predict`
    says. Being a fixed function of the image, it suits attacks that compare one look with another.

    Args:
        model, sigma, seed: as in `Smoothed`.
        samples: how many draws; a pass costs as many passes of the model.
    """

    def __init__(self, model: Model, sigma: float, samples: int = 16, seed: int = 0):
        super().__init__()
        self.model, self.sigma = wrapped(model), real_number("smoothing", "sigma", sigma, above=0)
        self.samples = whole_number("smoothing", "samples", samples, 1)
        self.seeds = draws.item_seeds(seed, "smoothing", "soft", torch.arange(samples))

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        noise = draws.normal(self.seeds.to(images.device), 0, images.shape[1:]).to(images)
        copies = (images.unsqueeze(1) + self.sigma * noise).flatten(0, 1)
        votes = self.model(copies).float().log_softmax(1)
        # A draw that gets no answer is for every class alike.
        votes = torch.where(votes.isnan(), -math.log(votes.shape[1]), votes)
        votes = votes.unflatten(0, (-1, self.samples))
        return votes.logsumexp(1) - math.log(self.samples)


def certified_accuracy(
    certificates: Certificates, labels: Int64[Tensor, " n"], radii: Sequence[float]
) -> list[float]:
    """For each radius, the fraction of images that are answered right and certified that far.

    An abstention is never right, not even at radius 0.
    """
    check_labels(labels, len(certificates.prediction))
    right = certificates.prediction == labels.cpu()
    return [float((right & (certificates.radius >= radius)).double().mean()) for radius in radii]
