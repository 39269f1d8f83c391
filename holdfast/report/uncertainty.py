"""Uncertainty runs on the page: what each section shows, from `result.json` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from ..errors import InputError
from . import charts, words
from .fields import Fields
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
KINDS = {
    "clean": ("clean", "standard"),
    "suite": ("labels attacked", "tone-1"),
    "unaware": ("attacked to the end, detector unknown", "tone-2"),
    "evading": ("attacked, detector known", "tone-4"),
}
SCALINGS = {
    "none": "as trained",
    "temperature": "temperature",
    "vector": "vector",
    "isotonic": "isotonic",
}
TONES = ("robust", "tone-1", "tone-2", "tone-4", "tone-5")


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each is its heading."""

    head: list[str]
    rows: list[list[str]]


def _number(figure: Fields) -> str:
    value = figure.number("value", -1e300)
    return words.NONE if value is None else f"{value:.3f}"


def _share(figure: Fields) -> str:
    return words.percent(figure.number("value", 0, 1))


def _with_interval(figure: Fields, share: bool) -> str:
    """A figure, and its interval in brackets where it has one."""
    low, high = figure.number("low", -1e300), figure.number("high", -1e300)
    if share:
        text = _share(figure)
        return (
            text if low is None or high is None else f"{text} ({100 * low:.1f} – {100 * high:.1f})"
        )
    text = _number(figure)
    return text if low is None or high is None else f"{text} ({low:.3f} – {high:.3f})"


def _keys(fields: Fields) -> list[str]:
    return [str(key) for key in fields.value]


def _numbers(fields: Fields, name: str) -> list[float | None]:
    """A list of numbers, in which null is a gap."""
    found: list[float | None] = []
    for i, value in enumerate(fields.list(name)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{fields.where}: {name}[{i}] must be a number or null")
        found.append(None if value is None else float(value))
    return found


def _line(
    fields: Fields, x: str, y: str, title: str, tone: str, scale: float = 1.0
) -> charts.Line | None:
    """A curve of a result; None where it holds none."""
    xs, ys = _numbers(fields, x), _numbers(fields, y)
    if len(xs) != len(ys):
        raise InputError(f"{fields.where}: {x!r} and {y!r} are not of one length")
    points = [(scale * a, b) for a, b in zip(xs, ys, strict=True) if a is not None]
    return (
        charts.Line(title, tone, [a for a, _ in points], [b for _, b in points]) if points else None
    )


# --- what the page says -------------------------------------------------------------------------


def facts(run: Uncertainty) -> list[tuple[str, str]]:
    asked = run.result.object("settings")
    return [
        ("Images", words.data(run.data, run.split, run.first, run.n)),
        ("Pixels", run.pixels or words.NONE),
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


def metrics_table(run: Uncertainty) -> Table:
    conditions = run.result.object("conditions")
    return Table(
        ["", *(title for title, _ in CONDITIONS.values())],
        [
            [
                title,
                *(_with_interval(conditions.object(c).object(name), share) for c in CONDITIONS),
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
                *([_share(of_more.object(method))] if more else []),
            ]
            for method, title in SCALINGS.items()
        ],
    )


def reliability(run: Uncertainty) -> Markup | None:
    lines = [charts.Line("as sure as right", "calm", [0, 1], [0, 1])]
    for name, (title, tone) in CONDITIONS.items():
        drawn = run.result.object("drawings").object(name).object("reliability")
        line = _line(drawn, "confidence", "frequency", title, tone)
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
        line = _line(drawn, "coverage", "risk", title, tone)
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


def _told(detector: Fields, name: str, metric: str) -> str:
    under = detector.object(name).object("told")
    return _with_interval(under.object(metric), share=False) if under.value else words.NONE


def detectors_table(run: Uncertainty) -> Table:
    told = run.result.object("detectors")
    rows = []
    for name in _keys(told):
        detector = told.object(name)
        cells = [words.name(name)]
        cells += [_told(detector, who, "auroc") for who in ("unaware", "aware")]
        for rate in ("0.05", "0.5"):
            for who in ("unaware", "aware"):
                error = detector.object(who).object("robust_error").object(rate)
                cells.append(_share(error))
        rows.append(cells)
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
    chart: Markup


def histograms(run: Uncertainty) -> list[Named]:
    """Scores of clean and attacked images, for the detectors that were attacked."""
    told, drawn = run.result.object("detectors"), []
    for name in _keys(told):
        detector = told.object(name)
        if not detector.object("aware").value:
            continue
        histogram = detector.object("histogram")
        edges = [e for e in _numbers(histogram, "edges") if e is not None]
        if len(edges) < 2:
            continue
        middles = [(a + b) / 2 for a, b in pairwise(edges)]
        lines = []
        for kind, (title, tone) in KINDS.items():
            shares = _numbers(histogram.object("shares"), kind)
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
            charts.Axis("share of images", 0, top, charts.ticks(0, top), words.whole_percent),
            lines,
            write=words.percent,
        )
        drawn.append(Named(words.name(name), chart))
    return drawn


def foreign_table(run: Uncertainty) -> Table | None:
    told = run.result.object("foreign")
    names = _keys(told)
    if not names:
        return None
    scores = _keys(told.object(names[0]).object("scores"))
    rows = [
        [
            f"{name} (n = {words.count(told.object(name).whole('n'))})",
            *(
                _number(told.object(name).object("scores").object(s).object("auroc"))
                for s in scores
            ),
            _number(told.object(name).object("attacked").object("auroc")),
        ]
        for name in names
    ]
    return Table(["AUROC", *map(words.name, scores), "max softmax, attacked"], rows)


def _axis(title: str, values: Sequence[float], write: Callable[[float], str]) -> charts.Axis:
    high = max(values) or 1.0
    return charts.Axis(title, 0, high, charts.ticks(0, high), write)


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
        f"Over {len(_keys(by_type))} corruptions at {len(severities)} severities, "
        f"{words.count(told.whole('n'))} images each, the mean accuracy is "
        f"{_with_interval(told.object('mean_accuracy'), share=True)}.",
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
            charts.Axis("calibration error", 0, top, charts.ticks(0, top), words.whole_percent),
            [charts.Line("calibration error", "tone-4", severities, error)],
            write=words.percent,
        ),
        Table(
            ["Accuracy by severity", *(f"{s:g}" for s in severities)],
            [
                [words.name(name), *(words.percent(v) for v in _numbers(by_type, name))]
                for name in _keys(by_type)
            ],
        ),
    )


