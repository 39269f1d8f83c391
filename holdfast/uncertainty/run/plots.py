"""The charts of an uncertainty run as SVG files, drawn from what `result.json` holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from ...charts import Axis, Chart, Line, fraction_axis, svg_file, ticks, whole_percent

# Conditions and kinds of images by their names in the result: name in a legend, tone. The page
# about a run has the same.
CONDITIONS = {
    "clean": ("clean", "standard"),
    "suite": ("labels attacked", "robust"),
    "miscalibrate": ("confidence attacked", "tone-4"),
}
KINDS = {
    "clean": ("clean", "standard"),
    "suite": ("labels attacked", "tone-1"),
    "unaware": ("attacked to the end, detector unknown", "tone-2"),
    "evading": ("attacked, detector known", "tone-4"),
}
SCORES = {"lac": "robust", "aps": "tone-1", "raps": "tone-2"}
WORST = {"alarm": 0, "tone-2": 1, "tone-4": 2}  # tones of the corruptions that cost most, by rank


def draw(result: dict[str, Any]) -> dict[str, str]:
    """SVG text by figure: those for which the result holds anything to draw."""
    makers: dict[str, Callable[[dict[str, Any]], str]] = {
        "reliability": _reliability,
        "risk_coverage": _risk_coverage,
        "scores": _scores,
        "sets": _sets,
    }
    if "by_severity" in result["corruptions"]:
        makers["corruptions"] = _corruptions
    return {name: make(result) for name, make in makers.items()}


def _upwards(label: str, values: Sequence[float], write: Callable[[float], str]) -> Axis:
    """From 0 to a little more than the largest value."""
    high = 1.05 * max(values, default=0) or 1.0
    return Axis(label, 0, high, ticks(0, high), write)


def _reliability(result: dict[str, Any]) -> str:
    charts, titles = [], []
    for name, (title, tone) in CONDITIONS.items():
        bins = result["drawings"][name]["reliability"]
        filled = [i for i, c in enumerate(bins["confidence"]) if c is not None]
        confidence, frequency, images = (
            [bins[key][i] for i in filled] for key in ("confidence", "frequency", "images")
        )
        # The area of a dot grows with the number of images that it stands for.
        radii = [2 + 5 * (n / max(images)) ** 0.5 for n in images]
        lines = [
            Line("as sure as right", "calm", [0, 1], [0, 1], radii=[0, 0]),
            Line(title, tone, confidence, frequency, radii=radii),
        ]
        error = result["conditions"][name]["ece"]
        titles.append(title if error is None else f"{title}, ECE {error['value']:.1%}")
        charts.append(
            Chart(
                f"How often predictions are right, against their confidence: {title}.",
                fraction_axis("confidence"),
                fraction_axis("share right"),
                lines,
                write="{:.1%}".format,
            )
        )
    return svg_file(charts, titles)


def _risk_coverage(result: dict[str, Any]) -> str:
    curves = {name: result["drawings"][name]["risk_coverage"] for name in CONDITIONS}
    lines = [
        Line(title, tone, curve["coverage"], curve["risk"], radii=[0] * len(curve["risk"]))
        for name, (title, tone) in CONDITIONS.items()
        if (curve := curves[name]) is not None
    ]
    chart = Chart(
        "Share wrong among the predictions given, against the share of images predicted.",
        fraction_axis("coverage: share answered, the surest first"),
        _upwards("risk: share wrong", [v for line in lines for v in line.y if v], whole_percent),
        lines,
    )
    return svg_file([chart])


def _scores(result: dict[str, Any]) -> str:
    detectors = result["detectors"]
    shown = [name for name, held in detectors.items() if held["aware"]] or list(detectors)[:1]
    charts = []
    for name in shown:
        histogram = detectors[name]["histogram"]
        edges = histogram["edges"]
        # Each bin is a step from its left to its right edge.
        x = [edge for pair in pairwise(edges) for edge in pair]
        lines = []
        for kind, shares in histogram["shares"].items():
            steps = [share for share in shares for _ in range(2)]
            title, tone = KINDS[kind]
            lines.append(Line(title, tone, x, steps, [0] * len(x), steps, radii=[0] * len(x)))
        charts.append(
            Chart(
                f"How often images have which score of {name}.",
                Axis("score (higher = less sure)", x[0], x[-1], ticks(x[0], x[-1])),
                _upwards(
                    "share of images", [v for line in lines for v in line.y if v], whole_percent
                ),
                lines,
            )
        )
    return svg_file(charts, shown)


def _sets(result: dict[str, Any]) -> str:
    sets, norm = result["sets"], result["threat"]["norm"]
    curves = {name: sets["by_score"][name]["against_eps"] for name in SCORES}
    scale, unit = (255, " in steps of 1/255") if norm == "linf" else (1, "")
    radii = [scale * eps for eps in next(iter(curves.values()))["eps"]]
    x = Axis(f"ε ({norm}){unit}", 0, max(radii) or 1, ticks(0, max(radii) or 1), "{:.4g}".format)

    def lines(figure: str) -> list[Line]:
        return [
            Line(name, tone, [scale * eps for eps in curves[name]["eps"]], curves[name][figure])
            for name, tone in SCORES.items()
        ]

    promise = Line("promise", "calm", [x.low, x.high], [sets["promise"]] * 2, radii=[0, 0])
    coverage = Chart(
        "Coverage of the sets against ε.",
        x,
        fraction_axis("coverage"),
        [promise, *lines("coverage")],
        write="{:.1%}".format,
    )
    size = Chart(
        "Mean size of the sets against ε.",
        x,
        _upwards("mean size of a set", [len(result["classes"])], "{:g}".format),
        lines("mean_size"),
        write="{:.2f}".format,
    )
    n = next(iter(curves.values()))["n"]
    return svg_file(
        [coverage, size],
        caption=f"First {n} images, a short search at each ε that aims at lac sets: it finds less "
        "than the attacks of the table.",
    )


def _corruptions(result: dict[str, Any]) -> str:
    corruptions = result["corruptions"]
    rows, by_type = corruptions["by_severity"], corruptions["by_type"]
    severities = [row["severity"] for row in rows]
    x = Axis("severity", severities[0], max(severities[-1], severities[0] + 1), severities)
    worst = sorted(by_type, key=lambda name: by_type[name][-1])
    tones = {worst[rank]: tone for tone, rank in WORST.items() if rank < len(worst)}
    each = [
        Line(
            name.replace("_", " ") if name in tones else "",
            tones.get(name, "tone-3"),
            severities,
            accuracies,
            radii=[0] * len(severities),
        )
        for name, accuracies in sorted(by_type.items(), key=lambda item: item[0] in tones)
    ]
    mean = Line(f"mean of the {len(by_type)}", "robust", severities, [r["accuracy"] for r in rows])
    errors = [row["ece"] for row in rows]
    accuracy = Chart(
        "Accuracy by severity of each corruption, and their mean.",
        x,
        fraction_axis("accuracy"),
        [*each, mean],
        write="{:.1%}".format,
    )
    error = Chart(
        "Expected calibration error by severity.",
        x,
        _upwards("expected calibration error", errors, whole_percent),
        [Line("mean of all corruptions", "tone-4", severities, errors)],
        write="{:.1%}".format,
    )
    return svg_file([accuracy, error])
