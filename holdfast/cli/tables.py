"""Evaluations read from run folders, for tables of their figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..terminal import tell


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Every finished evaluation below a folder, as its record holds it, and `run`, its folder.

    A result that is damaged is one line on standard error; the others are returned.

    Raises:
        InputError: no such folder.
    """
    from ..runs.files import read_json
    from ..runs.records import RESULT, EvaluationRecord

    if not os.path.isdir(folder):  # no error, whatever the name is
        raise InputError(f"folder {folder} does not exist")
    found = []
    # os.walk passes over folders that cannot be read or that go away meanwhile.
    walked = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    for file in sorted(file for file in walked if file.suffix == ".json"):
        schema = None
        try:
            schema = read_json(file).get("schema")
            if schema == EvaluationRecord.SCHEMA:
                found.append({**_whole(file), "run": str(file.parent)})
            elif not str(schema).startswith("holdfast/"):
                raise InputError(f"{file} is no result of Holdfast's")
        except InputError as error:
            # Other people's files may lie beside runs, under any name but this.
            if file.name == RESULT or schema == EvaluationRecord.SCHEMA:
                tell(f"left out: {error}", error=True)
    return found


def _whole(file: Path) -> dict[str, Any]:
    """An evaluation of which a table can be made; InputError naming what it lacks."""
    from ..runs.records import read_file

    record = read_file(file).to_dict()
    for name in ("standard_accuracy", "robust_accuracy"):
        if record.get(name) is None or record.get(f"{name}_interval") is None:
            raise InputError(f"{file} lacks {name!r} or its interval")
    if not record.get("suite"):
        raise InputError(f"{file} lacks 'suite'")
    return record


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
