"""A row's cells in words, the same on pages and in tables for papers."""

from __future__ import annotations

from ..report import format
from ..report.runs import Accuracy
from ..runs.records import HERE, DataInfo, LeaderboardRow


def standard(row: LeaderboardRow) -> Accuracy:
    return Accuracy.stated(row.standard_accuracy, row.standard_accuracy_interval, row.n)


def robust(row: LeaderboardRow) -> Accuracy:
    return Accuracy.stated(row.robust_accuracy, row.robust_accuracy_interval, row.n)


def images(row: LeaderboardRow) -> str:
    """How many images of what."""
    if row.n is None:
        return "number of images not said"
    if row.population is not None:
        return f"{format.count(row.n)} drawn at random of {format.count(row.population)}"
    return format.data(row.data or DataInfo(), row.n)


def flags(row: LeaderboardRow) -> str:
    """Which health checks fired; none is not the same as not looked."""
    if row.flags:
        return ", ".join(format.name(flag) for flag in row.flags)
    return "none" if row.measured_by == HERE else format.NONE


def parameters(count: int | None) -> str:
    """ "11.2 M"."""
    if count is None:
        return format.NONE
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}\u00a0{letter}"
    return str(count)


def training(row: LeaderboardRow) -> str:
    """What the training took, else what it was given."""
    if row.training_seconds is not None:
        return format.duration(row.training_seconds)
    return f"budget {row.training_budget}" if row.training_budget else format.NONE


def measured_by(row: LeaderboardRow) -> str:
    return "here" if row.measured_by == HERE else row.measured_by
