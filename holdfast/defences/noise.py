"""Additive noise (such as He, Rakin & Fan, CVPR 2019; Cohen et al., ICML 2019)."""

from __future__ import annotations

from .. import draws
from ..threat import Images
from .base import Defence, Model, real_number


class Noise(Defence):
    """Adds Gaussian noise to every value, afresh at every forward pass, and clamps to [0, 1].

    Args:
        model: images → logits.
        sigma: standard deviation in image units, above 0.
    """

    name = "noise"
    random = True

    def __init__(self, model: Model, *, sigma: float = 0.05):
        self.sigma = real_number(self.name, "sigma", sigma, above=0)
        super().__init__(model, sigma=sigma)

    def transform(self, images: Images) -> Images:
        noise = draws.normal(self.draw_seeds(images), 0, images.shape[1:])
        return (images + self.sigma * noise.to(images)).clamp(0, 1)
