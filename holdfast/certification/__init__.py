"""Certificates: what no attack inside a radius can change.

- `smoothing`: randomised smoothing, L2 (`Smoothed`, `Certificates`)
- `bounds`: interval bound propagation, L∞ (`logit_bounds`, `verified`)
- `certify`: `certify`, which chooses the certificate for a model
- `run`: `certify_by`, which certifies and attacks every image and writes a run folder
"""

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from . import bounds, certify, run, smoothing
    from .smoothing import ABSTAIN, Certificates, Smoothed, certified_accuracy

__all__ = [
    "ABSTAIN",
    "Certificates",
    "Smoothed",
    "bounds",
    "certified_accuracy",
    "certify",
    "run",
    "smoothing",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ABSTAIN": "smoothing:ABSTAIN",
        "Certificates": "smoothing:Certificates",
        "Smoothed": "smoothing:Smoothed",
        "bounds": "bounds",
        "certified_accuracy": "smoothing:certified_accuracy",
        "certify": "certify",
        "run": "run",
        "smoothing": "smoothing",
    },
)
