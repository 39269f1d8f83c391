"""What an attacker finds through each backward pass that a defence offers.

    python benchmarks/backward_passes.py MODEL --defence SPEC --data DIR [--limit 64] [--out FILE]
    python benchmarks/defences_page.py

The same attack from the same starts, PGD on the margin (for random defences with an expectation
over draws), on its own each time: through the defence's exact gradient, straight through as if it
did nothing, by its surrogate; beside one that knows only the network behind it. Where
`benchmarks/defences.py` asks what stands after everything, this asks which knowledge broke it.
Verdicts come from fresh draws, by majority of 21; the average over draws and the worst of 10 stand
beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import torch

import holdfast as hf
from holdfast import data as datasets
from holdfast.attacks import PGD, Stage, Suite
from holdfast.attacks.adaptive import SAMPLES
from holdfast.defences import chain, declared, steps
from holdfast.evaluation.cards import threat_of
from holdfast.runs.environment import circumstances
from holdfast.runs.files import make_folder, write_result
from holdfast.runs.identity import digest, weights_digest

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint or run folder, or a name from the zoo")
    parser.add_argument("--defence", action="append", required=True, metavar="SPEC")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help="draws an iteration, if random"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pixels", help="what the pixels are, in words")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/backward_passes-…")
    options = parser.parse_args()

    bare = hf.load(options.model)
    defended = chain(bare, options.defence)
    offer = declared(defended)
    threat = threat_of("linf", options.eps, getattr(bare, "card", {}))
    split = datasets.load(options.data).split(options.split)
    images = datasets.to_tensor(split.images[: options.limit])
    labels = torch.from_numpy(split.labels[: options.limit].copy())
    with torch.no_grad():
        answers = torch.cat([bare(x).argmax(1) for x in images.split(128)])
    # Steps that cross the ball: 2.5 / steps is what PGD takes by itself.
    stage = Stage(
        PGD(steps=options.steps, loss="margin"), samples=options.samples if offer.random else 1
    )
    rows: list[dict[str, Any]] = []
    for backward in offer.backwards:
        began = time.perf_counter()
        result = hf.evaluate(
            defended.with_backward(backward),
            images,
            labels,
            threat,
            Suite("pgd", (stage,)),
            device=options.device,
            seed=options.seed,
            progress=True,
        )
        rows.append(
            {
                "backward": backward,
                "standard_accuracy": result.standard_accuracy,
                "standard_accuracy_interval": result.standard_accuracy_interval,
                "robust_accuracy": result.robust_accuracy,
                "robust_accuracy_interval": result.robust_accuracy_interval,
                "draws": [figure.to_dict() for figure in result.draws],
                "unaware": None if result.unaware is None else result.unaware.to_dict(),
                "flags": [flag.name for flag in result.flags if flag.fired],
                "seconds": time.perf_counter() - began,
            }
        )
        print(json.dumps(rows[-1], indent=2), flush=True)
    name = Path(options.model).name
    said = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "backward_passes",
        "model": {"name": name, "sha256": weights_digest(bare)},
        "defences": [step.spec for step in steps(defended)],
        "threat": threat.describe(),
        "attack": stage.describe(),
        "seed": options.seed,
        "n": len(images),
        "images": digest(images, labels),
        "split": options.split,
        "pixels": options.pixels or split.pixels,
        "undefended_standard_accuracy": float((answers == labels).float().mean()),
        "rows": rows,
        **circumstances(options.device),
    }
    first = re.sub(r"\W.*", "", options.defence[0])
    out = options.out or RESULTS / f"backward_passes-{first}-{name}.json"
    make_folder(out.parent)
    write_result(out, said)


if __name__ == "__main__":
    main()
