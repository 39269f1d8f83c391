"""Figures in words: how numbers, intervals and durations are written on a page.

What has no value is written "—", never 0.
"""

from __future__ import annotations

import math
from typing import Any

from ..charts import NO_VALUE, Estimate
from ..runs.records import DataInfo, ModelInfo
from ..threat import Threat
from .runs import Accuracy, EvaluationRun

NONE = NO_VALUE
_SPACE = "\u00a0"  # keeps a number and its unit on one line


def _digits(n: int | None) -> int:
    # One image in 10,000 shows in the second decimal.
    return 2 if n is not None and n >= 10_000 else 1


def percent(value: float | None, n: int | None = None) -> str:
    """A fraction as "41.2 %"; two decimals from 10,000 images on."""
    return NONE if value is None else f"{100 * value:.{_digits(n)}f}{_SPACE}%"


def accuracy(a: Accuracy) -> str:
    return percent(a.value, a.n)


def interval(a: Accuracy) -> str:
    """ "38.2 – 44.3 %", or "—"."""
    if a.low is None or a.high is None:
        return NONE
    digits = _digits(a.n)
    return f"{100 * a.low:.{digits}f}{_SPACE}–{_SPACE}{100 * a.high:.{digits}f}{_SPACE}%"


def estimate(a: Accuracy) -> Estimate:
    """An accuracy as charts draw it."""
    return Estimate(a.value, a.low, a.high, f"{accuracy(a)} ({interval(a)})")


def count(value: int | float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """ "0.42 s", "45.2 s", "2 min 35 s", "1 h 02 min"."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds:.2f}{_SPACE}s"
    if seconds < 59.95:
        return f"{seconds:.1f}{_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_SPACE}min {rest:02d}{_SPACE}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{_SPACE}h {minutes:02d}{_SPACE}min"


def figure(value: Any) -> str:
    """Any value of a JSON file on one line: 4 significant digits, lists and objects spelt out."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        # Years, seeds and the like are no quantities, but neither is any of them above 99,999.
        return f"{value:,}" if abs(value) >= 100_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(figure(item) for item in value) or NONE
    if isinstance(value, dict):
        return ", ".join(f"{key} {figure(item)}" for key, item in value.items()) or NONE
    return str(value)


def name(text: str) -> str:
    """A key of a file in words: "images_per_second" is "images per second"."""
    return text.replace("_", " ").replace("-", " ")


def title(text: str) -> str:
    """A key of a file as a heading: "gradients-vanish" is "Gradients vanish"."""
    return name(text)[:1].upper() + name(text)[1:]


def norm(threat: Threat) -> str:
    """ "L∞", say."""
    return str(threat).split()[0]


def in_steps(threat: Threat) -> bool:
    """Whether its ε is written in steps of 1/255, and so everything beside it has to be."""
    return str(threat).endswith("/255")


def radius(threat: Threat, value: float) -> str:
    """A distance in the unit in which the threat model's own ε is written."""
    return f"{value * 255:.4g}/255" if in_steps(threat) else f"{value:.4g}"


def permission(threat: Threat) -> str:
    """What the attacker may do, in plain words, to follow "an attacker who may …"."""
    if threat.norm == "linf":
        return f"move every pixel value by up to {_step(threat)}"
    if threat.norm == "l2":
        return f"change the image by up to {threat.eps:g} in Euclidean length"
    if threat.norm == "l1":
        return f"move pixel values by up to {threat.eps:g} in all"
    if threat.norm == "l0":
        return f"change up to {threat.eps:g} pixel values at will"
    turn, shift = threat.eps * threat.degrees, threat.eps * threat.pixels
    return f"turn the image by up to {turn:g}° and shift it by up to {shift:g} pixels each way"


def _step(threat: Threat) -> str:
    if in_steps(threat):
        return f"{threat.eps * 255:g}/255 of its range"
    return f"{100 * threat.eps:.3g}{_SPACE}% of its range"


def data(images: DataInfo, n: int) -> str:
    """ "cifar10 test, first 1,000", or "1,000 of digits test"."""
    split = " ".join(word for word in (images.name, images.split) if word)
    if not split:
        return f"{count(n)} images"
    return f"{split}, first {count(n)}" if images.first == n else f"{count(n)} of {split}"


def images(run: EvaluationRun) -> str:
    """ "412 drawn at random of cifar10 test, first 10,000" where they are a sample of those."""
    population = run.record.population
    if not run.record.is_sample or population is None:
        return data(run.data, run.n)
    return f"{count(run.n)} drawn at random of {data(run.data, population)}"


def model(info: ModelInfo) -> str:
    """Architecture and the beginning of the weights' SHA-256."""
    return (
        " · ".join(word for word in (info.architecture, (info.sha256 or "")[:12]) if word) or NONE
    )
