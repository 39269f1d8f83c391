"""Names of files and classes, as they are sorted and shown."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePath


def natural(name: str) -> tuple[tuple[str | int, ...], str]:
    """A key that sorts names as people do: the numbers in them as numbers (1, 2, 10)."""
    parts = re.split(r"([0-9]+)", unicodedata.normalize("NFC", name))
    # Text and numbers alternate, so that like is compared with like.
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def shown(path: PurePath | str) -> str:
    """A file name as it may stand in tables: text, on one line."""
    text = path.as_posix() if isinstance(path, PurePath) else path
    text = text.encode(errors="replace").decode()
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
