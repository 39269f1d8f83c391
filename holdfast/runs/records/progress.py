"""How far a run is that is under way."""

from __future__ import annotations

from typing import ClassVar

from .base import Count, Fraction, Interval, Positive, Record


class ProgressRecord(Record):
    """`progress.json`, in a run folder while the run is being made: what the terminal shows.

    Attributes:
        title: what is being done.
        share: how much of it is done.
        word: how it goes.
        updated: when that was, ISO 8601, UTC.
        n: images that are searched.
        judged: images of a growing sample that are judged whole; None where all are searched at
            once.
        robust_accuracy_interval: between which bounds the robust accuracy will lie in the end, as
            far as is known: the 95 % intervals if no other image broke, and if all that are open
            did. Of a growing sample, the interval that is valid at any time.
    """

    SCHEMA: ClassVar[str] = "holdfast/progress/1"
    FILE: ClassVar[str] = "progress.json"

    title: str = ""
    share: Fraction = 0.0
    word: str = ""
    updated: str | None = None
    n: Positive | None = None
    judged: Count | None = None
    robust_accuracy_interval: Interval | None = None

    def headline(self) -> str:
        return f"Under way: {self.title}, {self.share:.0%}"
