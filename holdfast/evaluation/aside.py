"""What is measured beside the verdicts, on as many of the images as there is time for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jaxtyping import Int64
from torch import Tensor

from ..intervals import clopper_pearson
from ..runs.records import Curve
from ..search import Search
from .curve import IMAGES as CURVE_IMAGES
from .curve import joined
from .inspection import Inspection
from .plan import Plan
from .request import Request
from .result import Unaware
from .unaware import IMAGES as UNAWARE_IMAGES
from .verdicts import measured_curve, measured_unaware

T = TypeVar("T")
FIRST = 2  # images that say how long others will take


@dataclass
class _Measured(Generic[T]):
    """One measurement, as far as it has come.

    Attributes:
        of: measures it on some images; None where it cannot be measured.
        most: images that it is measured on at most.
        parts: what came of those so far.
        n: how many those are.
        last: of the last part, how many images and seconds.
    """

    of: Callable[[Int64[Tensor, " r"]], T | None]
    most: int
    parts: list[T] = field(default_factory=list)
    n: int = 0
    last: tuple[int, float] = (FIRST // 2, 0.0)


class Aside:
    """The security curve, and the accuracy against an attacker who does not know of the defence.

    Attributes:
        seconds: what they have taken.
    """

    def __init__(self, request: Request, known: Inspection, plan: Plan, search: Search):
        self.seconds = 0.0
        self._curve = _Measured(
            lambda rows: measured_curve(
                request.part(rows), known, plan.part(rows), search.ledger.select(rows)
            ),
            CURVE_IMAGES,
        )
        self._unaware = _Measured(
            lambda rows: measured_unaware(request.part(rows), known, plan.part(rows)),
            UNAWARE_IMAGES,
        )

    def forget(self) -> None:
        """What was measured on images that are to be searched again."""
        for each in (self._curve, self._unaware):
            each.parts.clear()
            each.n = 0

    def measure(self, rows: Int64[Tensor, " r"], allowance: float, first: float = 0.0) -> None:
        """Go on over the images.

        Args:
            rows: those that may be taken, from the first on.
            allowance: seconds that all of it may have taken afterwards.
            first: seconds that the first images may take, for all that is known.
        """
        self._measure(self._curve, rows, allowance, first)
        self._measure(self._unaware, rows, allowance, first)

    def _measure(
        self, it: _Measured[T], rows: Int64[Tensor, " r"], allowance: float, first: float
    ) -> None:
        while room := min(it.most, len(rows)) - it.n:
            images, seconds = it.last
            size = min(2 * images, room)
            predicted = seconds * size / images if it.n else first
            if self.seconds + predicted > allowance:
                return
            began = time.monotonic()
            part = it.of(rows[it.n : it.n + size])
            if part is None:
                it.most = it.n
                return
            it.parts.append(part)
            it.n += size
            it.last = size, time.monotonic() - began
            self.seconds += it.last[1]

    @property
    def curve(self) -> Curve | None:
        """The security curve; None where none is measured, or there was no time."""
        return joined(self._curve.parts) if self._curve.parts else None

    @property
    def unaware(self) -> Unaware | None:
        """What somebody would measure who does not know of the defence; None as above."""
        parts = self._unaware.parts
        if not parts:
            return None
        n = sum(part.n for part in parts)
        right = sum(round(part.robust_accuracy * part.n) for part in parts)
        interval = clopper_pearson(right, n)
        return parts[0].model_copy(
            update={"n": n, "robust_accuracy": right / n, "robust_accuracy_interval": interval}
        )
