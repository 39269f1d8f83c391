"""The lock of a run folder: one process at a time works on a run."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .files import make_folder, read_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"  # in a run folder while a process works on it


def worker_on(folder: Path | str) -> str | None:
    """The process that works on a run now, as `PID on HOST`; None where none does."""
    path = Path(folder) / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not _taken(handle):
            return None
        return os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(handle)


def seems_taken(folder: Path | str) -> bool:
    """Whether a process seems to work on a run, by the name in the lock alone.

    For who looks on, again and again: the lock itself is not touched, so that nobody who wants it
    ever finds it taken by a look.
    """
    try:
        owner = read_text(Path(folder) / LOCK, most=200)
    except InputError:
        return False
    return _lives(owner.strip())


@contextlib.contextmanager
def claimed(folder: Path | str) -> Iterator[None]:
    """Inside, this process alone works on a run folder, which is created if need be.

    The claim is a lock on the file `lock`, which the system lifts when the process dies, however it
    dies. Where files cannot be locked (some network file systems) the file itself is the claim:
    one whose process is gone is taken over on the same machine, and has to be removed by hand
    where it comes from another. A folder that is empty afterwards is removed if it was created.

    Raises:
        InputError: another process works on the run; the folder cannot be written.
    """
    folder = Path(folder)
    created = not folder.exists()
    make_folder(folder)
    path = folder / LOCK
    handle = _claim(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)
        if created:
            with contextlib.suppress(OSError):  # it holds a run now
                folder.rmdir()


def _claim(path: Path) -> int:
    """The open, locked file; InputError saying who has it."""
    me = f"{os.getpid()} on {socket.gethostname()}"
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None
        try:
            if _taken(handle):
                owner = os.pread(handle, 200, 0).decode(errors="replace").strip()
                raise InputError(
                    f"run {path.parent} is being worked on by process {owner or 'unknown'}; "
                    f"wait for it, or end it (if it is gone, remove {path})"
                )
            # Whoever had it may have removed it meanwhile: then the lock is on nothing.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.pwrite(handle, me.encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _taken(handle: int) -> bool:
    """Whether another process has the claim; if not, this one has it now."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            pass
    return _lives(os.pread(handle, 200, 0).decode(errors="replace").strip())


def _lives(owner: str) -> bool:
    """Whether the process "PID on HOST" may still be there; one of another machine may."""
    number, _, host = owner.partition(" on ")
    if not number.isdigit() or host != socket.gethostname():
        return bool(owner)
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and somebody else's
        return True
    return True
