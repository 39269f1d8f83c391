"""Write the table of docs/hidden-gradients.md from the hidden_gradients results.

    python benchmarks/hidden_gradients_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from published import ROOT, pasted
from published import results as results_of
from table import fill

from holdfast.intervals import clopper_pearson
from holdfast.threat import Threat

PAGE = ROOT / "docs" / "hidden-gradients.md"


def table(results: list[dict[str, Any]]) -> list[str]:
    """A section a model; in it a row for each way, the bare network first."""
    if not results:
        return ["No results yet: `python benchmarks/hidden_gradients.py MODEL --data DIR`."]
    lines = []
    for result in results:
        name, n, first = Path(result["model"]["source"]).name, result["n"], result["first"]
        lines += [
            f"### {name}",
            "",
            f"| hidden by | alike | standard | own gradient | autoattack, first {first} "
            f"| repaired, first {first} | repaired | seconds |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *(line(row, n) for row in result["rows"]),
            "",
            f"- {summary(result['rows'])}",
            f"- {name}: {Threat(**result['threat'])}, n = {n}, {result['pixels']}, seed 0, "
            f"{result['machine']}; seconds are the processor's, for `swift` with all its checks: "
            f"{pasted(result['command'])}",
            "",
        ]
    return lines[:-1]


def summary(rows: list[dict[str, Any]]) -> str:
    """Where the ways that leave every decision as it is end, beside the bare network; and what
    resists: what is left more than a point above it."""
    bare, hidden = rows[0]["repaired"], rows[1:]
    alike = [row["repaired"] for row in hidden if row["predicts_alike"] == 1]
    above = [
        f"{row['way']} ({row['repaired']:.1%})" for row in hidden if row["repaired"] > bare + 0.01
    ]
    resists = (
        f"What resists: {', '.join(above)}." if above else "None ends more than a point above it."
    )
    return (
        f"{len(alike)} of the {len(hidden)} ways leave every decision as it is: with the repaired "
        f"gradient they end at {min(alike):.1%} to {max(alike):.1%}, the bare network at "
        f"{bare:.1%}. {resists}"
    )


def line(row: dict[str, Any], n: int) -> str:
    low, high = clopper_pearson(round(row["repaired"] * n), n)
    shares = [
        "—" if row[key] is None else f"{row[key]:.1%}" for key in ("autoattack", "repaired_first")
    ]
    return (
        f"| {row['way']} | {row['predicts_alike']:.1%} | {row['standard_accuracy']:.1%} "
        f"| {row['own']:.1%} | {shares[0]} | {shares[1]} "
        f"| **{row['repaired']:.1%}** ({low:.1%} to {high:.1%}) "
        f"| {row['repaired_seconds']:,.0f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    body = table(results_of("hidden_gradients-*.json"))
    return fill(PAGE, body, "benchmarks/hidden_gradients_page.py", parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
