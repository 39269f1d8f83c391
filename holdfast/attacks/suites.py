"""The suites by name: fixed sequences of attacks with fixed budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import InputError
from ..parsing import nearest
from .adaptive import adaptive
from .apgd import APGD
from .base import Attack
from .black_box import NAME as BLACK_BOX
from .black_box import black_box
from .carlini_wagner import CarliniWagner
from .ddn import DDN
from .deepfool import DeepFool
from .fab import FAB
from .fgsm import FGSM
from .fmn import FMN
from .hop_skip_jump import HopSkipJump
from .libraries import library_attack
from .patch import Patch
from .pgd import PGD
from .registry import attack_classes
from .rotation_translation import RotationTranslation
from .sigma_zero import SigmaZero
from .square import Square
from .suite import Stage, Suite
from .swift import Swift


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
    return adaptive().stages


PROBED = 0.1  # share of the standing images that are searched without gradients
LEAST_PROBED = 32  # and its least size, in images evaluated: see `Stage.least`
PROBE_QUERIES = 500


def _swift() -> Sequence[Stage]:
    return [
        Stage(Swift()),
        # A search without gradients that still finds something says that gradients mislead.
        Stage(Square(queries=PROBE_QUERIES), share=PROBED, least=LEAST_PROBED),
        *(replace(stage, after=1) for stage in _autoattack()),
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


def _black_box() -> Sequence[Stage]:
    return black_box().stages


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
        "the verdict of autoattack at a small part of its cost: a short APGD run for each class "
        "(in L1 fewer and longer ones), long ones where that almost sufficed, Square on a sample, "
        "and autoattack itself where gradients mislead; L∞, L2, L1",
        _swift,
    ),
    "autoattack-rand": (
        "APGD-CE and APGD-DLR, 20 samples a query: for models that draw random numbers",
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
    BLACK_BOX: (
        "for models that show answers only: Square and SPSA where they are scores, RayS and "
        "HopSkipJump from labels; made for the budget of --queries; L∞, L2, L1, spatial",
        _black_box,
    ),
    "patch": ("a square patch of any values, its place searched; L0", _patch),
    "spatial": (
        "all rotations and shifts of a grid, then random ones and gradient steps; --norm spatial",
        _spatial,
    ),
}


def _stage_of(attack: Stage | Attack) -> Stage:
    """A member of a list of attacks."""
    if isinstance(attack, Stage):
        return attack
    if isinstance(attack, Attack):
        return Stage(attack)
    if isinstance(attack, str):
        raise InputError(
            f"{attack!r} is a suite's name in a list: give one name, and evaluate once for each; "
            "or a list of attacks, such as [APGD(), Square()]"
        )
    kind = attack.__name__ if isinstance(attack, type) else type(attack).__name__
    if isinstance(attack, type) and issubclass(attack, Attack):
        raise InputError(f"{kind} in the list is an attack's class: write {kind}(…)")
    raise InputError(f"the list of attacks holds a {kind}: give attacks, such as APGD()")


def suite_named(name: str | Suite | Attack | Sequence[Attack | Stage]) -> Suite:
    """A suite by its name; an attack alone is a suite of one, and so is one of another library;
    a list of attacks is the suite of them, in this order.

    Args:
        name: a key of `SUITES`, an attack's name (see `attack_classes`), which then runs with its
            default settings, or `torchattacks:APGD:steps=10` (see `library_attack`).

    Raises:
        InputError: unknown name, with the nearest known one; anything else, with the right call.

    Example:
        >>> [stage.name for stage in suite_named("apgd").stages]
        ['apgd-ce', 'apgd-dlr-targeted']
        >>> suite_named([FGSM(), Square()]).name
        'fgsm, square'
    """
    if isinstance(name, Suite):
        return name
    if isinstance(name, Attack):
        return Suite(name.name, (Stage(name),))
    if isinstance(name, Stage):
        return Suite(name.name, (name,))
    if isinstance(name, type) and issubclass(name, Attack):
        raise InputError(f"{name.__name__} is an attack's class: write {name.__name__}(…)")
    if isinstance(name, list | tuple):
        stages = [_stage_of(each) for each in name]
        return Suite(", ".join(stage.name for stage in stages) or "empty", tuple(stages))
    if not isinstance(name, str):
        raise InputError(
            f"the suite is a {type(name).__name__}: give a name, such as 'autoattack', an attack, "
            "or a list of attacks"
        )
    own = name.partition(":")[0]
    if own != name and own in (*SUITES, *attack_classes()):
        raise InputError(
            f"suite {name!r}: {own!r} takes no options here; in Python, give the attack itself, "
            "such as PGD(steps=10)"
        )
    if ":" in name:
        return Suite(name, (Stage(library_attack(name)),))
    if name in SUITES:
        return Suite(name, tuple(SUITES[name][1]()), closest=name == MINIMUM)
    attacks = attack_classes()
    if name in attacks:
        return Suite(name, (Stage(attacks[name]()),))
    raise InputError(f"suite {name!r} is unknown{nearest(name, [*SUITES, *attacks])}")
