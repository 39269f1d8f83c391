"""Run folders: who may work in them, what they hold, and whether it is whole."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..threat import Threat
from .files import PARTIAL, file_digest, make_folder, read_json, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"  # in a run folder while a process works on it
REQUEST = "request.json"  # in a run folder from its beginning on
RESULT = "result.json"  # in a run folder that is finished


def open_run(folder: Path | str, kind: str, key: str, request: dict[str, Any]) -> tuple[Path, bool]:
    """Begin a run in a folder, or find that the same one was begun there.

    Args:
        folder: created if need be.
        kind: `train`, `evaluate`, `uncertainty`, `certify` or `mix`.
        key: the run's identity.
        request: what is written to `request.json` for a new run.

    Returns:
        the folder, and whether it holds the same run already.

    Raises:
        InputError: the folder holds another run or other files, or cannot be written.
    """
    folder = Path(folder)
    file = folder / REQUEST
    if file.exists():
        held = _held(folder)
        if held.get("kind") == kind and held.get("identity") == key:
            for leftover in folder.rglob(f".*{PARTIAL}"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            return make_folder(folder), True
        raise InputError(
            f"{folder} holds another run ({_what_differs(held, {'kind': kind, **request})}); "
            "choose another --out, or remove it"
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another --out")
    if folder.exists() and any(
        not entry.name.endswith(PARTIAL) and entry.name != LOCK for entry in folder.iterdir()
    ):
        raise InputError(f"{folder} holds other files; choose another --out")
    make_folder(folder)
    request = {"schema": "holdfast/request/1", "kind": kind, "identity": key, **request}
    write_json(file, request, sealed=True)
    return folder, False


def _held(folder: Path) -> dict[str, Any]:
    """The request of the run in a folder."""
    try:
        return read_json(folder / REQUEST)
    except InputError as error:
        raise InputError(f"{error}; remove the run folder to start anew") from None


def holds(folder: Path | str, kind: str, key: str) -> bool:
    """Whether a folder holds this very run, finished or not."""
    if not (Path(folder) / REQUEST).is_file():
        return False
    held = _held(Path(folder))
    return held.get("kind") == kind and held.get("identity") == key


def now() -> str:
    """The time, as results hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def finish(folder: Path, result: dict[str, Any], files: Iterable[str] = ()) -> dict[str, Any]:
    """Write a run's `result.json`, its last file, so that its presence means done.

    Args:
        result: what it holds, besides when the run was `finished`, and the checksums of `files`.
        files: names of the run's other files that a reader goes by.

    Returns:
        what it holds.
    """
    sums = {name: file_digest(folder / name) for name in files if (folder / name).is_file()}
    result = {"finished": now(), **result, "files": sums}
    return write_json(folder / RESULT, result, sealed=True)


def finished(folder: Path | str) -> dict[str, Any] | None:
    """The `result.json` of a run that is whole; None where the run, or a file of it, is not there.

    Raises:
        InputError: a file is damaged; one line that says what to do.
    """
    folder = Path(folder)
    if not (folder / RESULT).is_file():
        return None
    try:
        result = read_json(folder / RESULT, with_seal=True)
    except InputError as error:
        raise InputError(
            f"{error}; remove it and issue the run's command again, which writes it anew"
        ) from None
    if "finished" not in result:  # of a version that did not say
        written = (folder / RESULT).stat().st_mtime
        result["finished"] = datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")
    check_files(folder, result)
    files = result.get("files")
    return result if all(os.path.isfile(folder / name) for name in files or ()) else None


def check_files(folder: Path, result: dict[str, Any]) -> None:
    """InputError where a file beside `result.json` is not the one that was written with it.

    A file may be missing: results are published without those that are large.
    """
    sums = result.get("files", {})
    if not isinstance(sums, dict):
        raise InputError(f"{folder / RESULT}: 'files' must be an object of checksums")
    for name, written in sums.items():
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise InputError(f"{folder / RESULT}: 'files' names {name!r}, outside the run's folder")
        # os.path has no error, whatever the name is.
        if os.path.isfile(folder / name) and file_digest(folder / name) != written:
            anew = (
                "restore it, or remove the run folder to start anew"
                if name.startswith("model/")  # the best weights of a training are nowhere else
                else "remove it and issue the run's command again, which writes it anew"
            )
            raise InputError(
                f"{folder / name} is damaged: it is not what {RESULT} says was written; {anew}"
            )


