"""Several processes that do one piece of work together, as torchrun or Slurm starts them.

    torchrun --nproc-per-node 4 -m holdfast evaluate …
    srun --ntasks 8 holdfast evaluate …

Every process runs the same program; inside `joined()` it knows which *worker* of how many it is.
torch.distributed brings them together and carries objects between them, over gloo, for they lie in
main memory whatever the device. (Objects are pickled: they come from our own processes only.)
Where workers have to be started again, torchrun does that; `launchers` says how they find their
place.

What torch.distributed lacks is added here. Its collectives block, up to a limit of time that one
has to guess. Here a worker waits as long as the others live, and no longer: each gives a sign of
life every second, nobody enters a collective before all are there, and the first worker that fails
says why, once, for all. These notes pass through a key-value store, which answers at once. So does
what one worker asks of another while that one is at work (`offer`, `ask`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from . import launchers
from .errors import HoldfastError, InputError

ARRIVAL_SECONDS = 600.0  # until all workers have to have begun
EXCHANGE_SECONDS = 120.0  # for one exchange between workers that are all there
SILENCE_SECONDS = 120.0  # without a sign of life, after which a worker is given up
FAREWELL_SECONDS = 5.0  # that worker 0 waits for others that fail as it did
BEAT_SECONDS = 1.0  # between signs of life
PAUSE_SECONDS = 0.05  # between two looks at what is waited for
BUSY_SECONDS = 0.002  # the same, while one asks another
CHUNK = 2**22  # bytes that pass at once; the store takes 8 MiB

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

    def carry(self, parts: Iterable[bytes], source: int, target: int) -> Iterator[bytes]:
        """Bring bytes from one worker to another, a part at a time; all workers call it.

        Args:
            parts: what is brought, each of at most `CHUNK` bytes; asked of the source alone.

        Returns:
            in the target, the parts, which it has to take up; nothing in the others.
        """
        return iter(parts)

    def offer(self, answer: Callable[[Any], bytes]) -> None:
        """Answer what other workers `ask` this one, in a thread of its own, until all is over.

        Args:
            answer: from a question, which JSON can hold, to the answer. An `InputError` of it is
                raised where it was asked.
        """

    def ask(self, worker: int, question: Any) -> bytes:
        """What another worker answers; it is asked while it does something else."""
        raise NotImplementedError("alone there is nobody to ask")


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
        self.answering: threading.Thread | None = None
        self.asking = threading.Lock()

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
        for thread in (self.watcher, self.answering):
            if thread is not None and thread.is_alive():
                thread.join(timeout=10)  # the interpreter must not end while it asks the store
        if error is None or getattr(error, "said", False):
            return
        status = getattr(error, "exit_status", 130 if isinstance(error, KeyboardInterrupt) else 1)
        what = " ".join(str(error).split()) or kind.__name__
        mine = json.dumps({"worker": self.rank, "status": status, "what": what})
        try:
            first = self.store.compare_set("failed", "", mine).decode()
            self._wait_for_the_failed()
        except RuntimeError:  # the others cannot be reached: nobody else will say it
            return
        if first != mine:
            raise _failure(first) from None

    def _wait_for_the_failed(self) -> None:
        """Worker 0, which has the store, stays for a moment: others may fail at the same."""
        left, until = self.store.add("left", 1), time.monotonic() + FAREWELL_SECONDS
        while self.leads and left < self.size and time.monotonic() < until:
            time.sleep(PAUSE_SECONDS)
            left = self.store.add("left", 0)

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

    def carry(self, parts: Iterable[bytes], source: int, target: int) -> Iterator[bytes]:
        if source == target:
            return iter(parts) if self.rank == source else iter(())
        self.meet()
        if self.rank == source:
            with _reachable():
                for part in chain(parts, [b""]):
                    dist.send_object_list([part], dst=target, group=self.group)
        return self._carried(source) if self.rank == target else iter(())

    def _carried(self, source: int) -> Iterator[bytes]:
        while True:
            held = [b""]
            with _reachable():
                dist.recv_object_list(held, src=source, group=self.group)
            if not held[0]:
                return
            yield held[0]

    # -- questions ------------------------------------------------------------------------

    def offer(self, answer: Callable[[Any], bytes]) -> None:
        self.answering = threading.Thread(target=self._answer, args=(answer,), daemon=True)
        self.answering.start()

    def _answer(self, answer: Callable[[Any], bytes]) -> None:
        asked, mine = 0, f"question/{self.rank}"
        try:
            store, idle = self.connect(), 0.0
            while not self.over.wait(min(PAUSE_SECONDS, BUSY_SECONDS + idle / 100)):
                if store.add(mine, 0) <= asked:
                    idle += BUSY_SECONDS
                    continue
                idle, asked = 0.0, asked + 1
                key = f"{mine}/{asked}"
                question = json.loads(store.get(key))
                store.delete_key(key)
                try:
                    said, held = {"error": ""}, answer(question)
                except Exception as error:
                    what = " ".join(str(error).split()) or type(error).__name__
                    said, held = {"error": what}, b""
                parts = range(0, len(held), CHUNK)
                for number, begin in enumerate(parts):
                    part: Any = held[begin : begin + CHUNK]  # its type says text; it takes bytes
                    store.set(f"answer/{key}/{number}", part)
                store.set(f"answer/{key}", json.dumps({**said, "parts": len(parts)}))
        except RuntimeError as error:  # the process that holds the store is gone
            self.lost = self.lost or _unreachable(error)

    def ask(self, worker: int, question: Any) -> bytes:
        with self.asking, _reachable():
            key = f"question/{worker}"
            key = f"{key}/{self.store.add(key, 1)}"
            self.store.set(key, json.dumps(question))
            answer = f"answer/{key}"
            while not self.store.check([answer]):
                self.check()
                time.sleep(BUSY_SECONDS)
            said = json.loads(self.store.get(answer))
            self.store.delete_key(answer)
            parts = []
            for number in range(said["parts"]):
                parts.append(self.store.get(f"{answer}/{number}"))
                self.store.delete_key(f"{answer}/{number}")
        if said["error"]:
            raise InputError(f"worker {worker}: {said['error']}")
        return b"".join(parts)


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
    """Whether this process is one of several that a launcher, or the caller, joined."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    return launchers.place().size > 1


