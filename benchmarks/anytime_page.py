"""Write the tables of docs/budgets.md from benchmarks/results/anytime.json.

    python benchmarks/anytime_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from published import ROOT, pasted
from published import results as results_of
from table import fill

PAGE = ROOT / "docs" / "budgets.md"
SHOWN = ("103", "309", "926", "4000")  # sizes of which half-widths are shown


def tables(result: dict[str, Any]) -> list[str]:
    """A section for each part of the benchmark that was run."""
    makers = {"coverage": coverage, "evaluations": evaluations, "budgets": budgets}
    lines = []
    for name, make in makers.items():
        if name in result:
            part = result[name]
            lines += [*make(part["result"]), ""]
            lines += [f"{part['machine']}: {pasted(part['command'])}", ""]
    return lines


def coverage(found: dict[str, Any]) -> list[str]:
    rows, models = found["rows"], found["rows"][0]["models"]
    lines = [
        f"**Simulated test sets** of {found['population']:,} images, {models} samples of each; "
        f"somebody looks at {len(found['looks'])} sizes, from {found['looks'][0]} to "
        f"{found['looks'][-1]:,} images. Promised are 5 %.",
        "",
        "| true accuracy | interval | misses at one look or more | misses when it is narrow "
        f"(± {found['until']:.0%}) | images until then | half-width at n = "
        + ", ".join(f"{int(n):,}" for n in SHOWN)
        + " |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        widths = ", ".join(f"{row['half_widths'][n]:.1%}" for n in SHOWN)
        lines.append(
            f"| {row['accuracy']:.0%} | {row['interval']} | {row['missed_once']:.1%} | "
            f"{row['missed_when_narrow']:.1%} | {row['images_when_narrow']:.0f} | {widths} |"
        )
    return lines


def evaluations(found: dict[str, Any]) -> list[str]:
    return [
        f"**Evaluations with `until` {found['until']:.0%}** of {found['models']} linear "
        f"classifiers of two classes, whose robust accuracy on their {found['images']:,} images is "
        f"known exactly (5 to 95 %): the interval shown misses it {found['missed']} times. The "
        f"samples have {found['smallest_sample']} to {found['largest_sample']} images, "
        f"{found['mean_sample']:.0f} on average.",
    ]


def budgets(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "**When commands with a budget end**, by a clock outside, from start to exit:",
        "",
        "| model | suite | budget, s | ended after, s | off by | images | robust accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        off = row["seconds"] / row["budget_seconds"] - 1
        low, high = row["anytime_interval"]
        lines.append(
            f"| {row['model']} | {row['suite']} | {row['budget_seconds']:.0f} | "
            f"{row['seconds']:.1f} | {off:+.1%} | {row['n']:,} of {row['population']:,} | "
            f"{row['robust_accuracy']:.1%} ({low:.1%} to {high:.1%}) |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    lines = [line for result in results_of("anytime*.json") for line in tables(result)]
    missing = ["Not measured yet: `python benchmarks/anytime.py --data datasets`."]
    check = parser.parse_args().check
    return fill(PAGE, lines or missing, "benchmarks/anytime_page.py", check)


if __name__ == "__main__":
    sys.exit(main())
