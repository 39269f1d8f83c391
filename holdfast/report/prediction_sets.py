"""Conformal sets and abstaining on the page of an uncertainty run."""

from __future__ import annotations

from markupsafe import Markup

from .. import charts
from . import format as words
from . import table_cells as cells
from .fields import Fields
from .table_cells import Table
from .uncertainty_run import Uncertainty

TONES = ("robust", "tone-1", "tone-2", "tone-4", "tone-5")

RATES = {"clean": "clean", "suite": "labels attacked", "miscalibrate": "confidence attacked"}


def _set_cells(told: Fields) -> list[str]:
    return [
        cells.with_interval(told.object("coverage"), share=True),
        words.figure(told.number("mean_size")),
        words.percent(told.number("trivial", 0, 1)),
    ]


def sets_table(run: Uncertainty) -> Table:
    """Coverage, size, and the share of trivial sets, of every kind of sets."""
    told, robust = run.result.object("sets"), run.result.object("robust_sets")
    rows = []
    for name in cells.keys(told.object("by_score")):
        sets = told.object("by_score").object(name)
        rows.append([f"{name.upper()}, clean", *_set_cells(sets.object("clean"))])
        attacked = sets.object("attacked")
        covered, larger = attacked.object("covered"), attacked.object("enlarged")
        rows.append([f"{name.upper()}, coverage attacked", *_set_cells(covered)])
        rows.append([f"{name.upper()}, size attacked", *_set_cells(larger)])
    by_class = told.object("class_conditional")
    if not by_class.text("unavailable"):
        rows.append(["LAC, a threshold a class, clean", *_set_cells(by_class)])
    for name, title in (
        ("clean", "Robust sets, clean"),
        ("inside", f"Robust sets, attacked inside L2 {robust.number('radius') or 0:g}"),
        ("beyond", f"Robust sets, attacked at {run.threat}: empirical, no promise"),
    ):
        sets = robust.object(name)
        if sets.value:
            n = sets.whole("n")
            rows.append([title if n == run.n else f"{title}, n = {n}", *_set_cells(sets)])
    return Table(["", "Coverage", "Mean size", "Trivial: all classes"], rows)


def sets_sentences(run: Uncertainty) -> list[str]:
    told, robust = run.result.object("sets"), run.result.object("robust_sets")
    lines = []
    promise = words.percent(told.number("promise", 0, 1))
    for name in cells.keys(told.object("by_score")):
        splits = told.object("by_score").object(name).object("splits")
        low, high = ([*cells.numbers(splits, "interval"), None, None])[:2]
        if low is None or high is None:
            continue
        lines.append(
            f"{name.upper()}: promised {promise}; over {len(splits.list('coverages'))} random "
            f"splits the mean coverage is {words.percent(splits.number('mean', 0, 1))}, and "
            f"{splits.whole('inside')} of them lie in the interval of a right method "
            f"({100 * low:.1f} – {100 * high:.1f} %)."
        )
    for part, what in ((robust, "Robust sets"), (told.object("class_conditional"), "By class")):
        if part.text("unavailable"):
            lines.append(f"{what}: none; {part.text('unavailable')}.")
    if robust.object("inside").value:
        lines.append(
            f"Robust sets promise {words.percent(robust.number('promise', 0, 1))} under every "
            f"attack within L2 {robust.number('radius') or 0:g} by one who does not know the draw "
            f"of noise (σ = {robust.number('sigma') or 0:g}) that decides; beyond it, coverage is "
            "what was measured and nothing more."
        )
    return lines


def sets_charts(run: Uncertainty) -> list[Markup]:
    """Coverage and mean size against ε."""
    by_score = run.result.object("sets").object("by_score")
    scale = 255.0 if run.threat.norm == "linf" else 1.0
    label = "ε (L∞), in steps of 1/255" if scale > 1 else f"ε ({str(run.threat).split()[0]})"
    found = []
    for what, title in (("coverage", "coverage"), ("mean_size", "mean size of a set")):
        lines = []
        for name, tone in zip(cells.keys(by_score), TONES, strict=False):
            curve = by_score.object(name).object("against_eps")
            line = cells.line(curve, "eps", what, name.upper(), tone, scale)
            if line is not None:
                lines.append(line)
        if not lines:
            return []
        x = cells.axis(label, [v for line in lines for v in line.x], "{:.4g}".format)
        top = len(run.result.list("classes")) or 1
        shares = what == "coverage"
        y = charts.fraction_axis(title) if shares else cells.axis(title, [top], "{:g}".format)
        write = words.percent if shares else "{:.2f}".format
        found.append(charts.line_chart(f"{title} against ε", x, y, lines, write=write))
    return found


def sets_caption(run: Uncertainty) -> str:
    """Why the charts' figures are not the table's: other images, and another attack."""
    told = run.result.object("sets").object("by_score")
    drawn = [told.object(name).object("against_eps") for name in cells.keys(told)]
    n = next((size for size in (curve.whole("n") for curve in drawn) if size), None)
    return (
        f"The charts: the first {words.count(n)} images, attacked anew at each ε by a short search "
        "that aims at LAC sets, whichever sets are drawn. The table: all "
        f"{words.count(run.n)} images at {run.threat}, and for each image the worst that any "
        "attack of this run found, by a longer search. So at one ε the table shows less coverage "
        "and larger sets than the charts; where they differ, the table is closer to the truth."
    )


def abstaining_tables(run: Uncertainty) -> list[tuple[str, Table | None]]:
    """Each promise with what became of it; or why it could not be given."""
    told = run.result.object("abstaining")
    found: list[tuple[str, Table | None]] = []
    for name in cells.keys(told):
        one = told.object(name)
        if one.text("unavailable"):
            found.append((one.text("unavailable"), None))
            continue
        rates = one.object("rates")
        rows: list[list[str]] = []
        for condition in cells.keys(rates):
            shares = rates.object(condition)
            title = RATES.get(condition, condition)
            rows.append(
                [
                    "attacker's choice, image by image" if condition == "worst" else title,
                    *(
                        words.percent(shares.number(key, 0, 1))
                        for key in ("right", "wrong", "abstained", "risk")
                    ),
                ]
            )
        head = ["", "Right", "Wrong", "Abstained", "Risk among answers"]
        found.append((f"Promised on clean images: {one.text('promise')}.", Table(head, rows)))
    return found
