"""`holdfast evaluate`: what the names on the command line stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .. import data as datasets
from ..attacks.adaptive import NAME as ADAPTIVE
from ..attacks.adaptive import SAMPLES
from ..attacks.base import Model
from ..defences import chain, steps, undefended
from ..distributed import joined, leads
from ..errors import InputError
from ..evaluation.cards import check_classes, remark, threat_of, what_was_measured
from ..evaluation.evaluate import evaluate
from ..evaluation.inspection import reason
from ..evaluation.result import Evaluation
from ..load import load
from ..terminal import tell

USUAL_SUITE = "autoattack"


def suite_or_usual(suite: str | None, model: Model) -> str:
    """The suite asked for; else `adaptive`, saying why, for a defence that needs it."""
    if suite is not None:
        return suite
    why = reason(model)
    if why and leads():
        tell(f"suite {ADAPTIVE}, because {why}")
    return ADAPTIVE if why else USUAL_SUITE


@joined()
def evaluate_command(
    model: str,
    data: str,
    out: Path,
    *,
    defences: Sequence[str] = (),
    suite: str | None,
    samples: int = SAMPLES,
    norm: str | None,
    eps: str | None,
    limit: int | None,
    split: str,
    pixels: str | None,
    curve: bool,
    batch_size: int | None,
    precision: str,
    size: int | None,
    seed: int,
    device: str | None,
    progress: bool,
) -> Evaluation:
    """Load, evaluate, write the run folder; see `evaluate` for what the options mean."""
    network = chain(load(model), defences)
    bare = undefended(network)
    card = getattr(bare, "card", {})
    specs = [step.spec for step in steps(network)]
    threat = threat_of(norm, eps, card)
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, not {limit}")
    dataset = datasets.load(data, size=size)
    chosen = dataset.split(split)
    first = len(chosen) if limit is None else min(limit, len(chosen))
    check_classes(model, card, dataset)
    remark(dataset, split, first, str(card.get("trained_on", "")))
    return evaluate(
        network,
        datasets.to_tensor(chosen.images[:first]),
        torch.from_numpy(chosen.labels[:first].copy()),
        threat,
        suite_or_usual(suite, network),
        batch_size,
        device or ("cuda" if torch.cuda.is_available() else None),
        precision,
        seed,
        out,
        progress,
        curve=curve,
        samples=samples,
        described={
            **what_was_measured(model, bare, dataset, split, first, pixels, specs),
            "classes": list(dataset.classes),
        },
    )
