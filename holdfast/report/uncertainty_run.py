"""An uncertainty run as it is read from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .fields import Fields
from .measured import Measured, measured

SCHEMA = "holdfast/uncertainty/1"


@dataclass(frozen=True)
class Uncertainty(Measured):
    """A finished uncertainty run."""

    kind = "uncertainty"

    suite: str
    result: Fields  # everything else, read where it is shown


def read_uncertainty(run: Path, result: Fields) -> Uncertainty:
    """As `runs.read_run`; what only a section needs is read where it is shown."""
    return Uncertainty(**measured(run, result), suite=result.text("suite"), result=result)
