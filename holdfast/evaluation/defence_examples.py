"""`strips.safetensors`: what a defence does to a few images, for the report."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Int64
from safetensors.torch import save
from torch import Tensor

from .. import draws
from ..defences import shown
from ..runs.files import write_atomically
from ..search import Predictions, Verifier
from ..stored import ModelImages
from ..threat import Threat
from ..types import Model
from .result import Evaluation
from .unaware import IMAGES, unaware_points, unaware_seeds

STRIPS = 6
FILE = "strips.safetensors"


def write_defence_examples(
    folder: Path,
    network: Model,
    verifier: Verifier,
    images: ModelImages,
    result: Evaluation,
    threat: Threat,
    device: torch.device,
) -> None:
    """Write `FILE`, with M images, their attacks, and what is said of each.

    Tensors: `index` int64 (M,); `clean`, and for the attacker who does not know of the defence and
    the one who does `unaware` and `adaptive`, each (M, C, H, W), with what the network is shown of
    them, `unaware_shown` and `adaptive_shown`; `answers` int64 and `confidences` float32, (M, 5):
    the network's on `clean`, its own and the defended model's on `unaware`, and on `adaptive`.

    Args:
        network: what stands behind the defences.
        judge: of the defended model.
    """
    n = min(result.n, IMAGES)
    labels = torch.tensor([verdict.label for verdict in result.verdicts[:n]])
    rows = _chosen(result, n)
    clean = images[rows].to(device)
    unaware = unaware_points(
        network, clean, labels[rows].to(device), threat, unaware_seeds(result.seed, rows)
    )
    adaptive = result.adversarial[rows].to(device)
    bare = Verifier(network)
    with torch.no_grad(), draws.fixed_draws(draws.item_seeds(result.seed, "strip", rows)):
        pictures = {
            "clean": clean,
            "unaware": unaware,
            "unaware_shown": shown(verifier.model, unaware),
            "adaptive": adaptive,
            "adaptive_shown": shown(verifier.model, adaptive),
        }
    known = draws.item_seeds(result.seed, "unaware verdict", rows)
    final = draws.item_seeds(result.seed, "last word", rows)
    said = [
        bare.predict(clean, known),
        bare.predict(unaware, known),
        verifier.predict(unaware, known, 1),
        bare.predict(adaptive, final),
        verifier.predict(adaptive, final),
    ]
    write_atomically(
        folder / FILE,
        save(
            {
                **{name: picture.cpu().contiguous() for name, picture in pictures.items()},
                "index": torch.tensor([result.verdicts[i].index for i in rows]),
                "answers": _columns(said, "prediction"),
                "confidences": _columns(said, "confidence"),
            }
        ),
    )


def _columns(said: list[Predictions], name: str) -> Tensor:
    return torch.stack([getattr(answers, name) for answers in said], 1).cpu()


def _chosen(result: Evaluation, n: int) -> Int64[Tensor, " m"]:
    """Images that are right when clean, the broken ones first, one of each label in turn."""
    turns: dict[int, int] = {}
    order = []
    for i, verdict in enumerate(result.verdicts[:n]):
        if verdict.attack != "clean":
            turn = turns[verdict.label] = turns.get(verdict.label, -1) + 1
            order.append((not verdict.broken, turn, i))
    return torch.tensor([i for _, _, i in sorted(order)[:STRIPS]] or [0])
