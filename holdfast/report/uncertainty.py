"""Uncertainty runs on the page: what each section shows, from `result.json` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .. import charts
from ..evaluation.result import distinct_names
from . import detectors, prediction_sets
from . import format as words
from . import table_cells as cells
from .fields import Fields
from .table_cells import Table
from .uncertainty_run import Uncertainty

CONDITIONS = {
    "clean": ("clean", "standard"),
    "suite": ("labels attacked", "robust"),
    "miscalibrate": ("confidence attacked", "tone-4"),
}
# name, heading, whether it is a share, and whether higher is better (for a reader's orientation)
METRICS: tuple[tuple[str, str, bool], ...] = (
    ("accuracy", "Accuracy", True),
    ("confidence", "Mean confidence", True),
    ("ece", "Calibration error, 15 equal bins", True),
    ("ece_equal_mass", "Calibration error, equal mass", True),
    ("ece_classwise", "Calibration error, class-wise", True),
    ("nll", "Negative log-likelihood, nats", False),
    ("brier", "Brier score, 0 … 2", False),
    ("aurc", "Area under risk–coverage", False),
    ("excess_aurc", "… above the best order", False),
    ("risk_at_80_coverage", "Risk at 80 % coverage", True),
    ("coverage_at_5_risk", "Coverage at 5 % risk", True),
    ("mistakes_auroc", "Own mistakes found, AUROC", False),
    ("mistakes_aupr", "… AUPR of mistakes", False),
    ("right_aupr", "… AUPR of right answers", False),
    ("mistakes_fpr_at_95_tpr", "… false positives at 95 % found", True),
)
SCALINGS = {
    "none": "as trained",
    "temperature": "temperature",
    "vector": "vector",
    "isotonic": "isotonic",
}


# --- what the page says -------------------------------------------------------------------------


def facts(run: Uncertainty) -> list[tuple[str, str]]:
    asked = run.result.object("settings")
    return [
        ("Images", words.data(run.data, run.split, run.first, run.n)),
        ("Pixels", run.pixels or words.NONE),
        *run.remarks,
        ("Threat model · suite", f"{run.threat} · {run.suite}"),
        (
            "Fitted on",
            f"{words.count(asked.whole('tuning'))} validation images; calibrated on "
            f"{words.count(asked.whole('held'))} others",
        ),
        ("Temperature", words.figure(run.result.number("temperature"))),
        ("Model", " · ".join(w for w in (run.architecture, run.sha256[:12]) if w) or words.NONE),
        ("Seed", words.figure(asked.whole("seed", -(2**63)))),
        ("Time", words.duration(run.seconds)),
    ]


def judgement(run: Uncertainty) -> str:
    """One sentence on whether the model's confidence can be believed."""
    error = {
        name: run.result.object("conditions").object(name).object("ece").number("value", 0, 1)
        for name in CONDITIONS
    }
    clean, moved = error["clean"], error["miscalibrate"]
    if clean is None or moved is None:
        return "The run reached no calibration error."
    return (
        f"On clean images its confidence is off by {words.percent(clean)} on average; an attacker "
        f"who leaves every answer as it is makes that {words.percent(moved)}."
    )


def metric(figure: Fields, name: str, share: bool) -> str:
    """A figure with its interval; older runs have a wrong one for calibration errors."""
    if name.startswith("ece") and figure.number("by_chance") is None:
        return cells.percent(figure)
    return cells.with_interval(figure, share)


def metrics_table(run: Uncertainty) -> Table:
    conditions = run.result.object("conditions")
    return Table(
        ["", *(title for title, _ in CONDITIONS.values())],
        [
            [
                title,
                *(metric(conditions.object(c).object(name), name, share) for c in CONDITIONS),
            ]
            for name, title, share in METRICS
        ],
    )


def scalings_table(run: Uncertainty) -> Table:
    told, of_more = run.result.object("calibration"), run.result.object("calibration_of_more")
    more = f"clean, {of_more.whole('n')} images" if of_more.value else None
    return Table(
        [
            "Calibration error by scaling",
            *(title for title, _ in CONDITIONS.values()),
            *([more] if more else []),
        ],
        [
            [
                title,
                *(
                    words.percent(told.object(method).object(c).number("ece", 0, 1))
                    for c in CONDITIONS
                ),
                *([cells.percent(of_more.object(method))] if more else []),
            ]
            for method, title in SCALINGS.items()
        ],
    )


