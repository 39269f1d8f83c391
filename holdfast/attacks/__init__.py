"""Attacks: searches for an adversarial example inside a threat model, and suites of them."""

from .adaptive import adaptive
from .apgd import APGD
from .base import Attack, Oracle, run
from .black_box import black_box
from .carlini_wagner import CarliniWagner
from .ddn import DDN
from .deepfool import DeepFool
from .fab import FAB
from .fgsm import FGSM
from .fmn import FMN
from .gradient_ascent import GradientAscent
from .hop_skip_jump import HopSkipJump
from .libraries import LibraryAttack, library_attack
from .minimum_norm import MinimumNorm
from .patch import Patch
from .pgd import PGD
from .rays import RayS
from .registry import attack_classes
from .rotation_translation import RotationTranslation
from .sigma_zero import SigmaZero
from .spsa import SPSA
from .square import Square
from .state import Items, State
from .suite import Stage, Suite
from .suites import SUITES, suite_named
from .swift import Swift

# What they were called before 0.2.
Foreign, foreign = LibraryAttack, library_attack

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
    "GradientAscent",
    "HopSkipJump",
    "Items",
    "LibraryAttack",
    "MinimumNorm",
    "Oracle",
    "Patch",
    "RayS",
    "RotationTranslation",
    "SigmaZero",
    "Square",
    "Stage",
    "State",
    "Suite",
    "Swift",
    "adaptive",
    "attack_classes",
    "black_box",
    "library_attack",
    "run",
    "suite_named",
]