def on_date(finished: str) -> str:
    """`2026-11-30T02:51:44+00:00` as a reader writes it: 30 November 2026, 02:51 UTC."""
    try:
        moment = datetime.fromisoformat(finished).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return str(finished)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


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


def withdraw_run(folder: Path) -> None:
    """Forget a run that failed before it wrote anything, so that its folder is free again."""
    if {entry.name for entry in folder.iterdir()} - {LOCK} == {REQUEST}:
        (folder / REQUEST).unlink()


# What a request calls a thing → what the command line calls it.
_OPTIONS = {
    "first": "--limit",
    "n": "--limit",
    "n_images": "--limit",
    "defences": "--defence",
    "name": "MODEL",
    "members": "--ensemble",
    "foreign": "--ood",
    "calibration": "--calibration",
    "attack_steps": "attack steps",
}
_OPTIONS_OF = {
    "certify": {"n": "--n"},
    "uncertainty": {"suite": "--attack"},
}
# What is known by its checksum alone → what a reader makes of a difference.
_CHECKSUMS = {
    "sha256": "the model's weights are others",
    "settings_sha256": "the model's settings are others",
    "images": "the images are others",
    "attacks": "the suite's attacks are set otherwise",
    "code": "it was made by another version of Holdfast's code",
    "extra": "the extra images are others",
    "helper": "the helper model is another",
    "ensemble": "the models of the ensemble are others",
    "foreign_images": "the out-of-distribution images are others",
    "human_labels": "the human labels are others",
    "weights": "the models' weights are others",
}
# Words that change no figure, and what only follows from something else that is named.
_ASIDE = {"pixels", "source", "architecture", "more_test", "more_held", "training", "classes"}


def _what_differs(held: dict[str, Any], asked: dict[str, Any]) -> str:
    """In the words of the command line, in what two requests differ."""
    kind = asked["kind"]
    if held.get("kind") != kind:
        return f"of {held.get('kind', 'another command')}, not {kind}"
    before, after = (_leaves(request.get("asked")) for request in (held, asked))
    named: dict[str, None] = {}
    sums: dict[str, None] = {}
    for path, value in after.items():
        last = path.rpartition(".")[2]
        told_below = path.startswith("threat.")
        if path not in before or before[path] == value or last in _ASIDE or told_below:
            continue
        known = [part for part in path.split(".") if part in _CHECKSUMS]
        if known:
            sums[_CHECKSUMS[known[-1]]] = None
        else:
            option = _option(kind, path)
            named[f"{option} {_short(before[path])}, not {_short(value)}"] = None
    gone = [path for path in before.keys() ^ after.keys() if path.startswith("recipe.")]
    for path in sorted(gone):
        values = (before.get(path, "its default"), after.get(path, "its default"))
        named[f"{_option(kind, path)} {_short(values[0])}, not {_short(values[1])}"] = None
    threats = [_threat(request.get("asked")) for request in (held, asked)]
    if None not in threats and threats[0] != threats[1]:
        named[f"--norm and --eps {threats[0]}, not {threats[1]}"] = None
    if not named and "the images are others" in sums:  # what decides more than anything else
        sums = {"the images are others": None}
    told = [*named] or [*sums] or ["made by another version of the code or on other data"]
    return "; ".join(told[:3])


def _option(kind: str, path: str) -> str:
    last = path.rpartition(".")[2]
    if path.startswith("recipe."):
        rest = path.removeprefix("recipe.")
        return "--budget" if rest == "budget" else f"--set {rest}"
    if path == "data.name" or path == "data":
        return "--data"
    return _OPTIONS_OF.get(kind, {}).get(last) or _OPTIONS.get(last) or f"--{last}"


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The values of nested objects by their dotted paths, as JSON holds them."""
    if isinstance(value, dict):
        parts = (_leaves(v, f"{path}.{key}" if path else str(key)) for key, v in value.items())
        return {key: leaf for part in parts for key, leaf in part.items()}
    return {path: list(value) if isinstance(value, tuple) else value}


def _threat(asked: Any) -> str | None:
    """The threat model of a request in words."""
    threat = asked.get("threat") if isinstance(asked, dict) else None
    try:
        return str(Threat(**threat)) if isinstance(threat, dict) else None
    except (TypeError, InputError):
        return None


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)[:60]
