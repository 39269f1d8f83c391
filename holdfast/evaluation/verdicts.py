"""From what a search found to verdicts: the original model has the last word."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import draws
from ..attacks import Stage, Suite
from ..search import CLEAN, STANDING, Ledger, Search, Verifier
from ..threat import Threat
from .result import NOT_NEEDED, RAN, AttackCost, Verdict


def final_answers(
    verifier: Verifier,
    ledger: Ledger,
    images: Tensor,
    threat: Threat,
    batch_size: int,
    device: torch.device,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the original says of every adversarial image: the last word on every verdict.

    A random model is asked in draws that no search has seen, so what was broken by a lucky draw
    stands after all; clean mistakes stay what they were.

    Returns:
        prediction and confidence, (N,), and the answer of every draw, (N, D).
    """
    parts = []
    for rows in torch.arange(len(images)).split(batch_size):
        seeds = torch.where(
            ledger.stage[rows] == CLEAN,
            draws.item_seeds(seed, "clean", ledger.index[rows]),
            draws.item_seeds(seed, "last word", ledger.index[rows]),
        )
        parts.append(verifier.ask(ledger.adversarial[rows].to(device), seeds))
    prediction = torch.cat([part.prediction for part in parts]).cpu()
    prediction = torch.where(ledger.stage == CLEAN, ledger.clean_prediction, prediction)
    confidence = torch.cat([part.confidence for part in parts]).cpu()
    # Rounding differs between batches of different make-up; a point right on the boundary may
    # answer differently now. The attacker chooses.
    wrong = prediction != ledger.labels
    fooled = wrong & _in_parts(
        lambda x_adv, x, witness: threat.contains(x_adv, x, None, witness),
        ledger.adversarial,
        images,
        ledger.witness,
    )
    late = fooled & ~ledger.broken
    ledger.broken[late] = True
    ledger.stage[late] = ledger.found[late].clamp_min(0)
    ledger.item[late] = ledger.found_item[late]
    if verifier.draws > 1:
        lucky = ledger.broken & ~fooled & (ledger.stage != CLEAN)
        ledger.broken[lucky] = False
        ledger.stage[lucky] = STANDING
        ledger.item[lucky] = ledger.target[lucky] = -1
        ledger.found[~wrong] = -1
    return prediction, confidence, torch.cat([part.draws for part in parts]).cpu()


def costs_of(
    suite: Suite, search: Search, left_out: Sequence[tuple[Stage, str]] = ()
) -> tuple[AttackCost, ...]:
    """What became of every stage that was asked for.

    Args:
        left_out: stages that cannot run on this model in this threat model, and why.
    """
    ledger = search.ledger
    tried = (
        AttackCost(
            stage.name,
            int((ledger.stage == number).sum()),
            cost.forwards,
            cost.backwards,
            cost.seconds,
            f"{NOT_NEEDED}: {idle}" if idle else RAN,
        )
        for number, (stage, cost, idle) in enumerate(
            zip(suite.stages, search.costs, search.idle, strict=True)
        )
    )
    return (
        *tried,
        *(AttackCost(stage.name, 0, 0, 0, 0.0, f"not run: {why}") for stage, why in left_out),
    )


def distances_of(suite: Suite, ledger: Ledger, images: Tensor, threat: Threat) -> Tensor:
    """From each image to its adversarial one, (N,). Where the closest is sought: ∞ if there is
    none, and 0 for clean mistakes."""
    distance = _in_parts(threat.distance, ledger.adversarial, images, ledger.witness)
    none = suite.closest & (ledger.found < 0) & (ledger.stage != CLEAN)
    return torch.where(none, torch.inf, distance)


def verdicts_of(
    suite: Suite,
    ledger: Ledger,
    distance: Tensor,
    prediction: Tensor,
    confidence: Tensor,
) -> tuple[Verdict, ...]:
    names = {CLEAN: "clean", STANDING: ""} | {
        number: stage.name for number, stage in enumerate(suite.stages)
    }
    return tuple(
        Verdict(
            index=int(ledger.index[i]),
            label=int(ledger.labels[i]),
            clean_prediction=int(ledger.clean_prediction[i]),
            clean_confidence=float(ledger.clean_confidence[i]),
            broken=bool(ledger.broken[i]),
            attack=names[int(ledger.stage[i])],
            target=int(ledger.target[i]),
            adversarial_prediction=int(prediction[i]),
            adversarial_confidence=float(confidence[i]),
            distance=float(distance[i]),
            forwards=int(ledger.forwards[i]),
            backwards=int(ledger.backwards[i]),
        )
        for i in range(len(distance))
    )


def _in_parts(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A function of each image, without copies of all of them at once."""
    rows = torch.arange(len(tensors[0])).split(128)
    return torch.cat([function(*(tensor[part] for tensor in tensors)) for part in rows])
