"""Attacks: searches for an adversarial example inside a threat model, and suites of them."""

from .apgd import APGD
from .base import Attack, Items, Oracle, State
from .fgsm import FGSM
from .pgd import PGD
from .square import Square
from .suites import SUITES, Stage, Suite, suite_named

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "SUITES",
    "Attack",
    "Items",
    "Oracle",
    "Square",
    "Stage",
    "State",
    "Suite",
    "suite_named",
]
