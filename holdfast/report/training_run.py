"""A training run as it is read from its folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.base import holds_out
from .fields import Accuracy, Fields, csv_column, csv_rows
from .measured import read_request, remarks

SCHEMA = "holdfast/training/1"


@dataclass(frozen=True)
class Event:
    epoch: float | None
    kind: str
    detail: str


@dataclass(frozen=True)
class Training:
    """A finished training run; epochs may be fractions. `metrics` maps each column of
    `metrics.csv` to one value a validation, None where the field was empty."""

    kind = "training"

    path: Path
    request: dict[str, Any] | None
    data: str
    split: str
    pixels: str
    remarks: list[tuple[str, str]]
    epochs: float | None
    steps: int | None
    seconds: float | None
    best_epoch: float | None
    standard: Accuracy
    pgd: Accuracy
    events: list[Event]
    metrics: dict[str, list[float | None]] = field(default_factory=dict)

    @property
    def held_out(self) -> bool:
        """Whether the validation images were left out of training."""
        return holds_out(self.split)


def read_training(run: Path, result: Fields) -> Training:
    validation, data = result.object("validation"), result.object("data")
    n = validation.whole("n", 1)

    def accuracy(name: str) -> Accuracy:
        value = validation.number(name, 0, 1)
        return Accuracy(value) if value is None or n is None else Accuracy.of(round(value * n), n)

    path = run / "metrics.csv"
    rows = csv_rows(path) or []
    return Training(
        path=run,
        request=read_request(run, result),
        data=data.text("name"),
        split=data.text("split"),
        pixels=data.text("pixels"),
        remarks=remarks(data),
        epochs=result.number("epochs"),
        steps=result.whole("steps"),
        seconds=result.number("seconds"),
        best_epoch=result.number("best_epoch"),
        standard=accuracy("standard_accuracy"),
        pgd=accuracy("pgd_accuracy"),
        events=[
            Event(event.number("epoch"), event.text("kind"), event.text("detail"))
            for event in result.objects("events")
        ],
        metrics={
            name: [
                None if value is None or not math.isfinite(value) else value
                for value in csv_column(path, rows, name, float, None)
            ]
            for name in (rows[0] if rows else ())
        },
    )
