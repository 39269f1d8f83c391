"""Training for randomised smoothing: on noisy images, and on attacked noisy images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import draws
from ...attacks import PGD
from ...errors import InputError
from ...threat import Threat
from ...types import Images
from .base import Batch, Loss, Network, Objective, inside, perturb


@dataclass(kw_only=True, eq=False)
class Gaussian(Objective):
    """Cross-entropy on images with Gaussian noise, which is not clamped.

    Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via randomized smoothing", ICML
    2019. Weights are kept by their accuracy on noisy validation images.

    Args:
        sigma: standard deviation of the noise in image units; certify with the same.
    """

    chosen_by = ("validation_noisy_accuracy",)
    samples = 1  # noisy copies of each image

    sigma: float = 0.25

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise InputError(f"objective: sigma must be above 0, not {self.sigma!r}")

    def noise(self, batch: Batch) -> Tensor:
        """One draw for each copy, all copies of an image together: (N · samples, C, H, W)."""
        seeds = batch.seeds.repeat_interleave(self.samples)
        number = torch.arange(self.samples, device=seeds.device).repeat(len(batch.seeds))
        return self.sigma * draws.normal(seeds, number, batch.images.shape[1:])

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        return batch.images.repeat_interleave(self.samples, 0) + self.noise(batch)

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        logits = model(points).float()
        value = batch.repeated(self.samples).cross_entropy(logits)
        return Loss(value, logits.detach().unflatten(0, (-1, self.samples)).mean(1))

    def held_out(self, model: nn.Module, batch: Batch, threat: Threat) -> dict[str, float]:
        noisy = batch.images + self.sigma * draws.normal(batch.seeds, 0, batch.images.shape[1:])
        right = model(noisy).argmax(1) == batch.labels
        return {"validation_noisy_accuracy": float(right.float().mean())}


@dataclass(kw_only=True, eq=False)
class SmoothAdv(Gaussian):
    """Cross-entropy on noisy copies of images that were attacked as the smoothed classifier's.

    Salman et al., "Provably robust deep learning via adversarially trained smoothed classifiers",
    NeurIPS 2019. The attack climbs −log of the mean probability over the copies, with the very
    noise that the copies are trained with. The radius is the recipe's, in L2.

    Args:
        sigma: as in `Gaussian`.
        samples: noisy copies of each image.
        steps: of the attack.
        step_size: of each step, in units of ε.
    """

    samples: int = 2
    steps: int = 2
    step_size: float = 1.0

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        noise = self.noise(batch)
        smoothed = _Smoothed(inside(model), noise, self.samples)
        attack = PGD(steps=self.steps, step_size=self.step_size, start="clean")
        points = perturb(smoothed, batch, attack, threat, self.steps)
        return points.repeat_interleave(self.samples, 0) + noise


class _Smoothed(nn.Module):
    """log of the mean probabilities over copies with fixed noise."""

    def __init__(self, network: nn.Module, noise: Tensor, samples: int):
        super().__init__()
        self.network, self.noise, self.samples = network, noise, samples

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        logits = self.network(images.repeat_interleave(self.samples, 0) + self.noise)
        return logits.float().log_softmax(1).unflatten(0, (-1, self.samples)).logsumexp(1)
