"""What may be published of the result files, and how their commands are written: one place for all
makers of pages.

A figure is published only if the commit that it names can make it again. So whoever makes a page,
or a result of results, reads them here.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from holdfast.cli.tables import evaluations
from holdfast.runs.files import read_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EDITED = "+changes"  # how a result says that its checkout was edited


def read(file: Path) -> dict[str, Any]:
    """A result file, or a file of a run folder.

    Raises:
        SystemExit: it, or a part of it, was made from an edited checkout.
    """
    result = read_json(file)
    for revision in _revisions(result):
        if revision.endswith(EDITED):
            raise SystemExit(
                f"{file}: made from an edited checkout ({revision[:12]}…{EDITED}), so nobody can "
                "make it again; run its command from a clean commit, or remove it"
            )
    return result


def results(pattern: str) -> list[dict[str, Any]]:
    """The files of `benchmarks/results/` whose names match, in the order of their names."""
    return [read(file) for file in sorted(RESULTS.glob(pattern))]


def verdicts() -> list[dict[str, Any]]:
    """Every finished evaluation in `benchmarks/results/`, with its `request` and, where the folder
    holds the run that trained the model, its `training` (`request` and `result`)."""
    found = []
    for result in evaluations(RESULTS):
        folder = Path(result["run"])
        training = folder / "training"
        found.append(
            {
                **result,
                "request": read(folder / "request.json"),
                "training": {
                    name: read(training / f"{name}.json") for name in ("request", "result")
                }
                if training.is_dir()
                else None,
            }
        )
    return found


def is_shipped(name: str) -> bool:
    """Whether the zoo holds a model of this name."""
    return (ROOT / "zoo" / name / "card.json").is_file()


def pasted(command: Sequence[str]) -> str:
    """A command as code in Markdown, such that it can be pasted into a shell."""
    return f"`{shlex.join(command)}`"


def _revisions(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "git" and isinstance(inner, str):
                yield inner
            else:
                yield from _revisions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _revisions(inner)
