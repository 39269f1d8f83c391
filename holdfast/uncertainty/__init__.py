"""How sure a model is, and whether that can be believed.

- `scores`: one number an image, higher = less sure
- `metrics`: calibration, selective prediction and detection, with intervals
- `calibration_intervals`: intervals of calibration errors, which are biased upwards
- `calibration`: temperature, vector and isotonic scaling
- `conformal`: sets that hold the right class with a promised probability, plain and robust
- `abstaining`: a classifier that abstains, to keep a promised risk or coverage
- `detection`: a detector that may reject, and what an attacker gets past it
- `human`: human label distributions, to compare a model's uncertainty with
- `goals`, `attacks`: attacks on uncertainty itself, verified on the original model
- `run`: all of this for one model, as `holdfast uncertainty` measures it

Example:
    >>> import torch
    >>> import holdfast as hf
    >>> probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    >>> labels = torch.tensor([0, 1, 1, 0])
    >>> round(hf.uncertainty.metrics.brier_score(probabilities, labels), 3)
    0.25
"""

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from . import (
        abstaining,
        attacks,
        calibration,
        calibration_intervals,
        conformal,
        detection,
        goals,
        human,
        metrics,
        scores,
    )

__all__ = [
    "abstaining",
    "attacks",
    "calibration",
    "calibration_intervals",
    "conformal",
    "detection",
    "goals",
    "human",
    "metrics",
    "scores",
]

__getattr__, __dir__ = lazily(__name__, {name: name for name in __all__})
