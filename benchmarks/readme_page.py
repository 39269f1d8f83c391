"""Write what README's first screen shows from the result files: badges, output, and a table.

    python benchmarks/readme_page.py [--check]

The output is what `holdfast evaluate` prints of a committed run. The table sets two models of the
zoo beside published ones, whose figures are RobustBench's (`benchmarks/elsewhere.json`, copied from
its entries by `python benchmarks/elsewhere.py FOLDER`). With --check nothing is written, and the
exit status is 1 where README and results disagree.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import sys
import tomllib
from types import SimpleNamespace
from typing import Any

from elsewhere import COPIED
from published import RESULTS, ROOT, read, verdicts
from table import fill

import holdfast as hf
from holdfast.cli.evaluate import show
from holdfast.cli.tables import percent
from holdfast.runs.files import read_json, write_atomically

README = ROOT / "README.md"
BADGES = ROOT / "docs" / "figures"
SHOWN = "cifar10-linf-2h-swift"  # the run whose output and picture stand there
# The two that made training fast, the best ResNet-18 on CIFAR-10 alone, and the best published.
THEIRS = (
    "Wong2020Fast",
    "Andriushchenko2020Understanding",
    "Addepalli2022Efficient_RN18",
    "Bartoldson2024Adversarial_WRN-94-16",
)
OURS = (SHOWN, "cifar10-linf-1h-swift")
LINES = 6
HEIGHT, LETTER, PADDING = 20, 6.6, 8  # of a badge, in pixels


def output() -> list[str]:
    """The first lines that the run's command printed, under the command."""
    words = read(RESULTS / SHOWN / "request.json")["command"]
    options: Any = SimpleNamespace(out="", require=(), junit=None)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        show(hf.read(RESULTS / SHOWN), options)
    return ["```console", f"$ {shlex.join(words)}", *printed.getvalue().splitlines()[:LINES], "```"]


def table() -> list[str]:
    """Our models beside published ones, the most robust first."""
    copied = {entry["id"]: entry for entry in read_json(COPIED)["entries"]}
    rows = [_published(copied[name]) for name in THEIRS]
    found = {result["run"].rsplit("/", 1)[-1]: result for result in verdicts()}
    rows += [_ours(found[run]) for run in OURS]
    rows.sort(key=lambda row: -row[0])
    return [
        "| model | network | standard | robust | measured by | training |",
        "| --- | --- | --- | --- | --- | --- |",
        *("| " + " | ".join(cells) + " |" for _, *cells in rows),
    ]


def _published(entry: dict[str, Any]) -> tuple[Any, ...]:
    robust = float(entry["autoattack_acc"])
    return (
        robust,
        f"[{entry['id']}]({entry['link']})",
        entry["architecture"],
        f"{float(entry['clean_acc']):.1f}%",
        f"{robust:.1f}%",
        "RobustBench, 10,000 images",
        entry["footnote"] if "additional" in entry.get("footnote", "") else "CIFAR-10 alone",
    )


def _ours(result: dict[str, Any]) -> tuple[Any, ...]:
    card = read_json(ROOT / "zoo" / result["model"]["name"] / "card.json")
    return (
        100 * result["robust_accuracy"],
        f"**{result['model']['name']}** (ours)",
        f"PreAct ResNet-{card['arguments']['depth']}, width {card['arguments']['width']}",
        percent(result, "standard_accuracy"),
        percent(result, "robust_accuracy"),
        f"`{result['suite']}`, {result['n']:,} {result['data']['pixels']}",
        f"CIFAR-10 alone, `--budget {card['recipe']['budget']}` on two CPU cores",
    )


def badges() -> dict[str, str]:
    """Each badge's file and its SVG."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    best = max(
        (r for r in verdicts() if r["run"].rsplit("/", 1)[-1] in OURS),
        key=lambda result: result["robust_accuracy"],
    )
    told = {
        "python": ("python", project["requires-python"].replace(">=", "≥ "), "#3a5f8a"),
        "licence": ("licence", project["license"], "#555e6b"),
        "robust": (
            "CIFAR-10, L∞ 8/255",
            f"{best['standard_accuracy']:.1%} standard, {best['robust_accuracy']:.1%} robust",
            "#0b7a6e",
        ),
    }
    return {f"badge-{name}.svg": badge(*words) for name, words in told.items()}


def badge(left: str, right: str, colour: str) -> str:
    """Two words side by side, the second one on a colour."""
    widths = [round(len(word) * LETTER + 2 * PADDING) for word in (left, right)]
    centres = [widths[0] / 2, widths[0] + widths[1] / 2]
    words = "".join(
        f'<text x="{x:g}" y="14" text-anchor="middle">{word}</text>'
        for x, word in zip(centres, (left, right), strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{sum(widths)}" height="{HEIGHT}" '
        f'role="img" aria-label="{left}: {right}"><clipPath id="r"><rect width="{sum(widths)}" '
        f'height="{HEIGHT}" rx="3"/></clipPath><g clip-path="url(#r)">'
        f'<rect width="{widths[0]}" height="{HEIGHT}" fill="#2b313a"/>'
        f'<rect x="{widths[0]}" width="{widths[1]}" height="{HEIGHT}" fill="{colour}"/></g>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{words}</g>'
        "</svg>\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    other = 0
    for name, svg in badges().items():
        file = BADGES / name
        if not check:
            write_atomically(file, svg)
        elif not file.exists() or file.read_text() != svg:
            print(f"{name} and benchmarks/results/ disagree: run python benchmarks/readme_page.py")
            other = 1
    maker = "benchmarks/readme_page.py"
    return max(
        other,
        fill(README, output(), maker, check, mark="output"),
        fill(README, table(), maker, check),
    )


if __name__ == "__main__":
    sys.exit(main())
