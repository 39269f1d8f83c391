"""The suite `adaptive`: made for one model by what its defences declare about themselves.

After Athalye, Carlini & Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
and Tramèr, Carlini, Brendel & Madry, "On adaptive attacks to adversarial example defenses",
NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import InputError
from .apgd import APGD
from .hop_skip_jump import HopSkipJump
from .pgd import PGD
from .square import Square
from .suite import UNDEFENDED, Stage, Suite

NAME = "adaptive"
SAMPLES = 20


def adaptive(
    views: Sequence[str] = (),
    *,
    random: bool = False,
    samples: int = SAMPLES,
    norm: str = "linf",
) -> Suite:
    """Everything that may break a defended model, the cheapest first.

    Transfer from the network behind the defences; PGD, then APGD, through the gradients of the
    model as it stands (end to end, or by the first approximation that its steps offer) and through
    each other backward pass that is offered; Square; HopSkipJump. Where the model draws random
    numbers, every query is an expectation over `samples` draws, and the attacks that take thousands
    of queries average a quarter as many each.

    Args:
        views: what can be searched besides the model itself; see `Stage.view`.
        random: whether the model draws random numbers.
        samples: draws a query of the gradient attacks.
        norm: attacks that do not know it are left out.

    Raises:
        InputError: samples below 1; a norm that none of the attacks knows.

    Example:
        >>> [stage.name for stage in adaptive(["identity"], norm="l1").stages][:3]
        ['pgd', 'pgd, identity', 'apgd-ce']
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError(f"samples must be a whole number of at least 1, not {samples!r}")
    stages = tuple(
        stage
        for stage in (_over_draws if random else _for_one_answer)(views, samples)
        if norm in stage.attack.norms
    )
    if not stages:
        raise InputError(f"suite {NAME} has no attack that knows the norm {norm}")
    return Suite(NAME, stages)


def _transfer(views: Sequence[str]) -> Iterator[Stage]:
    if UNDEFENDED in views:
        yield Stage(PGD(steps=20, step_size=0.15, loss="margin"), view=UNDEFENDED)


def _backwards(views: Sequence[str]) -> list[str]:
    return ["", *(view for view in views if view != UNDEFENDED)]


def _for_one_answer(views: Sequence[str], samples: int) -> Iterator[Stage]:
    yield from _transfer(views)
    for view in _backwards(views):
        yield Stage(PGD(steps=20, step_size=0.15, loss="margin"), view=view)
    for view in _backwards(views):
        yield Stage(APGD(steps=100, loss="ce"), view=view)
    for view in _backwards(views):
        yield Stage(APGD(steps=100, loss="dlr", targeted=True), targets=3, view=view)
    yield Stage(Square(queries=2000))
    yield Stage(HopSkipJump(queries=2000))


def _over_draws(views: Sequence[str], samples: int) -> Iterator[Stage]:
    repeats = max(1, samples // 4)
    yield from _transfer(views)
    for view in _backwards(views):
        yield Stage(PGD(steps=20, step_size=0.15, loss="margin"), samples=samples, view=view)
    for view in _backwards(views):
        yield Stage(APGD(steps=50, loss="ce"), samples=samples, view=view)
    yield Stage(APGD(steps=50, loss="dlr"), samples=samples)
    yield Stage(Square(queries=1000), samples=repeats)
    yield Stage(HopSkipJump(queries=500), samples=repeats)
