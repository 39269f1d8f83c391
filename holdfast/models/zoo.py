"""Where the zoo is, and what is in it."""

from __future__ import annotations

import os
from pathlib import Path


def zoo_folder() -> Path:
    """Where the zoo is: `$HOLDFAST_ZOO`, else `zoo` beside the package or in this folder."""
    if "HOLDFAST_ZOO" in os.environ:
        return Path(os.environ["HOLDFAST_ZOO"])
    beside = Path(__file__).resolve().parents[2] / "zoo"
    return beside if beside.is_dir() else Path("zoo")


def zoo_names() -> list[str]:
    """The names of the models in the zoo."""
    folder = zoo_folder()
    if not folder.is_dir():
        return []
    return sorted(entry.parent.name for entry in folder.glob("*/card.json"))
