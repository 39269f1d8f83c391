"""Purification by diffusion (Nie et al., "Diffusion models for adversarial purification", ICML
2022): noise that drowns the attack, then a diffusion model that removes it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import draws
from ..errors import InputError
from ..models.checkpoint import load_checkpoint
from ..models.unet import DenoisingUNet
from ..threat import Images
from .base import Defence, Model, real_number, weights_folder, whole_number

CURVE = 7.0  # of the noise levels: larger ones lie closer together near 0 (Karras et al., 2022)


def noise_levels(most: float, least: float, steps: int) -> list[float]:
    """`steps` + 1 noise levels from `most` down to 0, by eq. 5 of Karras et al., NeurIPS 2022."""
    high, low = most ** (1 / CURVE), min(least, most / 2) ** (1 / CURVE)
    shares = (i / max(steps - 1, 1) for i in range(steps))
    return [*((high + share * (low - high)) ** CURVE for share in shares), 0.0]


class Purification(Defence):
    """Adds Gaussian noise, removes it step by step with a diffusion model, and clamps to [0, 1].

    Each step denoises fully and adds back less noise than there was, half old and half new
    (ancestral sampling: Ho et al., 2020; Song et al., 2021). With one step it is the denoised
    smoothing of Salman et al. (2020) and Carlini et al. (2023).

    Gradients are exact, end to end: draws are a function of the image's seed, and the model's
    passes are recomputed in the backward pass (Chen et al., "Training deep nets with sublinear
    memory cost", 2016), so memory does not grow with steps and rounds.

    Args:
        model: images → logits.
        weights: the folder of a trained `denoising-unet` (a checkpoint or its training run), or
            the network itself.
        noise: standard deviation of the noise in image units, above 0, at most what the network
            was trained for.
        steps: passes of the network in a round.
        rounds: how often the image is made noisy and denoised.
        checkpointing: recompute in the backward pass; False keeps everything in memory instead.

    Raises:
        InputError: no weights, or those of something else; an option out of its range; at the
            forward pass, images of another number of channels than it was trained on.

    Cost: steps × rounds passes of the network for each forward pass, twice that and the
    backward passes for each gradient.
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
        self.noise = real_number(self.name, "noise", noise, above=0)
        self.steps = whole_number(self.name, "steps", steps, 1)
        self.rounds = whole_number(self.name, "rounds", rounds, 1)
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
        """From noise `level` to noise `after`."""
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
