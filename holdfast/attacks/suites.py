"""Suites: fixed, named sequences of attacks with fixed budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..files import nearest
from ..threat import Threat
from .adapters import foreign
from .apgd import APGD
from .base import Attack
from .carlini_wagner import CarliniWagner
from .ddn import DDN
from .deepfool import DeepFool
from .fab import FAB
from .fgsm import FGSM
from .fmn import FMN
from .hop_skip_jump import HopSkipJump
from .patch import Patch
from .pgd import PGD
from .rotation_translation import RotationTranslation
from .sigma_zero import SigmaZero
from .square import Square
from .swift import Swift

UNDEFENDED = "undefended"


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
        view: what the search looks at in place of the model: `exact`, `identity` or `surrogate`,
            another backward pass that its defences offer, or `UNDEFENDED`, the network behind
            them. Verdicts always come from the model itself.
        share: of the images that stand, the share that it is tried on: every image draws by
            itself whether it is among them.
        after: the number of an earlier stage; this one runs only if that one broke an image.
    """

    attack: Attack
    restarts: int = 1
    targets: int | None = None
    samples: int = 1
    view: str = ""
    share: float = 1.0
    after: int | None = None

    def __post_init__(self) -> None:
        for name in ("restarts", "targets", "samples"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"{name} of {self.attack.name} must be at least 1, not {count}")
        if not 0 < self.share <= 1:
            raise InputError(f"share of {self.attack.name} must be in (0, 1], not {self.share}")

    @property
    def name(self) -> str:
        """What reports call it: the attack, and what it looks at where that is not the model."""
        return f"{self.attack.name}, {self.view}" if self.view else self.attack.name

    @property
    def compares(self) -> bool:
        """Whether its scores are margins of the model itself: no distances, nor another's."""
        return not self.attack.minimum_norm and self.view != UNDEFENDED

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
            "view": self.view,
            "share": self.share,
            "after": self.after,
        }


@dataclass(frozen=True)
class Suite:
    """A named sequence of stages; `describe()` is part of a run's identity.

    Attributes:
        closest: what is looked for is the closest adversarial point of every image, whatever ε
            is: every stage goes over all images, to its end, and the closest point of all counts.
            All attacks are then minimum-norm ones that do not stop inside the ball.
    """

    name: str
    stages: tuple[Stage, ...]
    closest: bool = False

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError(f"suite {self.name!r} has no attacks")
        for number, stage in enumerate(self.stages):
            if stage.after is not None and not 0 <= stage.after < number:
                raise InputError(
                    f"suite {self.name!r}: stage {number} can only run after an earlier one"
                )
        for attack in (stage.attack for stage in self.stages if self.closest):
            if getattr(attack, "stop_inside", True):
                raise InputError(f"suite {self.name!r}: {attack.name} stops inside the ball")

    def fitting(self, threat: Threat) -> Suite:
        """The suite in a threat model.

        A search for the closest points leaves out the attacks that do not know the norm.

        Raises:
            InputError: an attack of another suite, or every one of this, does not know it.
        """
        knowing = tuple(s for s in self.stages if threat.norm in s.attack.norms)
        if not (self.closest and knowing):
            for stage in self.stages:
                stage.attack.check_norm(threat)
        return replace(self, stages=knowing)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "stages": [stage.describe() for stage in self.stages],
            "closest": self.closest,
        }


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


def _adaptive() -> Sequence[Stage]:
    from .adaptive import adaptive  # which builds on this module

    return adaptive().stages


PROBED = 0.1  # of the standing images
PROBE_QUERIES = 500


def _swift() -> Sequence[Stage]:
    return [
        Stage(Swift()),
        # A search without gradients that still finds something says that gradients mislead.
        Stage(Square(queries=PROBE_QUERIES), share=PROBED),
        Stage(Square(queries=5000), after=1),
        Stage(APGD(steps=100, loss="dlr", targeted=True), targets=TARGETS, after=1),
    ]


def _autoattack_rand() -> Sequence[Stage]:
    return [
        Stage(APGD(steps=100, loss="ce"), samples=RANDOM_SAMPLES),
        Stage(APGD(steps=100, loss="dlr"), samples=RANDOM_SAMPLES),
    ]


MINIMUM = "minimum"


def _minimum() -> Sequence[Stage]:
    return [
        Stage(FAB(steps=100, targeted=True, stop_inside=False), targets=TARGETS),
        # The closest class to begin with need not be the closest in the end, in L0 least of all.
        Stage(FMN(steps=100, targeted=True, stop_inside=False), targets=TARGETS),
        Stage(FMN(steps=500, stop_inside=False)),
        Stage(DeepFool(stop_inside=False)),
        Stage(DDN(steps=500, stop_inside=False)),
        Stage(CarliniWagner(steps=200, searches=9, length=0.02, stop_inside=False)),
        Stage(SigmaZero(steps=1000, stop_inside=False)),
        Stage(HopSkipJump(queries=5000, stop_inside=False)),
    ]


def _patch() -> Sequence[Stage]:
    return [
        Stage(Patch()),
        Stage(Patch(targeted=True), targets=TARGETS),
        Stage(Patch(start="random")),
    ]


def _spatial() -> Sequence[Stage]:
    return [
        Stage(RotationTranslation()),
        Stage(RotationTranslation(grid=(0, 0), draws=100, steps=50)),
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
    "swift": (
        "the verdict of autoattack at a small part of its cost: short APGD runs on close classes, "
        "Square on a sample, and on everything where it finds something; L∞, L2, L1",
        _swift,
    ),
    "autoattack-rand": (
        "APGD-CE and APGD-DLR, 20 samples a look: for models that draw random numbers",
        _autoattack_rand,
    ),
    "adaptive": (
        "made from what the defences declare: transfer, PGD and APGD through every backward pass "
        "and over random draws, Square, HopSkipJump",
        _adaptive,
    ),
    MINIMUM: (
        "the closest adversarial point that FAB, FMN, DeepFool, DDN, Carlini-Wagner, sigma-zero or "
        "HopSkipJump finds, whichever know the norm; the whole security curve in one pass",
        _minimum,
    ),
    "patch": ("a square patch of any values, its place searched; L0", _patch),
    "spatial": (
        "all rotations and shifts of a grid, then random ones and gradient steps; --norm spatial",
        _spatial,
    ),
}


def suite_named(name: str | Suite | Attack) -> Suite:
    """A suite by its name; an attack alone is a suite of one, and so is one of another library.

    Args:
        name: a key of `SUITES`, or `torchattacks:APGD:steps=10` (see `foreign`).

    Raises:
        InputError: unknown name, with the nearest known one.
    """
    if isinstance(name, Suite):
        return name
    if isinstance(name, Attack):
        return Suite(name.name, (Stage(name),))
    if ":" in name:
        return Suite(name, (Stage(foreign(name)),))
    if name not in SUITES:
        raise InputError(f"suite {name!r} is unknown{nearest(name, SUITES)}")
    return Suite(name, tuple(SUITES[name][1]()), closest=name == MINIMUM)
