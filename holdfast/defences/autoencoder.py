"""A denoising autoencoder (Vincent et al., 2008; as a defence, Gu & Rigazio, 2014)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .. import draws
from ..errors import InputError
from ..inputs import check_images, real_number, whole_number
from ..models.autoencoder import DenoisingAutoencoder
from ..models.checkpoint import load_checkpoint, read_card, save_checkpoint
from ..runs.files import make_folder
from ..types import Images, Model
from .base import Defence, weights_folder

ARCHITECTURE = "denoising-autoencoder"


def train_autoencoder(
    images: Images,
    *,
    sigma: float = 0.1,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    width: int = 32,
    seed: int = 0,
) -> DenoisingAutoencoder:
    """Train an autoencoder to remove Gaussian noise from images.

    It minimises the mean squared error by Adam. The learning rate falls to 0 along a cosine.

    Args:
        images: float32 (N, C, H, W) in [0, 1], on the device to train on.
        sigma: standard deviation of the noise in image units, above 0.
        steps: optimiser steps; an epoch takes N / batch_size of them.
        batch_size: images of a step.
        learning_rate: at the beginning.
        width: channels of the first convolution.
        seed: of the initial weights, the order of images and the noise.

    Returns:
        the network, in eval mode.

    Raises:
        InputError: bad images, sigma or steps.

    Example:
        >>> network = train_autoencoder(torch.rand(10, 1, 8, 8), steps=2, width=4)
        >>> network(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 1, 8, 8])
    """
    check_images(images)
    real_number(f"{ARCHITECTURE}: sigma", sigma, above=0)
    whole_number(f"{ARCHITECTURE}: steps", steps, 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DenoisingAutoencoder(channels=images.shape[1], width=width).to(images.device)
    optimiser = torch.optim.Adam(network.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        picked = draws.item_seeds(seed, "autoencoder", step, torch.arange(batch_size))
        picked = picked.to(images.device)
        clean = images[draws.integers(picked, 0, len(images))]
        noisy = (clean + sigma * draws.normal(picked, 1, clean.shape[1:])).clamp(0, 1)
        loss = F.mse_loss(network(noisy), clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def save_autoencoder(
    folder: Path | str, network: DenoisingAutoencoder, card: dict[str, Any] | None = None
) -> Path:
    """Write `model.safetensors` and `card.json`.

    Args:
        folder: created if need be.
        network: to write.
        card: further entries of the card, such as the data it was trained on.

    Returns:
        the folder.

    Example:
        >>> folder = save_autoencoder("denoiser", DenoisingAutoencoder(channels=1, width=4))
        >>> load_autoencoder(folder)(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 1, 8, 8])
    """
    card = {**(card or {}), "architecture": ARCHITECTURE, "arguments": network.arguments}
    return save_checkpoint(make_folder(Path(folder)), network, card)


def load_autoencoder(folder: Path | str) -> DenoisingAutoencoder:
    """The autoencoder in a folder, in eval mode.

    Args:
        folder: of `save_autoencoder`, or a training run, which has it in `model/`.

    Raises:
        InputError: a file is missing or damaged, or holds something else.

    Example: see `save_autoencoder`.
    """
    place = weights_folder("autoencoder", folder)
    card = read_card(place, classifier=False)
    if card.architecture != ARCHITECTURE:
        raise InputError(f"autoencoder: {place / 'card.json'} describes no {ARCHITECTURE}")
    if card.arguments.keys() != {"channels", "width"}:
        raise InputError(
            f"autoencoder: arguments in {place / 'card.json'} must be channels and width, "
            f"not {', '.join(card.arguments) or 'none'}"
        )
    return load_checkpoint(place, classifier=False)  # type: ignore[return-value]


class Autoencoder(Defence):
    """Replaces each image by what a denoising autoencoder reconstructs from it.

    Args:
        model: images → logits.
        weights: the folder of a training run or of `save_autoencoder`, or the network itself.

    Raises:
        InputError: no weights, or bad ones; at the forward pass, if the images have another
            number of channels than those it was trained on.

    Example:
        >>> network = DenoisingAutoencoder(channels=1, width=4)
        >>> defended = Autoencoder(lambda images: images.flatten(1), weights=network)
        >>> defended(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 64])
    """

    name = "autoencoder"

    def __init__(self, model: Model, *, weights: str | Path | DenoisingAutoencoder | None = None):
        if weights is None:
            raise InputError(
                "autoencoder: say where its weights are, autoencoder:weights=FOLDER "
                "(`holdfast train recipes/cifar10-autoencoder.yaml --out RUN` makes such a folder)"
            )
        if isinstance(weights, DenoisingAutoencoder):
            super().__init__(model)
            self.network = weights
        else:
            super().__init__(model, weights=weights)
            self.network = load_autoencoder(weights)

    def transform(self, images: Images) -> Images:
        channels = self.network.arguments["channels"]
        if images.shape[1] != channels:
            raise InputError(
                f"autoencoder: trained on images of {channels} channels, given {images.shape[1]}"
            )
        return self.network(images)
