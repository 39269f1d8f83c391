"""The scheduler: a queue that keeps every batch full.

It steps a batch of work items at once, lets those that are over leave after every step, refills
from the queue, and drops what has become needless. It knows nothing of any particular attack, and
nothing of what is sought: a `Task` says which items there are, when one is over, and what becomes
of it. Every search that has a queue runs on it: that of a suite (`stage`), and that of an attack on
uncertainty (`holdfast.uncertainty.attacks`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from jaxtyping import Bool
from torch import Tensor

from ..attacks.base import AT_ONCE, Attack, Oracle
from ..attacks.state import Items
from ..threat import Threat
from .batch import Batch, Key, StoredItem
from .journal import Journal

CHECKPOINT_SECONDS = 30.0  # between two times that the items in flight are kept
COMING = 64  # items that a task is told of before it is asked for them
CHECKPOINT_SHARE = 0.02  # of the time at most goes into that


class Task(ABC):
    """What a scheduler works for."""

    @abstractmethod
    def items(self, keys: Sequence[Key]) -> Items:
        """What the attack is asked to break, on the model's device."""

    def coming(self, keys: Sequence[Key]) -> None:  # noqa: B027 - most have nothing to prepare
        """These are asked for next, if all goes on as it does."""

    @abstractmethod
    def examine(self, batch: Batch) -> Bool[Tensor, " r"]:
        """Which rows are over after a step, on the CPU; the batch may be changed in place."""

    @abstractmethod
    def leave(self, batch: Batch, row: int) -> None:
        """Take what an item has found, inside a transaction of the journal."""

    def needed(self, key: Key) -> bool:
        """Whether an item that waits or flies can still matter."""
        return True

    def ready(self, key: Key) -> bool:
        """Whether an item that is needed may begin now; else it waits, and others go before it."""
        return True

    def asking(self, batch: Batch) -> AbstractContextManager[None]:
        """Inside, the attack asks about the items of a batch."""
        return nullcontext()

    def kept(self, items: Mapping[Key, StoredItem]) -> None:  # noqa: B027 - most have nothing to do
        """Once in a while, after these items, which are in flight, were kept."""

    def drop(self, key: Key, passes: Sequence[int]) -> None:  # noqa: B027 - most have nothing to forget
        """Forget an item that is needed no more, inside a transaction if it was in flight.

        Args:
            passes: forwards and backwards that it has cost; empty if it was never begun.
        """


class Checkpoints:
    """Keeps the items in flight from time to time, so that a killed run goes on in their midst."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self.next = time.monotonic() + CHECKPOINT_SECONDS

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self.next

    def keep(self, stage: int, level: int, items: Mapping[Key, StoredItem]) -> None:
        """Keep the items in place of those that were kept before."""
        began = time.monotonic()
        with self.journal.transaction():
            self.journal.fly(stage, level, items)
        took = time.monotonic() - began
        self.next = began + max(CHECKPOINT_SECONDS, took / CHECKPOINT_SHARE)

    def later(self) -> None:
        """Let the usual time pass before the next."""
        self.next = time.monotonic() + CHECKPOINT_SECONDS


class Scheduler:
    """Steps the items of one attack until all are over.

    Args:
        attack: what is stepped.
        oracle: what it queries.
        threat: ball and box.
        task: what the items are, and what becomes of them.
        batch_size: items stepped together.
        checkpoints: when items in flight are kept, and where; those that are kept there already go
            on where they stood.
        stage, level: their place in the journal.
        own_draws: whether random defences draw from the items' own streams.

    Attributes:
        stepped: how many items the last step stepped.
        flying: the items that are in flight between two steps, and those that were and wait.
    """

    def __init__(
        self,
        attack: Attack,
        oracle: Oracle,
        threat: Threat,
        task: Task,
        *,
        batch_size: int,
        checkpoints: Checkpoints,
        stage: int = 0,
        level: int = 0,
        own_draws: bool = True,
    ):
        self.attack, self.oracle, self.threat, self.task = attack, oracle, threat, task
        self.batch_size, self.own_draws = batch_size, own_draws
        self.checkpoints, self.journal = checkpoints, checkpoints.journal
        self.stage, self.level = stage, level
        self.stepped = 0
        self.flying: Callable[[], dict[Key, StoredItem]] = dict
        oracle.at_once = max(AT_ONCE, batch_size)

    def run(self, keys: Sequence[Key]) -> Iterator[int]:
        """Every item of `keys`, in this order. Yields after every step: how many steps of single
        items are left at most."""
        queue = deque(keys)
        kept = self.journal.flying(self.stage, self.level)  # when the run was interrupted
        waiting = {key: kept[key] for key in keys if key in kept}
        batch: Batch | None = None
        self.flying = lambda: waiting | ({} if batch is None else batch.stored())
        while True:
            batch = self._refill(batch, queue, waiting)
            if batch is None:
                with self.journal.transaction():
                    self.journal.fly(self.stage, self.level, {})
                return
            self.stepped = len(batch)
            self._step(batch)
            over = self.task.examine(batch)
            if bool(over.any()):
                batch = batch.select(~self._left(batch, over))
            if len(batch) and self.checkpoints.due:
                if self.journal.path is not None:
                    self.keep()
                else:  # nobody goes on with it
                    self.task.kept(self.flying())
                    self.checkpoints.later()
            left = int(self.attack.iterations_left(batch.state).sum())
            yield len(queue) * self.attack.iterations + left

    def keep(self) -> None:
        """Keep the items in flight in the journal: who runs the same keys again goes on there."""
        items = self.flying()
        self.checkpoints.keep(self.stage, self.level, items)
        self.task.kept(items)

    def _refill(
        self, batch: Batch | None, queue: deque[Key], waiting: dict[Key, StoredItem]
    ) -> Batch | None:
        """The batch, filled up from the queue; None where nothing is left."""
        room = self.batch_size - (0 if batch is None else len(batch))
        keys: list[Key] = []
        later: list[Key] = []
        while queue and len(keys) < room:
            key = queue.popleft()
            if not self.task.needed(key):
                self.task.drop(key, ())
            elif self.task.ready(key):
                keys.append(key)
            else:
                later.append(key)
        queue.extendleft(reversed(later))
        if keys:
            state = self.attack.start(self.task.items(keys), self.threat)
            fresh = Batch.begin(keys, state, {k: waiting.pop(k) for k in keys if k in waiting})
            batch = fresh if batch is None or not len(batch) else batch.join(fresh)
            self.task.coming([*islice(queue, COMING)])
        return batch if batch is not None and len(batch) else None

    def _step(self, batch: Batch) -> None:
        oracle = self.oracle
        if self.own_draws:
            oracle.prepare(batch.state)
        before = torch.tensor([oracle.forwards, oracle.backwards])
        oracle.own = oracle.own_backwards = None
        with self.task.asking(batch):
            batch.state = self.attack.step(oracle, batch.state, self.threat)
        batch.passes += torch.tensor([oracle.forwards, oracle.backwards]) - before
        for column, own in enumerate((oracle.own, oracle.own_backwards)):
            if own is not None:
                batch.passes[:, column] += own

    def _left(self, batch: Batch, over: Bool[Tensor, " r"]) -> Bool[Tensor, " r"]:
        """The rows that leave: those that are over, and those that are needless now."""
        gone = over.clone()
        with self.journal.transaction():
            for row in over.nonzero().squeeze(1).tolist():
                self.task.leave(batch, row)
            for row, key in enumerate(batch.keys):
                if not gone[row] and not self.task.needed(key):
                    self.task.drop(key, batch.passes[row].tolist())
                    gone[row] = True
        return gone
