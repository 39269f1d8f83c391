"""Detectors of wrong and of out-of-distribution images on the page of an uncertainty run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from .. import charts
from ..runs.records.uncertainty import Detection, OutOfDistribution, Separation
from ..uncertainty.run.plots import KINDS
from . import format, metrics
from .metrics import Table
from .runs import UncertaintyRun


def auroc(under: Detection | None) -> str:
    """How well a detector tells broken images from clean ones under one attack."""
    return metrics.number(under.told.auroc) if under and under.told else format.NONE


def detectors_table(run: UncertaintyRun) -> Table:
    rows = []
    for name, detector in run.record.detectors.items():
        attackers = [attack or Detection() for attack in (detector.unaware, detector.aware)]
        row = [format.name(name)]
        row += [
            metrics.with_interval((attack.told or Separation()).auroc, share=False)
            for attack in attackers
        ]
        for rate in ("0.05", "0.5"):
            row += [metrics.percent(attack.robust_error.get(rate)) for attack in attackers]
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


def histograms(run: UncertaintyRun) -> list[Named]:
    """Scores of clean and attacked images, for the detectors that were attacked."""
    drawn = []
    for name, detector in run.record.detectors.items():
        histogram = detector.histogram
        if detector.aware is None or histogram is None or len(histogram.edges) < 2:
            continue
        edges = histogram.edges
        middles = [(a + b) / 2 for a, b in pairwise(edges)]
        lines = []
        for kind, (title, tone) in KINDS.items():
            shares = histogram.shares.get(kind, ())
            if len(shares) == len(middles):
                lines.append(charts.Line(title, tone, middles, shares))
        if not lines:
            continue
        top = max(share or 0.0 for line in lines for share in line.y) or 1.0
        chart = charts.line_chart(
            f"How often images have which score of {format.name(name)}.",
            charts.Axis(
                "score: higher is less sure", edges[0], edges[-1], charts.ticks(edges[0], edges[-1])
            ),
            charts.Axis("share of images", 0, top, charts.ticks(0, top), charts.whole_percent),
            lines,
            write=format.percent,
        )
        broken = detector.suite.told and detector.suite.told.n
        of = (
            f"of the {format.count(broken)} images that the suite breaks, clean and attacked"
            if broken
            else "of all images: the suite breaks none"
        )
        drawn.append(Named(format.name(name), of, chart))
    return drawn


def _attacked(images: OutOfDistribution) -> str:
    """AUROC, and of how many images where only some were attacked."""
    n, number = images.attacked.n, metrics.number(images.attacked.auroc)
    return number if n in (None, images.n) else f"{number} (n = {format.count(n)})"


def foreign_table(run: UncertaintyRun) -> Table | None:
    found = run.record.foreign
    if not found:
        return None
    scores = list(next(iter(found.values())).scores)
    rows = [
        [
            f"{name} (n = {format.count(images.n)})",
            *(metrics.number(images.scores.get(s, Separation()).auroc) for s in scores),
            _attacked(images),
        ]
        for name, images in found.items()
    ]
    return Table(["AUROC", *map(format.name, scores), "max softmax, attacked"], rows)
