"""Write the list of the zoo's models that travels with the package, holdfast/models/zoo.json.

    python benchmarks/zoo_index.py [--check]

With --check nothing is written, and the exit status is 1 where the list and the zoo disagree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from published import RESULTS, ROOT, read, verdicts

from holdfast.cli.tables import model_name
from holdfast.models.checkpoint import CARD, WEIGHTS, read_card
from holdfast.models.zoo import INDEX
from holdfast.runs.files import write_atomically
from holdfast.runs.records import CertificationRecord

KEPT = (  # of each result
    "suite",
    "threat",
    "n",
    "standard_accuracy",
    "standard_accuracy_interval",
    "robust_accuracy",
    "robust_accuracy_interval",
)
CERTIFIED = (  # of each certification
    "method",
    "threat",
    "n",
    "standard_accuracy",
    "standard_accuracy_interval",
    "certified",
)


def listed() -> dict[str, Any]:
    """Every model of the zoo, with what was published of it."""
    results = verdicts()
    certificates = [read(file) for file in sorted(RESULTS.glob("*/result.json"))]
    certificates = [
        found for found in certificates if found.get("schema") == CertificationRecord.SCHEMA
    ]
    models = {}
    for card in sorted((ROOT / "zoo").glob(f"*/{CARD}")):
        folder = card.parent
        held = read_card(folder, classifier=False)
        models[folder.name] = {
            "architecture": held.architecture,
            "threat": held.threat,
            "files": {name: _checksum(folder / name) for name in (CARD, WEIGHTS)},
            "size": sum((folder / name).stat().st_size for name in (CARD, WEIGHTS)),
            "results": [
                {**{key: result[key] for key in KEPT}, "pixels": result["data"]["pixels"]}
                for result in results
                if model_name(result) == folder.name
            ],
            "certificates": [
                {key: found[key] for key in CERTIFIED}
                for found in certificates
                if model_name(found) == folder.name
            ],
        }
    return {"schema": "holdfast/zoo/1", "models": models}


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = json.dumps(listed(), indent=1, sort_keys=True) + "\n"
    if INDEX.exists() and INDEX.read_text() == text:
        return
    if options.check:
        sys.exit(f"{INDEX} does not say what the zoo holds: run python benchmarks/zoo_index.py")
    write_atomically(INDEX, text)


if __name__ == "__main__":
    main()
