"""Run folders: what was asked, by what code, on what machine, and whether it may go on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError
from .files import PARTIAL, make_folder, read_json, write_json
from .version import VERSION

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PACKAGE = Path(__file__).parent
LOCK = "lock"  # in a run folder while a process works on it


def digest(*parts: bytes | np.ndarray | Tensor | str) -> str:
    """SHA-256 over the parts, their lengths, shapes and types included."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu()
            if part.dtype == torch.bfloat16:  # NumPy has no such type
                sha.update(b"bfloat16")
                part = part.view(torch.int16)
            part = part.numpy()
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype}{part.shape}".encode())
            if part.size:  # an empty array's memory cannot be cast
                sha.update(np.ascontiguousarray(part).data.cast("B"))
        else:
            content = part.encode() if isinstance(part, str) else part
            sha.update(f"{len(content)}:".encode())
            sha.update(content)
    return sha.hexdigest()


def weights_digest(model: Any) -> str | None:
    """SHA-256 of a module's weights and buffers by name; None for a bare function."""
    if not isinstance(model, nn.Module):
        return None
    state = sorted(model.state_dict().items())
    structure = f"{type(model).__qualname__}\n{model}"
    parts: list[Any] = [structure]
    for name, value in state:
        parts += [name, value] if isinstance(value, Tensor) else [name, repr(value)]
    return digest(*parts)


def settings_digest(model: Any) -> str:
    """SHA-256 of what a module computes with besides its weights.

    Buffers that its state leaves out, and plain attributes of every part: two models with the
    same weights and another temperature are two models.
    """
    if not isinstance(model, nn.Module):
        return digest(getattr(model, "__qualname__", type(model).__qualname__))
    parts: list[Any] = []
    for name, buffer in sorted(model.named_buffers()):
        parts += [name, buffer]
    plain = int | float | str | bytes | bool | None
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            values = value if isinstance(value, tuple | list) else (value,)
            if key == "training" or not all(isinstance(v, plain) for v in values):
                continue
            parts.append(f"{name}.{key}={value!r}")
    return digest(*parts)


def identity(**parts: Any) -> str:
    """The hash of everything that can change a run's result, from JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def code_version(*packages: str) -> str:
    """Holdfast's version, and a hash of the given modules' source: a run goes on with that only."""
    sources = sorted(
        file
        for package in packages
        for file in (
            [PACKAGE / package] if package.endswith(".py") else (PACKAGE / package).rglob("*.py")
        )
    )
    sha = hashlib.sha256(b"".join(file.read_bytes() for file in sources))
    return f"{VERSION}+{sha.hexdigest()[:12]}"


@functools.cache
def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(device: torch.device | str = "cpu") -> str:
    """One line on the hardware: processor, threads used, fast bfloat16 units, and GPU if used."""
    parts = [processor(), f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"]
    for name, probe in (
        ("AMX", "_is_amx_tile_supported"),
        ("AVX-512 bf16", "_is_avx512_bf16_supported"),
    ):
        if getattr(torch.cpu, probe, lambda: False)():
            parts.append(name)
            break
    if torch.device(device).type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    return ", ".join(parts)


def git_revision() -> str | None:
    """The revision of the checkout that Holdfast runs from, "+changes" if it was edited.

    None where Holdfast is installed: a checkout around the environment is somebody else's.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _program() -> str:
    """The command's own name, also as `python -m holdfast`."""
    program = Path(sys.argv[0])
    return PACKAGE.name if program == PACKAGE / "__main__.py" else program.name


def circumstances(device: torch.device | str) -> dict[str, Any]:
    """What a reader needs besides the request: versions, hardware, time, command."""
    return {
        "command": [_program(), *sys.argv[1:]],
        "versions": {
            "holdfast": VERSION,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "device": str(device),
        "machine": machine(device),
        "git": git_revision(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def open_run(folder: Path | str, kind: str, key: str, request: dict[str, Any]) -> tuple[Path, bool]:
    """Begin a run in a folder, or find that the same one was begun there.

    Args:
        folder: created if need be.
        kind: `train`, `evaluate`, `uncertainty` or `certify`.
        key: the run's identity.
        request: what is written to `request.json` for a new run.

    Returns:
        the folder, and whether it holds the same run already.

    Raises:
        InputError: the folder holds another run or other files, or cannot be written.
    """
    folder = Path(folder)
    file = folder / "request.json"
    if file.exists():
        held = read_json(file)
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
    write_json(file, {"schema": "holdfast/request/1", "kind": kind, "identity": key, **request})
    return folder, False


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
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
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
    if {entry.name for entry in folder.iterdir()} - {LOCK} == {"request.json"}:
        (folder / "request.json").unlink()


def _what_differs(held: dict[str, Any], asked: dict[str, Any]) -> str:
    """In words, the first thing in which two requests differ."""
    for name in ("kind", "asked"):
        difference = _first_difference(name, held.get(name), asked.get(name))
        if difference:
            return difference
    return "made by another version of the code or on other data"


def _first_difference(name: str, held: Any, asked: Any) -> str | None:
    if isinstance(held, dict) and isinstance(asked, dict):
        for key in [*asked, *(held.keys() - asked.keys())]:
            difference = _first_difference(key, held.get(key), asked.get(key))
            if difference:
                return difference
    elif held != asked:
        return f"its {name} is {str(held)[:60]}, not {str(asked)[:60]}"
    return None
