"""Images rotated and translated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Of a rotation and translation: degrees anticlockwise, pixels down, pixels right.
PARAMETERS = 3


def transformed(
    x: Float[Tensor, "n c h w"], parameters: Float[Tensor, "n 3"]
) -> Float[Tensor, "n c h w"]:
    """Each image rotated about its centre, then translated; what comes in from outside is 0.

    Bilinear interpolation; differentiable in both arguments. Pixels are taken to be square
    whatever the image's shape.

    Args:
        parameters: degrees anticlockwise, pixels down, pixels right.

    Returns:
        images in [0, 1]; where the parameters are 0, the images themselves up to rounding.
    """
    height, width = x.shape[2:]
    angle, down, right = (parameters * parameters.new_tensor([torch.pi / 180, 1, 1])).unbind(1)
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    row = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] - (height - 1) / 2
    column = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
    # Where each pixel of the result comes from: translated back, then rotated back.
    row, column = row - down.view(-1, 1, 1), column - right.view(-1, 1, 1)
    source_row, source_column = cos * row + sin * column, cos * column - sin * row
    # `grid_sample` wants −1 and 1 at the outer edges.
    grid = torch.stack([source_column * (2 / width), source_row * (2 / height)], 3)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False).clamp(0, 1)
