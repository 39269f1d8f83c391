"""Tables of figures from run folders and from the zoo, for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..errors import InputError
from ..files import read_json
from ..models.loading import zoo_folder, zoo_names
from ..threat import Threat
from .result import SCHEMA


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Every finished evaluation below a folder, each `result.json` with its `run` folder.

    Raises:
        InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist")
    found = []
    for file in sorted(folder.rglob("*.json")):
        try:
            result = read_json(file)
        except InputError:
            continue  # other people's files may lie beside runs
        if result.get("schema") == SCHEMA and result.get("status") == "complete":
            found.append({**result, "run": str(file.parent)})
    return found


def percent(result: dict[str, Any], name: str) -> str:
    """A fraction of a result with its 95 % interval, in per cent."""
    low, high = result[f"{name}_interval"]
    return f"{result[name]:.1%} ({low:.1%} to {high:.1%})"


def model_name(result: dict[str, Any]) -> str:
    """The model's name, and the defences in front of it."""
    model = result.get("model", {})
    defences = model.get("defences", [])
    behind = f" behind {', then '.join(defences)}" if defences else ""
    return f"{model.get('name', '?')}{behind}"


def told_apart(names: Sequence[str], weights: Sequence[str]) -> list[str]:
    """Names of models side by side; those of one name but of other weights say which weights.

    Args:
        weights: their SHA-256; empty where it is unknown.
    """
    of: dict[str, set[str]] = {}
    for name, own in zip(names, weights, strict=True):
        of.setdefault(name, set()).add(own)
    return [
        f"{name}, weights {own[:8] or 'unknown'}" if len(of[name]) > 1 else name
        for name, own in zip(names, weights, strict=True)
    ]


def _console() -> Console:
    """As wide as the terminal; where there is none, wide enough that nothing is folded."""
    return Console(width=None if sys.stdout.isatty() else 160)


def print_leaderboard(folder: Path) -> None:
    """One table for each suite, threat model and data: figures of different ones never mix."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in evaluations(folder):
        threat = str(Threat(**result["threat"]))
        data = result.get("data", {})
        pixels = f"{data.get('name', '?')} {data.get('split', '')}, {data.get('pixels', '?')}"
        groups.setdefault((result["suite"], threat, pixels), []).append(result)
    if not groups:
        raise InputError(f"folder {folder} holds no finished evaluation")
    console = _console()
    for (suite, threat, pixels), results in sorted(groups.items()):
        table = Table(title=f"{suite}, {threat}, {pixels}", title_justify="left")
        for column in ("model", "standard accuracy", "robust accuracy", "n", "flags", "run"):
            table.add_column(column)
        sizes = sorted({result["n"] for result in results})
        if len(sizes) > 1:
            table.caption = (
                f"The rows are not on the same images: n = {', '.join(map(str, sizes))}. "
                "What differs by less than the intervals is no difference."
            )
            table.caption_justify = "left"
        ranked = sorted(results, key=lambda r: -r["robust_accuracy"])
        weights = [str(result.get("model", {}).get("sha256") or "") for result in ranked]
        names = told_apart([model_name(result) for result in ranked], weights)
        for name, result in zip(names, ranked, strict=True):
            table.add_row(
                name,
                percent(result, "standard_accuracy"),
                percent(result, "robust_accuracy"),
                str(result["n"]),
                ", ".join(flag["name"] for flag in result["flags"] if flag["fired"]) or "—",
                result["run"],
            )
        console.print(table)


def print_zoo() -> None:
    """The zoo's models, with the figures of each suite beside each other, never mixed."""
    names = zoo_names()
    if not names:
        raise InputError(f"the zoo ({zoo_folder()}) holds no models")
    table = Table(title="zoo", title_justify="left")
    table.add_column("model", overflow="fold")
    for column in ("architecture", "threat", "suite", "standard", "robust", "n"):
        table.add_column(column)
    beside = zoo_folder().parent / "benchmarks" / "results"
    committed = evaluations(beside) if beside.is_dir() else []
    for name in names:
        folder = zoo_folder() / name
        card = read_json(folder / "card.json")
        threat = str(Threat(**card["threat"])) if card.get("threat") else "none"
        rows = [*evaluations(folder), *(r for r in committed if model_name(r) == name)]
        for result in rows or [None]:  # type: ignore[list-item]
            table.add_row(
                name,
                card["architecture"],
                threat,
                *(
                    ("—", "—", "—", "—")
                    if result is None
                    else (
                        result["suite"],
                        percent(result, "standard_accuracy"),
                        percent(result, "robust_accuracy"),
                        str(result["n"]),
                    )
                ),
            )
    _console().print(table)
