"""Additive noise (such as He, Rakin & Fan, CVPR 2019; Cohen et al., ICML 2019)."""

from __future__ import annotations

from .. import draws
from ..inputs import real_number
from ..types import Images, Model
from .base import Defence


class Noise(Defence):
    """Adds Gaussian noise to every value and clamps to [0, 1]. Each forward pass draws new noise.

    Args:
        model: images → logits.
        sigma: standard deviation in image units, above 0.

    Example:
        >>> import torch
        >>> defended, images = Noise(lambda images: images.flatten(1)), torch.rand(1, 1, 2, 2)
        >>> torch.equal(defended(images), defended(images))
        False
        >>> with draws.fixed_draws(0):
        ...     torch.equal(defended(images), defended(images))
        True
    """

    name = "noise"
    random = True

    def __init__(self, model: Model, *, sigma: float = 0.05):
        self.sigma = real_number(f"{self.name}: sigma", sigma, above=0)
        super().__init__(model, sigma=sigma)

    def transform(self, images: Images) -> Images:
        noise = draws.normal(self.draw_seeds(images), 0, images.shape[1:])
        return (images + self.sigma * noise.to(images)).clamp(0, 1)
