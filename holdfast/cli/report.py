"""`holdfast report`: one page about runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..terminal import tell


@dataclass(frozen=True)
class Options:
    """Write one self-contained HTML page about runs."""

    runs: Annotated[list[Path], typer.Argument(help="Run folders, of any verb; they may be mixed.")]
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path(
        "report.html"
    )


def run(options: Options) -> Path:
    """Write the page."""
    from ..report import write_report

    return write_report(options.runs, options.out)


def show(page: Path, options: Options) -> None:
    """Print where the page is."""
    tell(str(page))
