"""The figures of an uncertainty run, as SVG, drawn from what `result.json` holds."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

CONDITIONS = {
    "clean": ("clean", "#0b7a6f", "-"),
    "suite": ("labels attacked", "#b3261e", "--"),
    "miscalibrate": ("confidence attacked", "#4f46b8", ":"),
}
KINDS = {"clean": "#0b7a6f", "suite": "#b45309", "unaware": "#4f46b8", "evading": "#b3261e"}
KIND_NAMES = {
    "clean": "clean",
    "suite": "labels attacked",
    "unaware": "attacked to the end, detector unknown",
    "evading": "attacked, detector known",
}
SCORES = {"lac": "#0b7a6f", "aps": "#b45309", "raps": "#4f46b8"}
NAMED = 3  # corruptions that are named: those that cost most
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "holdfast",  # the same figures always make the same file
}


def draw(result: dict[str, Any]) -> dict[str, str]:
    """SVG text by figure: those for which the result holds anything to draw."""
    # matplotlib takes long to import, which only those who draw should wait for.
    import matplotlib
    from matplotlib.figure import Figure

    makers: dict[str, Callable[[Any, dict[str, Any]], None]] = {
        "reliability": _reliability,
        "risk_coverage": _risk_coverage,
        "scores": _scores,
        "sets": _sets,
    }
    if "by_severity" in result["corruptions"]:
        makers["corruptions"] = _corruptions
    drawn = {}
    with matplotlib.rc_context(STYLE):
        for name, make in makers.items():
            page = Figure(figsize=(9, 3.6), layout="constrained")
            make(page, result)
            picture = io.StringIO()
            page.savefig(picture, format="svg", metadata={"Date": None})
            drawn[name] = picture.getvalue()
    return drawn


def _reliability(page: Any, result: dict[str, Any]) -> None:
    for axes, (name, (title, colour, _)) in zip(
        page.subplots(1, 3, sharey=True), CONDITIONS.items(), strict=True
    ):
        diagram = result["drawings"][name]["reliability"]
        points = [
            (c, f, n)
            for c, f, n in zip(
                diagram["confidence"], diagram["frequency"], diagram["images"], strict=True
            )
            if c is not None
        ]
        most = max(n for *_, n in points)
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.plot([c for c, *_ in points], [f for _, f, _ in points], color=colour, linewidth=1.5)
        axes.scatter(
            [c for c, *_ in points],
            [f for _, f, _ in points],
            s=[10 + 90 * n / most for *_, n in points],
            color=colour,
        )
        error = result["conditions"][name]["ece"]
        shown = "" if error is None else f", ECE {error['value']:.1%}"
        axes.set(title=f"{title}{shown}", xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
        if name == "clean":
            axes.set_ylabel("share right")


def _risk_coverage(page: Any, result: dict[str, Any]) -> None:
    axes = page.subplots()
    for name, (title, colour, line) in CONDITIONS.items():
        curve = result["drawings"][name]["risk_coverage"]
        if curve is not None:
            axes.plot(curve["coverage"], curve["risk"], line, color=colour, label=title)
    axes.set(xlabel="coverage: share answered", ylabel="risk: share wrong", xlim=(0, 1))
    axes.set_ylim(0, None)
    axes.legend()


def _scores(page: Any, result: dict[str, Any]) -> None:
    detectors = result["detectors"]
    shown = [name for name, told in detectors.items() if told["aware"]] or list(detectors)[:1]
    grid = page.subplots(1, len(shown), squeeze=False)[0]
    for axes, name in zip(grid, shown, strict=True):
        drawn = detectors[name]["histogram"]
        for kind, shares in drawn["shares"].items():
            axes.stairs(
                shares, drawn["edges"], fill=True, alpha=0.35, color=KINDS[kind], label=None
            )
            axes.stairs(shares, drawn["edges"], color=KINDS[kind], label=KIND_NAMES[kind])
        axes.set(title=name, xlabel="score (higher = less sure)", ylabel="share of images")
        axes.legend()


def _sets(page: Any, result: dict[str, Any]) -> None:
    coverage, size = page.subplots(1, 2)
    n = next(iter(result["sets"]["by_score"].values()))["against_eps"]["n"]
    page.suptitle(
        f"First {n} images, a short search at each ε that aims at lac sets: less than the "
        "attacks of the table find",
        fontsize=9,
    )
    norm = result["threat"]["norm"]
    scale, unit = (255, " in steps of 1/255") if norm == "linf" else (1, "")
    for name, colour in SCORES.items():
        curve = result["sets"]["by_score"][name]["against_eps"]
        eps = [scale * e for e in curve["eps"]]
        coverage.plot(eps, curve["coverage"], "o-", color=colour, label=name)
        size.plot(eps, curve["mean_size"], "o-", color=colour, label=name)
    coverage.axhline(result["sets"]["promise"], color="0.5", linewidth=1, linestyle="--")
    coverage.set(xlabel=f"ε ({norm}){unit}", ylabel="coverage", ylim=(0, 1.02))
    size.set(xlabel=f"ε ({norm}){unit}", ylabel="mean size of a set")
    size.set_ylim(0, len(result["classes"]) * 1.02)
    coverage.legend()


def _corruptions(page: Any, result: dict[str, Any]) -> None:
    told = result["corruptions"]
    accuracy, error = page.subplots(1, 2)
    severities = [row["severity"] for row in told["by_severity"]]
    by_type = told["by_type"]
    for values in by_type.values():
        accuracy.plot(severities, values, color="0.8", linewidth=1)
    for name in sorted(by_type, key=lambda name: by_type[name][-1])[:NAMED]:
        accuracy.annotate(
            name.replace("_", " "), (severities[-1], by_type[name][-1]), fontsize=7, color="0.4"
        )
    mean = [row["accuracy"] for row in told["by_severity"]]
    accuracy.plot(severities, mean, "o-", color="#0b7a6f", label="mean of the 15")
    accuracy.set(xlabel="severity", ylabel="accuracy", ylim=(0, 1), xticks=severities)
    accuracy.legend()
    error.plot(severities, [row["ece"] for row in told["by_severity"]], "o-", color="#b3261e")
    error.set(xlabel="severity", ylabel="expected calibration error", xticks=severities)
    error.set_ylim(0, 1.1 * max(row["ece"] for row in told["by_severity"]) or 1)
