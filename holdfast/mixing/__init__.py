"""Mixtures: one model of a robust and an accurate one.

- `parameters`: `fit_mixture`, which chooses a mixture's parameters on validation images
- `run`: `mix`, which also attacks the mixtures and writes the chosen one as a checkpoint
"""

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from . import parameters, run
    from .parameters import Choice, Parameters, fit_mixture

__all__ = ["Choice", "Parameters", "fit_mixture", "parameters", "run"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Choice": "parameters:Choice",
        "Parameters": "parameters:Parameters",
        "fit_mixture": "parameters:fit_mixture",
        "parameters": "parameters",
        "run": "run",
    },
)