def reliability(run: Uncertainty) -> Markup | None:
    lines = [charts.Line("as sure as right", "calm", [0, 1], [0, 1])]
    for name, (title, tone) in CONDITIONS.items():
        drawn = run.result.object("drawings").object(name).object("reliability")
        line = cells.line(drawn, "confidence", "frequency", title, tone)
        if line is not None:
            lines.append(line)
    return charts.line_chart(
        "How often answers are right, against their confidence.",
        charts.fraction_axis("confidence"),
        charts.fraction_axis("share right"),
        lines,
        write=words.percent,
    )


def risk_coverage(run: Uncertainty) -> Markup | None:
    lines = []
    for name, (title, tone) in CONDITIONS.items():
        drawn = run.result.object("drawings").object(name).object("risk_coverage")
        line = cells.line(drawn, "coverage", "risk", title, tone)
        if line is not None:
            lines.append(line)
    if not lines:
        return None
    return charts.line_chart(
        "Share wrong among the answers given, against the share of images answered.",
        charts.fraction_axis("coverage: share answered, the surest first"),
        charts.fraction_axis("risk: share wrong"),
        lines,
        write=words.percent,
    )


def chance_sentence(run: Uncertainty) -> str:
    """What a calibrated model would measure, without which a small error cannot be read."""
    conditions = run.result.object("conditions")
    told = [
        f"{words.percent(by_chance)} ({title})"
        for name, (title, _) in CONDITIONS.items()
        if (by_chance := conditions.object(name).object("ece").number("by_chance", 0, 1))
        is not None
    ]
    if not told:
        return (
            "The run is of a version that gave no interval for calibration errors, or a wrong "
            "one: theirs are not shown."
        )
    return (
        "Measured on few images, even a perfectly calibrated model shows a calibration error: with "
        f"these confidences, in 15 bins, {', '.join(told)} on average. The intervals take that "
        "into account."
    )


def confidence_sentence(run: Uncertainty) -> str:
    told = run.result.object("confidence")
    right, wrong = told.object("right"), told.object("wrong")

    def moved(side: Fields, what: str) -> str:
        before, after = side.number("before", 0, 1), side.number("after", 0, 1)
        n = words.count(side.whole("n"))
        return f"{n} {what} from {words.percent(before)} to {words.percent(after)}"

    changed = told.whole("answers_changed")
    return (
        f"Mean confidence moves on {moved(right, 'right answers')}, and on "
        f"{moved(wrong, 'wrong answers')}; {words.count(changed)} answers change."
    )


@dataclass(frozen=True)
class Corruptions:
    sentence: str
    accuracy: Markup
    error: Markup
    table: Table


def corruptions(run: Uncertainty) -> Corruptions | str | None:
    """Charts by severity and a table by type; or why there are none."""
    told = run.result.object("corruptions")
    if told.text("unavailable"):
        return told.text("unavailable")
    severities, accuracy, confidence, error = [], [], [], []
    for row in told.objects("by_severity"):
        severities.append(float(row.whole("severity", 1) or 0))
        accuracy.append(row.number("accuracy", 0, 1))
        confidence.append(row.number("confidence", 0, 1))
        error.append(row.number("ece", 0, 1))
    if not severities:
        return None
    x = charts.Axis("severity", 1, max(5, *severities), severities)
    top = max(e or 0.0 for e in error) or 1.0
    by_type = told.object("by_type")
    return Corruptions(
        f"Over {len(cells.keys(by_type))} corruptions at {len(severities)} severities, "
        f"{words.count(told.whole('n'))} images each, the mean accuracy is "
        f"{cells.with_interval(told.object('mean_accuracy'), share=True)}.",
        charts.line_chart(
            "Accuracy and mean confidence by severity.",
            x,
            charts.fraction_axis("accuracy and confidence"),
            [
                charts.Line("accuracy", "robust", severities, accuracy),
                charts.Line("mean confidence", "standard", severities, confidence),
            ],
            write=words.percent,
        ),
        charts.line_chart(
            "Calibration error by severity.",
            x,
            charts.Axis("calibration error", 0, top, charts.ticks(0, top), charts.whole_percent),
            [charts.Line("calibration error", "tone-4", severities, error)],
            write=words.percent,
        ),
        Table(
            ["Accuracy by severity", *(f"{s:g}" for s in severities)],
            [
                [words.name(name), *(words.percent(v) for v in cells.numbers(by_type, name))]
                for name in cells.keys(by_type)
            ],
        ),
    )


