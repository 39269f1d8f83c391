"""The runs below a folder, looked at again and again: what has not changed is not read again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ..errors import InputError
from ..leaderboard.found import Found, FoundRecord, json_files
from ..leaderboard.rows import Table, tables
from ..runs.files import read_json
from ..runs.lock import seems_taken
from ..runs.records import (
    REQUEST,
    RESULT,
    ProgressRecord,
    RequestRecord,
    check_files,
    read_file,
    record_in,
)

LEAST_SECONDS = 1.0  # between two looks
PATIENCE = 10  # times as long as a look takes, the next one waits

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Unfinished:
    """A run without a result.

    Attributes:
        under_way: whether a process works on it.
        progress: what it last said; None where it said nothing.
    """

    folder: Path
    request: RequestRecord
    under_way: bool
    progress: ProgressRecord | None

    @property
    def seconds(self) -> float | None:
        """Since it was begun."""
        return _since(self.request.started)

    @property
    def silent(self) -> float | None:
        """Seconds since it last said something."""
        return _since(self.progress.updated) if self.progress else None


def _since(moment: str | None) -> float | None:
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment or "")).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class Look:
    """What there was at one time.

    Attributes:
        found: finished runs, and what cannot be read.
        ranked: the leaderboard of these.
        unfinished: the rest, those under way first.
        board, live: change with what is finished, and with what is not.
    """

    found: Found
    ranked: list[Table]
    unfinished: list[Unfinished]
    board: str
    live: str

    def folder(self, name: str) -> FoundRecord | None:
        """A finished run by the name of its folder."""
        every = (*self.found.evaluations, *self.found.trainings, *self.found.others)
        return next((run for run in every if str(run.folder) == name), None)


@dataclass
class _Kept:
    stamp: Stamp
    found: Found
    request: RequestRecord | None = None


@dataclass
class Library:
    """The runs below a folder.

    Args:
        folder: nothing outside it is read, whatever links lie in it.
        others: folders with figures that others published.
    """

    folder: Path
    others: Sequence[Path] = ()
    _kept: dict[Path, _Kept] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _last: Look | None = None
    _next: float = 0.0

    def look(self) -> Look:
        """What there is now; of at most a second ago."""
        with self._lock:
            began = time.monotonic()
            if self._last is None or began >= self._next:
                self._last = self._looked()
                now = time.monotonic()
                self._next = now + max(LEAST_SECONDS, PATIENCE * (now - began))
            return self._last

    def _looked(self) -> Look:
        found, seen, stamps = Found(), {}, []
        requests: dict[Path, RequestRecord] = {}
        results = set()
        for file in self._files():
            stamp = _stamp(file)
            if stamp is None or file.name == ProgressRecord.FILE:
                continue
            kept = self._kept.get(file)
            if kept is None or kept.stamp != stamp:
                kept = _read(file, stamp)
            seen[file] = kept
            found.add(kept.found)
            if file.name == RESULT:
                results.add(file.parent)
            if kept.request is not None:
                requests[file.parent] = kept.request
            elif _says_something(kept.found):
                stamps.append((str(file), stamp))
        self._kept = seen
        unfinished = [
            _unfinished(folder, request)
            for folder, request in requests.items()
            if folder not in results and request.kind
        ]
        unfinished.sort(key=lambda run: (not run.under_way, str(run.folder)))
        last = self._last
        board = _digest(stamps)
        return Look(
            found,
            # What is finished is ranked again only where it has changed.
            last.ranked if last and last.board == board else tables(found, self.folder),
            unfinished,
            board,
            _digest(
                [
                    (str(run.folder), run.under_way, run.progress and run.progress.to_dict())
                    for run in unfinished
                ]
            ),
        )

    def _files(self) -> Iterator[Path]:
        yield from json_files(self.folder, inside=True)
        for place in self.others:
            yield from json_files(place)


def _stamp(file: Path) -> Stamp | None:
    try:
        held = os.stat(file)
    except OSError:  # it went away meanwhile
        return None
    return held.st_mtime_ns, held.st_size, held.st_ino


def _read(file: Path, stamp: Stamp) -> _Kept:
    kept = _Kept(stamp, Found())
    try:
        held = read_json(file)
    except InputError as error:
        if file.name in (RESULT, REQUEST):
            kept.found.left_out.append(str(error))
        return kept
    if file.name == REQUEST:
        try:
            record = record_in(file, held)
        except InputError as error:
            kept.found.left_out.append(str(error))
            return kept
        kept.request = record if isinstance(record, RequestRecord) else None
        return kept
    kept.found.take(file, held, all_kinds=True)
    if file.name == RESULT and not kept.found.left_out:
        try:
            check_files(file.parent, held.get("files"))
        except InputError as error:
            kept.found.left_out.append(str(error))
    return kept


def _says_something(found: Found) -> bool:
    return bool(
        found.evaluations
        or found.trainings
        or found.elsewhere
        or found.left_out
        or found.others
        or found.corruptions
    )


def _unfinished(folder: Path, request: RequestRecord) -> Unfinished:
    progress = None
    try:
        held = read_file(folder / ProgressRecord.FILE)
        progress = held if isinstance(held, ProgressRecord) else None
    except InputError:  # none yet; or it was half gone: the next one comes soon
        pass
    return Unfinished(folder, request, seems_taken(folder), progress)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
