"""The figures of a model that draws random numbers, over draws that no search has seen."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .. import draws
from ..intervals import clopper_pearson
from ..search import CLEAN, Ledger, Verifier
from .result import DrawFigure

WORST_OF = 10


def draw_figures(
    verifier: Verifier,
    ledger: Ledger,
    images: Tensor,
    attacked: Int64[Tensor, "n d"],
    batch_size: int,
    device: torch.device,
    seed: int,
) -> tuple[DrawFigure, ...]:
    """Average, worst of `WORST_OF` and majority; the last are the verdicts.

    Args:
        attacked: every draw's answer to the adversarial images.
    """
    parts = [
        verifier.ask(images[rows].to(device), draws.item_seeds(seed, "clean", ledger.index[rows]))
        for rows in torch.arange(len(images)).split(batch_size)
    ]
    clean = torch.cat([part.draws for part in parts]).cpu() == ledger.labels[:, None]
    robust = attacked == ledger.labels[:, None]
    (n, count), worst = clean.shape, min(WORST_OF, clean.shape[1])

    def average(rows: Tensor) -> tuple[float, tuple[float, float]]:
        mean = float(rows.double().mean())
        return mean, clopper_pearson(mean * n, n)

    def counted(rows: Bool[Tensor, " n"]) -> tuple[float, tuple[float, float]]:
        return int(rows.sum()) / n, clopper_pearson(int(rows.sum()), n)

    return (
        DrawFigure("average", count, *average(clean), *average(robust)),
        DrawFigure(
            "worst", worst, *counted(clean[:, :worst].all(1)), *counted(robust[:, :worst].all(1))
        ),
        DrawFigure("majority", count, *counted(ledger.stage != CLEAN), *counted(~ledger.broken)),
    )
