"""Lanes: on which twins a search runs, and what is near enough to the boundary to run again."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from ..threat import Threat
from .twin import Twin

DUAL = {"linf": 1.0, "l2": 2.0, "l1": inf}  # the order of the norm of gradients


@dataclass(frozen=True)
class Lane:
    """A pass over a stage's items on one twin.

    Attributes:
        twin: what the search looks at.
        near: only items whose margin in the lane before ended below this are tried again here;
            None tries all.
        slopes: (P, C, H, W) gradients of margins, by which a margin becomes a distance. Without
            them, searches for the closest point run on the last lane alone.
    """

    twin: Twin
    near: float | None = None
    slopes: Tensor | None = None

    def near_in(self, threat: Threat) -> float | None:
        """The distance over which a typical margin changes by `near`, by its linearisation."""
        if self.near is None or self.slopes is None or threat.norm not in DUAL:
            return None
        steepness = torch.linalg.vector_norm(self.slopes.flatten(1), DUAL[threat.norm], dim=1)
        return self.near / max(float(steepness.median()), 1e-12)
