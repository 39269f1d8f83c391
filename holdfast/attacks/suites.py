"""Suites: fixed, named sequences of attacks with fixed budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..files import nearest
from .apgd import APGD
from .base import Attack
from .fab import FAB
from .fgsm import FGSM
from .pgd import PGD
from .square import Square


@dataclass(frozen=True)
class Stage:
    """One attack of a suite.

    Attributes:
        attack: what is run on every image that still stands.
        restarts: independent random starts an image.
        targets: for a targeted attack, how many wrong classes are tried, the most likely
            first; None for all of them.
        samples: copies of each image over which every look averages logits and gradients
            (expectation over transformation), for models that draw random numbers.
    """

    attack: Attack
    restarts: int = 1
    targets: int | None = None
    samples: int = 1

    def __post_init__(self) -> None:
        for name in ("restarts", "targets", "samples"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"{name} of {self.attack.name} must be at least 1, not {count}")

    def items_per_image(self, classes: int) -> int:
        """Work items that an image needs at most: restarts × targets."""
        if not self.attack.targeted:
            return self.restarts
        wrong = classes - 1
        return self.restarts * (wrong if self.targets is None else min(self.targets, wrong))

    def describe(self) -> dict[str, Any]:
        return {
            **self.attack.describe(),
            "restarts": self.restarts,
            "targets": self.targets,
            "samples": self.samples,
        }


@dataclass(frozen=True)
class Suite:
    """A named sequence of stages; `describe()` is part of a run's identity."""

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError(f"suite {self.name!r} has no attacks")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "stages": [stage.describe() for stage in self.stages]}


def _fgsm() -> Sequence[Stage]:
    return [Stage(FGSM())]


def _pgd() -> Sequence[Stage]:
    return [Stage(PGD(steps=50, step_size=0.1, loss="margin"))]


def _apgd() -> Sequence[Stage]:
    return [
        Stage(APGD(steps=100, loss="ce")),
        Stage(APGD(steps=100, loss="dlr", targeted=True), targets=9),
    ]


# AutoAttack as published (Croce & Hein, ICML 2020; L1: "Mind the box!", ICML 2021). The lists are
# the same in L∞, L2 and L1.
RESTARTS = 5  # of its longer variant
TARGETS = 9
RANDOM_SAMPLES = 20  # expectation over transformation, for models that draw random numbers


def _autoattack() -> Sequence[Stage]:
    return [
        Stage(APGD(steps=100, loss="ce")),
        Stage(APGD(steps=100, loss="dlr", targeted=True), targets=TARGETS),
        Stage(FAB(steps=100, targeted=True), targets=TARGETS),
        Stage(Square(queries=5000)),
    ]


def _autoattack_plus() -> Sequence[Stage]:
    return [
        Stage(APGD(steps=100, loss="ce"), restarts=RESTARTS),
        Stage(APGD(steps=100, loss="dlr"), restarts=RESTARTS),
        # The first of FAB's runs starts at the image, the others at random.
        Stage(FAB(steps=100)),
        Stage(FAB(steps=100, start="random"), restarts=RESTARTS - 1),
        Stage(Square(queries=5000)),
        Stage(APGD(steps=100, loss="dlr", targeted=True), targets=TARGETS),
        Stage(FAB(steps=100, targeted=True), targets=TARGETS),
    ]


def _autoattack_rand() -> Sequence[Stage]:
    return [
        Stage(APGD(steps=100, loss="ce"), samples=RANDOM_SAMPLES),
        Stage(APGD(steps=100, loss="dlr"), samples=RANDOM_SAMPLES),
    ]


# name → (what it is, its stages)
SUITES: dict[str, tuple[str, Callable[[], Sequence[Stage]]]] = {
    "fgsm": ("one FGSM step; a lower bound on nothing, for comparison only", _fgsm),
    "pgd": ("PGD on the margin, 50 steps of ε/10, one random start", _pgd),
    "apgd": ("APGD-CE, 100 steps, then targeted APGD-DLR, 100 steps × 9 targets", _apgd),
    "autoattack": (
        "AutoAttack, standard: APGD-CE, targeted APGD-DLR, targeted FAB, Square; L∞, L2, L1",
        _autoattack,
    ),
    "autoattack-plus": (
        "AutoAttack with 5 restarts of APGD-CE, APGD-DLR and untargeted FAB; L∞, L2, L1",
        _autoattack_plus,
    ),
    "autoattack-rand": (
        "APGD-CE and APGD-DLR, 20 samples a look: for models that draw random numbers",
        _autoattack_rand,
    ),
}


def suite_named(name: str | Suite | Attack) -> Suite:
    """A suite by its name; an attack alone is a suite of one.

    Raises:
        InputError: unknown name, with the nearest known one.
    """
    if isinstance(name, Suite):
        return name
    if isinstance(name, Attack):
        return Suite(name.name, (Stage(name),))
    if name not in SUITES:
        raise InputError(f"suite {name!r} is unknown{nearest(name, SUITES)}")
    return Suite(name, tuple(SUITES[name][1]()))
