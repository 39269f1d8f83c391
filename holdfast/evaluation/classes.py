"""Whether a model's logits are those of the classes of the data."""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma, log

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import InputError
from .result import Flag

CHANCE = 0.01  # that so many classes would be missing among images drawn from all of them


def check_number_of_logits(
    logits: int, classes: int | Sequence[str], *, exactly: bool = False, model: str = "the model"
) -> None:
    """InputError where a model answers fewer classes than the data has; `exactly`: or more."""
    count = classes if isinstance(classes, int) else len(classes)
    if logits < count or (exactly and logits > count):
        named = "" if isinstance(classes, int) else f" ({', '.join(classes[:3])}, …)"
        raise InputError(
            f"{model} answers {logits} classes, the data has {count}{named}: they must be the same "
            "classes in the same order"
        )


def logits_without_images(
    logits: int, labels: Int64[Tensor, " n"], classes: Sequence[str] | None = None
) -> Flag:
    """The model answers more classes than the data has: classes of another data set, perhaps.

    Args:
        logits: how many the model answers.
        classes: of the data. By default those among the labels, if it cannot be chance
            that images of the others are missing.

    Raises:
        InputError: fewer logits than classes.
    """
    if classes:
        check_number_of_logits(logits, classes)
        known, what = len(classes), "the data has"
        fired = logits > known
    else:
        known, what = len(torch.unique(labels)), "the labels name"
        fired = known < logits and _log_chance(known, logits, len(labels)) < log(CHANCE)
    return Flag(
        name="more-logits-than-classes",
        fired=fired,
        detail=f"The model answers {logits} classes, {what} {known}: are they the same, in the "
        "same order?"
        if fired
        else f"The model answers {logits} classes.",
        figures={"logits": logits, "classes": known},
    )


def _log_chance(found: int, of: int, images: int) -> float:
    """The logarithm of a bound on the chance that images drawn from `of` classes alike show no
    more than `found` of them."""
    choices = lgamma(of + 1) - lgamma(found + 1) - lgamma(of - found + 1)
    return choices + images * log(found / of)
