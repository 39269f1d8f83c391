"""The journal: verdicts in SQLite as they fall, so that an interrupted run loses nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .ledger import Ledger

_TABLES = """
CREATE TABLE IF NOT EXISTS run (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS clean (
    image INTEGER PRIMARY KEY, prediction INTEGER NOT NULL, confidence REAL NOT NULL);
CREATE TABLE IF NOT EXISTS item (
    stage INTEGER, lane INTEGER, image INTEGER, item INTEGER,
    forwards INTEGER NOT NULL, backwards INTEGER NOT NULL, score REAL NOT NULL,
    PRIMARY KEY (stage, lane, image, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS strongest (image INTEGER PRIMARY KEY, score REAL NOT NULL, point BLOB);
CREATE TABLE IF NOT EXISTS broken (
    image INTEGER PRIMARY KEY, stage INTEGER NOT NULL, item INTEGER NOT NULL,
    target INTEGER NOT NULL, forwards INTEGER NOT NULL, backwards INTEGER NOT NULL,
    score REAL NOT NULL, point BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
    stage INTEGER PRIMARY KEY, seconds REAL NOT NULL,
    forwards INTEGER NOT NULL, backwards INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class FinishedItem:
    """A work item that spent its budget without breaking its image."""

    stage: int
    lane: int
    image: int  # row of the ledger
    item: int
    forwards: int
    backwards: int
    score: float


class Journal:
    """A run's verdicts on disk, or in memory where there is no run folder.

    Args:
        path: the SQLite file; None keeps the journal in memory.
        identity: what the run is; a file of another run is refused.

    Raises:
        InputError: the file is damaged, of another run, or cannot be written.
    """

    def __init__(self, path: Path | None, identity: str):
        self.path = path
        try:
            # One thread uses the connection; autocommit, with explicit transactions below.
            self.db = sqlite3.connect(str(path or ":memory:"), isolation_level=None, timeout=30)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
            with self.transaction():
                for statement in _TABLES.split(";"):
                    self.db.execute(statement)
                held = self.db.execute("SELECT identity FROM run").fetchone()
                if held is None:
                    self.db.execute("INSERT INTO run VALUES (?)", (identity,))
                elif held[0] != identity:
                    raise InputError(f"{path} is the journal of another run; choose another --out")
        except sqlite3.Error as error:
            raise InputError(f"journal {path} cannot be used: {error}") from None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside is kept, or nothing of it."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            yield
            self.db.execute("COMMIT")
        except BaseException as error:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise InputError(f"journal {self.path} cannot be written: {error}") from None
            raise

    def close(self) -> None:
        self.db.close()

    def discard_if_bare(self) -> bool:
        """Remove a journal that no attack has written to yet; whether it was removed."""
        with self._reading():
            (rows,) = self.db.execute(
                "SELECT (SELECT COUNT(*) FROM item) + (SELECT COUNT(*) FROM broken)"
            ).fetchone()
        if rows or self.path is None:
            return False
        self.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        return True

    # -- writing; call inside a transaction -----------------------------------------------

    def clean(self, ledger: Ledger, rows: Tensor) -> None:
        self.db.executemany(
            "INSERT OR REPLACE INTO clean VALUES (?, ?, ?)",
            zip(
                rows.tolist(),
                ledger.clean_prediction[rows].tolist(),
                ledger.clean_confidence[rows].tolist(),
                strict=True,
            ),
        )

    def finished(self, item: FinishedItem) -> None:
        self.db.execute(
            "INSERT OR REPLACE INTO item VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                item.stage,
                item.lane,
                item.image,
                item.item,
                item.forwards,
                item.backwards,
                item.score,
            ),
        )

    def strongest(self, image: int, score: float, point: Tensor) -> None:
        self.db.execute(
            "INSERT OR REPLACE INTO strongest VALUES (?, ?, ?)", (image, score, _blob(point))
        )

    def broken(self, ledger: Ledger, image: int) -> None:
        self.db.execute(
            "INSERT OR REPLACE INTO broken VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                image,
                int(ledger.stage[image]),
                int(ledger.item[image]),
                int(ledger.target[image]),
                int(ledger.forwards[image]),
                int(ledger.backwards[image]),
                float(ledger.score[image]),
                _blob(ledger.adversarial[image]),
            ),
        )

    def spend(
        self, stage: int, seconds: float = 0.0, forwards: int = 0, backwards: int = 0
    ) -> None:
        """Add time, and passes of items that succeeded or were cancelled, to a stage's account.

        Passes of items that ended without success are in their own rows.
        """
        self.db.execute(
            "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT (stage) DO UPDATE SET "
            "seconds = seconds + excluded.seconds, forwards = forwards + excluded.forwards, "
            "backwards = backwards + excluded.backwards",
            (stage, seconds, forwards, backwards),
        )

    # -- reading --------------------------------------------------------------------------

    def restore(self, ledger: Ledger) -> None:
        """Bring an empty ledger to where the journal ends (costs of open images aside)."""
        shape = ledger.adversarial.shape[1:]
        with self._reading():
            for image, prediction, confidence in self.db.execute("SELECT * FROM clean"):
                ledger.clean_prediction[image] = prediction
                ledger.clean_confidence[image] = confidence
            for image, score, point in self.db.execute("SELECT * FROM strongest"):
                ledger.score[image] = score
                ledger.adversarial[image] = _tensor(point, shape)
            for row in self.db.execute("SELECT * FROM broken"):
                image = row[0]
                ledger.broken[image] = True
                for column, value in zip(
                    ("stage", "item", "target", "forwards", "backwards", "score"),
                    row[1:7],
                    strict=True,
                ):
                    getattr(ledger, column)[image] = value
                ledger.adversarial[image] = _tensor(row[7], shape)

    def items(self, stage: int) -> list[FinishedItem]:
        """The items of a stage that ended without success, in the order of their keys."""
        with self._reading():
            return [
                FinishedItem(*row)
                for row in self.db.execute(
                    "SELECT * FROM item WHERE stage = ? ORDER BY lane, image, item", (stage,)
                )
            ]

    def cost(self, stage: int) -> tuple[float, int, int]:
        """Seconds, forwards and backwards of a stage, over all processes that worked on it."""
        with self._reading():
            seconds, forwards, backwards = self.db.execute(
                "SELECT seconds, forwards, backwards FROM spent WHERE stage = ?", (stage,)
            ).fetchone() or (0.0, 0, 0)
            more = self.db.execute(
                "SELECT COALESCE(SUM(forwards), 0), COALESCE(SUM(backwards), 0) FROM item "
                "WHERE stage = ?",
                (stage,),
            ).fetchone()
            return seconds, forwards + more[0], backwards + more[1]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What cannot be read, or is not what was written, is damage."""
        try:
            yield
        except (sqlite3.Error, IndexError, TypeError, ValueError, RuntimeError) as error:
            what = " ".join(str(error).split())
            raise InputError(
                f"journal {self.path} is damaged ({what}); remove the run folder to start anew"
            ) from None


def _blob(point: Tensor) -> bytes:
    return point.detach().cpu().contiguous().numpy().astype("<f4").tobytes()


def _tensor(blob: bytes, shape: torch.Size) -> Tensor:
    return torch.from_numpy(np.frombuffer(blob, "<f4").reshape(shape).copy())
