"""Holdfast: image classifiers that stay right under attack, and honest figures about them.

import holdfast as hf

threat = hf.Threat("linf", 8 / 255)
result = hf.evaluate(model, images, labels, threat, suite="apgd")
result.robust_accuracy
"""

from . import attacks, data, defences, uncertainty
from .errors import HoldfastError, InputError
from .evaluation import Evaluation, evaluate
from .load import load
from .report import write_report
from .threat import Threat
from .training import train
from .version import VERSION

__version__ = VERSION

__all__ = [
    "Evaluation",
    "HoldfastError",
    "InputError",
    "Threat",
    "attacks",
    "data",
    "defences",
    "evaluate",
    "load",
    "train",
    "uncertainty",
    "write_report",
]
