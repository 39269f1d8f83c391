"""One search, shared among several workers.

Each worker searches every N-th image that is open, with a journal of its own (`journal-1.sqlite`,
…) in the run folder as its own machine has it, so that a worker that dies loses no more than its
own last step. At the end worker 0 absorbs the other journals into the run's and *resumes* it:
nothing is left to do, and what a resumed run says is what a single process would have said. The
next session does the same with what dead workers left behind, however many they were, and tells
each worker what is known of its images.

Nobody reads a journal that another has open. Whether machines share a file system makes no
difference: what worker 0 sees it reads, and the rest is carried to it by torch.distributed.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..distributed import CHUNK, Workers
from ..errors import InputError
from ..runs.files import make_folder
from ..runs.lock import worker_on
from .journal import Journal
from .search import Search

NAME = "journal.sqlite"
OTHERS = "journal-*.sqlite"
SIDES = ("", "-wal", "-shm")  # the files of a journal


def _name(worker: int) -> str:
    return f"journal-{worker}.sqlite" if worker else NAME


@dataclass(frozen=True)
class _Found:
    """A worker's journal, as a machine has it.

    Attributes:
        name: of the file.
        state: sizes and times of its files: two machines that share a file system see the same.
    """

    name: str
    state: tuple[tuple[int, int], ...]

    @staticmethod
    def all_in(folder: Path, with_main: bool) -> list[_Found]:
        paths = sorted(folder.glob(OTHERS))
        paths += [folder / NAME] if with_main and (folder / NAME).exists() else []
        found = []
        for path in paths:
            stats = [Path(f"{path}{side}") for side in SIDES[:2]]
            known = [stat.stat() for stat in stats if stat.exists()]
            found.append(_Found(path.name, tuple((s.st_size, s.st_mtime_ns) for s in known)))
        return found


class Shard:
    """A worker's share of a run.

    Args:
        workers: who shares the run.
        folder: the run folder, which need not be the same one for all; None keeps the journals in
            memory.
        key: the run's identity.
        count: how many images there are.
        readers: int64 (N, W), which workers can read each image, −1 in the places that are left
            over; None: all can read all.

    Attributes:
        journal: this worker's, at work; worker 0's is the run's.
        rows: the images that are this worker's, int64 (R,).

    Raises:
        InputError: a journal is damaged or of another run.
    """

    def __init__(
        self,
        workers: Workers,
        folder: Path | None,
        key: str,
        count: int,
        readers: Tensor | None = None,
    ):
        self.workers, self.folder, self.key, self.count = workers, folder, key, count
        if workers.size == 1:
            self.journal = self._opened_with_all()
            self.rows = torch.arange(count)
            return
        if folder is None:
            self.journal = Journal(None, key, workers.rank, 0)
            self.rows = shares_of(torch.arange(count), workers.size, readers)[workers.rank]
            return
        path = make_folder(folder) / _name(workers.rank)
        known: tuple[int, list[int], bool] | None = None
        if workers.leads:
            journal = self._opened_with_all()
            known = journal.session, journal.broken_images(), journal.is_bare()
            journal.close()  # now parts of it can be read
        else:
            self._bring_together(None)
        known = workers.share(known)
        assert known is not None
        session, broken, bare = known
        standing = torch.ones(count, dtype=torch.bool)
        standing[broken] = False
        shares = shares_of(standing.nonzero().squeeze(1), workers.size, readers)
        self.rows = shares[workers.rank]
        self.journal = Journal(path, key, workers.rank, session)
        for worker in () if bare else range(1, workers.size):
            parts = workers.carry(self._extract(shares[worker]), 0, worker)
            if worker == workers.rank:
                _absorb(self.journal, parts)

    def _opened_with_all(self) -> Journal:
        """The run's own journal, with whatever other workers left in theirs."""
        if self.folder is None:
            return Journal(None, self.key)
        journal = Journal(self.folder / NAME, self.key)
        self._bring_together(journal)
        return journal

    def _bring_together(self, journal: Journal | None) -> None:
        """Absorb all workers' journals, wherever they lie, into worker 0's `journal`."""
        workers, folder = self.workers, self.folder
        assert folder is not None
        # A machine where worker 0 was once may have the run's own journal of then.
        host = workers.share(socket.gethostname())
        elsewhere = not workers.leads and host != socket.gethostname()
        mine = _Found.all_in(folder, elsewhere and worker_on(folder) is None)
        plan: dict[_Found, int] = {}  # who brings which
        for worker, held in enumerate(workers.gather(mine)):
            for found in held:
                plan.setdefault(found, worker)
        for found, holder in sorted(workers.share(plan).items(), key=lambda each: each[0].name):
            parts = workers.carry(self._parts(folder / found.name), holder, 0) if holder else None
            if journal is not None and parts is None:
                journal.absorb(folder / found.name)
            elif journal is not None and parts is not None:
                _absorb(journal, parts)
        workers.meet()  # now worker 0 has them for good
        for found in mine:
            for side in SIDES:
                Path(f"{folder / found.name}{side}").unlink(missing_ok=True)

    def _parts(self, path: Path) -> Iterator[bytes]:
        """A journal that nobody has open, as the bytes of one file."""
        Journal(path, self.key).close()  # what is in its log goes into the file
        log = Path(f"{path}{SIDES[1]}")
        if log.exists() and log.stat().st_size:
            raise InputError(f"journal {path} is being read by another program; end that one")
        with path.open("rb") as file:
            while part := file.read(CHUNK):
                yield part

    def _extract(self, rows: Tensor) -> Iterator[bytes]:
        """What the run's journal, which nobody has open, knows of some images."""
        assert self.folder is not None
        with tempfile.TemporaryDirectory() as folder:
            part = Journal(Path(folder) / NAME, self.key)
            part.absorb(self.folder / NAME, rows.tolist())
            part.close()
            yield from self._parts(Path(folder) / NAME)

    def search(self, made: Callable[[Journal, Tensor], Search]) -> Search | None:
        """Search this worker's images, then bring all verdicts together.

        Args:
            made: the search over some rows of the images, with an empty ledger, and a journal.

        Returns:
            in worker 0, the search of all images, at its end; None in the others.
        """
        try:
            return self._search(made)
        finally:
            self.journal.close()
            if self.folder is not None and not self.workers.leads:
                with suppress(OSError):  # it holds the run, where worker 0 sees it too
                    self.folder.rmdir()

    def discard_if_bare(self) -> bool:
        """Remove this worker's journal if no attack has written to it; whether it did."""
        path = self.journal.path
        return path is not None and Journal(path, self.key).discard_if_bare()

    def _search(self, made: Callable[[Journal, Tensor], Search]) -> Search | None:
        workers, alone = self.workers, self.workers.size == 1
        if alone or len(self.rows):
            search = made(self.journal, self.rows)
            search.run()
            if alone:
                return search
            del search  # and with it a copy of the images
        if self.folder is None:
            for worker in range(1, workers.size):
                parts = [self.journal.dump()] if workers.rank == worker else []
                _absorb(self.journal, workers.carry(_chunks(parts), worker, 0))
        elif workers.leads:
            self._bring_together(self.journal)
        else:
            self.journal.close()
            self._bring_together(None)
        if not workers.leads:
            return None
        merged = made(self.journal, torch.arange(self.count))
        merged.run()
        return merged


