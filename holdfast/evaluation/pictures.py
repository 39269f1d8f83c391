"""What a page shows of every image of a run: small, in 8 bits, and not for measuring.

`examples.safetensors` holds a few images exactly, and the journal all adversarial points; a reader
who looks through thousands of images needs less of each.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..runs.files import write_atomically
from ..search.points import AdversarialImages
from ..stored import ModelImages

FILE = "pictures.safetensors"
VALUES = 32_000_000  # of all clean images together: 10,000 of CIFAR-10's
SIDE = 32  # pixels, below which images are not shrunk
_AT_ONCE = 256


def write_pictures(
    folder: Path, images: ModelImages, adversarial: AdversarialImages, index: Tensor
) -> None:
    """`pictures.safetensors`: what is shown of each image.

    `images` uint8 and `change` int8, both (M, C, h, w); a change of 127 is `scale`, (1,); `index`
    int64 (M,). Images of too many values are averaged over squares of pixels, so that h and w are
    those of the images divided by a whole number; of too many images, the first M.

    Args:
        images, adversarial: (N, C, H, W) in [0, 1]; C of 1 or 3, or nothing is written.
        index: int64 (N,), of the images among those that were handed over.
    """
    n, channels, height, width = adversarial.shape
    if channels not in (1, 3):
        return
    square = 1
    while _values(n, channels, height, width, square) > VALUES and min(height, width) >= 2 * SIDE:
        if min(height, width) // (square + 1) < SIDE:
            break
        square += 1
    kept = max(1, n * VALUES // max(VALUES, _values(n, channels, height, width, square)))
    clean, moved = [], []
    for first in range(0, kept, _AT_ONCE):
        rows = slice(first, min(first + _AT_ONCE, kept))
        here = images[rows].float().cpu()
        clean.append((avg_pool2d(here, square) * 255).round().clamp(0, 255).to(torch.uint8))
        moved.append(avg_pool2d(adversarial[rows].float().cpu() - here, square).half())
    scale = max(float(part.abs().max()) for part in moved) or 1.0
    change = [
        (part.float() / scale * 127).round().clamp(-127, 127).to(torch.int8) for part in moved
    ]
    tensors = {
        "images": torch.cat(clean),
        "change": torch.cat(change),
        "scale": torch.tensor([scale]),
        "index": index[:kept].contiguous(),
    }
    write_atomically(folder / FILE, save(tensors))


def _values(n: int, channels: int, height: int, width: int, square: int) -> int:
    return n * channels * (height // square) * (width // square)
