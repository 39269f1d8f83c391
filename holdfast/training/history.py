"""What a run has measured and decided so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from ..runs.records.training import MEMORISING

MEMORISING_GAP = 0.10  # between PGD accuracy on training images and on others


@dataclass
class Window:
    """Sums over the steps since the last validation."""

    loss: float = 0.0  # mean loss × images
    right: float = 0.0  # training images that are classified rightly
    seen: float = 0.0  # training images
    seconds: float = 0.0


@dataclass
class History:
    """What a run has measured and decided so far; checkpoints hold it.

    Attributes:
        rows: of metrics.csv, one a validation.
        events: what a reader should know of: `epoch`, `kind`, `detail`.
        best: the row of the weights that are kept; empty before the first validation.
        best_live: the best PGD accuracy of the live weights so far.
        window: the training figures of the next row.
        next_validation: its number.
        risen: the best figure that patience watches so far; None before the first validation.
        waited: validations since then.
    """

    LATER: ClassVar[tuple[str, ...]] = ("risen", "waited")  # than the first checkpoints

    rows: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    best_live: float = 0.0
    window: Window = field(default_factory=Window)
    next_validation: int = 1
    risen: float | None = None
    waited: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)

    def restore(self, held: Mapping[str, Any]) -> None:
        """Go back to what `to_dict` gave; keys that are not its own are left out."""
        for name in vars(self):
            if name in self.LATER and name not in held:
                continue
            value = held[name]
            setattr(self, name, Window(**value) if name == "window" else value)

    def note(self, epoch: float, kind: str, detail: str) -> None:
        """Add an event."""
        self.events.append({"epoch": epoch, "kind": kind, "detail": detail})

    def is_best(self, row: Mapping[str, Any], columns: Sequence[str]) -> bool:
        """Whether the sum of some columns is at least that of the best row so far."""
        return not self.best or sum(row[c] for c in columns) >= sum(self.best[c] for c in columns)

    def waits(self, value: float, patience: int) -> bool:
        """Take note of the figure that patience watches; whether it has not risen for so many
        validations. A patience of 0 waits for ever."""
        if self.risen is None or value > self.risen:
            self.risen, self.waited = value, 0
        else:
            self.waited += 1
        return 0 < patience <= self.waited

    def memorises(self, row: Mapping[str, Any]) -> str | None:
        """In words, that robustness on training images leaves that on others behind; said once."""
        known, new = row.get("train_pgd_accuracy"), row.get("validation_pgd_accuracy")
        if known is None or any(event["kind"] == MEMORISING for event in self.events):
            return None
        if known - new < MEMORISING_GAP:
            return None
        return f"learns by heart: PGD accuracy {known:.0%} on training images, {new:.0%} on others"
