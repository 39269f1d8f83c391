"""Names that come out of files, made harmless where they are shown: one function a kind of output.

HTML and SVG are escaped by Jinja and `charts.tag`, on top of `page_text`.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# What a terminal or a browser acts on instead of showing it: control characters (terminal
# sequences begin with one), invisible ones such as those that turn the direction of writing,
# lone surrogates (which no encoding has), and separators of lines and paragraphs.
_ACTIVE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # invisible, but part of words in some scripts, and of emoji
_FORMULA = re.compile(r"\s*[=+\-@|%]|[\t\r]")


def printable(text: str, keep: str = "") -> str:
    r"""`text` on one line, with whatever is not shown but acted upon written out, as `\x1b`.

    Args:
        keep: characters to leave as they are, such as a newline between lines of one's own.
    """
    if text.isprintable():  # nothing but letters, signs and spaces, as nearly always
        return text
    return "".join(repr(c)[1:-1] if _is_active(c) and c not in keep else c for c in text)


def _is_active(character: str) -> bool:
    return unicodedata.category(character) in _ACTIVE and character not in _JOINERS


def page_text(value: Any) -> Any:
    """Plain text as a page holds it, which escapes it besides; markup is left as it is."""
    if type(value) is not str:
        return value
    # Lone surrogates have no bytes in UTF-8.
    return printable(value.encode("utf-8", "replace").decode(), "\n\t")


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: text that a spreadsheet would take for a formula begins with `'`."""
    if isinstance(value, str):
        value = printable(value)
        if _FORMULA.match(value) and not _is_number(value):
            return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def tell(line: str, error: bool = False) -> None:
    """Print one line on standard output, or on standard error."""
    print(printable(line), file=sys.stderr if error else sys.stdout, flush=error)


def tell_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str] | str],
    caption: str | None = None,
) -> None:
    """Print a table of aligned columns, without boxes, on a terminal and into a pipe alike.

    Nothing is folded. Names are shown as they are: `w40[robust]` is no markup, `:smile:` no
    picture.

    Args:
        rows: one cell a column, or a text that runs over all columns.
    """
    from rich.cells import cell_len  # only those who show tables should wait for it

    shown: list[list[str] | str] = [[printable(cell) for cell in columns]]
    for row in rows:
        shown.append(printable(row) if isinstance(row, str) else [printable(c) for c in row])
    cells = [row for row in shown if not isinstance(row, str)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    tell(title)
    for line in shown:
        if not isinstance(line, str):
            padded = (c + " " * (w - cell_len(c)) for c, w in zip(line, widths, strict=True))
            line = "  ".join(padded).rstrip()
        print(line)
    for note in (caption or "").splitlines():
        tell(note)
    print()


def forgive_encodings() -> None:
    """A character that a terminal's encoding lacks is written out; it ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
