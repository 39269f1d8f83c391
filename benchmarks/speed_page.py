"""Write the tables of docs/speed.md from benchmarks/results/training_profile*.json.

    python benchmarks/speed_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from published import ROOT, pasted
from published import results as results_of
from table import fill

PAGE = ROOT / "docs" / "speed.md"


def tables(results: list[dict[str, Any]]) -> list[str]:
    """A section a machine and network."""
    lines = []
    for result in results:
        lines += [*section(result), ""]
    return lines or [
        "Not measured yet: `python benchmarks/training_profile.py --data datasets "
        "--out benchmarks/results/training_profile-NAME.json`."
    ]


def section(result: dict[str, Any]) -> list[str]:
    model = ", ".join(f"{key} {value}" for key, value in result["model"].items())
    lines = [
        f"### {model}",
        "",
        f"{result['machine']}; batches of {result['batch_size']}, {result['precision']}, "
        f"{result['optimiser']}. Large bfloat16 matrices multiply at "
        f"{result['matmul_tflops']:.2f} TFLOP/s here.",
        "",
        "| step | images/s | ms | TFLOP/s | of the matrix rate |",
        "| --- | --- | --- | --- | --- |",
    ]
    for step in result["steps"]:
        lines.append(
            f"| {step['objective']} | {step['images_per_second']:.0f} | {step['step_ms']:.0f} "
            f"| {step['tflops']:.2f} | {step['share_of_matmul_rate']:.0%} |"
        )
    for title, key in (("phase", "phases_ms"), ("kind of work", "kinds_ms")):
        names = sorted(
            {name for step in result["steps"] for name in step[key]},
            key=lambda name: -result["steps"][0][key].get(name, 0.0),
        )
        objectives = " | ".join(f"{step['objective']}, ms" for step in result["steps"])
        lines += ["", f"| {title} | {objectives} |", "| --- " * (1 + len(result["steps"])) + "|"]
        for name in names:
            cells = " | ".join(f"{step[key].get(name, 0.0):.1f}" for step in result["steps"])
            lines.append(f"| {name} | {cells} |")
    return [*lines, "", f"Made by {pasted(result['command'])}."]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    results = results_of("training_profile*.json")
    return fill(PAGE, tables(results), "benchmarks/speed_page.py", parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
