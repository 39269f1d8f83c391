"""Progress of long work: rich's bar on a terminal, plain lines elsewhere, which rich lacks."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import InputError
from ..terminal import printable, tell
from .files import write_json
from .records import RESULT, ProgressRecord, RequestRecord

WRITTEN_SECONDS = 1.0  # at least, between two states of a run's `progress.json`
Known = Callable[[], dict[str, Any]]  # more fields of it, asked for only where it is written


def clock(seconds: float) -> str:
    """Seconds as 0:42, 12:05 or 3:07:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class ProgressLine:
    """A named share of work done, from 0 to 1, with a word on how it goes.

    Use as a context manager. On a terminal it draws a bar with an estimate of the time left;
    elsewhere it prints a line at most every `interval` seconds. Everything goes to standard error,
    so that standard output holds results alone.

    Args:
        title: what is being done.
        enabled: False prints nothing at all.
        interval: seconds between plain lines.
        run: the folder of the run that is being made: its `progress.json` says the same, for
            whoever looks at it meanwhile, even where nothing is printed.
    """

    def __init__(
        self,
        title: str,
        enabled: bool = True,
        interval: float = 15.0,
        run: Path | None = None,
    ):
        self.title, self.enabled, self.interval = printable(title), enabled, interval
        self.run, self.written = run, -math.inf
        self.share = 0.0  # as it was last told
        self.known: Known | None = None
        self.bar: Progress | None = None
        self.began = self.printed = time.monotonic()
        self.first_share: float | None = None

    def __enter__(self) -> ProgressLine:
        console = Console(stderr=True)
        if self.enabled and console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[word]}", markup=False),
                console=console,
                transient=True,
            )
            self.task = self.bar.add_task(self.title, total=1.0, word="")
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, share: float, word: str = "", known: Known | None = None) -> None:
        """Show that `share` (0..1) is done; `word` is shown beside it.

        Args:
            known: figures as far as they are known, for the run's `progress.json`.
        """
        self._write(share, word, known or self.known)
        if not self.enabled:
            return
        if self.first_share is None:
            self.first_share = share  # a resumed run did not do this part in this process
        if self.bar:
            self.bar.update(self.task, completed=share, word=printable(word))
            return
        now = time.monotonic()
        if now - self.printed >= self.interval:
            self.printed = now
            elapsed, gained = now - self.began, share - self.first_share
            left = f", {clock(elapsed / gained * (1 - share))} left" if gained > 0 else ""
            self.say(f"{self.title}: {share:4.0%}, {clock(elapsed)}{left}  {word}")

    def _write(
        self, share: float, word: str, known: Known | None, seconds: float = WRITTEN_SECONDS
    ) -> None:
        now = time.monotonic()
        self.share, self.known = share, known
        if self.run is None or now - self.written < seconds:
            return
        self.written = now
        # Not of a run that has not begun, went away, or is finished.
        if not (self.run / RequestRecord.FILE).is_file() or (self.run / RESULT).exists():
            return
        record = ProgressRecord(
            title=self.title,
            share=min(1.0, max(0.0, share)),
            word=word,
            updated=datetime.now(UTC).isoformat(timespec="seconds"),
            **(known() if known else {}),
        )
        # It may be lost: nothing is read from it but by who looks on.
        with contextlib.suppress(InputError, OSError):
            write_json(self.run / ProgressRecord.FILE, record.to_dict())

    def show(self, share: float, word: str) -> None:
        """As `update`, for work that knows itself how long it takes: `word` says so."""
        self._write(share, word, self.known)
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=share, word=printable(word))
        elif now - self.printed >= self.interval:
            self.printed = now
            self.say(f"{self.title}: {word}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self._write(self.share, line, self.known, seconds=0.0)
        if not self.enabled:
            return
        if self.bar:
            self.bar.console.print(printable(line), highlight=False, markup=False, emoji=False)
        else:
            tell(line, error=True)
