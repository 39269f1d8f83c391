"""Where the time of an evaluation goes besides the attacks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..runs.records import OtherCost


class Spending:
    """Seconds by what they were spent on.

    Of what runs inside something else, the seconds count once: for the innermost.

    Example:
        >>> spending = Spending()
        >>> with spending.on("fast copies"), spending.on("health checks"):
        ...     pass
        >>> list(spending.seconds)
        ['fast copies', 'health checks']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._on: list[str] = []
        self._since = 0.0

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Inside, time is spent on this."""
        self._account()
        self._on.append(what)
        self.seconds.setdefault(what, 0.0)
        try:
            yield
        finally:
            self._account()
            self._on.pop()

    def _account(self) -> None:
        now = time.monotonic()
        if self._on:
            self.seconds[self._on[-1]] += now - self._since
        self._since = now

    def add(self, what: str, seconds: float) -> None:
        """Seconds that were measured elsewhere."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def costs(self, total: float, attacks: float) -> tuple[OtherCost, ...]:
        """A row for each, which with the attacks sum to the total: what nobody measured is
        "everything else".

        Args:
            total: seconds of the whole evaluation.
            attacks: seconds of all attacks.
        """
        known = {what: seconds for what, seconds in self.seconds.items() if seconds > 0}
        rest = total - attacks - sum(known.values())
        if rest > 0:
            known["everything else"] = rest
        return tuple(OtherCost(name=what, seconds=seconds) for what, seconds in known.items())
