"""The journal: verdicts in SQLite as they fall, so that an interrupted run loses nothing.

From time to time it also keeps the items in flight, so that a run which is killed more often than
an item lasts goes on all the same.
"""

from __future__ import annotations

import sqlite3
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import InputError
from ..models.metered import Answer
from ..stored import NotInMemory
from .batch import Key, StoredItem
from .ledger import Ledger
from .points import StoredPoints

# Every row ends with a checksum over its other values: see `_checksum`.
_SUM = "checksum INTEGER NOT NULL"
_TABLES = {
    "run": "identity TEXT NOT NULL",
    "clean": f"image INTEGER PRIMARY KEY, prediction INTEGER NOT NULL, confidence REAL NOT NULL, "
    f"{_SUM}",
    "item": "stage INTEGER, level INTEGER, image INTEGER, item INTEGER, forwards INTEGER NOT NULL, "
    f"backwards INTEGER NOT NULL, score REAL NOT NULL, {_SUM}, "
    "PRIMARY KEY (stage, level, image, item)",
    "strongest": "image INTEGER PRIMARY KEY, score REAL NOT NULL, stage INTEGER NOT NULL, "
    f"item INTEGER NOT NULL, point BLOB, witness BLOB, {_SUM}",
    "broken": "image INTEGER PRIMARY KEY, stage INTEGER NOT NULL, item INTEGER NOT NULL, "
    "target INTEGER NOT NULL, forwards INTEGER NOT NULL, backwards INTEGER NOT NULL, "
    f"score REAL NOT NULL, point BLOB NOT NULL, witness BLOB NOT NULL, {_SUM}",
    "spent": "session INTEGER, worker INTEGER, stage INTEGER, seconds REAL NOT NULL, "
    f"forwards INTEGER NOT NULL, backwards INTEGER NOT NULL, {_SUM}, "
    "PRIMARY KEY (session, worker, stage)",
    "flight": "stage INTEGER, level INTEGER, image INTEGER, item INTEGER, "
    "forwards INTEGER NOT NULL, backwards INTEGER NOT NULL, refused REAL NOT NULL, "
    f"state BLOB NOT NULL, {_SUM}, PRIMARY KEY (stage, level, image, item)",
    # Images that were judged whole, in the order of a sample: a block from place `first` on, with
    # the stages that had been called for by then, as bits.
    "block": f"first INTEGER PRIMARY KEY, images INTEGER NOT NULL, called INTEGER NOT NULL, "
    f"seconds REAL NOT NULL, {_SUM}",
    # What was asked of a model that counts its queries: see `holdfast.models.metered`.
    "asked": f"image INTEGER PRIMARY KEY, queries INTEGER NOT NULL, {_SUM}",
    "answer": f"image INTEGER, point BLOB, number INTEGER NOT NULL, logits BLOB NOT NULL, {_SUM}, "
    "PRIMARY KEY (image, point)",
    # What came of the whole run, once that is known.
    "outcome": f"part INTEGER PRIMARY KEY, packed BLOB NOT NULL, {_SUM}",
}
# Columns of `broken` that the ledger has too.
_OF_VERDICT = ("stage", "item", "target", "forwards", "backwards", "score")
_WITHOUT_ROWID = ("item", "spent", "answer")
_PART_BYTES = 2**24  # of the outcome, in one row
_CHECKED = [table for table in _TABLES if table != "run"]


ASIDE = -1  # in place of a stage: time that was spent on none


@dataclass(frozen=True)
class Block:
    """Images of a sample that were judged whole, one after the other in its order.

    Attributes:
        first: the place of the first one.
        images: how many.
        called: which stages that wait for a sign had been called for, as bits.
        seconds: what it took.
    """

    first: int
    images: int
    called: int
    seconds: float