def _set_cells(told: Fields) -> list[str]:
    return [
        _with_interval(told.object("coverage"), share=True),
        words.figure(told.number("mean_size")),
        words.percent(told.number("trivial", 0, 1)),
    ]


def sets_table(run: Uncertainty) -> Table:
    """Coverage, size, and the share of trivial sets, of every kind of sets."""
    told, robust = run.result.object("sets"), run.result.object("robust_sets")
    rows = []
    for name in _keys(told.object("by_score")):
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
    for name in _keys(told.object("by_score")):
        splits = told.object("by_score").object(name).object("splits")
        low, high = ([*_numbers(splits, "interval"), None, None])[:2]
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
        for name, tone in zip(_keys(by_score), TONES, strict=False):
            curve = by_score.object(name).object("against_eps")
            line = _line(curve, "eps", what, name.upper(), tone, scale)
            if line is not None:
                lines.append(line)
        if not lines:
            return []
        x = _axis(label, [v for line in lines for v in line.x], "{:.4g}".format)
        top = len(run.result.list("classes")) or 1
        shares = what == "coverage"
        y = charts.fraction_axis(title) if shares else _axis(title, [top], "{:g}".format)
        write = words.percent if shares else "{:.2f}".format
        found.append(charts.line_chart(f"{title} against ε", x, y, lines, write=write))
    return found


RATES = {"clean": "clean", "suite": "labels attacked", "miscalibrate": "confidence attacked"}


def abstaining_tables(run: Uncertainty) -> list[tuple[str, Table | None]]:
    """Each promise with what became of it; or why it could not be given."""
    told = run.result.object("abstaining")
    found: list[tuple[str, Table | None]] = []
    for name in _keys(told):
        one = told.object(name)
        if one.text("unavailable"):
            found.append((one.text("unavailable"), None))
            continue
        rates = one.object("rates")
        rows: list[list[str]] = []
        for condition in _keys(rates):
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
        f"probability {_with_interval(first, share=False)}; 0.5 would be chance."
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
        "reliability": reliability(run),
        "risk_coverage": risk_coverage(run),
        "scalings": scalings_table(run),
        "detectors": detectors_table(run),
        "histograms": histograms(run),
        "foreign": foreign_table(run),
        "corruptions": corruptions(run),
        "sets": sets_table(run),
        "sets_sentences": sets_sentences(run),
        "sets_charts": sets_charts(run),
        "abstaining": abstaining_tables(run),
        "people": people(run),
        "people_sentence": people_sentence(run),
        "cost": Table(
            ["Stage", "Time"],
            [[words.name(name), words.duration(stages.number(name))] for name in _keys(stages)],
        ),
    }


# --- side by side -------------------------------------------------------------------------------


def side_by_side(runs: Sequence[Uncertainty]) -> Table | None:
    """The figures that say most of several models, a column a run."""
    if len(runs) < 2:
        return None

    def auroc(run: Uncertainty, detector: str, who: str) -> str:
        told = run.result.object("detectors").object(detector).object(who).object("told")
        return _number(told.object("auroc"))

    def sets(run: Uncertainty, which: str) -> str:
        told = run.result.object("sets").object("by_score").object("lac")
        told = told.object("clean") if which == "clean" else told.object("attacked").object(which)
        size = words.figure(told.number("mean_size"))
        return f"{_share(told.object('coverage'))}, size {size}"

    def robust(run: Uncertainty) -> str:
        told = run.result.object("robust_sets")
        if told.text("unavailable"):
            return words.NONE
        inside = told.object("inside")
        size = words.figure(inside.number("mean_size"))
        radius = told.number("radius") or 0
        return f"{_share(inside.object('coverage'))}, size {size}, L2 {radius:g}"

    rows: list[list[str]] = [["Threat model, suite", *(f"{r.threat}, {r.suite}" for r in runs)]]
    rows.append(["Images", *(words.data(r.data, r.split, r.first, r.n) for r in runs)])
    for name in ("accuracy", "confidence", "ece"):
        title = next(t for metric, t, _ in METRICS if metric == name)
        for condition, (where, _) in CONDITIONS.items():
            rows.append(
                [
                    f"{title}, {where}",
                    *(
                        _share(r.result.object("conditions").object(condition).object(name))
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
    rows.append(["Mean corruption accuracy", *(_share(figure) for figure in mean)])
    return Table(["", *(r.model or r.path.resolve().name for r in runs)], rows)
