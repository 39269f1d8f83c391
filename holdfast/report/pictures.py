"""Images as PNG data URIs."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image


def png(image: np.ndarray) -> str:
    """A data URI of one image.

    Args:
        image: (C, H, W), C of 1 (grey) or 3 (colour), in [0, 1]; rounded to 8 bits, clipped.
    """
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
        buffer, "PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def magnification(delta: np.ndarray) -> int:
    """The largest of 1, 2, 5, 10, 20, … by which perturbations, (M, C, H, W), can be multiplied
    and still be shown around mid-grey without clipping; 1 if there is none to see."""
    largest = float(np.abs(delta).max(initial=0))
    # Float32 images leave a 16/255 perturbation a rounding error short of, or beyond, 16/255.
    room = 0.5 / largest * (1 + 1e-4) if largest > 0 else 1.0
    if room < 2:
        return 1
    power = 10 ** math.floor(math.log10(room))
    return int(max(k * power for k in (1, 2, 5) if k * power <= room))


def magnified(delta: np.ndarray, factor: int) -> np.ndarray:
    """A perturbation, (C, H, W), as an image: mid-grey where nothing changed."""
    return 0.5 + factor * delta
