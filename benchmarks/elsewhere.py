"""Copy published figures, which ours stand beside, from a checkout of RobustBench.

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
IDS = (
    "Addepalli2022Efficient_RN18",
    "Amini2024MeanSparse_S-WRN-94-16",
    "Andriushchenko2020Understanding",
    "Bartoldson2024Adversarial_WRN-94-16",
    "Gowal2021Improving_R18_ddpm_100m",
    "Rade2021Helper_R18_ddpm",
    "Rebuffi2021Fixing_R18_ddpm",
    "Rice2020Overfitting",
    "Sehwag2021Proxy_R18",
    "Standard",
    "Wong2020Fast",
    "Zhang2019You",
)
KEPT = (
    "link", "name", "venue", "architecture", "dataset", "additional_data", "eps", "clean_acc",
    "autoattack_acc", "unreliable", "footnote",
)  # fmt: skip


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
