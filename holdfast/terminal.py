"""What is printed for people: one place, so that no name from a file can steer their terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from .escape import printable


def tell(line: str, error: bool = False) -> None:
    """Print one line on standard output, or on standard error."""
    print(printable(line), file=sys.stderr if error else sys.stdout, flush=error)


def tell_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str | None = None,
) -> None:
    """Print a table as wide as the terminal; where there is none, wide enough that little is
    folded. Names are shown as they are: `w40[robust]` is no markup, `:smile:` no picture."""
    from rich.console import Console  # only those who show tables should wait for it
    from rich.table import Table

    table = Table(
        title=printable(title),
        title_justify="left",
        caption=None if caption is None else printable(caption),
        caption_justify="left",
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell) for cell in row))
    width = None if sys.stdout.isatty() else 160
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)


def forgive_encodings() -> None:
    """A character that a terminal's encoding lacks is written out; it ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
