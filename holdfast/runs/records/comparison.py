"""The comparison of evaluations on the same images, image by image."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, Strict

from .base import Count, Fraction, ListOf, Names, Part, Positive, Record, must_be
from .measured import DataInfo, ThreatFields, threat_in

Difference = Annotated[float, Field(ge=-1, le=1), must_be("a number from -1 to 1")]
DifferenceInterval = Annotated[
    tuple[Difference, Difference], Strict(False), must_be("a list of two numbers, from -1 to 1")
]


class ComparedRun(Part):
    """One of the evaluations.

    Attributes:
        name: of the model, such that no two are alike.
        run: its folder; empty for a result that has none.
        n: of its own images, of which those that all runs hold are compared.
        standard_accuracy, robust_accuracy: on the images that are compared.
        wrong, broken: which of these it has wrong, and which do not stand; places in `images`.
    """

    name: str
    run: str = ""
    identity: str | None = None
    sha256: str | None = None
    suite: str | None = None
    n: Positive
    standard_accuracy: Fraction
    robust_accuracy: Fraction
    wrong: ListOf[Count] = ()
    broken: ListOf[Count] = ()


class Beside(Part):
    """On how many of the images both models, one of them or neither is right, or stands.

    Attributes:
        only_first, only_second: which images, by the first run's index.
        difference: accuracy of the second less that of the first, with its 95 % `interval` (Tango,
            Stat. Med. 1998).
        p_value: of McNemar's exact test, two-sided.
        p_holm: the same, corrected for the number of pairs (Holm, 1979).
    """

    both: Count
    first: Count
    second: Count
    neither: Count
    only_first: ListOf[Count] = ()
    only_second: ListOf[Count] = ()
    difference: Difference
    interval: DifferenceInterval
    p_value: Fraction
    p_holm: Fraction


class ComparedPair(Part):
    """Two of the runs, by their places in `runs`, in standard and in robust accuracy."""

    first: Count
    second: Count
    standard: Beside
    robust: Beside


class ComparisonRecord(Record):
    """What `holdfast.compare` finds.

    Attributes:
        n: images that are in all runs, and are compared.
        images: their index, by the first run; `labels` are their classes.
        pairs: the runs that are compared with each other.
        notes: what a reader must know of the comparison.
    """

    SCHEMA: ClassVar[str] = "holdfast/comparison/1"
    FILE: ClassVar[str] = "comparison.json"

    n: Positive
    threat: ThreatFields
    data: DataInfo | None = None
    runs: ListOf[ComparedRun]
    pairs: ListOf[ComparedPair]
    notes: Names = ()
    images: ListOf[Count] = ()
    labels: ListOf[Count] = ()

    def headline(self) -> str:
        names = ", ".join(run.name for run in self.runs)
        return f"Comparison of {names}, n = {self.n}, {threat_in(self.threat)}"

    def key_figures(self) -> list[tuple[str, str]]:
        return [
            (
                f"{measure} accuracy, {self.runs[pair.second].name} less "
                f"{self.runs[pair.first].name}",
                f"{points(beside.difference)} ({points(beside.interval[0])} to "
                f"{points(beside.interval[1])}), p = {beside.p_holm:.2g}",
            )
            for pair in self.pairs
            for measure, beside in (("standard", pair.standard), ("robust", pair.robust))
        ]


def points(difference: float) -> str:
    """A difference of two shares in percentage points: `+3.1`."""
    return f"{100 * difference + 0.0:+.1f}"
