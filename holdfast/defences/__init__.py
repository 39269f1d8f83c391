"""Defences, each a model behind a transformation of its images.

`base` says what a defence is and how to write a new one; `DEFENCES` holds all of them by name.

Example:
    >>> import torch
    >>> import holdfast as hf
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    >>> defended = hf.defences.Jpeg(model, quality=75)  # or parse("jpeg:quality=75")(model)
    >>> defended(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 10])
"""

from ..draws import fixed_draws, new_seeds, repeated_draws
from ..models.chain import undefended, with_network
from .autoencoder import Autoencoder, load_autoencoder, save_autoencoder, train_autoencoder
from .base import Declaration, Defence, declared, replace_backward, smooth_round, steps
from .bit_depth import BitDepth
from .gaussian_blur import GaussianBlur
from .jpeg import Jpeg
from .median import Median
from .noise import Noise
from .palette import Palette
from .purification import Purification
from .random_views import CropEnsemble, ResizePad
from .registry import DEFENCES, chain, parse
from .thermometer import Thermometer
from .total_variation import TotalVariation
from .views import shown, views

__all__ = [
    "DEFENCES",
    "Autoencoder",
    "BitDepth",
    "CropEnsemble",
    "Declaration",
    "Defence",
    "GaussianBlur",
    "Jpeg",
    "Median",
    "Noise",
    "Palette",
    "Purification",
    "ResizePad",
    "Thermometer",
    "TotalVariation",
    "chain",
    "declared",
    "fixed_draws",
    "load_autoencoder",
    "new_seeds",
    "parse",
    "repeated_draws",
    "replace_backward",
    "save_autoencoder",
    "shown",
    "smooth_round",
    "steps",
    "train_autoencoder",
    "undefended",
    "views",
    "with_network",
]
