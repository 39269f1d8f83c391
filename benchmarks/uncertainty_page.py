"""Write the table of docs/uncertainty.md from benchmarks/results/uncertainty-*.json.

    python benchmarks/uncertainty_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from published import ROOT, pasted
from published import results as results_of
from table import fill

from holdfast.runs.records.uncertainty import Figure
from holdfast.threat import Threat
from holdfast.uncertainty.run import output

PAGE = ROOT / "docs" / "uncertainty.md"
NONE = "—"
CONDITIONS = {
    "clean": "clean",
    "suite": "labels attacked",
    "miscalibrate": "confidence attacked",
}
Result = dict[str, Any]


def number(figure: dict[str, float] | None) -> str:
    if figure is None:
        return NONE
    if "low" not in figure:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def share(figure: dict[str, float] | None) -> str:
    return output.share(None if figure is None else Figure(**figure))


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def conditions(name: str, write: Callable[[Any], str]) -> Callable[[Result, str], str]:
    return lambda result, condition: write(result["conditions"][condition][name])


def moved(result: Result, side: str) -> str:
    told = result["confidence"][side]
    return f"{percent(told['before'])} → {percent(told['after'])} (n = {told['n']})"


def calibrated(result: Result) -> str:
    told = result.get("calibration_of_more")
    if told is None:
        return NONE
    before, after = (share(told[method]) for method in ("none", "temperature"))
    return f"{after}, unscaled {before} (n = {told['n']})"


def detector(result: Result, name: str, who: str) -> str:
    told = (result["detectors"].get(name) or {}).get(who)
    if told is None:
        return NONE
    found = NONE if told["told"] is None else number(told["told"]["auroc"])
    errors = (told["robust_error"][rate] for rate in ("0.05", "0.5"))
    return f"{found}; {' / '.join(percent(e and e['value']) for e in errors)}"


def sets(told: dict[str, Any]) -> str:
    trivial = f", {told['trivial']:.0%} trivial" if told["trivial"] else ""
    return f"{share(told['coverage'])}, size {told['mean_size']:.2f}{trivial}"


def robust(result: Result, where: str) -> str:
    told = result["robust_sets"]
    if where not in told:
        return f"none: {told['unavailable']}"
    n = told[where]["n"]
    return sets(told[where]) + ("" if n == result["n"] else f" (n = {n})")


def splits(result: Result, score: str) -> str:
    told = result["sets"]["by_score"][score]["splits"]
    if "unavailable" in told:
        return NONE
    low, high = told["interval"]
    return (
        f"{percent(told['mean'])}; {told['inside']} of {len(told['coverages'])} in "
        f"{percent(low)} to {percent(high)}"
    )


def abstaining(result: Result, promise: str, condition: str) -> str:
    told = result["abstaining"][promise]
    if "rates" not in told:
        return "not to be had"
    rates = told["rates"][condition]
    return " / ".join(percent(rates[key]) for key in ("right", "wrong", "abstained"))


def corrupted(result: Result) -> str:
    told = result["corruptions"]
    if "unavailable" in told:
        return NONE
    errors = ", ".join(percent(row["ece"]) for row in told["by_severity"])
    return f"{share(told['mean_accuracy'])}; calibration error {errors}"


def out_of_distribution(result: Result, name: str) -> str:
    told = result["foreign"].get(name)
    if told is None:
        return NONE
    scores = {score: row["auroc"]["value"] for score, row in told["scores"].items() if row["auroc"]}
    best = max(scores, key=lambda score: scores[score])
    return (
        f"{scores['max-softmax']:.2f}; {best} {scores[best]:.2f}; "
        f"{number(told['attacked']['auroc'])}"
    )


def people(result: Result, key: str) -> str:
    told = result["human"]
    if told is None:
        return NONE
    if key == "broken_first":
        return number(told["broken_first"])
    value = told["compared"]["clean"].get(key)
    return NONE if value is None else f"{value:.3f}"


def rows(results: list[Result]) -> list[tuple[str, Callable[[Result], str]]]:
    """Name and cell of every row."""
    metrics: list[tuple[str, str, Callable[[Any], str]]] = [
        ("accuracy", "accuracy", share),
        ("confidence", "mean confidence", share),
        ("ece", "calibration error (15 bins)", share),
        ("nll", "negative log-likelihood, nats", number),
        ("brier", "Brier score", number),
        ("aurc", "area under risk–coverage", number),
        ("risk_at_80_coverage", "risk at 80 % coverage", share),
        ("mistakes_auroc", "own mistakes found, AUROC", number),
    ]
    made: list[tuple[str, Callable[[Result], str]]] = []
    for name, title, write in metrics:
        cell = conditions(name, write)
        for condition, where in CONDITIONS.items():
            made.append((f"{title}, {where}", lambda r, c=cell, w=condition: c(r, w)))
    made += [
        ("calibration error, clean, more images", calibrated),
        ("confidence of right answers, attacked", lambda r: moved(r, "right")),
        ("confidence of wrong answers, attacked", lambda r: moved(r, "wrong")),
    ]
    for name in ("max-softmax", "mahalanobis"):
        for who, how in (
            ("suite", "unknown (the suite)"),
            ("unaware", "unknown (to its end)"),
            ("aware", "known"),
        ):
            title = f"{name}, {how} to the attacker: AUROC; robust error at 5 / 50 % rejected"
            made.append((title, lambda r, n=name, w=who: detector(r, n, w)))
    for score in ("lac", "aps", "raps"):
        for title, cell in (
            ("clean", lambda r, s=score: sets(r["sets"]["by_score"][s]["clean"])),
            ("attacked", lambda r, s=score: sets(r["sets"]["by_score"][s]["attacked"]["covered"])),
            ("enlarged", lambda r, s=score: sets(r["sets"]["by_score"][s]["attacked"]["enlarged"])),
            ("random splits", lambda r, s=score: splits(r, s)),
        ):
            made.append((f"90 % sets ({score}), {title}", cell))
    made += [
        ("robust sets, clean", lambda r: robust(r, "clean")),
        (
            "robust sets, attacked inside their radius",
            lambda r: f"{robust(r, 'inside')}, L2 {r['robust_sets']['radius']:g}",
        ),
        ("robust sets, attacked beyond it (empirical)", lambda r: robust(r, "beyond")),
    ]
    for promise in ("coverage", "risk"):
        for condition, where in (("clean", "clean"), ("worst", "attacker's choice")):
            title = f"abstaining for a promised {promise}, {where}: right / wrong / abstained"
            made.append((title, lambda r, p=promise, c=condition: abstaining(r, p, c)))
    for name in dict.fromkeys(name for r in results for name in r["foreign"]):
        title = f"{name} detected, AUROC: max-softmax; best score; max-softmax attacked"
        made.append((title, lambda r, n=name: out_of_distribution(r, n)))
    made += [
        ("mean corruption accuracy; calibration error by severity", corrupted),
        ("cross-entropy to people, nats", lambda r: people(r, "cross_entropy")),
        ("rank correlation with people's entropy", lambda r: people(r, "entropy_correlation")),
        ("broken images are ambiguous ones, AUROC", lambda r: people(r, "broken_first")),
        ("seconds", lambda r: f"{r['seconds']:.0f}"),
    ]
    return made


def table(results: list[Result]) -> list[str]:
    """A row a figure, a column a model; figures of different suites or images never share one."""
    if not results:
        return [
            "No results yet: `python benchmarks/uncertainty.py UNDEFENDED DEFENDED "
            "--data datasets`."
        ]
    lines = []
    for asked in dict.fromkeys(map(question, results)):
        shown = [r for r in results if question(r) == asked]
        lines += [
            f"### {asked}",
            "",
            f"| | {' | '.join(r['model']['name'] for r in shown)} |",
            f"| --- {'| --- ' * len(shown)}|",
            *(f"| {name} | {' | '.join(cell(r) for r in shown)} |" for name, cell in rows(shown)),
            "",
            *(f"- {r['model']['name']}, {r['machine']}: {pasted(r['command'])}" for r in shown),
            "",
        ]
    return lines


def question(result: Result) -> str:
    data = result["data"]
    return (
        f"{Threat(**result['threat'])}, suite `{result['suite']}`, n = {result['n']}, "
        f"{data['pixels']}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    results = results_of("uncertainty-*.json")
    return fill(PAGE, table(results), "benchmarks/uncertainty_page.py", parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