def leads() -> bool:
    """Whether this process is the one of its program that reports: alone, or worker 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return launchers.leads()


def alone(command: str) -> None:
    """InputError where several processes were started for a command that one does by itself."""
    if launched():
        error = InputError(
            f"{command} does not share its work among processes: start it without torchrun, or as "
            "one task of Slurm"
        )
        error.said = not leads()  # once for all of them
        raise error


def own_device(device: str | torch.device) -> str | torch.device:
    """`cuda` stands for the GPU that is this worker's on its machine."""
    if str(device) == "cuda" and launched() and torch.cuda.device_count():
        return f"cuda:{launchers.place().local_rank % torch.cuda.device_count()}"
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


@contextmanager
def _meeting(here: launchers.Place) -> Iterator[None]:
    """Inside, the environment says as torch.distributed reads it where all processes meet."""
    told = {
        "RANK": str(here.rank),
        "WORLD_SIZE": str(here.size),
        "MASTER_ADDR": here.host,
        "MASTER_PORT": str(here.port),
    }
    added = {name: value for name, value in told.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise HoldfastError(
            f"the {here.size} processes do not meet at {here.host}, port {here.port} ({reason}); "
            "MASTER_ADDR and MASTER_PORT name another place"
        ) from None
    finally:
        for name in added:
            del os.environ[name]


def _roll_call(store: dist.Store, rank: int, size: int) -> str:
    """Wait until all processes are there, and name this meeting alike in each.

    The store may be older than they are: torchrun keeps it when it starts workers again, with
    all that their predecessors wrote. So each process writes a number drawn by itself, process 0
    calls all numbers that it reads, and only to its own does a process answer.
    """
    own, meeting, answers = secrets.token_hex(8), "", list[str]()
    present = [f"present/{i}" for i in range(size)]
    store.set(present[rank], own)
    until = time.monotonic() + ARRIVAL_SECONDS
    while not (answers and store.check(answers)):
        if time.monotonic() > until:
            here = sum(store.check([each]) for each in answers or present)
            raise RuntimeError(f"only {here} of {size} began within {ARRIVAL_SECONDS:.0f} s")
        if rank == 0 and store.check(present):
            store.set("called", " ".join(store.get(each).decode() for each in present))
        called = store.get("called").decode() if store.check(["called"]) else ""
        if called.split()[rank : rank + 1] == [own]:
            meeting = hashlib.sha256(called.encode()).hexdigest()[:16]
            answers = [f"{meeting}/{i}" for i in range(size)]
            store.set(answers[rank], "")
        time.sleep(PAUSE_SECONDS)
    return meeting


@functools.cache
def _connected() -> tuple[Callable[[], dist.Store], Any, dist.Store | None]:
    """How to connect to the store, the group of all workers, and in worker 0 the store itself."""
    patience = timedelta(seconds=ARRIVAL_SECONDS)
    if dist.is_initialized():
        # The caller's own group may know GPUs only.
        group = dist.new_group(backend="gloo", timeout=patience)
    else:
        here = launchers.place()
        launchers.check_meeting(here)
        with _meeting(here):
            store, rank, size = next(iter(rendezvous("env://", timeout=patience)))
            store = dist.PrefixStore("holdfast", store)
            meeting = _roll_call(store, rank, size)
            # Gloo waits several times as long for a connection that was lost.
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore(meeting, store),
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=EXCHANGE_SECONDS),
            )
        group = dist.group.WORLD
    # Worker 0's machine, as the launcher names it to all.
    host = os.environ.get("MASTER_ADDR") or launchers.place().host or socket.gethostname()
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
