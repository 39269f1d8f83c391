"""Detectors of wrong and of foreign images on the page of an uncertainty run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from .. import charts
from . import format as words
from . import table_cells as cells
from .fields import Fields
from .table_cells import Table
from .uncertainty_run import Uncertainty

KINDS = {
    "clean": ("clean", "standard"),
    "suite": ("labels attacked", "tone-1"),
    "unaware": ("attacked to the end, detector unknown", "tone-2"),
    "evading": ("attacked, detector known", "tone-4"),
}


def _told(detector: Fields, name: str, metric: str) -> str:
    under = detector.object(name).object("told")
    return cells.with_interval(under.object(metric), share=False) if under.value else words.NONE


def detectors_table(run: Uncertainty) -> Table:
    told = run.result.object("detectors")
    rows = []
    for name in cells.keys(told):
        detector = told.object(name)
        row = [words.name(name)]
        row += [_told(detector, who, "auroc") for who in ("unaware", "aware")]
        for rate in ("0.05", "0.5"):
            for who in ("unaware", "aware"):
                error = detector.object(who).object("robust_error").object(rate)
                row.append(cells.percent(error))
        rows.append(row)
    return Table(
        [
            "Detector",
            "AUROC, unknown to the attacker",
            "AUROC, known",
            "Robust error at 5 % false positives, unknown",
            "known",
            "at 50 %, unknown",
            "known",
        ],
        rows,
    )


@dataclass(frozen=True)
class Named:
    name: str
    of: str  # which images
    chart: Markup


def histograms(run: Uncertainty) -> list[Named]:
    """Scores of clean and attacked images, for the detectors that were attacked."""
    told, drawn = run.result.object("detectors"), []
    for name in cells.keys(told):
        detector = told.object(name)
        if not detector.object("aware").value:
            continue
        histogram = detector.object("histogram")
        edges = [e for e in cells.numbers(histogram, "edges") if e is not None]
        if len(edges) < 2:
            continue
        middles = [(a + b) / 2 for a, b in pairwise(edges)]
        lines = []
        for kind, (title, tone) in KINDS.items():
            shares = cells.numbers(histogram.object("shares"), kind)
            if len(shares) == len(middles):
                lines.append(charts.Line(title, tone, middles, shares))
        if not lines:
            continue
        top = max(share or 0.0 for line in lines for share in line.y) or 1.0
        chart = charts.line_chart(
            f"How often images have which score of {words.name(name)}.",
            charts.Axis(
                "score: higher is less sure", edges[0], edges[-1], charts.ticks(edges[0], edges[-1])
            ),
            charts.Axis("share of images", 0, top, charts.ticks(0, top), charts.whole_percent),
            lines,
            write=words.percent,
        )
        broken = detector.object("suite").object("told").whole("n")
        of = (
            f"of the {words.count(broken)} images that the suite breaks, clean and attacked"
            if broken
            else "of all images: the suite breaks none"
        )
        drawn.append(Named(words.name(name), of, chart))
    return drawn


def _attacked(foreign: Fields) -> str:
    """AUROC, and of how many foreign images where only some were attacked."""
    attacked = foreign.object("attacked")
    n = attacked.whole("n")
    number = cells.number(attacked.object("auroc"))
    return number if n in (None, foreign.whole("n")) else f"{number} (n = {words.count(n)})"


def foreign_table(run: Uncertainty) -> Table | None:
    told = run.result.object("foreign")
    names = cells.keys(told)
    if not names:
        return None
    scores = cells.keys(told.object(names[0]).object("scores"))
    rows = [
        [
            f"{name} (n = {words.count(told.object(name).whole('n'))})",
            *(
                cells.number(told.object(name).object("scores").object(s).object("auroc"))
                for s in scores
            ),
            _attacked(told.object(name)),
        ]
        for name in names
    ]
    return Table(["AUROC", *map(words.name, scores), "max softmax, attacked"], rows)
