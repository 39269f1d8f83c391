"""Several evaluations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from .. import charts
from . import format as words
from .evaluation import Curves, headings, security_curves
from .evaluation_run import Evaluation
from .fields import Accuracy


@dataclass(frozen=True)
class ComparisonRow:
    number: int
    run: Evaluation
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


def comparison(runs: Sequence[Evaluation]) -> Comparison | None:
    """Several evaluations side by side, a column for each suite and threat model: figures from
    different suites never share one."""
    if len(runs) < 2:
        return None

    def column(run: Evaluation) -> str:
        return f"{run.suite or words.NONE} · {run.threat}"

    def images(run: Evaluation) -> tuple[str, str, int | None, str, int]:
        return run.data, run.split, run.first, run.pixels, run.n

    columns = list(dict.fromkeys(column(run) for run in runs))
    names = headings(runs)
    rows = [
        ComparisonRow(
            number,
            run,
            names[number - 1],
            words.data(run.data, run.split, run.first, run.n),
            [run.robust if column(run) == name else None for name in columns],
            charts.strip(
                f"{names[number - 1]}: {words.accuracy(run.standard)} standard, "
                f"{words.accuracy(run.robust)} robust accuracy",
                ("standard", words.estimate(run.standard)),
                ("robust", words.estimate(run.robust)),
            )
            if len(columns) == 1
            else None,
        )
        for number, run in enumerate(runs, 1)
    ]

    def search(run: Evaluation) -> tuple[str, ...]:
        n = run.curve.n if run.curve else None
        attack = run.curve.attack if run.curve else ""
        return (run.threat.norm, attack, str(n), *(str(part) for part in images(run)))

    with_curves = sorted((run for run in runs if run.curve), key=search)
    groups = [list(group) for _, group in groupby(with_curves, key=search)]
    curves = [security_curves(group) for group in groups if len(group) > 1]
    return Comparison(
        columns, rows, len({images(run) for run in runs}) == 1, [c for c in curves if c]
    )
