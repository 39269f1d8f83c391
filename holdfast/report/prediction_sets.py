"""Conformal sets and abstaining on the page of an uncertainty run."""

from __future__ import annotations

import re

from markupsafe import Markup

from .. import charts
from ..runs.records.uncertainty import SetFigures
from . import format, metrics
from .evaluation import radius_axis
from .metrics import Table
from .runs import UncertaintyRun

TONES = ("robust", "tone-1", "tone-2", "tone-4", "tone-5")

RATES = {"clean": "clean", "suite": "labels attacked", "miscalibrate": "confidence attacked"}


def _cells(sets: SetFigures) -> list[str]:
    return [
        metrics.with_interval(sets.coverage, share=True),
        format.figure(sets.mean_size),
        format.percent(sets.trivial),
    ]


def sets_table(run: UncertaintyRun) -> Table:
    """Coverage, size, and the share of trivial sets, of every kind of sets."""
    plain, robust = run.record.sets, run.record.robust_sets
    rows = []
    for name, sets in plain.by_score.items():
        rows.append([f"{name.upper()}, clean", *_cells(sets.clean)])
        rows.append([f"{name.upper()}, coverage attacked", *_cells(sets.attacked.covered)])
        rows.append([f"{name.upper()}, size attacked", *_cells(sets.attacked.enlarged)])
    by_class = plain.class_conditional or SetFigures()
    if not by_class.unavailable:
        rows.append(["LAC, a threshold a class, clean", *_cells(by_class)])
    for found, title in (
        (robust.clean, "Robust sets, clean"),
        (robust.inside, f"Robust sets, attacked inside L2 {robust.radius or 0:g}"),
        (robust.beyond, f"Robust sets, attacked at {run.threat}: empirical, no promise"),
    ):
        if found is not None:
            named = title if found.n == run.n else f"{title}, n = {found.n}"
            rows.append([named, *_cells(found)])
    return Table(["", "Coverage", "Mean size", "Trivial: all classes"], rows)


def sets_sentences(run: UncertaintyRun) -> list[str]:
    plain, robust = run.record.sets, run.record.robust_sets
    lines = []
    for name, sets in plain.by_score.items():
        splits = sets.splits
        if splits.interval is None:
            continue
        low, high = splits.interval
        lines.append(
            f"{name.upper()}: promised {format.percent(plain.promise)}; over "
            f"{len(splits.coverages)} random splits the mean coverage is "
            f"{format.percent(splits.mean)}, and {splits.inside} of them lie in the interval of a "
            f"right method ({100 * low:.1f} – {100 * high:.1f} %)."
        )
    for part, what in ((robust, "Robust sets"), (plain.class_conditional, "By class")):
        if part is not None and part.unavailable:
            lines.append(f"{what}: none; {part.unavailable}.")
    if robust.inside is not None:
        lines.append(
            f"Robust sets promise {format.percent(robust.promise)} under every "
            f"attack within L2 {robust.radius or 0:g} by one who does not know the draw "
            f"of noise (σ = {robust.sigma or 0:g}) that decides; beyond it, coverage is "
            "what was measured and nothing more."
        )
    return lines


def sets_charts(run: UncertaintyRun) -> list[Markup]:
    """Coverage and mean size against ε."""
    by_score = run.record.sets.by_score
    found = []
    for what, title in (("coverage", "coverage"), ("mean_size", "mean size of a set")):
        lines = []
        for (name, sets), tone in zip(by_score.items(), TONES, strict=False):
            curve = sets.against_eps
            line = metrics.line(curve.eps, getattr(curve, what), name.upper(), tone)
            if line is not None:
                lines.append(line)
        if not lines:
            return []
        high = max(v for line in lines for v in line.x) or 1.0
        x = radius_axis("ε", [run.threat], high)
        top = len(run.record.classes) or 1
        shares = what == "coverage"
        y = charts.fraction_axis(title) if shares else metrics.axis(title, [top], "{:g}".format)
        write = format.percent if shares else "{:.2f}".format
        found.append(charts.line_chart(f"{title} against ε", x, y, lines, write=write))
    return found


def sets_caption(run: UncertaintyRun) -> str:
    """Why the charts' figures are not the table's: other images, and another attack."""
    drawn = [sets.against_eps for sets in run.record.sets.by_score.values()]
    n = next((curve.n for curve in drawn if curve.n), None)
    return (
        f"The charts: the first {format.count(n)} images, attacked anew at each ε by a short "
        "search that aims at LAC sets, whichever sets are drawn. The table: all "
        f"{format.count(run.n)} images at {run.threat}, and for each image the worst that any "
        "attack of this run found, by a longer search. So at one ε the table shows less coverage "
        "and larger sets than the charts; where they differ, the table is closer to the truth."
    )


def _in_percent(share: str) -> str:
    return f"{100 * float(share):.4g}\u00a0%"


def abstaining_tables(run: UncertaintyRun) -> list[tuple[str, Table | None]]:
    """Each promise with what became of it; or why it could not be given."""
    found: list[tuple[str, Table | None]] = []
    for one in run.record.abstaining.values():
        if one.unavailable:
            found.append((one.unavailable, None))
            continue
        rows = [
            [
                "attacker's choice, image by image"
                if condition == "worst"
                else RATES.get(condition, condition),
                *map(format.percent, (shares.right, shares.wrong, shares.abstained, shares.risk)),
            ]
            for condition, shares in one.rates.items()
        ]
        head = ["", "Right", "Wrong", "Abstained", "Risk among answers"]
        # "at least 0.8 of the images": everything else on the page is in percent.
        said = re.sub(r"\b[01]\.\d+", lambda share: _in_percent(share[0]), one.promise or "")
        promise = f"Promised on clean images: {said}."
        found.append((promise, Table(head, rows)))
    return found
