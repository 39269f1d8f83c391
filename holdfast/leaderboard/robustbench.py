"""RobustBench's published entries: `model_info/DATA SET/THREAT MODEL/ID.json` of its repository.

https://github.com/RobustBench/robustbench. Numbers are text, in per cent; the norm is known by the
folder alone; `external` is what a later attack left standing, where one found more than AutoAttack.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..parsing import parse_number
from ..runs.records import DataInfo, LeaderboardRow
from ..runs.records.base import shown
from ..threat import Threat

SOURCE = "RobustBench"
AUTOATTACK = ("autoattack_acc", "AA")  # the second in entries of 2020
NORMS = {"linf": "linf", "l2": "l2", "l1": "l1", "l0": "l0"}
CORRUPTIONS = "corruptions"
SPLITS = {"imagenet": "validation"}  # of which its images are; else of the test split


def is_entry(held: Any) -> bool:
    """Whether a JSON object is an entry of RobustBench's."""
    return isinstance(held, dict) and "clean_acc" in held and "schema" not in held


def row(file: Path, held: dict[str, Any]) -> LeaderboardRow | None:
    """An entry as a row of the leaderboard; None for common corruptions, which are no attack.

    Raises:
        InputError: a figure is missing or none; the norm is not known. One line.
    """
    places = [part.lower() for part in file.parent.parts]
    if not any(key in held for key in AUTOATTACK) and (
        CORRUPTIONS in places[-1:] or any(str(key).startswith("corruptions_") for key in held)
    ):
        return None
    norm = next((NORMS[place] for place in reversed(places) if place in NORMS), None)
    if norm is None:
        raise InputError(
            f"{file} does not say of which norm it is: keep it in a folder named Linf or L2, as "
            "RobustBench does"
        )
    key = next((key for key in AUTOATTACK if key in held), None)
    if key is None:
        raise InputError(f"{file} has no {AUTOATTACK[0]!r}")
    found = {"autoattack": _fraction(file, held, key)}
    if held.get("external") not in (None, ""):
        found["external"] = _fraction(file, held, "external")
    suite = min(found, key=lambda name: found[name])
    flags = ["unreliable, says RobustBench"] if held.get("unreliable") is True else []
    data = _text(held, "dataset") or (places[-2] if len(places) > 1 else "")
    link = _text(held, "link")
    return LeaderboardRow(
        model=file.stem,
        measured_by=SOURCE,
        architecture=_text(held, "architecture") or None,
        data=DataInfo(name=data or None, split=SPLITS.get(data, "test")),
        threat=_threat(file, norm, held).describe(),
        suite=suite,
        standard_accuracy=_fraction(file, held, "clean_acc"),
        robust_accuracy=found[suite],
        flags=tuple(flags),
        trained_on=_trained_on(held, data),
        run=str(file),
        link=link if link.startswith("https://") else None,
        venue=_text(held, "venue") or None,
        note=" ".join(word for word in (_text(held, "name"), _text(held, "footnote")) if word)
        or None,
    )


def _trained_on(held: dict[str, Any], data: str) -> str | None:
    extra = held.get("additional_data")
    if not isinstance(extra, bool):
        return None
    if extra:
        return "with extra data"
    # Images of a generator count as no extra data there; the footnote tells of them.
    return f"{data}, synthetic images" if "synthetic" in _text(held, "footnote") else data


def _text(held: dict[str, Any], key: str) -> str:
    value = held.get(key)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _fraction(file: Path, held: dict[str, Any], key: str) -> float:
    """A share in per cent, mostly as text."""
    value = held.get(key)
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value.strip().removesuffix("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 100:
        raise InputError(f"{file}: {key!r} must be a share in per cent, not {shown(value)}")
    return number / 100


def _threat(file: Path, norm: str, held: dict[str, Any]) -> Threat:
    value = held.get("eps")
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError("it is neither text nor a number")
        return Threat(norm, parse_number(value))
    except InputError:
        raise InputError(f"{file}: 'eps' must be such as '8/255', not {shown(value)}") from None