def people(run: Uncertainty) -> Table | None:
    human = run.result.object("human")
    if not human.value:
        return None
    compared, rows = human.object("compared"), []
    for condition, (title, _) in CONDITIONS.items():
        told = compared.object(condition)
        rows.append(
            [
                title,
                words.figure(told.number("cross_entropy")),
                words.figure(told.number("human_entropy")),
                words.figure(told.number("entropy_correlation", -1, 1)),
                words.figure(told.number("disagreement_auroc", 0, 1)),
            ]
        )
    return Table(
        [
            "",
            "Cross-entropy to people, nats",
            "People's own entropy",
            "Rank correlation of entropies",
            "AUROC for what people disagree on",
        ],
        rows,
    )


def people_sentence(run: Uncertainty) -> str:
    first = run.result.object("human").object("broken_first")
    if first.number("value", 0, 1) is None:
        return ""
    return (
        "A broken image is one that people are less sure of than of one that stands with "
        f"probability {cells.with_interval(first, share=False)}; 0.5 would be chance."
    )


def view(run: Uncertainty) -> dict[str, Any]:
    """What the template is given."""
    stages = run.result.object("stages")
    return {
        "facts": facts(run),
        "fired": [f for f in run.result.objects("flags") if f.truth("fired")],
        "judgement": judgement(run),
        "metrics": metrics_table(run),
        "confidence": confidence_sentence(run),
        "chance": chance_sentence(run),
        "reliability": reliability(run),
        "risk_coverage": risk_coverage(run),
        "scalings": scalings_table(run),
        "detectors": detectors.detectors_table(run),
        "histograms": detectors.histograms(run),
        "foreign": detectors.foreign_table(run),
        "corruptions": corruptions(run),
        "sets": prediction_sets.sets_table(run),
        "sets_sentences": prediction_sets.sets_sentences(run),
        "sets_charts": prediction_sets.sets_charts(run),
        "sets_caption": prediction_sets.sets_caption(run),
        "abstaining": prediction_sets.abstaining_tables(run),
        "people": people(run),
        "people_sentence": people_sentence(run),
        "cost": Table(
            ["Stage", "Time"],
            [
                [words.name(name), words.duration(stages.number(name))]
                for name in cells.keys(stages)
            ],
        ),
    }


# --- side by side -------------------------------------------------------------------------------


def side_by_side(runs: Sequence[Uncertainty]) -> Table | None:
    """The figures that say most of several models, a column a run."""
    if len(runs) < 2:
        return None

    def auroc(run: Uncertainty, detector: str, who: str) -> str:
        told = run.result.object("detectors").object(detector).object(who).object("told")
        return cells.number(told.object("auroc"))

    def sets(run: Uncertainty, which: str) -> str:
        told = run.result.object("sets").object("by_score").object("lac")
        told = told.object("clean") if which == "clean" else told.object("attacked").object(which)
        size = words.figure(told.number("mean_size"))
        return f"{cells.percent(told.object('coverage'))}, size {size}"

    def robust(run: Uncertainty) -> str:
        told = run.result.object("robust_sets")
        if told.text("unavailable"):
            return words.NONE
        inside = told.object("inside")
        size = words.figure(inside.number("mean_size"))
        radius = told.number("radius") or 0
        return f"{cells.percent(inside.object('coverage'))}, size {size}, L2 {radius:g}"

    rows: list[list[str]] = [["Threat model, suite", *(f"{r.threat}, {r.suite}" for r in runs)]]
    rows.append(["Images", *(words.data(r.data, r.split, r.first, r.n) for r in runs)])
    for name in ("accuracy", "confidence", "ece"):
        title = next(t for metric, t, _ in METRICS if metric == name)
        for condition, (where, _) in CONDITIONS.items():
            rows.append(
                [
                    f"{title}, {where}",
                    *(
                        cells.percent(r.result.object("conditions").object(condition).object(name))
                        for r in runs
                    ),
                ]
            )
    for detector in ("max-softmax", "mahalanobis"):
        for who, how in (("unaware", "unknown"), ("aware", "known")):
            rows.append(
                [
                    f"AUROC of {words.name(detector)}, {how} to the attacker",
                    *(auroc(r, detector, who) for r in runs),
                ]
            )
    rows.append(["Conformal sets, clean", *(sets(r, "clean") for r in runs)])
    rows.append(["Conformal sets, attacked", *(sets(r, "covered") for r in runs)])
    rows.append(["Robust sets, attacked inside their radius", *(robust(r) for r in runs)])
    mean = [r.result.object("corruptions").object("mean_accuracy") for r in runs]
    rows.append(["Mean corruption accuracy", *(cells.percent(figure) for figure in mean)])
    names = distinct_names(
        [r.model or r.path.resolve().name for r in runs], [r.sha256 for r in runs]
    )
    return Table(["", *names], rows)
