"""The result of a certification: certified ≤ true ≤ attacked accuracy."""

from __future__ import annotations

from typing import Any, ClassVar

from .base import Fraction, Interval, ListOf, Part, Quantity, percent
from .measured import Measurement


class CertifiedAt(Part):
    """The fraction of images that are right, and certified within `radius` (image units)."""

    radius: Quantity
    certified_accuracy: Fraction | None = None
    interval: Interval | None = None


class CertificationRecord(Measurement):
    """`result.json` of a certification; accuracies are fractions of n, intervals are 95 %.

    Attributes:
        method: of certificates; `settings` are its own.
        standard_accuracy: of the certified classifier; an abstention is not right.
        abstained: fraction without an answer.
        attack: in words.
        attacked_accuracy: fraction that the attack at `threat` did not break.
        certified: at the radii asked for; `curve` at many.
        mean_radius: average certified radius, 0 for what is wrong (Zhai et al., ICLR 2020).
        note: where the model was trained for something else than it is asked at, what.
    """

    SCHEMA: ClassVar[str] = "holdfast/certification/1"

    method: str = ""
    settings: dict[str, Any] = {}
    standard_accuracy: Fraction | None = None
    standard_accuracy_interval: Interval | None = None
    abstained: Fraction | None = None
    attack: str = ""
    attacked_accuracy: Fraction | None = None
    attacked_accuracy_interval: Interval | None = None
    certified: ListOf[CertifiedAt] = ()
    curve: ListOf[CertifiedAt] = ()
    mean_radius: Quantity | None = None
    note: str = ""

    def headline(self) -> str:
        return f"Certification of {self.measured_on()}, by {self.method or '?'}"

    def key_figures(self) -> list[tuple[str, str]]:
        certified = [
            (f"certified at {at.radius:.4g}", percent(at.certified_accuracy, at.interval))
            for at in self.certified
        ]
        return [
            *certified,
            ("attacked", percent(self.attacked_accuracy, self.attacked_accuracy_interval)),
        ]
