"""Several evaluations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from .. import charts
from ..errors import InputError
from ..runs.records import Beside, ComparedPair, ComparisonRecord
from . import format
from .evaluation import Curves, headings, security_curves
from .image_by_image import METHODS, compare_runs, in_points, measures, p_value, title
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
class Side:
    """One accuracy of two models, image by image; `fates` is drawn, the lists name images."""

    accuracy: str
    fates: Markup
    difference: str
    p_value: str
    only_first: str
    only_second: str


@dataclass(frozen=True)
class PairOfRuns:
    first: str
    second: str
    sides: list[Side]


@dataclass(frozen=True)
class ImageByImage:
    title: str
    pairs: list[PairOfRuns]
    notes: list[str]


@dataclass(frozen=True)
class Comparison:
    columns: list[str]
    rows: list[ComparisonRow]
    same_images: bool
    curves: list[Curves]
    paired: ImageByImage | None  # None where the runs share no images, or hold no verdicts


def image_by_image(found: ComparisonRecord) -> ImageByImage:
    """What the page shows of runs that were compared on the same images."""

    def side(pair: ComparedPair, name: str, beside: Beside) -> Side:
        first, second = (found.runs[place].name for place in (pair.first, pair.second))
        verb = "right" if name == "standard" else "standing"
        parts = [
            charts.Part(f"{verb} with both", "robust", beside.both),
            charts.Part(f"only with {first}", "standard", beside.first),
            charts.Part(f"only with {second}", "broken-0", beside.second),
            charts.Part("with neither", "broken-2", beside.neither),
        ]
        parts = [part for part in parts if part.size]
        spoken = "; ".join(f"{part.size} {part.name}" for part in parts)
        return Side(
            f"{name} accuracy",
            charts.parts_bar(f"Of {found.n} images: {spoken}.", parts),
            in_points(beside),
            p_value(beside) if beside.p_holm < 1e-4 else f"= {p_value(beside)}",
            ", ".join(map(str, beside.only_first)) or "none",
            ", ".join(map(str, beside.only_second)) or "none",
        )

    return ImageByImage(
        title(found),
        [
            PairOfRuns(
                found.runs[pair.first].name,
                found.runs[pair.second].name,
                [side(pair, name, beside) for name, beside in measures(pair)],
            )
            for pair in found.pairs
        ],
        [f"{METHODS}.", *(f"{note[:1].upper()}{note[1:]}." for note in found.notes)],
    )


def comparison(runs: Sequence[EvaluationRun], pairs: str = "first") -> Comparison | None:
    """Several evaluations side by side, a column for each suite and threat model: figures from
    different suites never share one.

    Args:
        pairs: which runs are compared image by image, as `holdfast.compare` takes it.
    """
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
            format.images(run),
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
    try:
        paired = image_by_image(compare_runs(runs, pairs))
    except InputError:  # other images or threat models stand side by side all the same
        paired = None
    return Comparison(
        columns, rows, len({images(run) for run in runs}) == 1, [c for c in curves if c], paired
    )
