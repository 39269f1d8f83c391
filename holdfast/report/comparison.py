"""Several evaluations side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from .. import charts, palette
from ..errors import InputError
from ..runs.records import Beside, ComparedPair, ComparisonRecord
from . import format
from .evaluation import Curves, heading, headings, security_curves
from .image_by_image import METHODS, compare_runs, in_points, measures, p_value, title
from .metrics import Table
from .runs import Accuracy, EvaluationRun
from .verdict import Verdict, of_comparison

MOST_PAIRS = 12  # that are drawn; a table has all of them


@dataclass(frozen=True)
class Cell:
    """What one suite and threat model found of a model."""

    number: int  # of the run on the page
    run: EvaluationRun
    robust: Accuracy
    strip: Markup
    n: str  # where it is not that of the row


@dataclass(frozen=True)
class ComparisonRow:
    """A model, and what each suite found of it; None where it was not judged by that one."""

    number: int
    run: EvaluationRun  # the one on most images
    name: str
    data: str
    cells: list[Cell | None]
    fired: int


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
    """`pairs` are drawn, `table` holds all of them."""

    title: str
    pairs: list[PairOfRuns]
    table: Table
    notes: list[str]


@dataclass(frozen=True)
class Comparison:
    verdict: Verdict
    columns: list[str]
    rows: list[ComparisonRow]
    scatter: Markup | None
    saved: Markup
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
            for pair in found.pairs[:MOST_PAIRS]
        ],
        Table(
            ["Pair", "Standard accuracy", "p", "Robust accuracy", "p"],
            [
                [
                    f"{found.runs[pair.second].name} beside {found.runs[pair.first].name}",
                    *(cell for _, one in measures(pair) for cell in (in_points(one), p_value(one))),
                ]
                for pair in found.pairs
            ],
        ),
        [f"{METHODS}.", *(f"{note[:1].upper()}{note[1:]}." for note in found.notes)],
    )


def comparison(runs: Sequence[EvaluationRun], pairs: str = "") -> Comparison | None:
    """Several evaluations side by side, a column for each suite and threat model: figures from
    different suites never share one.

    Args:
        pairs: which runs are compared image by image, as `holdfast.compare` takes it; by default
            the first with each other that the same suite judged.
    """
    if len(runs) < 2:
        return None

    columns = list(dict.fromkeys(_column(run) for run in runs))
    rows = _rows(runs, columns)

    def search(run: EvaluationRun) -> tuple[str, ...]:
        curve = run.record.curve
        n, attack = (curve.n, curve.attack) if curve else (None, "")
        return (run.threat.norm, attack, str(n), *(str(part) for part in _images(run)))

    in_order = [cell.run for row in rows for cell in row.cells if cell]
    with_curves = sorted((run for run in in_order if run.record.curve), key=search)
    groups = [list(group) for _, group in groupby(with_curves, key=search)]
    curves = [security_curves(group) for group in groups if len(group) > 1]
    same_images = len({_images(run) for run in runs}) == 1
    # The suite that judged most models is the one that they are ranked by.
    place = max(range(len(columns)), key=lambda i: sum(row.cells[i] is not None for row in rows))
    ranked = [(cell, row.name) for row in rows if (cell := row.cells[place]) is not None]
    ranked.sort(key=lambda found: -(found[0].robust.value or 0.0))
    if not pairs and len(ranked) > 1:
        numbers = {cell.number for cell, _ in ranked}
        runs = [run for number, run in enumerate(runs, 1) if number in numbers]
    try:
        paired = image_by_image(compare_runs(runs, pairs or "first"))
    except InputError:  # other images or threat models stand side by side all the same
        paired = None
    return Comparison(
        of_comparison([cell.run for cell, _ in ranked], [name for _, name in ranked]),
        columns,
        rows,
        _scatter(ranked, columns[place]),
        _saved(rows, columns),
        same_images,
        [c for c in curves if c],
        paired,
    )


def _column(run: EvaluationRun) -> str:
    return f"{run.record.suite or format.NONE} · {run.threat}"


def _images(run: EvaluationRun) -> tuple[str, str, int | None, str, int]:
    data = run.data
    return data.name or "", data.split or "", data.first, data.pixels or "", run.n


def _rows(runs: Sequence[EvaluationRun], columns: Sequence[str]) -> list[ComparisonRow]:
    """A row a model, however many suites judged it, the most robust first."""
    gathered: list[dict[str, tuple[int, EvaluationRun]]] = []
    places: dict[tuple[str, ...], list[int]] = {}
    for number, run in enumerate(runs, 1):
        known = run.model.sha256 or str(run.path)
        same = (known, heading(run), run.data.name or "", run.data.split or "")
        free = [place for place in places.get(same, []) if _column(run) not in gathered[place]]
        if not free:
            places.setdefault(same, []).append(len(gathered))
            free = [len(gathered)]
            gathered.append({})
        gathered[free[0]][_column(run)] = (number, run)
    leads = [max(held.values(), key=lambda pair: pair[1].n) for held in gathered]
    names = headings([run for _, run in leads])
    rows = []
    for held, (number, lead), name in zip(gathered, leads, names, strict=True):
        cells: list[Cell | None] = []
        for column in columns:
            if column not in held:
                cells.append(None)
                continue
            at, run = held[column]
            strip = charts.strip(
                f"{name}: {format.accuracy(run.standard)} standard, "
                f"{format.accuracy(run.robust)} robust accuracy",
                ("standard", format.estimate(run.standard)),
                ("robust", format.estimate(run.robust)),
            )
            n = f"n = {format.count(run.n)}" if run.n != lead.n else ""
            cells.append(Cell(at, run, run.robust, strip, n))
        fired = sum(len(run.fired) for _, run in held.values())
        rows.append(ComparisonRow(number, lead, name, format.images(lead), cells, fired))

    def rank(row: ComparisonRow) -> list[float]:
        values = [cell.robust.value if cell else None for cell in row.cells]
        return [1.0 if value is None else -value for value in values]

    return sorted(rows, key=rank)


def _scatter(ranked: Sequence[tuple[Cell, str]], column: str) -> Markup | None:
    """Standard against robust accuracy: the further up and to the right, the better."""
    shown = [
        (cell.run.standard.value, cell.robust, name)
        for cell, name in ranked
        if cell.run.standard.value is not None and cell.robust.value is not None
    ]
    if len(shown) < 2:
        return None
    if len(shown) <= palette.COLOURS:
        lines = [
            charts.Line(
                name,
                f"tone-{i}",
                [standard],
                [robust.value],
                [robust.low],
                [robust.high],
                radii=[6.0],
                joined=False,
            )
            for i, (standard, robust, name) in enumerate(shown)
        ]
    else:
        lines = [
            charts.Line(
                f"{len(shown)} models",
                "robust",
                [standard for standard, _, _ in shown],
                [robust.value for _, robust, _ in shown],
                radii=[4.0] * len(shown),
                joined=False,
                notes=[name for _, _, name in shown],
            )
        ]
    return charts.line_chart(
        f"Standard against robust accuracy, {column}. The table below holds the same figures.",
        around("standard accuracy", [standard for standard, _, _ in shown]),
        around(
            f"robust accuracy, {column}",
            [v for _, y, _ in shown for v in (y.value, y.low, y.high) if v is not None],
        ),
        lines,
        write=format.percent,
    )


def around(label: str, values: Sequence[float]) -> charts.Axis:
    """From the tenth below the values to the one above: models that compare lie close together."""
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10
    if high - low < 0.1:
        low, high = (low, low + 0.1) if low < 1 else (0.9, 1.0)
    return charts.Axis(label, low, high, charts.ticks(low, high), charts.whole_percent)


def _saved(rows: Sequence[ComparisonRow], columns: Sequence[str]) -> Markup:
    several = len(columns) > 1
    found = []
    for row in rows:
        for column, cell in zip(columns, row.cells, strict=True):
            if cell is not None:
                standard = ("standard accuracy", "standard", format.estimate(cell.run.standard))
                robust = ("robust accuracy", "robust", format.estimate(cell.robust))
                found.append((f"{row.name}, {column}" if several else row.name, [standard, robust]))
    return charts.strips_saved("Comparison of evaluations", found)
