"""Running a function over many images, in batches, without gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import InputError
from ..inputs import check_images
from ..types import Stored


@torch.no_grad()
def in_batches(
    function: Callable[..., Tensor],
    images: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"] | Stored,
    *more: Tensor,
    batch_size: int = 256,
) -> Tensor:
    """`function(images, *more)` batch by batch, concatenated.

    Args:
        function: from a batch of images (B, C, H, W) in [0, 1], and the same rows of `more`, to a
            tensor (B, …).
        images: in [0, 1], or as data sets store them (uint8, divided by 255 here); these need not
            be in memory.
        more: tensors whose first dimension is the image.

        batch_size: images in a batch.

    Raises:
        InputError: no images, or values outside [0, 1].

    Example:
        >>> images = torch.full((5, 1, 2, 2), 255, dtype=torch.uint8)
        >>> in_batches(lambda x: x.mean((1, 2, 3)), images, batch_size=2)
        tensor([1., 1., 1., 1., 1.])
    """
    if len(images) == 0:
        raise InputError("there are no images to run the model on")
    if isinstance(images, Tensor) and images.dtype != torch.uint8:
        check_images(images)
    parts = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        x = images[part]
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        parts.append(function(x, *(tensor[part] for tensor in more)))
    return torch.cat(parts)
