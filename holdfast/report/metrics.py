"""Metrics of a record as the cells of tables and the lines of charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import charts
from ..runs.records.uncertainty import Figure
from . import format


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each is its heading."""

    head: list[str]
    rows: list[list[str]]


def number(metric: Figure | None) -> str:
    """To three decimals."""
    return format.NONE if metric is None else f"{metric.value:.3f}"


def percent(metric: Figure | None) -> str:
    """Of a metric that is a share."""
    return format.percent(None if metric is None else metric.value)


def with_interval(metric: Figure | None, share: bool) -> str:
    """A metric, and its interval in brackets where it has one."""
    text = percent(metric) if share else number(metric)
    if metric is None or metric.low is None or metric.high is None:
        return text
    if share:
        return f"{text} ({100 * metric.low:.1f} – {100 * metric.high:.1f})"
    return f"{text} ({metric.low:.3f} – {metric.high:.3f})"


def line(
    x: Sequence[float | None],
    y: Sequence[float | None],
    title: str,
    tone: str,
) -> charts.Line | None:
    """A curve of a result; None where it holds none."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if a is not None]
    return (
        charts.Line(title, tone, [a for a, _ in points], [b for _, b in points]) if points else None
    )


def axis(title: str, values: Sequence[float], write: Callable[[float], str]) -> charts.Axis:
    """From 0 to the largest value."""
    high = max(values) or 1.0
    return charts.Axis(title, 0, high, charts.ticks(0, high), write)