def shares_of(rows: Tensor, size: int, readers: Tensor | None = None) -> list[Tensor]:
    """Which of some images each of `size` workers takes.

    Every N-th, for hard images often lie side by side; where not all can read all, every N-th of
    those that N of them can.

    Args:
        rows: the images, int64 (R,).
        readers: as of `Shard`.

    Example:
        >>> shares_of(torch.arange(5), 2)
        [tensor([0, 2, 4]), tensor([1, 3])]
        >>> shares_of(torch.arange(4), 3, torch.tensor([[0, 1], [2, -1], [0, 1], [2, -1]]))
        [tensor([0]), tensor([2]), tensor([1, 3])]
    """
    if readers is None:
        return [rows[worker::size] for worker in range(size)]
    shares: list[list[Tensor]] = [[] for _ in range(size)]
    of_rows = readers[rows]
    for group in torch.unique(of_rows, dim=0):
        together = rows[(of_rows == group).all(1)]
        members = group[group >= 0].tolist()
        for place, worker in enumerate(members):
            shares[worker].append(together[place :: len(members)])
    return [torch.cat([rows[:0], *share]).sort().values for share in shares]


def _chunks(wholes: Iterable[bytes]) -> Iterator[bytes]:
    return (
        whole[begin : begin + CHUNK] for whole in wholes for begin in range(0, len(whole), CHUNK)
    )


def _absorb(journal: Journal, parts: Iterator[bytes]) -> None:
    """Take over what a journal knows whose bytes are brought; of none, nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _name(1)
        with path.open("wb") as file:
            for part in parts:
                file.write(part)
        if path.stat().st_size:
            journal.absorb(path)
