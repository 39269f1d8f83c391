"""The suite `black-box`: for models of which nothing is seen but their answers."""

from __future__ import annotations

from ..errors import InputError
from .base import Attack
from .hop_skip_jump import HopSkipJump
from .rays import RayS
from .rotation_translation import RotationTranslation
from .spsa import SPSA
from .square import Square
from .suite import Stage, Suite

NAME = "black-box"


def black_box(queries: int | None = None, norm: str = "linf") -> Suite:
    """Attacks that ask, and compute nothing of the model: those by scores, then those by decisions.

    Where a model returns labels only, the first two are of no use and are left out.

    Args:
        queries: the budget an image, which the schedules of the attacks are then made for; what
            the first leaves of it is for those after it.
        norm: attacks that do not know it are left out.

    Raises:
        InputError: a norm that none of the attacks knows.

    Example:
        >>> [stage.name for stage in black_box(norm="l2").stages]
        ['square', 'spsa', 'hop-skip-jump']
        >>> black_box(queries=1000).stages[0].attack
        Square(queries=999, area=0.8)
    """

    def up_to(usual: int) -> int:
        return usual if queries is None else max(1, min(usual, queries))

    attacks: tuple[Attack, ...] = (
        Square(queries=max(1, up_to(5001) - 1)),  # it asks once more
        SPSA(steps=40, samples=32),
        RayS(queries=up_to(5000)),
        HopSkipJump(queries=up_to(5000)),
        RotationTranslation(),
    )
    stages = tuple(Stage(attack) for attack in attacks if norm in attack.norms)
    if not stages:
        raise InputError(f"suite {NAME} has no attack that knows the norm {norm}")
    return Suite(NAME, stages)