@dataclass(frozen=True)
class FinishedItem:
    """A work item that spent its budget without breaking its image."""

    stage: int
    level: int
    image: int  # row of the ledger
    item: int
    forwards: int
    backwards: int
    score: float


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
        self._place = None if path is None else path.absolute()
        self._lent = self._closed = False
        if path is not None and (path.is_symlink() or (path.exists() and not path.is_file())):
            # SQLite would write to wherever a link leads.
            raise InputError(f"journal {path} cannot be used: it is no regular file")
        try:
            # One thread uses the connection, or after the run whoever it is lent to; autocommit,
            # with explicit transactions below.
            self.db = sqlite3.connect(
                str(path.absolute() if path else ""), isolation_level=None, timeout=30, uri=True,
                check_same_thread=path is not None,
            )  # fmt: skip
            self.db.execute("PRAGMA trusted_schema=OFF")
            # What a finished stage leaves of its items in flight goes back to the disk.
            self.db.execute("PRAGMA auto_vacuum=FULL")
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
            begun = self._tables("main")
            with self.transaction():
                if not begun:
                    for name, columns in _TABLES.items():
                        self.db.execute(_definition(name, columns))
                    self.db.execute("INSERT INTO run VALUES (?)", (identity,))
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _damaged(path, error) from None
        if begun:
            with self._reading():
                self._check("main", identity)
        with self._reading():
            (last,) = self.db.execute("SELECT COALESCE(MAX(session), -1) FROM spent").fetchone()
            self.session: int = last + 1 if session is None else session

    def _tables(self, where: str) -> set[str]:
        """How the tables of a database are defined."""
        found = self.db.execute(f"SELECT sql FROM {where}.sqlite_master WHERE sql IS NOT NULL")
        return {sql for (sql,) in found}

    def _check(self, where: str, identity: str) -> None:
        """That a journal (`main`, or `other`) is whole, row by row, and of this run."""
        if self._tables(where) != {_definition(*table) for table in _TABLES.items()}:
            raise ValueError("its tables are not those of a journal")
        ((fault,), *_) = self.db.execute(f"PRAGMA {where}.integrity_check(1)").fetchall()
        if fault != "ok":
            raise ValueError(fault)
        held = self.db.execute(f"SELECT identity FROM {where}.run").fetchall()
        if held != [(identity,)]:
            file = self.path if where == "main" else "a worker's journal"
            raise InputError(f"{file} is the journal of another run; choose another --out")
        for table in _CHECKED:
            for row in self.db.execute(f"SELECT * FROM {where}.{table}"):
                if _checksum(row[:-1]) != row[-1]:
                    raise ValueError(f"the checksum of a row of {table!r} differs")

    def _put(self, table: str, *values: Any) -> None:
        """A row in place of the one of its key, if any."""
        marks = ", ".join("?" * (len(values) + 1))
        self.db.execute(
            f"INSERT OR REPLACE INTO {table} VALUES ({marks})", (*values, _checksum(values))
        )

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
        if self.path is None and self._lent:
            weakref.finalize(self, self.db.close)  # gone with the last who reads it
            return
        if self.path is not None and not self._closed:
            with suppress(sqlite3.Error):  # even where somebody else has it open, to look at it
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.db.close()
        self._closed = True

    def lend(self, images: NotInMemory) -> StoredPoints:
        """The adversarial images that it keeps, of all these images; also once it is closed."""
        self._lent = True
        return StoredPoints(images, self._points)

    def _points(self, images: Sequence[int]) -> dict[int, Tensor]:
        if self._closed:
            assert self._place is not None
            return _points_of(self._place, images)
        with self._reading():
            return _points_in(self.db, images)

    def is_bare(self) -> bool:
        """Whether no attack has written to it yet."""
        with self._reading():
            return not any(
                self.db.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0]
                for table in ("item", "broken", "flight", "strongest", "asked")
            )

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
        for row in zip(
            rows.tolist(),
            ledger.clean_prediction[rows].tolist(),
            ledger.clean_confidence[rows].tolist(),
            strict=True,
        ):
            self._put("clean", *row)

    def finished(self, item: FinishedItem) -> None:
        self._put("item", *astuple(item))

    def strongest(self, ledger: Ledger, image: int) -> None:
        self._put(
            "strongest",
            image,
            float(ledger.score[image]),
            int(ledger.found[image]),
            int(ledger.found_item[image]),
            _blob(ledger.adversarial[image]),
            _blob(ledger.witness[image]),
        )

    def broken(self, ledger: Ledger, image: int) -> None:
        self._put(
            "broken",
            image,
            int(ledger.stage[image]),
            int(ledger.item[image]),
            int(ledger.target[image]),
            int(ledger.forwards[image]),
            int(ledger.backwards[image]),
            float(ledger.score[image]),
            _blob(ledger.adversarial[image]),
            _blob(ledger.witness[image]),
        )

    def spend(
        self, stage: int, seconds: float = 0.0, forwards: int = 0, backwards: int = 0
    ) -> None:
        """Add time, and passes of items that succeeded or were cancelled, to a stage's account.

        Passes of items that ended without success are in their own rows.
        """
        place = self.session, self.worker, stage
        before = self.db.execute(
            "SELECT seconds, forwards, backwards FROM spent "
            "WHERE session = ? AND worker = ? AND stage = ?",
            place,
        ).fetchone() or (0.0, 0, 0)
        self._put("spent", *place, before[0] + seconds, before[1] + forwards, before[2] + backwards)

    def fly(self, stage: int, level: int, items: Mapping[Key, StoredItem]) -> None:
        """Keep the items (item, image) in flight, in place of those of this level and before."""
        self.db.execute(
            "DELETE FROM flight WHERE stage < ? OR (stage = ? AND level <= ?)",
            (stage, stage, level),
        )
        for (item, image), it in items.items():
            spent = it.forwards, it.backwards, it.refused
            self._put("flight", stage, level, image, item, *spent, _packed(it.state))

    def judged(self, block: Block) -> None:
        """Take down a block, in place of whatever was said of the images from there on."""
        self.db.execute("DELETE FROM block WHERE first >= ?", (block.first,))
        self._put("block", *astuple(block))

    # -- queries; these begin transactions of their own -----------------------------------

    def asking(self, queries: Mapping[int, int]) -> None:
        """How many queries about each image there will have been; before the model is asked."""
        with self.transaction():
            for image, count in queries.items():
                self._put("asked", image, count)

    def answered(self, answers: Sequence[tuple[int, bytes, Answer]]) -> None:
        """What the model said at each point of an image."""
        with self.transaction():
            for image, point, answer in answers:
                known = self.db.execute(
                    "SELECT 1 FROM answer WHERE image = ? AND point = ?", (image, point)
                )
                if known.fetchone() is None:
                    self._put("answer", image, point, answer.number, _blob(answer.logits))

    def keep(self, answers: Sequence[tuple[int, bytes, Answer]]) -> None:
        """Forget all answers but these."""
        with self.transaction():
            self.db.execute("DELETE FROM answer")
            for image, point, answer in answers:
                self._put("answer", image, point, answer.number, _blob(answer.logits))

    def queries(self) -> dict[int, int]:
        """How many queries about each image there were."""
        with self._reading():
            return dict(self.db.execute("SELECT image, queries FROM asked").fetchall())

    def answers(self) -> list[tuple[int, bytes, Answer]]:
        """What `keep` and `answered` wrote."""
        with self._reading():
            return [
                (image, point, Answer(number, _tensor(logits, torch.Size([-1]))))
                for image, point, number, logits in self.db.execute(
                    "SELECT image, point, number, logits FROM answer"
                )
            ]

    def conclude(self, packed: bytes) -> None:
        """Keep what came of the whole run."""
        with self.transaction():
            self.db.execute("DELETE FROM outcome")
            for part, begin in enumerate(range(0, len(packed), _PART_BYTES)):
                self._put("outcome", part, packed[begin : begin + _PART_BYTES])

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
                if not self._tables("other"):
                    return  # its worker died before it wrote anything
                ((identity,),) = self.db.execute("SELECT identity FROM main.run").fetchall()
                self._check("other", identity)
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
        execute(
            f"INSERT INTO asked SELECT * FROM other.asked WHERE 1 {which} "
            "ON CONFLICT (image) DO UPDATE SET queries = excluded.queries, "
            "checksum = excluded.checksum WHERE excluded.queries > queries"
        )
        execute(f"INSERT OR IGNORE INTO answer SELECT * FROM other.answer WHERE 1 {which}")
        execute(f"INSERT OR REPLACE INTO flight SELECT * FROM other.flight WHERE 1 {which}")
        execute(
            f"INSERT INTO strongest SELECT * FROM other.strongest WHERE 1 {which} "
            "ON CONFLICT (image) DO UPDATE SET score = excluded.score, stage = excluded.stage, "
            "item = excluded.item, point = excluded.point, witness = excluded.witness, "
            "checksum = excluded.checksum "
            "WHERE excluded.score < score"
        )

    def dump(self) -> bytes:
        """The journal as the bytes of an SQLite file."""
        return self.db.serialize()

    # -- reading --------------------------------------------------------------------------

    def restore(self, ledger: Ledger) -> None:
        """Bring an empty ledger to where the journal ends (costs of open images aside)."""
        shape, witness = ledger.adversarial.shape[1:], ledger.witness.shape[1:]
        held = ledger.adversarial if isinstance(ledger.adversarial, Tensor) else None
        point_of = "NULL" if held is None else "point"  # they are read when they are asked for
        with self._reading():
            for image, prediction, confidence in self.db.execute(
                "SELECT image, prediction, confidence FROM clean"
            ):
                ledger.clean_prediction[image] = prediction
                ledger.clean_confidence[image] = confidence
            for image, score, stage, item, point, shown in self.db.execute(
                f"SELECT image, score, stage, item, {point_of}, witness FROM strongest"
            ):
                ledger.score[image] = score
                ledger.found[image], ledger.found_item[image] = stage, item
                if held is not None:
                    held[image] = _tensor(point, shape)
                ledger.witness[image] = _tensor(shown, witness)
            for image, point, shown, *values in self.db.execute(
                f"SELECT image, {point_of}, witness, {', '.join(_OF_VERDICT)} FROM broken"
            ):
                ledger.broken[image] = True
                for column, value in zip(_OF_VERDICT, values, strict=True):
                    getattr(ledger, column)[image] = value
                ledger.found[image] = ledger.stage[image]
                ledger.found_item[image] = ledger.item[image]
                if held is not None:
                    held[image] = _tensor(point, shape)
                ledger.witness[image] = _tensor(shown, witness)

    def broken_images(self) -> list[int]:
        with self._reading():
            return [image for (image,) in self.db.execute("SELECT image FROM broken")]

    def outcome(self) -> bytes | None:
        """What came of the whole run; None where that was not known yet."""
        with self._reading():
            parts = self.db.execute("SELECT packed FROM outcome ORDER BY part").fetchall()
            return b"".join(part for (part,) in parts) if parts else None

    def items(self, stage: int) -> list[FinishedItem]:
        """The items of a stage that ended without success, in the order of their keys."""
        with self._reading():
            return [
                FinishedItem(*row)
                for row in self.db.execute(
                    "SELECT stage, level, image, item, forwards, backwards, score FROM item "
                    "WHERE stage = ? ORDER BY level, image, item",
                    (stage,),
                )
            ]

    def flying(self, stage: int, level: int) -> dict[Key, StoredItem]:
        """The items (item, image) that were in flight when a run was interrupted.

        Some may have ended since they were kept.
        """
        with self._reading():
            rows = self.db.execute(
                "SELECT item, image, forwards, backwards, refused, state FROM flight "
                "WHERE stage = ? AND level = ?",
                (stage, level),
            )
            return {
                Key(item, image): StoredItem(forwards, backwards, refused, load(state))
                for item, image, forwards, backwards, refused, state in rows
            }

    def blocks(self) -> list[Block]:
        """The blocks that were judged whole, in order."""
        with self._reading():
            rows = self.db.execute(
                "SELECT first, images, called, seconds FROM block ORDER BY first"
            )
            return [Block(*row) for row in rows]

    def seconds(self, session: int | None = None) -> float:
        """What the run has taken, or one session of it; of workers, the slowest one."""
        which, values = ("", ()) if session is None else ("WHERE session = ?", (session,))
        with self._reading():
            (total,) = self.db.execute(
                "SELECT COALESCE(SUM(slowest), 0.0) FROM (SELECT MAX(seconds) AS slowest "
                f"FROM spent {which} GROUP BY session, stage)",
                values,
            ).fetchone()
            return float(total)

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
            OverflowError, MemoryError,
        ) as error:  # fmt: skip
            raise _damaged(path or self.path, error) from None


