"""Write the tables of docs/kinds.md from benchmarks/results/kinds.json.

    python benchmarks/kinds_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from typing import Any

from published import ROOT, pasted
from published import results as results_of
from table import fill

PAGE = ROOT / "docs" / "kinds.md"
LONGEST = 300  # characters of what is said


def tables(results: list[dict[str, Any]]) -> list[str]:
    """A section for each group of kinds; in it a row a kind."""
    if not results:
        return ["No results yet: `python benchmarks/kinds.py`."]
    (result,) = results
    versions, command = result["versions"], result["command"]
    if "--only" in command:  # what some kinds were tried with again; all are by the command without
        at = command.index("--only")
        command = [*command[:at], *command[at + 2 :]]
    commits = sorted({kind["git"][:12] for kind in result["kinds"]})
    lines = [
        f"{len(result['kinds'])} kinds, tried by {pasted(command)} ({result['machine']}; Python "
        f"{versions['python']}, torch {versions['torch']}; commit {', '.join(commits)}).",
        "",
    ]
    place = {kind["section"]: number for number, kind in enumerate(result["kinds"])}
    together = sorted(result["kinds"], key=lambda kind: place[kind["section"]])
    for section, kinds in groupby(together, key=lambda kind: kind["section"]):
        lines += [
            f"## {section}",
            "",
            "| kind | asked | | what is said |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {kind['name']} | {_code(kind['asked'])} | {outcome(kind)} | {_said(kind)} |"
            for kind in kinds
        ] + [""]
    return lines[:-1]


def outcome(kind: dict[str, Any]) -> str:
    """In a word or two."""
    if kind["status"] is None:
        return "not tried"
    if kind["status"] == 0:
        return {None: "works", True: "works, = folder", False: "**other verdicts**"}[kind["same"]]
    return "refused" if kind["status"] == 2 else f"**fails** ({kind['status']})"


def _said(kind: dict[str, Any]) -> str:
    return "<br>".join(_cut(_cell(line)) for line in kind["said"])


def _code(words: str) -> str:
    return f"`{_cell(words)}`" if words else ""


def _cell(text: str) -> str:
    """Text in a table, where Markdown reads no signs of it as its own."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("`", "'")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    body = tables(results_of("kinds.json"))
    return fill(PAGE, body, "benchmarks/kinds_page.py", parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
