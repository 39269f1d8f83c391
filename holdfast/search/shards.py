"""One search, shared among several workers.

Each worker searches every N-th image that is open, with a journal of its own beside the run's
(`journal-1.sqlite`, …), so that a worker that dies loses no more than its own last step. At the
end worker 0 absorbs the other journals into the run's and *resumes* it: nothing is left to do, and
what a resumed run says is what a single process would have said. The next session does the same
with what dead workers left behind, however many they were.

Nobody reads a journal that another has open, so the run folder may lie on a network file system.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..distributed import Workers
from ..errors import InputError
from .journal import Journal
from .search import Search

NAME = "journal.sqlite"


def _name(worker: int) -> str:
    return f"journal-{worker}.sqlite" if worker else NAME


class Shard:
    """A worker's share of a run.

    Args:
        workers: who shares the run.
        folder: the run folder, which all of them see; None keeps the journals in memory.
        key: the run's identity.
        count: how many images there are.

    Attributes:
        journal: this worker's, at work; worker 0's is the run's.
        rows: the images that are this worker's, int64 (R,).

    Raises:
        InputError: a journal is damaged or of another run; the folder is not shared.
    """

    def __init__(self, workers: Workers, folder: Path | None, key: str, count: int):
        self.workers, self.folder, self.key, self.count = workers, folder, key, count
        path = None if folder is None else folder / _name(workers.rank)
        if workers.size == 1:
            self.journal = self._opened_with_all()
            self.rows = torch.arange(count)
            return
        known: tuple[int, list[int]] | None = None
        if workers.leads and folder is not None:
            journal = self._opened_with_all()
            known = journal.session, journal.broken_images()
            journal.close()  # now the others may read it
        session, broken = workers.share(known) or (0, [])
        standing = torch.ones(count, dtype=torch.bool)
        standing[broken] = False
        # Every N-th: hard images often lie side by side.
        self.rows = standing.nonzero().squeeze(1)[workers.rank :: workers.size]
        if workers.leads:
            workers.meet()
            self.journal = Journal(path, key, 0, session)
            return
        if folder is not None and not (folder / NAME).exists():
            raise InputError(
                f"{folder} is not the folder that worker 0 sees; --out must lie on a file system "
                "that all machines share"
            )
        self.journal = Journal(path, key, workers.rank, session)
        if folder is not None:
            self.journal.absorb(folder / NAME, self.rows.tolist())
        workers.meet()

    def _opened_with_all(self) -> Journal:
        """The run's own journal, with whatever other workers left in theirs."""
        if self.folder is None:
            return Journal(None, self.key)
        journal = Journal(self.folder / NAME, self.key)
        self._absorb_others(journal)
        return journal

    def _absorb_others(self, journal: Journal) -> None:
        assert self.folder is not None
        for other in sorted(self.folder.glob("journal-*.sqlite")):
            journal.absorb(other)
            for suffix in ("", "-wal", "-shm"):
                Path(f"{other}{suffix}").unlink(missing_ok=True)

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
        if self.folder is not None:
            if not workers.leads:
                self.journal.close()
            workers.meet()
            if workers.leads:
                self._absorb_others(self.journal)
        else:
            self._gather()
        if not workers.leads:
            return None
        merged = made(self.journal, torch.arange(self.count))
        merged.run()
        return merged

    def _gather(self) -> None:
        """Bring journals to worker 0 that lie in no folder."""
        parts = self.workers.gather(b"" if self.workers.leads else self.journal.dump())
        with tempfile.TemporaryDirectory() as folder:
            for worker, part in enumerate(parts[1:], 1):
                path = Path(folder) / _name(worker)
                path.write_bytes(part)
                self.journal.absorb(path)
