"""Figures of a result as the cells of tables and the lines of charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import charts
from ..errors import InputError
from . import format as words
from .fields import Fields


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each is its heading."""

    head: list[str]
    rows: list[list[str]]


def number(figure: Fields) -> str:
    """To three decimals."""
    value = figure.number("value", -1e300)
    return words.NONE if value is None else f"{value:.3f}"


def percent(figure: Fields) -> str:
    """Of a figure that is a share."""
    return words.percent(figure.number("value", 0, 1))


def with_interval(figure: Fields, share: bool) -> str:
    """A figure, and its interval in brackets where it has one."""
    low, high = figure.number("low", -1e300), figure.number("high", -1e300)
    if share:
        text = percent(figure)
        return (
            text if low is None or high is None else f"{text} ({100 * low:.1f} – {100 * high:.1f})"
        )
    text = number(figure)
    return text if low is None or high is None else f"{text} ({low:.3f} – {high:.3f})"


def keys(fields: Fields) -> list[str]:
    return [str(key) for key in fields.value]


def numbers(fields: Fields, name: str) -> list[float | None]:
    """A list of numbers, in which null is a gap."""
    found: list[float | None] = []
    for i, value in enumerate(fields.list(name)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{fields.where}: {name}[{i}] must be a number or null")
        found.append(None if value is None else float(value))
    return found


def line(
    fields: Fields, x: str, y: str, title: str, tone: str, scale: float = 1.0
) -> charts.Line | None:
    """A curve of a result; None where it holds none."""
    xs, ys = numbers(fields, x), numbers(fields, y)
    if len(xs) != len(ys):
        raise InputError(f"{fields.where}: {x!r} and {y!r} are not of one length")
    points = [(scale * a, b) for a, b in zip(xs, ys, strict=True) if a is not None]
    return (
        charts.Line(title, tone, [a for a, _ in points], [b for _, b in points]) if points else None
    )


def axis(title: str, values: Sequence[float], write: Callable[[float], str]) -> charts.Axis:
    """From 0 to the largest value."""
    high = max(values) or 1.0
    return charts.Axis(title, 0, high, charts.ticks(0, high), write)
