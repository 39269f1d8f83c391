"""An uncertainty run as it is read from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..threat import Threat
from .runs import READERS, Fields, read_request, read_threat

SCHEMA = "holdfast/uncertainty/1"


@dataclass(frozen=True)
class Uncertainty:
    """A finished uncertainty run."""

    kind = "uncertainty"

    path: Path
    request: dict[str, Any] | None
    model: str
    architecture: str
    source: str
    sha256: str
    data: str
    split: str
    first: int | None
    pixels: str
    n: int
    threat: Threat
    suite: str
    seconds: float | None
    result: Fields  # everything else, read where it is shown


def read_uncertainty(run: Path, result: Fields) -> Uncertainty:
    """As `runs.read_run`; what only a section needs is read where it is shown."""
    n = result.whole("n", 1)
    if n is None:
        raise InputError(f"{result.where} has no 'n', the number of images")
    model, data = result.object("model"), result.object("data")
    return Uncertainty(
        path=run,
        request=read_request(run, result),
        model=model.text("name"),
        architecture=model.text("architecture"),
        source=model.text("source"),
        sha256=model.text("sha256"),
        data=data.text("name"),
        split=data.text("split"),
        first=data.whole("first"),
        pixels=data.text("pixels"),
        n=n,
        threat=read_threat(result),
        suite=result.text("suite"),
        seconds=result.number("seconds"),
        result=result,
    )


READERS[SCHEMA] = read_uncertainty
