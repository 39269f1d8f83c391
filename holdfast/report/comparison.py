"""Several evaluations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from .. import charts
from . import format
from .evaluation import Curves, headings, security_curves
from .runs import Accuracy, EvaluationRun


@dataclass(frozen=True)
class ComparisonRow:
    number: int
    run: EvaluationRun
    name: str
    data: str
    figures: list[Accuracy | None]  # one a column; None where the run used another suite
    strip: Markup | None  # None where the runs' suites differ: they may not share an axis either


@dataclass(frozen=True)
class Comparison:
    columns: list[str]
    rows: list[ComparisonRow]
    same_images: bool
    curves: list[Curves]


def comparison(runs: Sequence[EvaluationRun]) -> Comparison | None:
    """Several evaluations side by side, a column for each suite and threat model: figures from
    different suites never share one."""
    if len(runs) < 2:
        return None

    def column(run: EvaluationRun) -> str:
        return f"{run.record.suite or format.NONE} · {run.threat}"

    def images(run: EvaluationRun) -> tuple[str, str, int | None, str, int]:
        data = run.data
        return data.name or "", data.split or "", data.first, data.pixels or "", run.n

    columns = list(dict.fromkeys(column(run) for run in runs))
    names = headings(runs)
    rows = [
        ComparisonRow(
            number,
            run,
            names[number - 1],
            format.data(run.data, run.n),
            [run.robust if column(run) == name else None for name in columns],
            charts.strip(
                f"{names[number - 1]}: {format.accuracy(run.standard)} standard, "
                f"{format.accuracy(run.robust)} robust accuracy",
                ("standard", format.estimate(run.standard)),
                ("robust", format.estimate(run.robust)),
            )
            if len(columns) == 1
            else None,
        )
        for number, run in enumerate(runs, 1)
    ]

    def search(run: EvaluationRun) -> tuple[str, ...]:
        curve = run.record.curve
        n, attack = (curve.n, curve.attack) if curve else (None, "")
        return (run.threat.norm, attack, str(n), *(str(part) for part in images(run)))

    with_curves = sorted((run for run in runs if run.record.curve), key=search)
    groups = [list(group) for _, group in groupby(with_curves, key=search)]
    curves = [security_curves(group) for group in groups if len(group) > 1]
    return Comparison(
        columns, rows, len({images(run) for run in runs}) == 1, [c for c in curves if c]
    )
