"""Write the table of docs/certificates.md from the runs of `holdfast certify` in
benchmarks/results/.

    python benchmarks/certificates_page.py [--check]

With --check nothing is written, and the exit status is 1 where page and results disagree.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from published import RESULTS, ROOT, pasted, read
from table import fill

from holdfast.cli.tables import percent
from holdfast.runs.records import CertificationRecord
from holdfast.threat import Threat

PAGE = ROOT / "docs" / "certificates.md"


def certifications(folder: Path) -> list[dict[str, Any]]:
    """Every finished certification below a folder, each with what was asked of it."""
    found = []
    for file in sorted(folder.rglob("result.json")):
        result = read(file)
        if (
            result.get("schema") == CertificationRecord.SCHEMA
            and result.get("status") == "complete"
        ):
            found.append(result | {"request": read(file.parent / "request.json")})
    return found


def section(result: dict[str, Any]) -> list[str]:
    """One run: certified accuracy by radius, between abstentions and what an attack left."""
    settings, threat = result["settings"], Threat(**result["threat"])
    method = result["method"]
    if "sigma" in settings:
        method += (
            f", σ = {settings['sigma']:g}, N0 = {settings['n0']:,}, N = {settings['n']:,}, "
            f"α = {settings['alpha']:g}"
        )
    radii = result["certified"]
    unit = "" if threat.norm == "l2" else "/255"
    scale = 1 if threat.norm == "l2" else 255
    lines = [
        f"### {result['model']['name']}, {method}",
        "",
        "| "
        + " | ".join(f"certified at {at['radius'] * scale:.3g}{unit}" for at in radii)
        + f" | abstained | after an attack at {threat} | mean radius |",
        "| " + " | ".join(["---"] * (len(radii) + 3)) + " |",
        "| "
        + " | ".join(
            f"{at['certified_accuracy']:.1%} ({at['interval'][0]:.1%} to {at['interval'][1]:.1%})"
            for at in radii
        )
        + f" | {result['abstained']:.1%} | {percent(result, 'attacked_accuracy')} "
        + f"| {result['mean_radius'] * scale:.3g}{unit} |",
        "",
        f"- n = {result['n']}, {result['data']['pixels']} ({result['data']['split']}), seed "
        f"{result['seed']}; attack: {result['attack']}; {result['seconds'] / 60:.0f} minutes on "
        f"{result['request']['machine']}: {pasted(result['request']['command'])}",
    ]
    fired = [flag["name"] for flag in result["flags"] if flag["fired"]]
    lines.append(
        f"- health checks fired: {', '.join(fired)}."
        if fired
        else "- No certificate was contradicted by the attack, and no other health check fired."
    )
    return [*lines, ""]


def tables(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        line
        for r in sorted(results, key=lambda r: r["method"], reverse=True)
        for line in section(r)
    ]
    return lines or [
        "No results yet: `holdfast certify MODEL --data datasets --sigma 0.25 --out RUN`."
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    return fill(
        PAGE,
        tables(certifications(RESULTS)),
        "benchmarks/certificates_page.py",
        parser.parse_args().check,
    )


if __name__ == "__main__":
    sys.exit(main())
