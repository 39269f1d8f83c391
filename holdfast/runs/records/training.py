"""The result of a training run."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from .base import Count, Fraction, Integer, ListOf, Part, Positive, Quantity, Record, percent
from .measured import DataInfo

# Kinds of events.
COLLAPSED = "catastrophic-overfitting"
LENGTHENED = "lengthened"
MEMORISING = "memorising"
PATIENCE = "patience"


class TrainingEvent(Part):
    """Something that happened on the way, such as catastrophic overfitting."""

    epoch: Quantity | None = None
    kind: str = ""
    detail: str = ""

    @property
    def expected(self) -> bool:
        """Whether somebody asked for it."""
        return self.kind in (LENGTHENED, PATIENCE)


class Validation(Part):
    """Figures of the weights that were kept, on the first `n` validation images; those of the
    objective's own stand beside these two."""

    standard_accuracy: Fraction | None = None
    pgd_accuracy: Fraction | None = None
    n: Positive | None = None


class TrainingRecord(Record):
    """`result.json` of a training run.

    Attributes:
        model: the folder of the checkpoint, inside the run's.
        epochs: may be a fraction; `steps` are optimiser steps.
        seconds: of training.
        best_epoch: from which the weights were kept.
        started_from: the weights that it began with: `source`, `sha256`, and what became of the
            `classifier`; None for a random start.
        class_weights: what the loss of an image was multiplied by, by the name of its class.
        finished: when, ISO 8601, UTC.
        files: SHA-256 of the files beside the record, by name.
    """

    SCHEMA: ClassVar[str] = "holdfast/training/1"

    status: Literal["complete"] = "complete"
    identity: str | None = None
    model: str | None = None
    data: DataInfo | None = None
    epochs: Quantity | None = None
    steps: Count | None = None
    seconds: Quantity | None = None
    images_per_second: Quantity | None = None
    best_epoch: Quantity | None = None
    validation: Validation | None = None
    events: ListOf[TrainingEvent] = ()
    started_from: dict[str, Any] | None = None
    class_weights: dict[str, Quantity] | None = None
    seed: Integer | None = None
    finished: str | None = None
    files: dict[str, str] | None = None

    def headline(self) -> str:
        data = self.data or DataInfo()
        images = " ".join(word for word in (data.name, data.split) if word) or "?"
        epochs = "?" if self.epochs is None else f"{self.epochs:.4g}"
        return f"Training on {images}, {epochs} epochs"

    def key_figures(self) -> list[tuple[str, str]]:
        kept = self.validation or Validation()
        return [
            ("validation accuracy", percent(kept.standard_accuracy)),
            ("under PGD", percent(kept.pgd_accuracy)),
            ("n", "?" if kept.n is None else str(kept.n)),
        ]
