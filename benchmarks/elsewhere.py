"""Copy published figures that ours stand beside from a checkout of RobustBench.

    python benchmarks/elsewhere.py FOLDER

Writes benchmarks/elsewhere.json: of each model named here, what RobustBench's own entry says
(`model_info/cifar10/Linf/ID.json`), and the commit that it was read from.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from holdfast.runs.files import json_text, read_json, write_atomically

COPIED = Path(__file__).resolve().parent / "elsewhere.json"
# The two that made training fast, the best ResNet-18 on CIFAR-10 alone, and the best of all.
IDS = (
    "Wong2020Fast",
    "Andriushchenko2020Understanding",
    "Addepalli2022Efficient_RN18",
    "Bartoldson2024Adversarial_WRN-94-16",
)
KEPT = ("link", "name", "venue", "architecture", "eps", "clean_acc", "autoattack_acc", "footnote")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkout of RobustBench")
    folder = parser.parse_args().folder
    commit = subprocess.run(
        ["git", "-C", folder, "log", "-1", "--format=%H %cs"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    entries = []
    for name in IDS:
        entry = read_json(folder / "model_info" / "cifar10" / "Linf" / f"{name}.json")
        entries.append({"id": name, **{key: entry[key] for key in KEPT if key in entry}})
    copied = {
        "source": "https://github.com/RobustBench/robustbench",
        "commit": commit[0],
        "date": commit[1],
        "entries": entries,
    }
    write_atomically(COPIED, json_text(copied))
    return 0


if __name__ == "__main__":
    sys.exit(main())
