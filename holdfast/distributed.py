"""Several processes that do one piece of work together, as torchrun starts them.

    torchrun --nproc-per-node 4 -m holdfast evaluate …

Every process runs the same program; inside `joined()` it knows which *worker* of how many it is.
torch.distributed brings them together and carries objects between them, over gloo, for they lie in
main memory whatever the device. (Objects are pickled: they come from our own processes only.)

What torch.distributed lacks is added here. Its collectives block, up to a limit of time that one
has to guess. Here a worker waits as long as the others live, and no longer: each gives a sign of
life every second, nobody enters a collective before all are there, and the first worker that fails
says why, once, for all. These notes pass through a key-value store, which answers at once.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
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

_current: list[Workers] = []  # those of the `joined()` that is open, if any
_opened = 0  # how many this process has opened: all open them in the same order


class Workers:
    """This process's place among the workers; alone, everything here does nothing.

    Attributes:
        rank: 0 … size − 1. Worker 0 decides, merges and reports.
        size: how many there are.
    """

    rank, size = 0, 1

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        pass

    @property
    def leads(self) -> bool:
        """Whether this is the worker that decides and reports."""
        return self.rank == 0

    def check(self) -> None:
        """Raise what another worker failed with, if one did. Cheap: call it after every step."""

    def meet(self) -> None:
        """Wait until all workers are here."""

    def share(self, value: Any) -> Any:
        """Worker 0's `value`, which pickle can hold, in every worker."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every worker's `value` in worker 0, in their order; nothing in the others."""
        return [value]


class _Team(Workers):
    """One of several workers.

    Args:
        rank, size: as of `Workers`.
        connect: a new connection to the store where the workers leave notes; each serves one
            thread.
        group: the process group of all workers, which carries objects.
    """

    def __init__(self, rank: int, size: int, connect: Callable[[], dist.Store], group: Any):
        self.rank, self.size, self.group = rank, size, group
        self.connect, self.store = connect, connect()
        self.meetings = 0  # all workers have the same ones in the same order
        self.lost: HoldfastError | None = None  # what ended the common work, once something did
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)

    # -- coming and going -----------------------------------------------------------------

    def __enter__(self) -> Workers:
        deadline = time.monotonic() + ARRIVAL_SECONDS
        self.store.add("arrived", 1)
        while (here := self.store.add("arrived", 0)) < self.size:
            if time.monotonic() > deadline:
                raise HoldfastError(
                    f"only {here} of {self.size} workers began within {ARRIVAL_SECONDS:.0f} s"
                )
            time.sleep(PAUSE_SECONDS)
        self.watcher.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """The first worker that fails keeps its error; the others end without a word."""
        if error is None:
            self._part()
        self.over.set()
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
        """Worker 0 is the last to go: the store is in its process."""
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
            store = self.connect()
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
        except RuntimeError as error:  # the process that holds the store is gone
            self.lost = self.lost or _unreachable(error)

    def check(self) -> None:
        if self.lost is not None:
            raise self.lost

    def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self.check()
            time.sleep(PAUSE_SECONDS)

    # -- exchange -------------------------------------------------------------------------

    def meet(self) -> None:
        self.meetings += 1
        key = f"meeting/{self.meetings}"
        with _reachable():
            self.store.add(key, 1)
            self._until(lambda: self.store.add(key, 0) >= self.size)

    def share(self, value: Any) -> Any:
        self.meet()
        held = [value]
        with _reachable():
            dist.broadcast_object_list(held, src=0, group=self.group)
        return held[0]

    def gather(self, value: Any) -> list[Any]:
        self.meet()
        held: list[Any] | None = [None] * self.size if self.leads else None
        with _reachable():
            dist.gather_object(value, held, dst=0, group=self.group)
        return held or []


def _failure(note: str) -> HoldfastError:
    """What a worker noted of its end, as the others end with it: they need not say it again."""
    held = json.loads(note)
    kind = InputError if held["status"] == InputError.exit_status else HoldfastError
    error = kind(f"worker {held['worker']}: {held['what']}")
    error.exit_status, error.said = held["status"], True
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
    """Whether this process is the one of its program that reports: alone, or worker 0."""
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


def _workers() -> Workers:
    global _opened
    if not launched():
        return Workers()
    _opened += 1
    prefix = f"holdfast/{_opened}"
    with _reachable():
        connect, group, _ = _connected()
        return _Team(
            dist.get_rank(),
            dist.get_world_size(),
            lambda: dist.PrefixStore(prefix, connect()),
            group,
        )


@functools.cache
def _connected() -> tuple[Callable[[], dist.Store], Any, dist.Store | None]:
    """How to connect to the store, the group of all workers, and in worker 0 the store itself."""
    patience = timedelta(seconds=ARRIVAL_SECONDS)
    if not dist.is_initialized():
        dist.init_process_group(timeout=patience)  # where torchrun's environment says
    # The caller's own group may know GPUs only.
    group = dist.new_group(backend="gloo", timeout=patience)
    # Worker 0's machine, as torchrun names it to all.
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    server: dist.TCPStore | None = None
    address: list[Any] = [None]
    if dist.get_rank() == 0:
        server = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=patience)
        address = [(host, server.port)]
    dist.broadcast_object_list(address, src=0, group=group)
    host, port = address[0]

    def connect() -> dist.Store:
        return dist.TCPStore(host, port, is_master=False, timeout=patience)

    return connect, group, server
