"""The figures of a model that draws random numbers, over draws that no search has seen."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .. import draws
from ..intervals import clopper_pearson
from ..runs.records import DrawFigure
from ..search import Ledger, Verifier, succeeded
from ..stored import ModelImages

WORST_OF = 10


def draw_figures(
    verifier: Verifier,
    ledger: Ledger,
    images: ModelImages,
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
        verifier.predict(
            images[rows].to(device), draws.item_seeds(seed, "clean", ledger.index[rows])
        )
        for rows in torch.arange(len(images)).split(batch_size)
    ]
    clean = torch.cat([part.draws for part in parts]).cpu() == ledger.labels[:, None]
    robust = ~succeeded(attacked, ledger.labels[:, None], ledger.goal[:, None])
    (n, count), worst = clean.shape, min(WORST_OF, clean.shape[1])

    def average(rows: Tensor) -> tuple[float, tuple[float, float]]:
        mean = float(rows.double().mean())
        return mean, clopper_pearson(mean * n, n)

    def counted(rows: Bool[Tensor, " n"]) -> tuple[float, tuple[float, float]]:
        return int(rows.sum()) / n, clopper_pearson(int(rows.sum()), n)

    def figure(
        kind: str,
        drawn: int,
        standard: tuple[float, tuple[float, float]],
        robust: tuple[float, tuple[float, float]],
    ) -> DrawFigure:
        return DrawFigure(
            kind=kind,
            draws=drawn,
            standard_accuracy=standard[0],
            standard_accuracy_interval=standard[1],
            robust_accuracy=robust[0],
            robust_accuracy_interval=robust[1],
        )

    every = (rows[:, :worst].all(1) for rows in (clean, robust))
    return (
        figure("average", count, average(clean), average(robust)),
        figure("worst", worst, *map(counted, every)),
        figure(
            "majority",
            count,
            counted(ledger.clean_prediction == ledger.labels),
            counted(~ledger.broken),
        ),
    )
