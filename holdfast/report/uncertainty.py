"""Uncertainty runs on the page: what each section shows, from `result.json` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .. import charts, palette
from ..evaluation.result import distinct_names
from ..intervals import clopper_pearson
from ..runs.records.uncertainty import (
    Answers,
    BesidePeople,
    CalibrationError,
    ConformalSets,
    Figure,
    Moved,
    Reliability,
    SetFigures,
)
from ..uncertainty.run.plots import CONDITIONS
from . import detectors, format, metrics, prediction_sets
from .evaluation import remarks
from .metrics import Table
from .runs import UncertaintyRun
from .verdict import Verdict, of_side_by_side, of_uncertainty

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
KEY_METRICS = 3  # which say the most
CALIBRATORS = {
    "none": "as trained",
    "temperature": "temperature",
    "vector": "vector",
    "isotonic": "isotonic",
}


# --- what the page says -------------------------------------------------------------------------


def facts(run: UncertaintyRun) -> list[tuple[str, str]]:
    record, asked = run.record, run.record.settings
    return [
        ("Images", format.data(run.data, run.n)),
        ("Pixels", run.data.pixels or format.NONE),
        *remarks(run.data),
        ("Threat model · suite", f"{run.threat} · {record.suite or ''}"),
        (
            "Fitted on",
            f"{format.count(asked.tuning)} validation images; calibrated on "
            f"{format.count(asked.held)} others",
        ),
        ("Temperature", format.figure(record.temperature)),
        ("Model", format.model(run.model)),
        ("Seed", format.figure(asked.seed)),
        ("Time", format.duration(record.seconds)),
    ]


def _answers(run: UncertaintyRun, condition: str) -> Answers:
    return run.record.conditions.get(condition) or Answers()


def metric(figure: Figure | None, name: str, share: bool) -> str:
    """A figure with its interval; older runs have a wrong one for calibration errors."""
    if name.startswith("ece") and (figure is None or figure.by_chance is None):
        return metrics.percent(figure)
    return metrics.with_interval(figure, share)


def metrics_table(run: UncertaintyRun, first: int) -> Table:
    """The first so many metrics under each condition."""
    answers = [_answers(run, condition) for condition in CONDITIONS]
    return Table(
        ["", *(title for title, _ in CONDITIONS.values())],
        [
            [title, *(metric(getattr(found, name), name, share) for found in answers)]
            for name, title, share in METRICS[:first]
        ],
    )


def calibrators_table(run: UncertaintyRun) -> Table:
    errors, of_more = run.record.calibration, run.record.calibration_of_more
    more = f"clean, {of_more.n} images" if of_more is not None else None
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
                    format.percent(errors.get(method, {}).get(c, CalibrationError()).ece)
                    for c in CONDITIONS
                ),
                *([metrics.percent(getattr(of_more, method))] if of_more is not None else []),
            ]
            for method, title in CALIBRATORS.items()
        ],
    )


def reliability(run: UncertaintyRun) -> Markup | None:
    """How often answers of each confidence are right; None where the result holds no bins."""
    lines = []
    for name, (title, tone) in CONDITIONS.items():
        drawn = run.record.drawings.get(name)
        line = _bins(drawn.reliability, title, tone) if drawn is not None else None
        lines += [] if line is None else [line]
    if not lines:
        return None
    return charts.line_chart(
        "How often answers are right, against their confidence.",
        charts.fraction_axis("confidence"),
        charts.fraction_axis("share right"),
        [charts.Line("as sure as right", "calm", [0, 1], [0, 1], radii=[0, 0]), *lines],
        write=format.percent,
    )


@dataclass(frozen=True)
class Sureness:
    rows: list[tuple[str, Markup, str, str]]  # condition, strip, accuracy, confidence
    saved: Markup


def _estimate(figure: Figure | None) -> charts.Estimate:
    if figure is None:
        return charts.Estimate(None, None, None, format.NONE)
    return charts.Estimate(figure.value, figure.low, figure.high, metrics.percent(figure))


def sureness(run: UncertaintyRun) -> Sureness:
    """How often the model is right, and how sure it is, on one line for each condition."""
    rows, saved = [], []
    for name, (title, _) in CONDITIONS.items():
        found = _answers(run, name)
        right, sure = _estimate(found.accuracy), _estimate(found.confidence)
        strip = charts.strip(
            f"{title}: right on {right.words}, mean confidence {sure.words}",
            ("standard", right),
            ("tone-4", sure),
        )
        rows.append((title, strip, right.words, sure.words))
        points = [("share right", "standard", right), ("mean confidence", "tone-4", sure)]
        saved.append((title, points))
    return Sureness(rows, charts.strips_saved("How sure and how right", saved))


def _bins(held: Reliability, title: str, tone: str) -> charts.Line | None:
    """Bins as dots, the larger the more images they hold, each with the interval of its share: a
    bin of one image says next to nothing, and a line through it would say that it did."""
    counts = held.images or (None,) * len(held.confidence)
    found = [
        (confidence, share, n)
        for confidence, share, n in zip(held.confidence, held.frequency, counts, strict=True)
        if confidence is not None and share is not None
    ]
    if not found:
        return None
    most = max(n or 1 for _, _, n in found)
    ends = [clopper_pearson(round(p * n), n) if n else (None, None) for _, p, n in found]
    return charts.Line(
        title,
        tone,
        [confidence for confidence, _, _ in found],
        [share for _, share, _ in found],
        [low for low, _ in ends],
        [high for _, high in ends],
        radii=[2 + 5 * ((n or 1) / most) ** 0.5 for _, _, n in found],
        joined=False,
        notes=[f"{n:,} image{'s' if n > 1 else ''}" if n else "" for _, _, n in found],
    )


def risk_coverage(run: UncertaintyRun) -> Markup | None:
    lines: list[charts.Line] = []
    for name, (title, tone) in CONDITIONS.items():
        drawn = run.record.drawings.get(name)
        if drawn is not None and (curve := drawn.risk_coverage) is not None:
            line = metrics.line(curve.coverage, curve.risk, title, tone)
            lines += [] if line is None else [line]
    if not lines:
        return None
    return charts.line_chart(
        "Share wrong among the answers given, against the share of images answered.",
        charts.fraction_axis("coverage: share answered, the surest first"),
        charts.fraction_axis("risk: share wrong"),
        lines,
        write=format.percent,
    )


def chance_sentence(run: UncertaintyRun) -> str:
    """What a calibrated model would measure, without which a small error cannot be read."""
    by_chance = [
        f"{format.percent(error.by_chance)} ({title})"
        for name, (title, _) in CONDITIONS.items()
        if (error := _answers(run, name).ece) is not None and error.by_chance is not None
    ]
    if not by_chance:
        return (
            "The run is of a version that gave no interval for calibration errors, or a wrong "
            "one: theirs are not shown."
        )
    return (
        "Measured on few images, even a perfectly calibrated model shows a calibration error: with "
        f"these confidences, in 15 bins, {', '.join(by_chance)} on average. The intervals take "
        "that into account."
    )


def confidence_sentence(run: UncertaintyRun) -> str:
    found = run.record.confidence

    def moved(side: Moved, what: str) -> str:
        before, after = format.percent(side.before), format.percent(side.after)
        return f"{format.count(side.n)} {what} from {before} to {after}"

    return (
        f"Mean confidence moves on {moved(found.right, 'right answers')}, and on "
        f"{moved(found.wrong, 'wrong answers')}; {format.count(found.answers_changed)} answers "
        "change."
    )


@dataclass(frozen=True)
class Corruptions:
    sentence: str
    accuracy: Markup
    error: Markup
    table: Table


def corruptions(run: UncertaintyRun) -> Corruptions | str | None:
    """Charts by severity and a table by type; or why there are none."""
    found = run.record.corruptions
    if found.unavailable:
        return found.unavailable
    severities = [float(row.severity) for row in found.by_severity]
    if not severities:
        return None
    accuracy = [row.accuracy for row in found.by_severity]
    confidence = [row.confidence for row in found.by_severity]
    error = [row.ece for row in found.by_severity]
    x = charts.Axis("severity", 1, max(5, *severities), severities)
    top = max(e or 0.0 for e in error) or 1.0
    return Corruptions(
        f"Over {len(found.by_type)} corruptions at {len(severities)} severities, "
        f"{f'published in {found.published}, ' if found.published else ''}"
        f"{format.count(found.n)} images each, the mean accuracy is "
        f"{metrics.with_interval(found.mean_accuracy, share=True)}.",
        charts.line_chart(
            "Accuracy and mean confidence by severity.",
            x,
            charts.fraction_axis("accuracy and confidence"),
            [
                charts.Line("accuracy", "robust", severities, accuracy),
                charts.Line("mean confidence", "standard", severities, confidence),
            ],
            write=format.percent,
        ),
        charts.line_chart(
            "Calibration error by severity.",
            x,
            charts.Axis("calibration error", 0, top, charts.ticks(0, top), charts.whole_percent),
            [charts.Line("calibration error", "tone-4", severities, error)],
            write=format.percent,
        ),
        Table(
            ["Accuracy by severity", *(f"{s:g}" for s in severities)],
            [
                [format.name(name), *(format.percent(value) for value in values)]
                for name, values in found.by_type.items()
            ],
        ),
    )


def people(run: UncertaintyRun) -> Table | None:
    human, rows = run.record.human, []
    if human is None:
        return None
    for condition, (title, _) in CONDITIONS.items():
        found = human.compared.get(condition) or BesidePeople()
        rows.append(
            [
                title,
                format.figure(found.cross_entropy),
                format.figure(found.human_entropy),
                format.figure(found.entropy_correlation),
                format.figure(found.disagreement_auroc),
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


def people_sentence(run: UncertaintyRun) -> str:
    if run.record.human is None or (first := run.record.human.broken_first) is None:
        return ""
    return (
        "A broken image is one that people are less sure of than of one that stands with "
        f"probability {metrics.with_interval(first, share=False)}; 0.5 would be chance."
    )


def verdict(run: UncertaintyRun) -> Verdict:
    return of_uncertainty(run, confidence_sentence(run))


def view(run: UncertaintyRun) -> dict[str, Any]:
    """What the template is given."""
    return {
        "facts": facts(run),
        "fired": run.fired,
        "key_metrics": metrics_table(run, KEY_METRICS),
        "metrics": metrics_table(run, len(METRICS)),
        "chance": chance_sentence(run),
        "sureness": sureness(run),
        "reliability": reliability(run),
        "risk_coverage": risk_coverage(run),
        "calibrators": calibrators_table(run),
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
                [format.name(name), format.duration(seconds)]
                for name, seconds in run.record.stages.items()
            ],
        ),
    }


# --- side by side -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SideBySide:
    verdict: Verdict
    chart: Markup | None
    table: Table


def side_by_side(runs: Sequence[UncertaintyRun]) -> SideBySide | None:
    """The figures that say most of several models, a column a run."""
    if len(runs) < 2:
        return None

    def auroc(run: UncertaintyRun, detector: str, who: str) -> str:
        return detectors.auroc(getattr(run.record.detectors.get(detector), who, None))

    def size(sets: SetFigures) -> str:
        return f"{metrics.percent(sets.coverage)}, size {format.figure(sets.mean_size)}"

    def lac(run: UncertaintyRun) -> ConformalSets:
        return run.record.sets.by_score.get("lac") or ConformalSets()

    def robust(run: UncertaintyRun) -> str:
        found = run.record.robust_sets
        if found.unavailable:
            return format.NONE
        return f"{size(found.inside or SetFigures())}, L2 {found.radius or 0:g}"

    rows: list[list[str]] = [
        ["Threat model, suite", *(f"{r.threat}, {r.record.suite or ''}" for r in runs)]
    ]
    rows.append(["Images", *(format.data(r.data, r.n) for r in runs)])
    for name in ("accuracy", "confidence", "ece"):
        title = next(t for metric, t, _ in METRICS if metric == name)
        for condition, (where, _) in CONDITIONS.items():
            rows.append(
                [
                    f"{title}, {where}",
                    *(metrics.percent(getattr(_answers(r, condition), name)) for r in runs),
                ]
            )
    for detector in ("max-softmax", "mahalanobis"):
        for who, how in (("unaware", "unknown"), ("aware", "known")):
            rows.append(
                [
                    f"AUROC of {format.name(detector)}, {how} to the attacker",
                    *(auroc(r, detector, who) for r in runs),
                ]
            )
    rows.append(["Conformal sets, clean", *(size(lac(r).clean) for r in runs)])
    rows.append(["Conformal sets, attacked", *(size(lac(r).attacked.covered) for r in runs)])
    rows.append(["Robust sets, attacked inside their radius", *(robust(r) for r in runs)])
    mean = [r.record.corruptions.mean_accuracy for r in runs]
    rows.append(["Mean corruption accuracy", *(metrics.percent(figure) for figure in mean)])
    names = distinct_names(
        [r.model.name or r.path.resolve().name for r in runs],
        [r.model.sha256 or "" for r in runs],
    )
    return SideBySide(of_side_by_side(runs, names), _errors(runs, names), Table(["", *names], rows))


def _errors(runs: Sequence[UncertaintyRun], names: Sequence[str]) -> Markup | None:
    """Calibration errors, clean and attacked: the further down and to the left, the better."""
    lines: list[charts.Line] = []
    for run, name in zip(runs[: palette.STYLES], names, strict=False):
        clean, moved = _answers(run, "clean").ece, _answers(run, "miscalibrate").ece
        if clean is not None and moved is not None:
            tone = f"tone-{len(lines)}"
            dot = charts.Line(name, tone, [clean.value], [moved.value], radii=[6.0], joined=False)
            lines.append(dot)
    if not lines:
        return None

    def axis(label: str, values: Sequence[float]) -> charts.Axis:
        high = 1.1 * max(values) or 1.0
        return charts.Axis(label, 0, high, charts.ticks(0, high), charts.whole_percent)

    return charts.line_chart(
        "Calibration error on clean images and under attack; the table below holds more.",
        axis("calibration error, clean", [line.x[0] for line in lines]),
        axis("calibration error, confidence attacked", [y for line in lines for y in line.y if y]),
        lines,
        write=format.percent,
    )
