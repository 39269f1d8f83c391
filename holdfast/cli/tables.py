"""Tables of figures from run folders and from the zoo, for a terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..evaluation.result import SCHEMA, distinct_names, model_name
from ..models.checkpoint import read_card
from ..models.zoo import zoo_folder, zoo_names
from ..runs.files import read_json
from ..terminal import tell, tell_table
from ..threat import Threat

RESULT = "result.json"


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Every finished evaluation below a folder, each `result.json` with its `run` folder.

    A result that is damaged is one line on standard error; the others are returned.

    Raises:
        InputError: no such folder.
    """
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


def print_leaderboard(folder: Path) -> None:
    """One table for each suite, threat model and data: figures of different ones never mix."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in evaluations(folder):
        threat = str(threat_in(result["threat"]))
        data = result.get("data") or {}
        pixels = f"{data.get('name', '?')} {data.get('split', '')}, {data.get('pixels', '?')}"
        groups.setdefault((result["suite"], threat, pixels), []).append(result)
    if not groups:
        raise InputError(f"folder {folder} holds no finished evaluation")
    for group, results in sorted(groups.items()):
        sizes = sorted({result["n"] for result in results})
        ranked = sorted(results, key=lambda r: -r["robust_accuracy"])
        weights = [(result.get("model") or {}).get("sha256") or "" for result in ranked]
        names = distinct_names([model_name(result) for result in ranked], weights)
        tell_table(
            ", ".join(group),
            ("model", "standard accuracy", "robust accuracy", "n", "flags", "run"),
            [
                (
                    name,
                    percent(result, "standard_accuracy"),
                    percent(result, "robust_accuracy"),
                    str(result["n"]),
                    ", ".join(f["name"] for f in result.get("flags") or [] if f.get("fired"))
                    or "—",
                    result["run"],
                )
                for name, result in zip(names, ranked, strict=True)
            ],
            f"The rows are not on the same images: n = {', '.join(map(str, sizes))}. "
            "What differs by less than the intervals is no difference."
            if len(sizes) > 1
            else None,
        )


def print_zoo() -> None:
    """The zoo's models, with the figures of each suite beside each other, never mixed.

    A model whose card is damaged is one line on standard error; the others are shown.
    """
    names = zoo_names()
    if not names:
        raise InputError(f"the zoo ({zoo_folder()}) holds no models")
    beside = zoo_folder().parent / "benchmarks" / "results"
    committed = evaluations(beside) if beside.is_dir() else []
    rows = []
    for name in names:
        folder = zoo_folder() / name
        try:
            card = read_card(folder)
        except InputError as error:
            tell(f"left out: {error}", error=True)
            continue
        trained = card.get("threat")
        first = (name, card["architecture"], str(Threat(**trained)) if trained else "none")
        results = [*evaluations(folder), *(r for r in committed if model_name(r) == name)]
        rows += [
            (
                *first,
                result["suite"],
                percent(result, "standard_accuracy"),
                percent(result, "robust_accuracy"),
                str(result["n"]),
            )
            for result in results
        ] or [(*first, "—", "—", "—", "—")]
    tell_table("zoo", ("model", "architecture", "threat", "suite", "standard", "robust", "n"), rows)
