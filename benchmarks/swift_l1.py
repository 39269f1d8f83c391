"""What the settings of the suite `swift` in L1 stand on, measured on validation images.

    python benchmarks/swift_l1.py MODEL --data DIR [--eps 12] [--limit 40] [--out FILE]
    python benchmarks/swift_page.py

From every image that the model gets right, runs of APGD of several lengths: on the margin to
whichever class is closest, on the cross-entropy, and on the margin and on DLR to each of the
classes that are closest on the clean image. In L1 a run's ball shrinks to ε only in its course, so
a run cannot be looked at before its end, as `swift_choices.py` does: each length is a run of its
own. A success counts on the search's copy of the model.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

import holdfast as hf
from holdfast import data as datasets
from holdfast import draws
from holdfast.attacks import APGD, Items, Oracle
from holdfast.attacks.base import run
from holdfast.runs.environment import circumstances
from holdfast.runs.files import make_folder, write_result
from holdfast.runs.identity import digest, weights_digest
from holdfast.search import fast_copy_of

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = (12, 40, 100)  # moves
TARGETS = 2  # classes, the closest on the clean image
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint or run folder, or a name from the zoo")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--eps", type=float, default=12.0)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/swift_l1-…")
    options = parser.parse_args()

    model = hf.load(options.model)
    threat = hf.Threat("l1", options.eps)
    split = datasets.load(options.data).validation
    images = datasets.to_tensor(split.images[: options.limit])
    labels = torch.from_numpy(split.labels[: options.limit].copy())
    found = fast_copy_of(model, images[:64], labels[:64], "bf16")
    copy = model if found is None else found.model
    with torch.no_grad():
        logits = torch.cat([copy(x).float() for x in images.split(BATCH)])
    right = logits.argmax(1) == labels
    x, y = images[right], labels[right]
    order = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[right]
    first = (logits[right].gather(1, y[:, None]) - logits[right].gather(1, order[:, :1])).squeeze(1)
    every = torch.arange(len(x))

    ways: dict[str, tuple[str, int | None]] = {
        "margin, closest class": ("margin", None),
        "cross-entropy": ("ce", None),
    }
    for k in range(TARGETS):
        for climbed, in_words in (("margin", "margin"), ("dlr", "DLR")):
            ways[f"{in_words}, class {k + 1} of the clean image"] = (climbed, k)
    runs: dict[str, dict[str, dict[str, object]]] = {way: {} for way in ways}
    scores = {}
    for number, (way, (loss, rank)) in enumerate(ways.items()):
        for moves in LENGTHS:
            attack = APGD(steps=moves, loss=loss, targeted=rank is not None)
            targets = torch.full_like(y, -1) if rank is None else order[:, rank]
            seeds = draws.item_seeds(options.seed, every, number, moves)
            oracle, cpu = Oracle(copy), time.process_time()
            parts = [
                run(
                    attack,
                    oracle,
                    Items(x[at], y[at], targets[at], threat.radii(x[at]), seeds[at]),
                    threat,
                )
                for at in every.split(BATCH)
            ]
            score = torch.cat([state.score for state in parts])
            scores[way, moves] = score
            runs[way][str(moves)] = {
                "broken": int((score < 0).sum()),
                "cpu_seconds": round(time.process_time() - cpu, 2),
            }
            print(way, moves, runs[way][str(moves)], flush=True)

    def together(moves: int, without: str = "") -> Tensor:
        """The least margins of runs of so many moves, but for the targeted ones on one loss."""
        kept = [way for way, (loss, rank) in ways.items() if rank is None or loss != without]
        return torch.stack([scores[way, moves] for way in kept]).amin(0)

    falls = torch.stack(list(scores.values())).amin(0) < 0
    late = falls & (together(LENGTHS[1]) >= 0)
    name = Path(options.model).name
    result = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "swift_l1",
        "model": {"name": name, "sha256": weights_digest(model)},
        "threat": threat.describe(),
        "split": "validation",
        "n": len(images),
        "right": len(x),
        "images": digest(images, labels),
        "pixels": split.pixels,
        "seed": options.seed,
        "falls": int(falls.sum()),
        "runs": runs,
        "broken_together": {
            how: {str(moves): int((together(moves, without) < 0).sum()) for moves in LENGTHS}
            for how, without in (
                ("all of these", ""),
                ("without the targeted ones on DLR", "dlr"),
                ("without the targeted ones on the margin", "margin"),
            )
        },
        # Of the clean margin, what the runs of the middle length leave of what a long run breaks.
        "late_shares": sorted(round(float(s), 2) for s in (together(LENGTHS[1]) / first)[late]),
        **circumstances("cpu"),
    }
    print(json.dumps(result, indent=2))
    out = options.out or RESULTS / f"swift_l1-{name}-{threat.eps:g}.json"
    make_folder(out.parent)
    write_result(out, result)


if __name__ == "__main__":
    main()
