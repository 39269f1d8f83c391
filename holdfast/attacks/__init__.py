"""Attacks: searches for an adversarial example inside a threat model, and suites of them."""

from .apgd import APGD
from .base import Attack, Items, Oracle, State
from .carlini_wagner import CarliniWagner
from .ddn import DDN
from .deepfool import DeepFool
from .fab import FAB
from .fgsm import FGSM
from .fmn import FMN
from .hop_skip_jump import HopSkipJump
from .minimum_norm import MinimumNorm
from .pgd import PGD
from .sigma_zero import SigmaZero
from .spsa import SPSA
from .square import Square
from .suites import SUITES, Stage, Suite, suite_named

__all__ = [
    "APGD",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "PGD",
    "SPSA",
    "SUITES",
    "Attack",
    "CarliniWagner",
    "DeepFool",
    "HopSkipJump",
    "Items",
    "MinimumNorm",
    "Oracle",
    "SigmaZero",
    "Square",
    "Stage",
    "State",
    "Suite",
    "suite_named",
]
