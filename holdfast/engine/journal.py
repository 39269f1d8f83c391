"""The journal: verdicts in SQLite as they fall, so that an interrupted run loses nothing.

From time to time it also keeps the items in flight, so that a run which is killed more often than
an item lasts goes on all the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
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
CREATE TABLE IF NOT EXISTS strongest (
    image INTEGER PRIMARY KEY, score REAL NOT NULL, stage INTEGER NOT NULL, item INTEGER NOT NULL,
    point BLOB, witness BLOB);
CREATE TABLE IF NOT EXISTS broken (
    image INTEGER PRIMARY KEY, stage INTEGER NOT NULL, item INTEGER NOT NULL,
    target INTEGER NOT NULL, forwards INTEGER NOT NULL, backwards INTEGER NOT NULL,
    score REAL NOT NULL, point BLOB NOT NULL, witness BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
    session INTEGER, worker INTEGER, stage INTEGER, seconds REAL NOT NULL,
    forwards INTEGER NOT NULL, backwards INTEGER NOT NULL,
    PRIMARY KEY (session, worker, stage)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS flight (
    stage INTEGER, lane INTEGER, image INTEGER, item INTEGER,
    forwards INTEGER NOT NULL, backwards INTEGER NOT NULL, refused REAL NOT NULL,
    state BLOB NOT NULL, PRIMARY KEY (stage, lane, image, item));
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


@dataclass(frozen=True)
class FlyingItem:
    """A work item between two steps.

    Attributes:
        forwards, backwards: passes spent on it so far.
        refused: the score at which its point was last looked at in vain.
        state: its row of the attack's state, without the batch dimension, on the CPU.
    """

    forwards: int
    backwards: int
    refused: float
    state: Mapping[str, Tensor]


class Journal:
    """A run's verdicts on disk.

    Args:
        path: the SQLite file; None is a temporary one, which SQLite keeps in memory while it is
            small.
        identity: what the run is; a file of another run is refused.
        worker: whose journal it is, where several processes share a run.
        session: how often the run was begun before; by default one more than the file knows of.

    Raises:
        InputError: the file is damaged, of another run, or cannot be written.
    """

    def __init__(
        self, path: Path | None, identity: str, worker: int = 0, session: int | None = None
    ):
        self.path, self.worker = path, worker
        try:
            # One thread uses the connection; autocommit, with explicit transactions below.
            self.db = sqlite3.connect(
                str(path.absolute() if path else ""), isolation_level=None, timeout=30, uri=True
            )
            # What a finished stage leaves of its items in flight goes back to the disk.
            self.db.execute("PRAGMA auto_vacuum=FULL")
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
        with self._reading():
            (last,) = self.db.execute("SELECT COALESCE(MAX(session), -1) FROM spent").fetchone()
            self.session: int = last + 1 if session is None else session

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

    def strongest(self, ledger: Ledger, image: int) -> None:
        self.db.execute(
            "INSERT OR REPLACE INTO strongest VALUES (?, ?, ?, ?, ?, ?)",
            (
                image,
                float(ledger.score[image]),
                int(ledger.found[image]),
                int(ledger.found_item[image]),
                _blob(ledger.adversarial[image]),
                _blob(ledger.witness[image]),
            ),
        )

    def broken(self, ledger: Ledger, image: int) -> None:
        self.db.execute(
            "INSERT OR REPLACE INTO broken VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                image,
                int(ledger.stage[image]),
                int(ledger.item[image]),
                int(ledger.target[image]),
                int(ledger.forwards[image]),
                int(ledger.backwards[image]),
                float(ledger.score[image]),
                _blob(ledger.adversarial[image]),
                _blob(ledger.witness[image]),
            ),
        )

    def spend(
        self, stage: int, seconds: float = 0.0, forwards: int = 0, backwards: int = 0
    ) -> None:
        """Add time, and passes of items that succeeded or were cancelled, to a stage's account.

        Passes of items that ended without success are in their own rows.
        """
        self.db.execute(
            "INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (session, worker, stage) DO UPDATE SET "
            "seconds = seconds + excluded.seconds, forwards = forwards + excluded.forwards, "
            "backwards = backwards + excluded.backwards",
            (self.session, self.worker, stage, seconds, forwards, backwards),
        )

    def fly(self, stage: int, lane: int, items: Mapping[tuple[int, int], FlyingItem]) -> None:
        """Keep the items (item, image) in flight, in place of those of this lane and before."""
        self.db.execute(
            "DELETE FROM flight WHERE stage < ? OR (stage = ? AND lane <= ?)", (stage, stage, lane)
        )
        self.db.executemany(
            "INSERT INTO flight VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (stage, lane, image, item, it.forwards, it.backwards, it.refused, _packed(it.state))
                for (item, image), it in items.items()
            ),
        )

    def absorb(self, path: Path, images: Sequence[int] | None = None) -> None:
        """Take over what another worker's journal of the same run knows.

        Args:
            path: a journal that nobody has open.
            images: only what concerns these; the file is then not touched at all, so that workers
                on several machines may read it at once. None takes everything, and the account.

        Raises:
            InputError: the other journal is damaged, or of another run.
        """
        mode = "mode=rw" if images is None else "mode=ro&immutable=1"
        with self._reading(path):
            self.db.execute("ATTACH ? AS other", (f"{path.absolute().as_uri()}?{mode}",))
            try:
                tables = "SELECT COUNT(*) FROM other.sqlite_master WHERE name = 'run'"
                if not self.db.execute(tables).fetchone()[0]:
                    return  # its worker died before it wrote anything
                own, its = (
                    self.db.execute(f"SELECT identity FROM {name}.run").fetchone()
                    for name in ("main", "other")
                )
                if own != its:
                    raise InputError(f"{path} is the journal of another run; choose another --out")
                with self.transaction():
                    self._absorb(images)
            finally:
                self.db.execute("DETACH other")

    def _absorb(self, images: Sequence[int] | None) -> None:
        execute, which = self.db.execute, ""
        if images is not None:
            execute("CREATE TEMP TABLE IF NOT EXISTS wanted (image INTEGER PRIMARY KEY)")
            execute("DELETE FROM wanted")
            self.db.executemany("INSERT INTO wanted VALUES (?)", ((i,) for i in images))
            which = "AND image IN (SELECT image FROM wanted)"
        else:
            execute("INSERT OR REPLACE INTO spent SELECT * FROM other.spent")
        for table in ("item", "broken"):  # what is known twice is known alike
            execute(f"INSERT OR IGNORE INTO {table} SELECT * FROM other.{table} WHERE 1 {which}")
        execute(f"INSERT OR REPLACE INTO flight SELECT * FROM other.flight WHERE 1 {which}")
        execute(
            f"INSERT INTO strongest SELECT * FROM other.strongest WHERE 1 {which} "
            "ON CONFLICT (image) DO UPDATE SET score = excluded.score, stage = excluded.stage, "
            "item = excluded.item, point = excluded.point, witness = excluded.witness "
            "WHERE excluded.score < score"
        )

    def dump(self) -> bytes:
        """The journal as the bytes of an SQLite file."""
        return self.db.serialize()

    # -- reading --------------------------------------------------------------------------

    def restore(self, ledger: Ledger) -> None:
        """Bring an empty ledger to where the journal ends (costs of open images aside)."""
        shape, witness = ledger.adversarial.shape[1:], ledger.witness.shape[1:]
        with self._reading():
            for image, prediction, confidence in self.db.execute("SELECT * FROM clean"):
                ledger.clean_prediction[image] = prediction
                ledger.clean_confidence[image] = confidence
            for image, score, stage, item, *blobs in self.db.execute("SELECT * FROM strongest"):
                ledger.score[image] = score
                ledger.found[image], ledger.found_item[image] = stage, item
                ledger.adversarial[image] = _tensor(blobs[0], shape)
                ledger.witness[image] = _tensor(blobs[1], witness)
            for row in self.db.execute("SELECT * FROM broken"):
                image = row[0]
                ledger.broken[image] = True
                for column, value in zip(
                    ("stage", "item", "target", "forwards", "backwards", "score"),
                    row[1:7],
                    strict=True,
                ):
                    getattr(ledger, column)[image] = value
                ledger.found[image], ledger.found_item[image] = row[1], row[2]
                ledger.adversarial[image] = _tensor(row[7], shape)
                ledger.witness[image] = _tensor(row[8], witness)

    def broken_images(self) -> list[int]:
        with self._reading():
            return [image for (image,) in self.db.execute("SELECT image FROM broken")]

    def items(self, stage: int) -> list[FinishedItem]:
        """The items of a stage that ended without success, in the order of their keys."""
        with self._reading():
            return [
                FinishedItem(*row)
                for row in self.db.execute(
                    "SELECT * FROM item WHERE stage = ? ORDER BY lane, image, item", (stage,)
                )
            ]

    def flying(self, stage: int, lane: int) -> dict[tuple[int, int], FlyingItem]:
        """The items (item, image) that were in flight when a run was interrupted.

        Some may have ended since they were kept.
        """
        with self._reading():
            rows = self.db.execute(
                "SELECT item, image, forwards, backwards, refused, state FROM flight "
                "WHERE stage = ? AND lane = ?",
                (stage, lane),
            )
            return {
                (item, image): FlyingItem(forwards, backwards, refused, load(state))
                for item, image, forwards, backwards, refused, state in rows
            }

    def cost(self, stage: int) -> tuple[float, int, int]:
        """Seconds, forwards and backwards of a stage, over all processes that worked on it.

        Workers of one session work at the same time: the slowest one's seconds count.
        """
        with self._reading():
            seconds, forwards, backwards = self.db.execute(
                "SELECT COALESCE(SUM(slowest), 0.0), COALESCE(SUM(forwards), 0), "
                "COALESCE(SUM(backwards), 0) FROM (SELECT MAX(seconds) AS slowest, "
                "SUM(forwards) AS forwards, SUM(backwards) AS backwards "
                "FROM spent WHERE stage = ? GROUP BY session)",
                (stage,),
            ).fetchone()
            more = self.db.execute(
                "SELECT COALESCE(SUM(forwards), 0), COALESCE(SUM(backwards), 0) FROM item "
                "WHERE stage = ?",
                (stage,),
            ).fetchone()
            return seconds, forwards + more[0], backwards + more[1]

    @contextmanager
    def _reading(self, path: Path | None = None) -> Iterator[None]:
        """What cannot be read, or is not what was written, is damage."""
        try:
            yield
        except InputError:
            raise
        except (
            sqlite3.Error, SafetensorError, IndexError, TypeError, ValueError, RuntimeError,
        ) as error:  # fmt: skip
            what = " ".join(str(error).split())
            raise InputError(
                f"journal {path or self.path} is damaged ({what}); "
                "remove the run folder to start anew"
            ) from None


def _blob(point: Tensor) -> bytes:
    return point.detach().cpu().contiguous().numpy().astype("<f4").tobytes()


def _packed(state: Mapping[str, Tensor]) -> bytes:
    # Copies: safetensors refuses tensors that share memory, as an image and its best point may.
    return save({k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()})


def _tensor(blob: bytes, shape: torch.Size) -> Tensor:
    return torch.from_numpy(np.frombuffer(blob, "<f4").reshape(shape).copy())
