"""How much standard accuracy a mixture can gain that trusts its robust model where it is sure.

    python benchmarks/mixture_bound.py ROBUST … --accurate NAME --data DIR [--limit 1000]
        [--allowed 0.015] [--wanted 0.06] [--out benchmarks/results/mixture_bound.json]

A mixture answers as its robust model where that is sure enough, and elsewhere as its accurate one.
An attacker has the accurate model in hand. So an attacked image is lost as soon as the robust model
can be made less sure of it than the threshold. A clean one is won if the robust model is wrong and
less sure than the threshold, and the accurate model right. It is taken for granted that the
accurate model, which nothing defends, can be misled with certainty wherever that helps. Both
are counted on validation images for every threshold: so the best of all is known without building
any.

How sure a model is, is by how much its largest value exceeds the next, in each of `SCORES`; other
measures are not bounded by these. A weighted mean of the probabilities themselves loses by the same
threshold and wins less: it has to lift the right class above the largest, not the next. Mixtures of
sharpened logits (Bai et al., "MixedNUTS", TMLR 2024) are counted one by one, with every setting
that `holdfast mix` searches. The attack, APGD on the margin, finds points at which the robust
model is unsure, not the least sure ones. So more is lost than is counted here, and the gains are
upper bounds; an accurate model that is always right bounds what a better one could do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

import holdfast as hf
from holdfast import data as datasets
from holdfast.attacks import APGD
from holdfast.evaluation.cards import threat_of, unseen_validation
from holdfast.mixing.parameters import CERTAIN, ROBUST_ALONE, WEIGHTS, Points, grid
from holdfast.runs.environment import circumstances
from holdfast.runs.files import write_result

BATCH = 250
ROUNDING = 1e-9
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,
    "standardised logits": lambda logits: F.layer_norm(logits, logits.shape[-1:]),
    "probabilities": lambda logits: logits.softmax(-1),
}


def answers(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, K), float32."""
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(BATCH)])


def sureness(values: Float[Tensor, "n k"]) -> Float[np.ndarray, " n"]:
    """By how much the largest of each row exceeds the next one."""
    first, second = values.topk(2, dim=1).values.T
    return (first - second).double().numpy()


def best_gate(
    clean: Float[np.ndarray, " n"],
    attacked: Float[np.ndarray, " n"],
    right: Bool[np.ndarray, " n"],
    stands: Bool[np.ndarray, " n"],
    accurate: Bool[np.ndarray, " n"],
    allowed: float,
    wanted: float,
) -> dict[str, float | None]:
    """Over all thresholds, what a mixture gains and loses; fractions of the images.

    Args:
        clean, attacked: how sure the robust model is of each image, and of its attacked point.
        right, stands: whether it is right on it, and on both.
        accurate: whether the accurate model is right on the clean image.
        allowed: robust accuracy that may be lost.
        wanted: standard accuracy to be gained.

    Returns:
        `gain`: the most standard accuracy for at most `allowed` lost; `cost`: the least robust
        accuracy lost for at least `wanted` gained, None where no threshold gains as much.
    """
    n = len(clean)
    gain, cost = 0.0, None
    for threshold in np.unique(np.concatenate([clean, attacked, [np.inf]])):
        unsure = clean < threshold
        gained = float((unsure & accurate & ~right).sum() - (unsure & right & ~accurate).sum()) / n
        lost = float((stands & (np.minimum(clean, attacked) < threshold)).sum()) / n
        if lost <= allowed:
            gain = max(gain, gained)
        if gained >= wanted and (cost is None or lost < cost):
            cost = lost
    return {"gain": gain, "cost": cost}


def best_sharpened(points: Points, allowed: float, wanted: float) -> dict[str, float | None]:
    """Over all mixtures of sharpened logits that are searched: see `best_gate`."""
    alone = points.figures_of(ROBUST_ALONE)
    gain, cost = 0.0, None
    for transformation in grid():
        for found in points.figures(transformation, WEIGHTS):
            gained, lost = found.standard - alone.standard, alone.standing - found.standing
            if lost <= allowed + ROUNDING:
                gain = max(gain, gained)
            if gained >= wanted - ROUNDING and (cost is None or lost < cost):
                cost = lost
    return {"gain": gain, "cost": cost}


def row(robust: str, options: argparse.Namespace, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """What mixtures of one robust model could come to, as fractions of the images.

    Args:
        images: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,).
    """
    model, accurate = hf.load(robust), hf.load(options.accurate)
    threat = threat_of(None, None, model.card)
    points = APGD(steps=options.steps, loss="margin")(
        model, images, labels, threat, seed=options.seed, batch_size=BATCH
    )
    clean, attacked = answers(model, images), answers(model, points)
    right = (clean.argmax(1) == labels).numpy()
    stands = right & (attacked.argmax(1) == labels).numpy()
    helped = (answers(accurate, images).argmax(1) == labels).numpy()
    gates = []
    for name, score in SCORES.items():
        sure = sureness(score(clean)), sureness(score(attacked))
        for helper, known in ((options.accurate, helped), ("always right", np.ones_like(helped))):
            found = best_gate(*sure, right, stands, known, options.allowed, options.wanted)
            gates.append({"score": name, "accurate": helper, **found})
    with torch.no_grad():
        known_points = Points(model, accurate, images, labels)
        # The accurate model can be misled beside the clean image already.
        for near in (images, points):
            known_points.add(near, worst=True)
    for helper in (options.accurate, "always right"):
        if helper == "always right":
            known_points.logits[0] = clean.double(), CERTAIN * F.one_hot(labels, clean.shape[1])
        found = best_sharpened(known_points, options.allowed, options.wanted)
        gates.append({"score": "sharpened logits", "accurate": helper, **found})
    return {
        "robust": robust,
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "standard_accuracy": float(right.mean()),
        "attacked_accuracy": float(stands.mean()),
        "accurate_alone": float(helped.mean()),
        "gates": gates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("robust", nargs="+")
    parser.add_argument("--accurate", required=True)
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--limit", type=int, default=1000, help="validation images")
    parser.add_argument("--steps", type=int, default=100, help="of APGD")
    parser.add_argument("--allowed", type=float, default=0.015)
    parser.add_argument("--wanted", type=float, default=0.06)
    parser.add_argument("--pixels", help="what the pixels are, in words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cards = {name: hf.load(name).card for name in (*options.robust, options.accurate)}
    split = unseen_validation(datasets.load(options.data), cards)
    images = datasets.to_tensor(split.images[: options.limit])
    labels = torch.from_numpy(split.labels[: options.limit].copy())
    result = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "mixture_bound",
        "attack": f"APGD on the margin, {options.steps} steps",
        "allowed": options.allowed,
        "wanted": options.wanted,
        "n": len(images),
        "split": "validation",
        "pixels": options.pixels or split.pixels,
        "rows": [row(robust, options, images, labels) for robust in options.robust],
        **circumstances("cpu"),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        write_result(options.out, result)


if __name__ == "__main__":
    main()