def stored_points(path: Path, images: NotInMemory) -> StoredPoints:
    """The adversarial images that a journal keeps, which nobody writes to any more."""
    return StoredPoints(images, partial(_points_of, path.absolute()))


def _points_of(path: Path, images: Sequence[int]) -> dict[int, Tensor]:
    """The same as `_points_in`, of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", timeout=30, uri=True)) as db:
            return _points_in(db, images)
    except (sqlite3.Error, ValueError) as error:
        raise _damaged(path, error) from None


def _points_in(db: sqlite3.Connection, images: Sequence[int]) -> dict[int, Tensor]:
    """What broke some images, or came closest to it, flat, by their numbers."""
    found = {}
    for table, image in product(("strongest", "broken"), images):
        for (point,) in db.execute(f"SELECT point FROM {table} WHERE image = ?", (image,)):
            found[image] = _tensor(point, torch.Size([-1]))
    return found


def _definition(name: str, columns: str) -> str:
    without = " WITHOUT ROWID" if name in _WITHOUT_ROWID else ""
    return f"CREATE TABLE {name} ({columns}){without}"


# What SQLite says where the disk, the folder or another process is at fault, not the file.
_OUTSIDE = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY,
)  # fmt: skip


def _damaged(path: Path | None, error: Exception) -> InputError:
    what = " ".join(str(error).split())[:200]
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OUTSIDE:
        return InputError(
            f"journal {path} cannot be used: {what}; look at the folder's disk and permissions, or "
            "remove the run folder to start anew"
        )
    return InputError(f"journal {path} is damaged ({what}); remove the run folder to start anew")


def _checksum(values: Sequence[Any]) -> int:
    """CRC-32 of a row's values: it notices every flipped bit, and costs next to nothing."""
    found = 0
    for value in values:
        if isinstance(value, float):
            value += 0.0  # SQLite knows no -0.0
        content = value if isinstance(value, bytes) else repr(value).encode()
        found = zlib.crc32(content, zlib.crc32(b"%d:" % len(content), found))
    return found


def _blob(point: Tensor) -> bytes:
    return point.detach().cpu().contiguous().numpy().astype("<f4").tobytes()


def _packed(state: Mapping[str, Tensor]) -> bytes:
    # Copies: safetensors refuses tensors that share memory, as an image and its best point may.
    return save({k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()})


def _tensor(blob: bytes, shape: torch.Size) -> Tensor:
    return torch.from_numpy(np.frombuffer(blob, "<f4").reshape(shape).copy())
