"""Median smoothing (Xu, Evans & Qi, "Feature squeezing", NDSS 2018)."""

from __future__ import annotations

import torch.nn.functional as F

from ..types import Images, Model
from .base import Defence, fits, odd_kernel


class Median(Defence):
    """Replaces every value by the median of the window around it, in each channel by itself.

    Beyond the image's border, its outermost values are repeated. The exact gradient goes to the
    pixel that is the median.

    Args:
        model: images → logits.
        kernel: side of the window in pixels, odd, at most the image's.

    Raises:
        InputError: at the forward pass, if the window is larger than the images.

    Example:
        >>> import torch
        >>> images = torch.zeros(1, 1, 3, 3)
        >>> images[0, 0, 1, 1] = 1
        >>> Median(lambda images: images.flatten(1))(images).max()
        tensor(0.)
    """

    name = "median"

    def __init__(self, model: Model, *, kernel: int = 3):
        self.kernel = odd_kernel(self.name, kernel)
        super().__init__(model, kernel=kernel)

    def transform(self, images: Images) -> Images:
        fits(self.name, self.kernel, images)
        padded = F.pad(images, [self.kernel // 2] * 4, mode="replicate")
        windows = padded.unfold(2, self.kernel, 1).unfold(3, self.kernel, 1)
        return windows.flatten(4).median(4).values
