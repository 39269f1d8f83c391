"""`holdfast leaderboard`: all evaluations below a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..terminal import tell, tell_table
from .options import JsonOption
from .tables import is_sample, model_name, percent

if TYPE_CHECKING:
    from ..leaderboard.rows import Table

FORMATS = ("text", "md", "csv", "json", "tex")
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
    """Rank all evaluations below a folder, in one table a suite, threat model and data set.

    --out SITE writes a site that opens without a server: one table a threat model, with the lowest
    robust accuracy that any suite found, and a page a model.
    """

    folder: Annotated[Path, typer.Argument(help="A folder that holds run folders.")]
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write a site into this folder; or a table for a paper, by the file's ending "
            "(.md, .csv, .json, .tex) or --format.",
        ),
    ] = None
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="How it is printed: text, with a table a suite; or md, csv, json, tex, with the "
            "lowest robust accuracy of each model and the suite that found it.",
        ),
    ] = "text"
    robustbench: Annotated[
        list[Path] | None,
        typer.Option(
            "--robustbench",
            help="A folder with RobustBench's published entries (model_info of its repository), "
            "shown as measured elsewhere. May be repeated; those below DIR are read anyway.",
        ),
    ] = None
    as_json: JsonOption = False


@dataclass
class Ranking:
    """What was found.

    Attributes:
        results: every evaluation, as its `result.json` holds it, and `run`, its folder.
        tables: of each model the lowest figure; what others published is among them.
        written: the site or the file.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    written: Path | None = None


def run(options: Options) -> Ranking:
    """Read all that is below the folder, and write what is to be written.

    Raises:
        InputError: no such folder, or nothing to rank in it; options that do not fit each other; as
            `holdfast.write_leaderboard`.
    """
    from ..leaderboard import write_leaderboard
    from ..leaderboard.rows import tables
    from ..leaderboard.site import found_or_refused, write_text

    if options.kind not in FORMATS:
        raise InputError(f"--format must be one of {', '.join(FORMATS)}, not {options.kind!r}")
    if options.as_json and options.kind not in ("text", "json"):
        raise InputError(f"--json prints JSON: it goes with no --format {options.kind}")
    others, out = tuple(options.robustbench or ()), options.out
    ending = out.suffix.lower().removeprefix(".") if out is not None else ""
    if out is not None and ending in FORMATS and options.kind not in ("text", ending):
        raise InputError(f"--format {options.kind} does not fit --out {out}")
    if out is not None and options.kind == "text":
        return Ranking(written=write_leaderboard(options.folder, out, robustbench=others))
    found = found_or_refused(options.folder, others)
    ranked = tables(found, options.folder)
    if out is not None:
        write_text(out, ranked, options.kind)
    results = [{**one.record.to_dict(), "run": str(one.folder)} for one in found.evaluations]
    return Ranking(results, ranked, out)


def show(found: Ranking, options: Options) -> None:
    """Print the tables, or where the site is."""
    if found.written is not None:
        site = found.written / "index.html"
        tell(f"written: {site if site.is_file() else found.written}")
        return
    if options.kind != "text":
        from ..leaderboard.texts import as_text

        print(as_text(found.tables, options.kind), end="")
        return
    _show_results(found.results, options.as_json)
    if not options.as_json:
        _show_elsewhere(found.tables)


def _show_results(results: list[dict[str, Any]], as_json: bool) -> None:
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
        if as_json:
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
    if as_json:
        print(json.dumps(listed, indent=2))


def _show_elsewhere(tables: list[Table]) -> None:
    """Print what others published, apart from what was measured here."""
    for table in tables:
        rows = [
            (
                row.model,
                f"{row.standard_accuracy:.1%}",
                f"{row.robust_accuracy:.1%}",
                row.suite or "?",
                ", ".join(row.flags),
            )
            for row in (model.row for model in table.models if not model.here)
        ]
        if rows:
            tell_table(
                f"published by RobustBench, measured elsewhere: {table.title}",
                ("model", "standard accuracy", "robust accuracy", "found by", ""),
                rows,
            )


def _fired(result: dict[str, Any]) -> list[str]:
    """The names of the flags that fired."""
    return [flag["name"] for flag in result.get("flags") or [] if flag.get("fired")]
