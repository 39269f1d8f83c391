"""What the numbers in the suite `swift` stand on, measured on validation images.

    python benchmarks/swift_choices.py MODEL --data DIR [--limit 300] [--out FILE]
    python benchmarks/swift_page.py

From every image that the model gets right, runs of 20 steps of APGD each way: on the margin to
whichever class is closest, on the cross-entropy, and on the margin to each wrong class. Where all
of these leave it close to the boundary, 100 steps of targeted APGD-DLR on every class besides. So
it is known which images fall at all, how far each run had come after a few iterations, and what
later broke an image that the first runs had left far from the boundary.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import holdfast as hf
from holdfast import data as datasets
from holdfast import draws
from holdfast.attacks import APGD, Items, Oracle
from holdfast.attacks.base import Model
from holdfast.evaluation.cards import threat_of
from holdfast.runs.environment import circumstances
from holdfast.runs.files import make_folder, write_result
from holdfast.runs.identity import digest, weights_digest
from holdfast.search import fast_copy_of

RESULTS = Path(__file__).resolve().parent / "results"
STEPS, LONG_STEPS = 20, 100
COUNTS = (2, 3, 4, 5, 8, 21)  # of iterations after which a run is measured
NEAR = 0.35  # share of the first margin below which the longest runs begin
BATCH = 64


@dataclass(frozen=True)
class Subject:
    """A model's float32 fast copy, and the images that it gets right."""

    fast_copy: Model
    images: Tensor
    labels: Tensor
    threat: hf.Threat

    def margins(self, attack: APGD, rows: Tensor, targets: Tensor | None, seed: int) -> Tensor:
        """The smallest margin so far after each iteration, (len(rows), steps + 1); a run ends
        where it is below 0."""
        found = torch.full((len(rows), attack.iterations), torch.nan)
        oracle = Oracle(self.fast_copy)
        for part in torch.arange(len(rows)).split(BATCH):
            image = rows[part]
            none = torch.full_like(self.labels[image], -1)
            items = Items(
                self.images[image],
                self.labels[image],
                none if targets is None else targets[part],
                self.threat.radii(self.images[image]),
                draws.item_seeds(seed, image),
            )
            state = attack.start(items, self.threat)
            for k in range(attack.iterations):
                state = attack.step(oracle, state, self.threat)
                found[part, k] = state.score
                going = state.score >= 0
                part, state = part[going], state.select(going)
                if not len(part):
                    break
        for k in range(1, attack.iterations):  # what ended keeps its last margin
            ended = found[:, k].isnan()
            found[:, k] = torch.where(ended, found[:, k - 1], found[:, k])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint or run folder, or a name from the zoo")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--eps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/swift_choices-…")
    options = parser.parse_args()

    model = hf.load(options.model)
    threat = threat_of("linf", options.eps, getattr(model, "card", {}))
    split = datasets.load(options.data).validation
    images = datasets.to_tensor(split.images[: options.limit])
    labels = torch.from_numpy(split.labels[: options.limit].copy())
    found = fast_copy_of(model, images[:64], labels[:64], "float32")
    fast_copy = model if found is None else found.model
    with torch.no_grad():
        logits = torch.cat([fast_copy(x) for x in images.split(BATCH)])
    right = logits.argmax(1) == labels
    order = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)[right]
    subject = Subject(fast_copy, images[right], labels[right], threat)
    n, every = int(right.sum()), torch.arange(int(right.sum()))

    runs = {
        "margin, closest class": subject.margins(
            APGD(steps=STEPS, loss="margin"), every, None, options.seed
        ),
        "cross-entropy": subject.margins(APGD(steps=STEPS, loss="ce"), every, None, 1),
    }
    for rank in range(order.shape[1] - 1):
        runs[f"margin, class {rank + 1} of the clean image"] = subject.margins(
            APGD(steps=STEPS, loss="margin", targeted=True), every, order[:, rank], 2 + rank
        )
    first = runs["margin, closest class"][:, 0].clamp_min(1e-6)
    least = torch.stack([margins[:, -1] for margins in runs.values()]).amin(0)
    near = ((least >= 0) & (least < NEAR * first)).nonzero().squeeze(1)
    longest = torch.full((n,), torch.inf)
    for rank in range(order.shape[1] - 1):
        end = subject.margins(
            APGD(steps=LONG_STEPS, loss="dlr", targeted=True), near, order[near, rank], 50 + rank
        )[:, -1]
        longest[near] = longest[near].minimum(end)

    short = torch.stack([margins[:, COUNTS[2] - 1] for margins in runs.values()]).amin(0)
    falls = (least < 0) | (longest < 0)
    # Shares of the first margin that three iterations of each of the first two runs leave.
    few = (runs[name][:, COUNTS[1] - 1] for name in ("margin, closest class", "cross-entropy"))
    two = torch.stack(list(few)).amin(0) / first
    late = falls & (two >= 0)
    standing = ~falls
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    name = Path(options.model).name
    said = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "swift_choices",
        "model": {"name": name, "sha256": weights_digest(model)},
        "threat": threat.describe(),
        "split": "validation",
        "n": len(images),
        "right": n,
        "images": digest(images, labels),
        "pixels": split.pixels,
        "seed": options.seed,
        "falls": int(falls.sum()),
        "falls_to_four_looks": int((short < 0).sum()),  # of any of the runs
        "falls_to_whole_runs": int((least < 0).sum()),
        "falls_to_the_longest_alone": int(((longest < 0) & (least >= 0)).sum()),
        "near": len(near),
        # For each run: how many it alone breaks within so many iterations.
        "broken_within": {
            name: {str(n): int((margins[:, n - 1] < 0).sum()) for n in COUNTS}
            for name, margins in runs.items()
        },
        # What three iterations of each of the first two runs leave: of what falls later, of the
        # rest.
        "late_shares": sorted((round(float(s), 3) for s in two[late]), reverse=True),
        "standing_share_quantiles": {
            f"{float(q):g}": round(float(v), 3)
            for q, v in zip(quantiles, torch.quantile(two[standing], quantiles), strict=True)
        }
        if bool(standing.any())
        else {},
        **circumstances("cpu"),
    }
    print(json.dumps(said, indent=2))
    out = options.out or RESULTS / f"swift_choices-{name}.json"
    make_folder(out.parent)
    write_result(out, said)


if __name__ == "__main__":
    main()
