"""`holdfast leaderboard`: all evaluations below a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..terminal import tell_table
from .options import JsonOption
from .tables import evaluations, is_sample, model_name, percent

KEPT = (  # of each result, for programs
    "suite",
    "threat",
    "n",
    "standard_accuracy",
    "standard_accuracy_interval",
    "robust_accuracy",
    "robust_accuracy_interval",
    "run",
)


OF_SAMPLES = (
    "stopped",
    "population",
    "standard_accuracy_anytime_interval",
    "robust_accuracy_anytime_interval",
)


@dataclass(frozen=True)
class Options:
    """Rank all evaluations below a folder, in one table a suite, threat model and data set."""

    folder: Annotated[Path, typer.Argument(help="A folder that holds run folders.")]
    as_json: JsonOption = False


def run(options: Options) -> list[dict[str, Any]]:
    """Every finished evaluation below the folder, as its `result.json` holds it, and `run`.

    Raises:
        InputError: no such folder, or no finished evaluation in it.
    """
    found = evaluations(options.folder)
    if not found:
        raise InputError(f"folder {options.folder} holds no finished evaluation")
    return found


def show(results: list[dict[str, Any]], options: Options) -> None:
    """Print one table for each suite, threat model and data: figures of different ones never mix.

    Below each model stand its run and the flags that fired.
    """
    from ..evaluation.result import distinct_names
    from ..runs.records import threat_in

    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in results:
        data = result.get("data") or {}
        pixels = f"{data.get('name', '?')} {data.get('split', '')}, {data.get('pixels', '?')}"
        group = (result["suite"], str(threat_in(result["threat"])), pixels)
        groups.setdefault(group, []).append(result)
    listed = []
    for group, members in sorted(groups.items()):
        ranked = sorted(members, key=lambda r: -r["robust_accuracy"])
        weights = [(result.get("model") or {}).get("sha256") or "" for result in ranked]
        names = distinct_names([model_name(result) for result in ranked], weights)
        if options.as_json:
            listed += [
                {
                    "model": name,
                    "data": result.get("data"),
                    **{key: result[key] for key in KEPT},
                    **{key: result[key] for key in OF_SAMPLES if key in result},
                    "flags": _fired(result),
                }
                for name, result in zip(names, ranked, strict=True)
            ]
            continue
        rows: list[tuple[str, ...] | str] = []
        for name, result in zip(names, ranked, strict=True):
            figures = (percent(result, "standard_accuracy"), percent(result, "robust_accuracy"))
            rows.append((name, *figures, str(result["n"])))
            flags = ", ".join(_fired(result))
            drawn = f"; {result['n']} of {result['population']} drawn" if is_sample(result) else ""
            rows.append(f"    {result['run']}{drawn}{f'; flags: {flags}' if flags else ''}")
        sizes = sorted({result["n"] for result in members})
        tell_table(
            ", ".join(group),
            ("model", "standard accuracy", "robust accuracy", "n"),
            rows,
            f"The rows are not on the same images: n = {', '.join(map(str, sizes))}.\n"
            "What differs by less than the intervals is no difference."
            if len(sizes) > 1
            else None,
        )
    if options.as_json:
        print(json.dumps(listed, indent=2))


def _fired(result: dict[str, Any]) -> list[str]:
    """The names of the flags that fired."""
    return [flag["name"] for flag in result.get("flags") or [] if flag.get("fired")]
