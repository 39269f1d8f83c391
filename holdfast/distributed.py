"""Several processes that do one piece of work together, as torchrun starts them.

    torchrun --nproc-per-node 4 -m holdfast evaluate …

Every process runs the same program; inside `joined()` it knows which *worker* of how many it is.
Short words (who has arrived, who failed, what worker 0 decided) pass through torch.distributed's
key-value store, which can be asked without blocking; images and verdicts go over gloo, for they lie
in main memory whatever the device. So a worker that waits, waits as long as the others live and no
longer: each gives a sign of life every second, and the first that fails says why, once, for all.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .errors import HoldfastError, InputError

ARRIVAL_SECONDS = 600.0  # until all workers have to have begun
SILENCE_SECONDS = 120.0  # without a sign of life, after which a worker is given up
BEAT_SECONDS = 1.0  # between signs of life
PAUSE_SECONDS = 0.05  # between two looks at what is waited for
CHUNK_BYTES = 2**28  # sent at once

_current: list[Workers] = []  # those of the `joined()` that is open, if any
_opened = 0  # how many this process has opened: all open them in the same order


class Workers:
    """This process's place among the workers; alone, everything here does nothing.

    Attributes:
        rank: 0 … size − 1. Worker 0 decides, merges and tells.
        size: how many there are.
    """

    rank, size = 0, 1

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        pass

    @property
    def leads(self) -> bool:
        """Whether this is the worker that decides and tells."""
        return self.rank == 0

    def check(self) -> None:
        """Raise what another worker failed with, if one did. Cheap: call it after every step."""

    def share(self, value: Any) -> Any:
        """Worker 0's `value` (what JSON holds) in every worker."""
        return value

    def meet(self) -> None:
        """Wait until all workers are here."""

    def gather(self, data: bytes) -> list[bytes]:
        """Every worker's `data` in worker 0, in their order; nothing in the others."""
        return [data]

    def broadcast(self, data: bytes) -> bytes:
        """Worker 0's `data` in every worker."""
        return data


class _Team(Workers):
    """Workers that there are others of."""

    def __init__(self, store: dist.Store, rank: int, size: int):
        self.rank, self.size, self.store = rank, size, store
        self.calls = 0  # of share, meet, …: all workers make them in the same order
        self.lost: HoldfastError | None = None
        self.over = threading.Event()
        self.group: Any = None
        self.watcher = threading.Thread(target=self._watch, daemon=True)

    # -- coming and going -----------------------------------------------------------------

    def __enter__(self) -> Workers:
        deadline = time.monotonic() + ARRIVAL_SECONDS
        self.store.add("arrived", 1)
        while (here := self.store.add("arrived", 0)) < self.size:
            self._hear()
            self.check()
            if time.monotonic() > deadline:
                raise HoldfastError(
                    f"only {here} of {self.size} workers began within {ARRIVAL_SECONDS:.0f} s"
                )
            time.sleep(PAUSE_SECONDS)
        self.group = dist.ProcessGroupGloo(
            dist.PrefixStore("gloo", self.store),
            self.rank,
            self.size,
            timedelta(seconds=ARRIVAL_SECONDS),
        )
        self.watcher.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """The first worker that fails keeps its error; the others end without a word."""
        if error is None:
            self._part()
        self.over.set()
        self.group = None
        if self.watcher.is_alive():  # the interpreter must not end while it asks the store
            self.watcher.join(timeout=10)
        if error is None or getattr(error, "said", False):
            return
        status = getattr(error, "exit_status", 130 if isinstance(error, KeyboardInterrupt) else 1)
        what = " ".join(str(error).split()) or kind.__name__
        mine = json.dumps({"worker": self.rank, "status": status, "what": what})
        try:
            first = self.store.compare_set("failed", "", mine).decode()
        except RuntimeError:  # the others cannot be reached: nobody else will say it
            return
        if first != mine:
            raise _failure(first) from None

    def _part(self) -> None:
        """Worker 0 is the last to go: the store may be in its process."""
        with suppress(RuntimeError, HoldfastError):
            self.store.add("left", 1)
            if self.leads:
                self._until(lambda: self.store.add("left", 0) >= self.size)

    # -- signs of life --------------------------------------------------------------------

    def _watch(self) -> None:
        """Until it is over: give signs of life, and look for those of the others."""
        watched = range(1, self.size) if self.leads else (0,)
        last: dict[int, tuple[int, float]] = {}  # worker → its signs so far, and since when
        try:
            # One connection serves one thread.
            store = self.store.clone()  # type: ignore[attr-defined]
            while not (self.over.wait(BEAT_SECONDS) or self.lost):
                store.add(f"alive/{self.rank}", 1)
                if store.check(["failed"]):
                    self.lost = _failure(store.get("failed").decode())
                now = time.monotonic()
                for worker in watched:
                    signs = store.add(f"alive/{worker}", 0)
                    if worker not in last or last[worker][0] != signs:
                        last[worker] = (signs, now)
                    elif now - last[worker][1] > SILENCE_SECONDS:
                        self.lost = HoldfastError(
                            f"worker {worker} fell silent; the same command goes on from here"
                        )
        except RuntimeError as error:  # the machine that holds the store is gone
            self.lost = self.lost or _unreachable(error)

    def _hear(self) -> None:
        """Look at once, and not only at the next beat, whether somebody failed."""
        try:
            if self.store.check(["failed"]):
                self.lost = _failure(self.store.get("failed").decode())
        except RuntimeError as error:
            self.lost = self.lost or _unreachable(error)

    def check(self) -> None:
        if self.lost is not None:
            raise self.lost

    # -- exchange -------------------------------------------------------------------------

    def _call(self) -> str:
        self.calls += 1
        return f"call/{self.calls}"

    def _until(self, ready: Any) -> None:
        while not ready():
            self.check()
            time.sleep(PAUSE_SECONDS)

    def share(self, value: Any) -> Any:
        key = self._call()
        with _reachable():
            if self.leads:
                self.store.set(key, json.dumps(value))
                return value
            self._until(lambda: self.store.check([key]))
            return json.loads(self.store.get(key))

    def meet(self) -> None:
        key = self._call()
        with _reachable():
            self.store.add(key, 1)
            self._until(lambda: self.store.add(key, 0) >= self.size)

    def gather(self, data: bytes) -> list[bytes]:
        self.meet()  # nobody blocks in a transfer while another still works
        key = self._call()
        with _reachable():
            if not self.leads:
                self.store.set(f"{key}/{self.rank}", str(len(data)))
                for chunk in _tensor(data).split(CHUNK_BYTES):
                    self.group.send([chunk], 0, 0).wait()
                return []
            parts = [data]
            for worker in range(1, self.size):
                self._until(lambda worker=worker: self.store.check([f"{key}/{worker}"]))
                room = torch.empty(int(self.store.get(f"{key}/{worker}")), dtype=torch.uint8)
                for chunk in room.split(CHUNK_BYTES):
                    self.group.recv([chunk], worker, 0).wait()
                parts.append(room.numpy().tobytes())
            return parts

    def broadcast(self, data: bytes) -> bytes:
        size = self.share(len(data))
        room = _tensor(data) if self.leads else torch.empty(size, dtype=torch.uint8)
        with _reachable():
            for chunk in room.split(CHUNK_BYTES):
                self.group.broadcast(chunk, 0).wait()
        return data if self.leads else room.numpy().tobytes()


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]


