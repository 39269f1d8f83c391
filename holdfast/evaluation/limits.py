"""What ends an evaluation before all images are judged, a budget of time or a precision; and the
order in which these are drawn."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..inputs import real_number
from ..parsing import parse_percentage, parse_seconds
from ..runs.records import EvaluationRecord

BUDGET, UNTIL, ALL = "budget", "until", "all images"  # why a sample is no larger
WIDEST = 0.5  # half of the widest interval there is


@dataclass(frozen=True)
class Limits:
    """At which of the two a sample of the images is large enough, whichever comes first.

    Attributes:
        budget: seconds that the run may take, in all sessions; None: any time.
        until: half the width of the robust accuracy's interval, a fraction; None: any.
        began: when this session began, by `time.monotonic`.
        program: whether it is a program that does nothing else.
    """

    budget: float | None
    until: float | None
    began: float
    program: bool = False

    @staticmethod
    def of(
        budget: str | float | None,
        until: str | float | None,
        began: float | None = None,
    ) -> Limits | None:
        """What a caller says; None where that is nothing.

        Args:
            budget: seconds, or a text such as `30m`.
            until: a fraction, or a text such as `2%`.
            began: when the program began that does nothing else; by default it is none, and this
                session begins now.

        Raises:
            InputError: no length of time, or no fraction between 0 and 0.5.

        Example:
            >>> limits = Limits.of("30m", "2%")
            >>> limits.budget, limits.until
            (1800.0, 0.02)
        """
        if budget is None and until is None:
            return None
        if isinstance(budget, str):
            budget = parse_seconds(budget)
        elif budget is not None:
            budget = real_number("budget", budget, above=0)
        if until is not None:
            width = parse_percentage(until)
            if not 0 < width < WIDEST:
                raise InputError(
                    f"until {until} is no half-width of an interval: it must lie between 0 and "
                    "50% (write it like 2% or 0.02)"
                )
            until = width
        if began is None:
            return Limits(budget, until, time.monotonic())
        return Limits(budget, until, began, program=True)


def sample_order(n: int, seed: int) -> Int64[Tensor, " n"]:
    """The order in which `n` images are drawn, without replacement.

    Example:
        >>> sample_order(6, seed=0).tolist()
        [3, 1, 5, 2, 4, 0]
    """
    return draws.item_seeds(seed, "sample", torch.arange(n)).argsort()


def is_enough(result: EvaluationRecord, limits: Limits | None) -> bool:
    """Whether a result, of a sample or of all images, is as good as what is asked for now.

    Args:
        limits: None where all images are.
    """
    if result.stopped in (None, ALL):
        return True
    if limits is None:
        return False
    if limits.until is not None:
        low, high = result.robust_accuracy_anytime_interval or (0.0, 1.0)
        as_narrow = result.stopped == UNTIL and (result.until or 0.0) <= limits.until
        if as_narrow or (high - low) / 2 <= limits.until:
            return True
    had = max(result.seconds or 0.0, (result.budget or 0.0) if result.stopped == BUDGET else 0.0)
    return limits.budget is not None and limits.budget <= had
