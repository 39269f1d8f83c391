"""Evaluations read from run folders, for tables of their figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..terminal import tell

if TYPE_CHECKING:
    from ..threat import Threat

RESULT = "result.json"


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Every finished evaluation below a folder, each `result.json` with its `run` folder.

    A result that is damaged is one line on standard error; the others are returned.

    Raises:
        InputError: no such folder.
    """
    from ..evaluation.result import SCHEMA
    from ..runs.files import read_json

    if not os.path.isdir(folder):  # no error, whatever the name is
        raise InputError(f"folder {folder} does not exist")
    found = []
    # os.walk passes over folders that cannot be read or that go away meanwhile.
    walked = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    for file in sorted(file for file in walked if file.suffix == ".json"):
        result = None
        try:
            result = read_json(file)
            if result.get("schema") == SCHEMA:
                found.append({**_checked(result, file), "run": str(file.parent)})
            elif not str(result.get("schema")).startswith("holdfast/"):
                raise InputError(f"{file} is no result of Holdfast's")
        except InputError as error:
            # Other people's files may lie beside runs, under any name but this.
            if file.name == RESULT or (result and result.get("schema") == SCHEMA):
                tell(f"left out: {error}", error=True)
    return found


def threat_in(told: dict[str, Any]) -> Threat:
    """The threat model of a result; keys that it does not know are passed over."""
    from ..threat import Threat

    return Threat(**{key: told[key] for key in ("norm", "eps", "degrees", "pixels") if key in told})


def _checked(result: dict[str, Any], file: Path) -> dict[str, Any]:
    """A result of which a table can be made; InputError naming what is wrong with it."""
    from ..report.fields import Fields
    from ..report.measured import read_flags, read_threat

    fields = Fields(result, str(file))
    if fields.text("status") != "complete":
        raise InputError(f"{file} has not the status 'complete'")
    read_threat(fields)
    read_flags(fields)
    for name in ("standard_accuracy", "robust_accuracy"):
        held = fields.accuracy(name, f"{name}_interval", None)
        if None in (held.value, held.low, held.high):
            raise InputError(f"{file} lacks {name!r} or its interval")
    if fields.whole("n", 1) is None or not fields.text("suite"):
        raise InputError(f"{file} lacks 'n' or 'suite'")
    for part in ("model", "data"):
        for name in ("name", "split", "pixels", "sha256"):
            fields.object(part).text(name)
    if not all(isinstance(name, str) for name in fields.object("model").list("defences")):
        raise InputError(f"{file}: 'defences' must be a list of names")
    return result


def percent(result: dict[str, Any], name: str) -> str:
    """A fraction of a result with its 95 % interval, in per cent."""
    low, high = result[f"{name}_interval"]
    return f"{result[name]:.1%} ({low:.1%} to {high:.1%})"
