"""Training networks that remove noise: a denoising autoencoder, a diffusion model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import draws
from ...errors import InputError
from ...models.autoencoder import DenoisingAutoencoder
from ...models.unet import DenoisingUNet
from ...threat import Threat, per_item
from ...types import Images
from .base import Batch, Loss, Network, Objective, inside

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the range of ln σ, that validation measures at


def psnr(denoised: Images, clean: Images) -> float:
    """Peak signal-to-noise ratio in decibels, the mean over images: 10 log₁₀(1 / mean error²)."""
    error = (denoised.float() - clean).square().flatten(1).mean(1)
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


@dataclass(kw_only=True, eq=False)
class Denoising(Objective):
    """Mean squared error of an autoencoder that is shown noisy images, clamped to [0, 1].

    Vincent et al., "Extracting and composing robust features with denoising autoencoders", ICML
    2008. For the architecture `denoising-autoencoder`.

    Args:
        sigma: standard deviation of the noise in image units.
    """

    classifies = False
    defends = False
    mixes = False
    chosen_by = ("validation_psnr",)

    sigma: float = 0.1

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise InputError(f"objective 'denoising': sigma must be above 0, not {self.sigma!r}")

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        _check(model, DenoisingAutoencoder, "denoising", "denoising-autoencoder")
        noise = draws.normal(batch.seeds, 0, batch.images.shape[1:])
        return (batch.images + self.sigma * noise).clamp(0, 1)

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        error = (model(points).float() - batch.images).square().flatten(1).mean(1)
        return Loss(batch.mean(error), None)

    def held_out(self, model: nn.Module, batch: Batch, threat: Threat) -> dict[str, float]:
        noisy = self.attacked(model, batch, threat)
        return {"validation_psnr": psnr(model(noisy), batch.images)}


class Diffusion(Objective):
    """Squared error of a denoiser over all strengths of noise, each weighted to count alike.

    Karras et al., "Elucidating the design space of diffusion-based generative models", NeurIPS
    2022, with ln σ uniform over the range that the network is made for. For the architecture
    `denoising-unet`; its weights should be averaged (`averaging`).
    """

    classifies = False
    defends = False
    mixes = False
    only_answers = False
    chosen_by = ("validation_psnr",)

    def points(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        _check(model, DenoisingUNet, "diffusion", "denoising-unet")
        share = draws.uniform(batch.seeds, 1)
        return self._noisy(batch, self._sigma(inside(model), share))

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        assert isinstance(model, nn.Module)
        network = inside(model)
        assert isinstance(network, DenoisingUNet)
        sigma = self._sigma(network, draws.uniform(batch.seeds, 1))
        error = (model(points, sigma).float() - batch.images).square().flatten(1).mean(1)
        return Loss(batch.mean(network.weight(sigma) * error), None)

    def held_out(self, model: nn.Module, batch: Batch, threat: Threat) -> dict[str, float]:
        found = []
        for level in LEVELS:
            sigma = self._sigma(model, torch.full_like(batch.seeds, 0).float() + level)
            found.append(psnr(model(self._noisy(batch, sigma), sigma), batch.images))
        return {"validation_psnr": sum(found) / len(found)}

    def _sigma(self, network: nn.Module, share: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The noise at a share of the range of ln σ."""
        assert isinstance(network, DenoisingUNet)
        return network.least_noise * (network.most_noise / network.least_noise) ** share

    def _noisy(self, batch: Batch, sigma: Float[Tensor, " n"]) -> Images:
        noise = draws.normal(batch.seeds, 0, batch.images.shape[1:])
        return batch.images + per_item(sigma, noise) * noise


def _check(model: nn.Module, kind: type[nn.Module], objective: str, architecture: str) -> None:
    if not isinstance(inside(model), kind):
        raise InputError(
            f"objective {objective!r} trains the architecture {architecture!r}, "
            f"not a {type(inside(model)).__name__}"
        )
