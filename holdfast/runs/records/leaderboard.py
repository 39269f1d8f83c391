"""The leaderboard: a row a model, as the site and the tables for papers hold it."""

from __future__ import annotations

from typing import ClassVar

from .base import Fraction, Interval, ListOf, Names, Part, Positive, Quantity, Record
from .measured import DataInfo, ThreatFields

HERE = "holdfast"  # who measured what was measured here


class LeaderboardRow(Part):
    """The lowest robust accuracy that is known of a model, under one threat model.

    Attributes:
        model: its name, such that no two of one table are alike.
        measured_by: `holdfast`; else who published the figures, such as `RobustBench`.
        suite: that found it.
        n: images; None where whoever published it does not say.
        flags: health checks that fired, or what the publisher says against the figure.
        gradients: `none hidden`, `hidden` or `hidden, repaired`; None where it was not looked at.
        parameters: of the network, numbers that training changes.
        training_seconds: what the training took; `training_budget` what it was given, in words.
        trained_on: in words.
        run: the evaluation that found it, below the folder; else the publisher's file.
        runs: all evaluations of the model under this threat model, below the folder.
        page: of the model, below the site.
        link: to the paper; only `https://…`.
        note: the publisher's remark.
    """

    model: str
    measured_by: str = HERE
    architecture: str | None = None
    sha256: str | None = None
    data: DataInfo | None = None
    threat: ThreatFields
    goal: str = "untargeted"
    suite: str | None = None
    n: Positive | None = None
    population: Positive | None = None
    standard_accuracy: Fraction
    standard_accuracy_interval: Interval | None = None
    robust_accuracy: Fraction
    robust_accuracy_interval: Interval | None = None
    flags: Names = ()
    gradients: str | None = None
    parameters: Positive | None = None
    training_seconds: Quantity | None = None
    training_budget: str | None = None
    training_machine: str | None = None
    trained_on: str | None = None
    run: str
    runs: Names = ()
    page: str | None = None
    link: str | None = None
    venue: str | None = None
    note: str | None = None


class LeaderboardRecord(Record):
    """`leaderboard.json` of a site that `holdfast leaderboard` wrote.

    Attributes:
        rows: table by table, the most robust model first.
        left_out: what could not be read, one line each.
        version: of Holdfast.
    """

    SCHEMA: ClassVar[str] = "holdfast/leaderboard/1"
    FILE: ClassVar[str] = "leaderboard.json"

    rows: ListOf[LeaderboardRow] = ()
    left_out: Names = ()
    version: str | None = None

    def headline(self) -> str:
        return f"Leaderboard of {len(self.rows)} rows"

    def key_figures(self) -> list[tuple[str, str]]:
        best = max(self.rows, key=lambda row: row.robust_accuracy, default=None)
        return [] if best is None else [(best.model, f"robust {100 * best.robust_accuracy:.1f} %")]
