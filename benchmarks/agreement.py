"""Robust accuracy of Holdfast's suite `apgd` beside torchattacks' APGD and APGDT, one run.

    make benchmarks
    python benchmarks/agreement.py MODEL --data DIR [--limit 256] [--out FILE]

torchattacks (an independent implementation, from PyPI) runs APGD on the cross-entropy for 100
steps, then APGDT over all wrong classes for 100 steps each on what still stands. Both attack the
same module on the same images; every claim of either side is checked on the model in float32.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from peers import peers_standing

import holdfast as hf
from holdfast import data as datasets
from holdfast.evaluation.cards import threat_of
from holdfast.runs.environment import circumstances
from holdfast.runs.files import write_result
from holdfast.runs.identity import weights_digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--eps")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    model = hf.load(options.model)
    threat = threat_of("linf", options.eps, getattr(model, "card", {}))
    test = datasets.load(options.data).test
    images = datasets.to_tensor(test.images[: options.limit])
    labels = torch.from_numpy(test.labels[: options.limit].copy())

    began = time.perf_counter()
    ours = hf.evaluate(model, images, labels, threat, "apgd", progress=True)
    our_seconds = time.perf_counter() - began
    with torch.no_grad():
        again = model(ours.adversarial).argmax(1) != labels
    began = time.perf_counter()
    theirs, _ = peers_standing(
        model, images, labels, threat, ["apgd", "apgdt"], batch_size=options.batch_size
    )
    their_seconds = time.perf_counter() - began
    result = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "agreement",
        "model": {"source": options.model, "sha256": weights_digest(model)},
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "n": len(images),
        "pixels": test.pixels,
        "standard_accuracy": ours.standard_accuracy,
        "holdfast": {"robust_accuracy": ours.robust_accuracy, "seconds": our_seconds},
        "torchattacks": {
            "robust_accuracy": float(theirs.float().mean()),
            "seconds": their_seconds,
            "batch_size": options.batch_size,
        },
        "only_holdfast_broke": int((ours.broken & theirs).sum()),
        "only_torchattacks_broke": int((~ours.broken & ~theirs).sum()),
        "broken_agrees_with_rerunning_the_model": bool(torch.equal(ours.broken, again)),
        "all_in_ball_and_box": bool(threat.contains(ours.adversarial, images).all()),
        **circumstances("cpu"),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        write_result(options.out, result)


if __name__ == "__main__":
    main()
