"""Defences that wrap a model, and certificates.

`Jpeg(model, quality=75)` or `parse("jpeg:quality=75")(model)`; `base` says what a defence is.
"""

from ..draws import fixed_draws, fresh_seeds, repeated_draws
from .autoencoder import Autoencoder, load_autoencoder, save_autoencoder, train_autoencoder
from .base import (
    Declaration,
    Defence,
    declared,
    replace_backward,
    smooth_round,
    steps,
)
from .bit_depth import BitDepth
from .gaussian_blur import GaussianBlur
from .interval import escapes, ibp_loss, logit_bounds, margin_bounds, verified
from .jpeg import Jpeg
from .median import Median
from .noise import Noise
from .palette import Palette
from .purification import Purification
from .random_views import CropEnsemble, ResizePad
from .registry import DEFENCES, chain, parse
from .smoothing import ABSTAIN, Certificates, Smoothed, SoftlySmoothed, certified_accuracy
from .thermometer import Thermometer
from .total_variation import TotalVariation
from .views import onto, shown, undefended, views

__all__ = [
    "ABSTAIN",
    "DEFENCES",
    "Autoencoder",
    "BitDepth",
    "Certificates",
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
    "Smoothed",
    "SoftlySmoothed",
    "Thermometer",
    "TotalVariation",
    "certified_accuracy",
    "chain",
    "declared",
    "escapes",
    "fixed_draws",
    "fresh_seeds",
    "ibp_loss",
    "load_autoencoder",
    "logit_bounds",
    "margin_bounds",
    "onto",
    "parse",
    "repeated_draws",
    "replace_backward",
    "save_autoencoder",
    "shown",
    "smooth_round",
    "steps",
    "train_autoencoder",
    "undefended",
    "verified",
    "views",
]