def _failure(told: str) -> HoldfastError:
    """What a worker said of its end, as the others end with it: they need not say it again."""
    said = json.loads(told)
    kind = InputError if said["status"] == InputError.exit_status else HoldfastError
    error = kind(f"worker {said['worker']}: {said['what']}")
    error.exit_status, error.said = said["status"], True
    return error


def _unreachable(error: RuntimeError) -> HoldfastError:
    reason = (str(error).splitlines() or ["unknown"])[0]
    return HoldfastError(f"the other workers cannot be reached: {reason}")


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of the store, or of gloo
        raise _unreachable(error) from None


def launched() -> bool:
    """Whether this process is one of several that torchrun, or the caller, joined."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Whether this process is the one of its program that tells: alone, or worker 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return not launched() or os.environ["RANK"] == "0"


def alone(command: str) -> None:
    """InputError where several processes were started for a command that one does by itself."""
    if launched():
        error = InputError(
            f"{command} does not share its work among processes: start it without torchrun"
        )
        error.said = not leads()  # once for all of them
        raise error


def own_device(device: str | torch.device) -> str | torch.device:
    """`cuda` stands for the GPU that is this worker's on its machine."""
    if str(device) == "cuda" and launched() and torch.cuda.device_count():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return device


@contextmanager
def joined() -> Iterator[Workers]:
    """The workers of this program; inside another `joined()`, the same ones.

    All workers open it in the same order. Where one of them leaves it with an exception, the
    others leave it too: at the next `check` or exchange, with an error whose `said` is true.

    Raises:
        HoldfastError: a worker did not begin, fell silent, or failed.
    """
    if _current:
        yield _current[-1]
        return
    with _workers() as workers:
        _current.append(workers)
        try:
            yield workers
        finally:
            _current.pop()


@functools.cache
def _met() -> tuple[dist.Store, int, int]:
    """The store, this worker and how many there are; met once, for worker 0 may hold the store."""
    patience = timedelta(seconds=ARRIVAL_SECONDS)
    return next(dist.rendezvous("env://", timeout=patience))


def _workers() -> Workers:
    global _opened
    if not launched():
        return Workers()
    _opened += 1
    with _reachable():
        if dist.is_initialized():
            rank, size = dist.get_rank(), dist.get_world_size()
            store = dist.distributed_c10d._get_default_store()
        else:
            store, rank, size = _met()
    # torchrun's store outlives a restart of the workers.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return _Team(dist.PrefixStore(f"holdfast/{restart}/{_opened}", store), rank, size)
