"""What preprocessing defences are worth, one row a defence: `docs/defences.md` is made from it.

    python benchmarks/defences.py MODEL --data DIR [--limit 512] [--defences SPEC …]
    python benchmarks/defences_page.py

Each row is an evaluation of MODEL behind one defence with the suite `adaptive`, beside what an
attacker finds who does not know of the defence, and what a forward pass costs. Rows are written as
they fall; the same command goes on where it was interrupted, and one with other defences adds to
the file. Run it once on an undefended and once on an adversarially trained model.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import holdfast as hf
from holdfast import data as datasets
from holdfast.attacks.adaptive import SAMPLES
from holdfast.defences import chain, steps
from holdfast.errors import InputError
from holdfast.evaluation.cards import threat_of
from holdfast.runs.environment import circumstances, machine
from holdfast.runs.files import make_folder, read_json, write_result
from holdfast.runs.identity import digest, weights_digest
from holdfast.runs.progress import clock

RESULTS = Path(__file__).resolve().parent / "results"
NONE = "none"
# All that need nothing but their defaults, the quick ones first. Those with weights of their own
# are added by name: --defences autoencoder:weights=FOLDER
DEFENCES = (
    NONE,
    "bit-depth",
    "thermometer",
    "gaussian-blur",
    "median",
    "jpeg",
    "palette",
    "total-variation",
    "noise",
    "resize-pad",
    "crop-ensemble",
)
ROUNDS = 5  # of timing


def milliseconds_per_image(model: Any, bare: Any, images: Tensor) -> tuple[float, float]:
    """Of a forward pass, defended and bare: medians of rounds in which the two take turns."""
    times: dict[int, list[float]] = {0: [], 1: []}
    with torch.no_grad():
        for round_ in range(ROUNDS + 1):
            for which, subject in enumerate((model, bare)):
                if images.is_cuda:
                    torch.cuda.synchronize()
                began = time.perf_counter()
                subject(images)
                if images.is_cuda:
                    torch.cuda.synchronize()
                if round_:  # the first round warms up
                    times[which].append(time.perf_counter() - began)
    defended, alone = (1000 * statistics.median(times[i]) / len(images) for i in (0, 1))
    return defended, alone


def row_of(
    bare: Any,
    spec: str,
    images: Tensor,
    labels: Tensor,
    threat: hf.Threat,
    options: argparse.Namespace,
    described: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate one defence."""
    model = bare if spec == NONE else chain(bare, spec.split("+"))
    began = time.perf_counter()
    result = hf.evaluate(
        model,
        images,
        labels,
        threat,
        "adaptive",
        device=options.device,
        samples=options.samples,
        seed=options.seed,
        run=options.runs / described["model"]["name"] / re.sub(r"[^\w.+=-]+", "-", spec),
        progress=True,
        described={**described, "model": described["model"] | {"defences": specs(model)}},
    )
    seconds = time.perf_counter() - began
    device = torch.device(options.device)
    some = images[:32].to(device)
    model.to(device)
    defended, alone = milliseconds_per_image(model, bare, some)
    unaware = result.unaware
    return {
        "defence": spec,
        "options": specs(model),
        "samples": options.samples,
        "random": any(step.random for step in steps(model)),
        "differentiable": all(step.differentiable for step in steps(model)),
        "standard_accuracy": result.standard_accuracy,
        "standard_accuracy_interval": result.standard_accuracy_interval,
        "unaware": None if unaware is None else unaware.to_dict(),
        "robust_accuracy": result.robust_accuracy,
        "robust_accuracy_interval": result.robust_accuracy_interval,
        "standing": (~result.broken).nonzero().squeeze(1).tolist(),
        "draws": [figure.to_dict() for figure in result.draws],
        "attacks": [cost.to_dict() for cost in result.attacks],
        "flags": [flag.name for flag in result.flags if flag.fired],
        "milliseconds_per_image": defended,
        "milliseconds_per_image_undefended": alone,
        "seconds": seconds,
        "identity": result.identity,
        "machine": machine(options.device),
    }


def trained_for(card: dict[str, Any]) -> dict[str, Any] | None:
    """The threat model that a network was trained against; None where it was not."""
    objective = card.get("recipe", {}).get("objective", {}).get("name")
    return None if objective == "standard" else card.get("threat")


def specs(model: Any) -> list[str]:
    return [step.spec for step in steps(model)]


def opened(out: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a file holds already, if they answer the same question."""
    if not out.exists():
        return []
    held = read_json(out)
    differs = [name for name, value in asked.items() if held.get(name) != value]
    if differs:
        raise InputError(
            f"{out} holds rows for another {differs[0]} ({held.get(differs[0])}, not "
            f"{asked[differs[0]]}); choose another --out, or remove it"
        )
    return held["rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint or run folder, or a name from the zoo")
    parser.add_argument("--data", default="datasets")
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--defences", nargs="+", default=DEFENCES, metavar="SPEC", help="a+b chain")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help="draws an iteration, if random"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pixels", help="what the pixels are, in words")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/defences-MODEL.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/defences"), help="run folders")
    options = parser.parse_args()

    bare = hf.load(options.model)
    card = getattr(bare, "card", {})
    threat = threat_of("linf", options.eps, card)
    name = Path(options.model).name
    dataset = datasets.load(options.data)
    test = dataset.test
    images = datasets.to_tensor(test.images[: options.limit])
    labels = torch.from_numpy(test.labels[: options.limit].copy())
    pixels = options.pixels or test.pixels
    asked = {
        "schema": "holdfast/benchmark/1",
        "benchmark": "defences",
        "model": {
            "name": name,
            "source": options.model,
            "sha256": weights_digest(bare),
            "trained_for": trained_for(card),
        },
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "suite": "adaptive",
        "seed": options.seed,
        "n": len(images),
        "images": digest(images, labels),
        "pixels": pixels,
    }
    described = {
        "model": {k: v for k, v in asked["model"].items() if k != "trained_for"}
        | {"architecture": card.get("architecture", type(bare).__name__)},
        "data": {"name": dataset.name, "split": "test", "first": len(images), "pixels": pixels},
        "classes": list(card.get("classes", [])),
    }
    out = options.out or RESULTS / f"defences-{name}.json"
    make_folder(out.parent)
    rows = opened(out, asked)
    for spec in options.defences:
        if any(row["defence"] == spec for row in rows):
            print(f"{spec:24} is there already", flush=True)
            continue
        row = row_of(bare, spec, images, labels, threat, options, described)
        rows.append(row)
        write_result(out, {**asked, "rows": rows, **circumstances(options.device)})
        unaware = row["unaware"]
        print(
            f"{spec:24} standard {row['standard_accuracy']:6.1%}  "
            f"unaware {'—' if unaware is None else format(unaware['robust_accuracy'], '6.1%')}  "
            f"adaptive {row['robust_accuracy']:6.1%}  "
            f"{row['milliseconds_per_image']:.2f} ms an image  {clock(row['seconds'])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
