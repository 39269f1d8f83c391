"""Holdfast's suites beside the same sequence from torchattacks: time and verdicts, in one run.

    make benchmarks
    python benchmarks/autoattack_speed.py --model MODEL --data DIR [--limit 1000] [--out FILE]

On the same images, one after the other: `hf.evaluate` with the suites `autoattack` and `swift`,
and torchattacks' APGD, APGDT, FAB and Square with the budgets of the published AutoAttack, each on
what the one before left standing, at the batch size that is fastest here. Seconds are wall-clock
and hold everything that happens after the images are in memory: fast copies, compilation, choosing
batch sizes, health checks; beside them stands the processor's time, which other work on the machine
changes less. In other norms than L∞ it is Holdfast's suites alone. Robust accuracies of all are
counted by asking the model again, in float32.

Where the result file holds the same comparison already, contenders that are not run again are kept,
each with the time and the revision of its own.

The exit status is 1 where the suite `autoattack` broke fewer images than torchattacks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from masked import masked
from peers import BUDGETS, answers, peers_standing
from torch import Tensor, nn

import holdfast as hf
from holdfast import data as datasets
from holdfast.attacks import SUITES
from holdfast.evaluation.cards import threat_of
from holdfast.runs.environment import circumstances
from holdfast.runs.files import read_json, write_result
from holdfast.runs.identity import digest, weights_digest
from holdfast.search import fast_copy_of, seconds_per_image
from holdfast.search.fast_copies import has_fast_bf16

RESULTS = Path(__file__).resolve().parent / "results"
PEER = "torchattacks"
OURS = [name for name in ("autoattack", "swift") if name in SUITES]


def ours(
    model: nn.Module, images: Tensor, labels: Tensor, threat: hf.Threat, suite: str, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """bool (N,): what stands after a suite of Holdfast's, and what it took."""
    began, cpu = time.perf_counter(), time.process_time()
    result = hf.evaluate(model, images, labels, threat, suite, seed=seed, progress=True)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    fooled = answers(model, result.adversarial.to(images.device)) != labels
    legal = threat.contains(result.adversarial, images.cpu()).to(images.device)
    return ~(fooled & legal), {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "robust_accuracy": float((~(fooled & legal)).float().mean()),
        "claimed_robust_accuracy": result.robust_accuracy,
        "batch_size": result.batch_size,
        "precision": result.precision,
        "attacks": [cost.to_dict() for cost in result.attacks],
        "fired": [flag.name for flag in result.flags if flag.fired],
    }


