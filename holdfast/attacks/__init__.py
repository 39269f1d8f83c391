"""Attacks: searches for an adversarial example inside a threat model, and suites of them."""

from .adapters import Foreign, foreign
from .adaptive import adaptive
from .apgd import APGD
from .base import Attack, Oracle, run
from .carlini_wagner import CarliniWagner
from .ddn import DDN
from .deepfool import DeepFool
from .fab import FAB
from .fgsm import FGSM
from .fmn import FMN
from .gradient_ascent import GradientAscent
from .hop_skip_jump import HopSkipJump
from .minimum_norm import MinimumNorm
from .patch import Patch
from .pgd import PGD
from .rotation_translation import RotationTranslation
from .sigma_zero import SigmaZero
from .spsa import SPSA
from .square import Square
from .state import Items, State
from .suite import Stage, Suite
from .suites import SUITES, suite_named
from .swift import Swift

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
    "Foreign",
    "GradientAscent",
    "HopSkipJump",
    "Items",
    "MinimumNorm",
    "Oracle",
    "Patch",
    "RotationTranslation",
    "SigmaZero",
    "Square",
    "Stage",
    "State",
    "Suite",
    "Swift",
    "adaptive",
    "foreign",
    "run",
    "suite_named",
]
