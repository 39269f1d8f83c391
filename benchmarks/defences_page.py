"""Write the tables of docs/defences.md from benchmarks/results/{defences,backward_passes}-*.json.

    python benchmarks/defences_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from published import ROOT, pasted
from published import results as results_of
from scipy.stats import binomtest
from table import fill

from holdfast.cli.tables import percent
from holdfast.threat import Threat

PAGE = ROOT / "docs" / "defences.md"
NONE = "none"


def tables(results: list[dict[str, Any]]) -> list[str]:
    """A section for each model, the undefended ones first."""
    lines = []
    for result in sorted(results, key=lambda r: (bool(r["model"]["trained_for"]), r["n"])):
        lines += [*section(result), ""]
    return lines or ["No results yet: `python benchmarks/defences.py MODEL --data datasets`."]


def section(result: dict[str, Any]) -> list[str]:
    trained = result["model"]["trained_for"]
    kind = f"adversarially trained, {Threat(**trained)}" if trained else "undefended"
    threat, rows = Threat(**result["threat"]), result["rows"]
    lines = [
        f"### {result['model']['name']}, {kind}",
        "",
        "| defence | standard accuracy | attacker unaware | adaptive robust accuracy "
        "| beside no defence | ms an image |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    bare = next((row for row in rows if row["defence"] == NONE), None)
    for row in rows:
        unaware = row["unaware"]
        lines.append(
            f"| {', then '.join(f'`{name}`' for name in row['options']) or NONE} "
            f"| {percent(row, 'standard_accuracy')} "
            f"| {'—' if unaware is None else percent(unaware, 'robust_accuracy')} "
            f"| {percent(row, 'robust_accuracy')} | {beside(row, bare)} "
            f"| {row['milliseconds_per_image']:.2f} "
            f"({row['milliseconds_per_image'] / row['milliseconds_per_image_undefended']:.1f} ×) |"
        )
    lines += ["", *draw_lines(rows), *flag_lines(rows)]
    machines = sorted({row["machine"] for row in rows})
    hours = sum(row["seconds"] for row in rows) / 3600
    drawn = [(row["defence"], row["samples"]) for row in rows if row["random"]]
    usual = max((samples for _, samples in drawn), default=0)
    fewer = [f"`{name}`: {samples}" for name, samples in drawn if samples != usual]
    draws = f", {usual} draws an iteration of random models" if drawn else ""
    draws += f" ({', '.join(fewer)})" if fewer else ""
    lines.append(
        f"- n = {result['n']}, {result['pixels']}; {threat}; suite `{result['suite']}`{draws}, "
        f"seed {result['seed']}; "
        f"{hours:.1f} hours on {' and '.join(machines)}: {pasted(result['command'])}"
    )
    return lines


def backward_tables(results: list[dict[str, Any]]) -> list[str]:
    """What one attack finds through each backward pass, a section a defended model."""
    lines = []
    for result in results:
        names = ", then ".join(f"`{name}`" for name in result["defences"])
        lines += [
            f"### {names} before {result['model']['name']}: which knowledge breaks it",
            "",
            "| the attacker's gradient | robust accuracy | average over draws | worst of 10 |",
            "| --- | --- | --- | --- |",
        ]
        rows = result["rows"]
        unaware = rows[0]["unaware"]
        if unaware is not None:
            lines.append(
                f"| of the network alone | {percent(unaware, 'robust_accuracy')} | — | — |"
            )
        for row in sorted(rows, key=lambda r: -r["robust_accuracy"]):
            draws = {f["kind"]: percent(f, "robust_accuracy") for f in row["draws"]}
            lines.append(
                f"| {row['backward']} | {percent(row, 'robust_accuracy')} "
                f"| {draws.get('average', '—')} | {draws.get('worst', '—')} |"
            )
        attack, threat = result["attack"], Threat(**result["threat"])
        lines += [
            "",
            f"- Standard accuracy {percent(rows[0], 'standard_accuracy')}, without the defence "
            f"{result['undefended_standard_accuracy']:.1%}. {threat}; PGD on the margin, "
            f"{attack['steps']} steps, {attack['samples']} draws an iteration, "
            f"seed {result['seed']}; "
            f"n = {result['n']}, {result['pixels']} ({result['split']}); "
            f"{sum(row['seconds'] for row in rows) / 60:.0f} minutes on {result['machine']}: "
            f"{pasted(result['command'])}",
            "",
        ]
    return lines


def beside(row: dict[str, Any], bare: dict[str, Any] | None) -> str:
    """Whether the defence moved the robust accuracy by more than chance would.

    Image by image where both rows say which ones stand: those that stand with or without it alone,
    by the exact two-sided sign test (McNemar, 1947) at 5 %. Otherwise by the two intervals.
    """
    if bare is None or row is bare:
        return "—"
    if "standing" in row and "standing" in bare:
        with_, without = set(row["standing"]), set(bare["standing"])
        gained, lost = len(with_ - without), len(without - with_)
        moved = f"+{gained} −{lost}"
        if gained + lost == 0 or binomtest(gained, gained + lost).pvalue > 0.05:
            return f"no difference ({moved})"
        return f"helps ({moved})" if gained > lost else f"**hurts** ({moved})"

    def below(one: dict[str, Any], other: dict[str, Any]) -> bool:
        """Neither figure lies in the other's interval: 0 of 512 images are not fewer than 1."""
        (low, _), (_, high) = other["robust_accuracy_interval"], one["robust_accuracy_interval"]
        return one["robust_accuracy"] < low and other["robust_accuracy"] > high

    if below(row, bare):
        return "**hurts**"
    return "helps" if below(bare, row) else "no difference"


def draw_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The three figures of every random defence; the table shows the majority's."""
    return [
        f"- `{row['defence']}` draws random numbers; robust accuracy over fresh draws: "
        + ", ".join(
            f"{figure['kind']} of {figure['draws']} {percent(figure, 'robust_accuracy')}"
            for figure in row["draws"]
        )
        + "."
        for row in rows
        if row["draws"]
    ]


def flag_lines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"- `{row['defence']}`: health checks fired: {', '.join(row['flags'])}."
        for row in rows
        if row["flags"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    every, passes = (results_of(f"{kind}-*.json") for kind in ("defences", "backward_passes"))
    body = [*tables(every), *backward_tables(passes)]
    return fill(PAGE, body, "benchmarks/defences_page.py", parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
