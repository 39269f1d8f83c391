"""Defences that wrap a model, and certificates.

`Jpeg(model, quality=75)` or `parse("jpeg:quality=75")(model)`; `base` says what a defence is.
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
