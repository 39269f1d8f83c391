"""The leaderboard as text: Markdown and LaTeX for papers, CSV and JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence

from ..report import format
from ..report.tables import latex_table, markdown, markdown_table
from ..runs.files import csv_text, json_text
from ..runs.records import DataInfo, LeaderboardRow
from . import words
from .rows import Table

FORMATS = ("md", "csv", "json", "tex")
COLUMNS = (
    "model",
    "standard accuracy",
    "robust accuracy",
    "found by",
    "n",
    "flags",
    "gradients",
    "parameters",
    "training",
    "trained on",
    "measured",
)
CSV_COLUMNS = (
    "data", "split", "pixels", "norm", "eps", "goal", "model", "architecture", "measured_by",
    "suite", "n", "standard_accuracy", "standard_low", "standard_high", "robust_accuracy",
    "robust_low", "robust_high", "flags", "gradients", "parameters", "training_seconds",
    "training_budget", "trained_on", "run",
)  # fmt: skip


def as_text(tables: Sequence[Table], kind: str) -> str:
    """All tables in one format.

    Args:
        kind: of `FORMATS`.
    """
    if kind == "json":
        return json_text([model.row.to_dict() for table in tables for model in table.models])
    if kind == "csv":
        rows = [_values(model.row) for table in tables for model in table.models]
        return csv_text(CSV_COLUMNS, rows)
    return "\n".join(_of_table(table, kind) for table in tables)


def _of_table(table: Table, kind: str) -> str:
    rows = [_cells(model.row) for model in table.models]
    said = f"{table.title}. Robust accuracy: the lowest that is known, and the suite that found it."
    if not table.same_images:
        said += " The rows are not on the same images."
    if kind == "tex":
        return latex_table(COLUMNS, rows, said)
    return f"**{markdown(table.title)}**\n\n{markdown_table(COLUMNS, rows)}\n{markdown(said)}\n"


def _cells(row: LeaderboardRow) -> list[str]:
    def with_interval(accuracy: words.Accuracy) -> str:
        known = accuracy.low is not None
        return f"{format.accuracy(accuracy)}{f' ({format.interval(accuracy)})' if known else ''}"

    return [
        row.model,
        with_interval(words.standard(row)),
        with_interval(words.robust(row)),
        row.suite or format.NONE,
        format.count(row.n),
        words.flags(row),
        row.gradients or format.NONE,
        words.parameters(row.parameters),
        words.training(row),
        row.trained_on or format.NONE,
        words.measured_by(row),
    ]


def _values(row: LeaderboardRow) -> list[object]:
    data = row.data or DataInfo()
    return [
        data.name, data.split, data.pixels, row.threat["norm"], row.threat["eps"], row.goal,
        row.model, row.architecture, row.measured_by, row.suite, row.n,
        row.standard_accuracy, *(row.standard_accuracy_interval or (None, None)),
        row.robust_accuracy, *(row.robust_accuracy_interval or (None, None)),
        "; ".join(row.flags), row.gradients, row.parameters, row.training_seconds,
        row.training_budget, row.trained_on, row.run,
    ]  # fmt: skip
