"""Evaluations read from run folders, for tables of their figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..terminal import tell


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Every finished evaluation below a folder, as its record holds it, and `run`, its folder.

    A result that is damaged is one line on standard error; the others are returned.

    Raises:
        InputError: no such folder.
    """
    from ..leaderboard.found import find

    found = find(folder)
    for line in found.left_out:
        tell(f"left out: {line}", error=True)
    return [{**one.record.to_dict(), "run": str(one.folder)} for one in found.evaluations]


def is_sample(result: dict[str, Any]) -> bool:
    """Whether a budget or a width ended the evaluation."""
    return result.get("stopped") in ("budget", "until")


def percent(result: dict[str, Any], name: str) -> str:
    """A fraction of a result with its 95 % interval, in per cent; of a sample that was as large as
    one saw fit, with the one that is valid at any time."""
    anytime = result.get(f"{name}_anytime_interval") if is_sample(result) else None
    low, high = anytime or result[f"{name}_interval"]
    return f"{result[name]:.1%} ({low:.1%} to {high:.1%})"


def model_name(result: dict[str, Any]) -> str:
    """The model's name, and the defences in front of it."""
    from ..runs.records import ModelInfo

    return ModelInfo(**(result.get("model") or {})).title
