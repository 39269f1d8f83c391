"""The result of mixing a robust and an accurate model."""

from __future__ import annotations

from typing import ClassVar, Literal

from .base import Count, Fraction, Part, Positive, Real, Record, percent


class MixtureFigures(Part):
    """Fractions of the validation images: right, and standing under attack."""

    standard: Fraction | None = None
    standing: Fraction | None = None


class MixtureRecord(Record):
    """`result.json` of a mixture.

    Attributes:
        parameters: of `holdfast.models.mixture.Mixture`, by name.
        chosen, robust_alone, accurate_alone: figures on the first `n` validation images.
        attacks: how many models were attacked on the way.
        finished: when, ISO 8601, UTC.
        files: SHA-256 of the files beside the record, by name.
    """

    SCHEMA: ClassVar[str] = "holdfast/mixture/1"

    status: Literal["complete"] = "complete"
    identity: str | None = None
    parameters: dict[str, Real | None]
    chosen: MixtureFigures
    robust_alone: MixtureFigures
    accurate_alone: MixtureFigures
    n: Positive
    attacks: Count
    finished: str | None = None
    files: dict[str, str] | None = None

    def headline(self) -> str:
        return f"Mixture of a robust and an accurate model, n = {self.n}"

    def key_figures(self) -> list[tuple[str, str]]:
        return [
            (f"{name}{measure}", percent(value))
            for name, figures in (("", self.chosen), ("robust model's ", self.robust_alone))
            for measure, value in (
                ("standard accuracy", figures.standard),
                ("accuracy under attack", figures.standing),
            )
        ]
