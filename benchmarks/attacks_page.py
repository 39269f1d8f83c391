"""Write the table of docs/attacks.md from benchmarks/results/attacks.json.

    python benchmarks/attacks_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from published import RESULTS, ROOT, pasted, read
from table import fill

from holdfast.cli.tables import percent
from holdfast.threat import Threat

PAGE = ROOT / "docs" / "attacks.md"
OURS = "holdfast"


def table(result: dict[str, Any]) -> list[str]:
    """A section for each threat model; in it a row for each implementation, ours first."""
    lines = []
    rows = result["rows"]
    for threat in dict.fromkeys(str(Threat(**row["threat"])) for row in rows):
        lines += [
            f"### {threat}",
            "",
            "| attack | by | robust accuracy | forwards an image | backwards an image | seconds |",
            "| --- | --- | --- | --- | --- | --- |",
            *(line(row) for row in rows if str(Threat(**row["threat"])) == threat),
            "",
        ]
    effort = "" if result["effort"] == 1 else f" {result['effort']:g} × the usual budgets;"
    machines = " and ".join(sorted({row["machine"] for row in rows}))
    lines.append(
        f"- {result['model']['name']}, n = {result['n']}, {result['pixels']}, "
        f"seed {result['seed']};{effort} {machines}: {pasted(result['command'])}"
    )
    return lines


def line(row: dict[str, Any]) -> str:
    if row["implementation"] == OURS:
        name, by = f"**{row['attack']}**", "Holdfast"
    else:
        library, _, rest = row["implementation"].partition(":")
        version = row.get("settings", {}).get("library", library)
        name, by = f"`{rest}`", version
    if "failed" in row:
        return f"| {name} | {by} | failed: {row['failed'].replace('|', '¦')} | — | — | — |"
    return (
        f"| {name} | {by} | {percent(row, 'robust_accuracy')} | {row['forwards_per_image']:,.0f} "
        f"| {row['backwards_per_image']:,.0f} | {row['seconds']:,.1f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    file = RESULTS / "attacks.json"
    body = (
        table(read(file))
        if file.exists()
        else ["No results yet: `python benchmarks/attacks.py MODEL --data datasets`."]
    )
    return fill(PAGE, body, "benchmarks/attacks_page.py", parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