def theirs(
    model: nn.Module, images: Tensor, labels: Tensor, threat: hf.Threat, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """The same for torchattacks' sequence; the time for choosing batch sizes is not counted."""
    standing, done = peers_standing(model, images, labels, threat, list(BUDGETS), seed=seed)
    return standing, {
        "seconds": sum(peer.seconds for peer in done),
        "cpu_seconds": sum(peer.cpu_seconds for peer in done),
        "robust_accuracy": float(standing.float().mean()),
        "attacks": [{**asdict(peer), "budget": BUDGETS[peer.name]} for peer in done],
    }


def rates(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """Images a second in batches of at most 128."""
    batch = images[:128]
    precision = "bf16" if has_fast_bf16(images.device) else "float32"
    fast_copy = fast_copy_of(model, images[:64], labels[:64], precision)
    ways = (
        {"as it is": model}
        if fast_copy is None
        else {"as it is": model, fast_copy.name: fast_copy.model}
    )
    return {
        name: {
            "forwards": 1 / seconds_per_image(way, batch, differentiable=False),
            "gradients": 1 / seconds_per_image(way, batch),
        }
        for name, way in ways.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder, a zoo name, or package:function")
    parser.add_argument("--mask", help="kwta:0.2 or quantised:8 around it")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument(
        "--norm", default="linf", help="of others than linf, Holdfast's suites alone"
    )
    parser.add_argument("--eps", help="radius; by default what the model was trained for")
    parser.add_argument("--own-labels", action="store_true", help="the model's own clean answers")
    parser.add_argument("--only", help=f"some of {', '.join([*OURS, PEER])}, with commas between")
    parser.add_argument("--pixels", help="what the pixels are, in words")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/autoattack_speed-…")
    options = parser.parse_args()
    in_linf = options.norm == "linf"
    known = [*OURS, PEER] if in_linf else OURS
    wanted = options.only.split(",") if options.only else known
    if set(wanted) - set(known):
        parser.error(f"--only knows {', '.join(known)}")

    loaded = hf.load(options.model)
    threat = threat_of(options.norm, options.eps, getattr(loaded, "card", {}))
    model = masked(loaded, options.mask) if options.mask else loaded
    model = model.to(options.device).eval()
    test = datasets.load(options.data).test
    images = datasets.to_tensor(test.images[: options.limit]).to(options.device)
    labels = torch.from_numpy(test.labels[: options.limit].copy()).to(options.device)
    if options.own_labels:
        labels = answers(model, images)

    asked = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "autoattack_speed",
        "model": {"source": options.model, "mask": options.mask, "sha256": weights_digest(model)},
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "n": len(images),
        "images": digest(images, labels),
        "pixels": options.pixels or test.pixels,
        "labels": "the model's own clean answers" if options.own_labels else "of the data set",
        "seed": options.seed,
        "threads": torch.get_num_threads(),
    }
    ball = "" if in_linf else f"{threat.norm}-{threat.eps:g}"
    slug = "-".join(filter(None, (Path(options.model).name, options.mask, ball))).replace(":", "")
    out = options.out or RESULTS / f"autoattack_speed-{slug}.json"
    said = kept(out, asked)
    speeds = rates(model, images, labels)
    around = circumstances(options.device)
    for name in wanted:
        if name == PEER:
            standing, found = theirs(model, images, labels, threat, options.seed)
        else:
            standing, found = ours(model, images, labels, threat, name, options.seed)
        own = {key: around[key] for key in ("git", "started", "machine")}
        said[name] = found | {"standing": standing.nonzero().squeeze(1).tolist()} | own
    for name in set(said) - {PEER} if PEER in said else ():
        said[name] |= compared(said[name], said[PEER])
    weaker = {"autoattack", PEER} <= set(said) and (
        said["autoattack"]["robust_accuracy"] > said[PEER]["robust_accuracy"]
    )
    result = {
        **asked,
        "standard_accuracy": float((answers(model, images) == labels).float().mean()),
        "images_per_second": speeds,
        "contenders": {name: said[name] for name in (*OURS, PEER) if name in said},
        "weaker_than_torchattacks": weaker if {"autoattack", PEER} <= set(said) else None,
        **around,
    }
    result["versions"]["torchattacks"] = _version(PEER)
    print(json.dumps(result, indent=2))
    RESULTS.mkdir(exist_ok=True)
    write_result(out, result)
    return int(weaker)


def compared(own: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """How much sooner a contender of ours was, and what either broke alone."""
    found: dict[str, float] = {}
    for ratio, key in (("times_sooner", "seconds"), ("times_less_cpu", "cpu_seconds")):
        if key in own and key in peer:
            found[ratio] = peer[key] / own[key]
    if "standing" in own and "standing" in peer:
        mine, theirs_ = set(own["standing"]), set(peer["standing"])
        found |= {
            "broke_alone": len(theirs_ - mine),
            f"only_{PEER}_broke": len(mine - theirs_),
        }
    return found


def kept(out: Path, asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The contenders that a file holds already, if it is about the same."""
    if not out.exists():
        return {}
    held = read_json(out)
    # Words about the pixels may change; of the images themselves older files say nothing.
    same = all(held.get(name, value) == value for name, value in asked.items() if name != "pixels")
    return dict(held["contenders"]) if same else {}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
