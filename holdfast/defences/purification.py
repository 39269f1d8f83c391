"""Purification by diffusion: noise drowns the attack, then a diffusion model removes the noise.

Nie et al., "Diffusion models for adversarial purification", ICML 2022.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import draws
from ..errors import InputError
from ..inputs import real_number, whole_number
from ..models.checkpoint import load_checkpoint
from ..models.unet import DenoisingUNet
from ..types import Images, Model
from .base import Defence, weights_folder

CURVE = 7.0  # exponent ρ of Karras et al.: the larger, the closer noise levels are near 0


def noise_levels(most: float, least: float, steps: int) -> list[float]:
    """`steps` + 1 noise levels from `most` down to 0, by equation 5 of Karras et al.

    Karras et al., "Elucidating the design space of diffusion-based generative models", NeurIPS
    2022.

    Args:
        most: the first level, in image units, above 0.
        least: the last level above 0.
        steps: at least 1.

    Example:
        >>> [round(level, 3) for level in noise_levels(0.5, 0.01, steps=3)]
        [0.5, 0.093, 0.01, 0.0]
    """
    high, low = most ** (1 / CURVE), min(least, most / 2) ** (1 / CURVE)
    shares = (i / max(steps - 1, 1) for i in range(steps))
    return [*((high + share * (low - high)) ** CURVE for share in shares), 0.0]


class Purification(Defence):
    """Adds Gaussian noise, removes it step by step with a diffusion model, and clamps to [0, 1].

    Each step predicts the clean image and adds back less noise than there was, in part the old
    noise and in part new (ancestral sampling: Ho et al., 2020; Song et al., 2021). One step is
    the denoised smoothing of Salman et al. (2020) and Carlini et al. (2023).

    Gradients are exact, end to end: draws are a function of the image's seed. The backward pass
    recomputes the network's passes (Chen et al., "Training deep nets with sublinear memory cost",
    2016), so that memory does not grow with steps and rounds.

    Args:
        model: images → logits.
        weights: the folder of a trained `denoising-unet` (a checkpoint or its training run), or
            the network itself.
        noise: standard deviation of the noise in image units, above 0, at most what the network
            was trained for.
        steps: passes of the network in a round, at least 1.
        rounds: how many times noise is added and removed, at least 1.
        checkpointing: recompute passes in the backward pass; False keeps all of them in memory.

    Raises:
        InputError: no weights, or those of something else; an option out of its range; at the
            forward pass, images of another number of channels than it was trained on.

    Cost: a forward pass takes steps × rounds passes of the network; a gradient takes twice as many
    and the backward passes.

    Example:
        >>> network = DenoisingUNet(width=8, levels=2, mean=[0.3], std=[0.4])
        >>> defended = Purification(lambda images: images.flatten(1), weights=network, steps=2)
        >>> defended(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 64])
    """

    name = "purification"
    random = True

    def __init__(
        self,
        model: Model,
        *,
        weights: str | Path | DenoisingUNet | None = None,
        noise: float = 0.15,
        steps: int = 4,
        rounds: int = 1,
        checkpointing: bool = True,
    ):
        self.noise = real_number(f"{self.name}: noise", noise, above=0)
        self.steps = whole_number(f"{self.name}: steps", steps, 1)
        self.rounds = whole_number(f"{self.name}: rounds", rounds, 1)
        if weights is None:
            raise InputError(
                "purification: say where its weights are, purification:weights=FOLDER "
                "(`holdfast train recipes/cifar10-diffusion.yaml --out RUN` makes such a folder)"
            )
        options = {"noise": noise, "steps": steps, "rounds": rounds}
        if not isinstance(weights, DenoisingUNet):
            options = {"weights": weights, **options}  # type: ignore[dict-item]
        super().__init__(model, **options)
        self.network = weights if isinstance(weights, DenoisingUNet) else _network(weights)
        if self.noise > self.network.most_noise:
            raise InputError(
                f"purification: noise {self.noise:g} is more than the "
                f"{self.network.most_noise:g} that its network was trained for"
            )
        self.levels = tuple(noise_levels(self.noise, self.network.least_noise, self.steps))
        self.checkpointing = checkpointing

    def transform(self, images: Images) -> Images:
        channels = self.network.normalise.mean.shape[1]
        if images.shape[1] != channels:
            raise InputError(
                f"purification: trained on images of {channels} channels, given {images.shape[1]}"
            )
        seeds, x = self.draw_seeds(images), images
        for number in range(self.rounds):
            first = number * (self.steps + 1)
            x = x + self.levels[0] * draws.normal(seeds, first, x.shape[1:]).to(x)
            for step in range(self.steps):
                levels, counter = self.levels[step : step + 2], first + 1 + step
                if self.checkpointing and torch.is_grad_enabled():
                    x = checkpoint(
                        self._step,
                        x,
                        seeds,
                        counter,
                        *levels,
                        use_reentrant=False,
                        preserve_rng_state=False,  # all draws are functions of the seeds
                    )
                else:
                    x = self._step(x, seeds, counter, *levels)
        return x.clamp(0, 1)

    def _step(
        self, x: Images, seeds: Int64[Tensor, " n"], counter: int, level: float, after: float
    ) -> Images:
        """Reduce the noise from standard deviation `level` to `after`."""
        clean = self.network(x, x.new_full((len(x),), level))
        if after == 0:
            return clean
        fresh = after * (1 - (after / level) ** 2) ** 0.5
        kept = after**2 / level
        noise = draws.normal(seeds, counter, x.shape[1:]).to(x)
        return clean + kept / level * (x - clean) + fresh * noise


def _network(weights: str | Path) -> DenoisingUNet:
    network = load_checkpoint(weights_folder("purification", weights), classifier=False)
    if not isinstance(network, DenoisingUNet):
        raise InputError(
            f"purification: {weights} holds a {type(network).__name__}, not a denoising-unet"
        )
    return network
