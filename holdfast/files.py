"""Files that appear whole or not at all, and the words for what is wrong with them."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import InputError

PARTIAL = ".partial"  # ends the names of temporaries; a killed process leaves one behind
SEAL = "seal"  # key of the checksum over the rest of a JSON object


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write to a temporary neighbour, flush it to the disk, then rename it over `path`.

    Raises:
        InputError: the disk is full or the folder cannot be written; `path` is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL
        )
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None
        raise


def write_json(path: Path, value: dict[str, Any], *, sealed: bool = False) -> None:
    """`value` as indented JSON, atomically. NaN and infinity are refused: they are no JSON.

    Args:
        sealed: with a checksum that `read_json` checks, so that nothing is ever read from it that
            was not written.
    """
    if sealed:
        plain = {key: item for key, item in value.items() if key != SEAL}
        value = {**plain, SEAL: _seal(plain)}
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, with_seal: bool = False) -> dict[str, Any]:
    """The JSON object in a file, without its seal; InputError naming the file if there is none,
    or if it is not what was sealed.

    Args:
        with_seal: leave the seal, if there is one, in the object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    plain = {key: item for key, item in value.items() if key != SEAL}
    if SEAL in value and value[SEAL] != _seal(plain):
        raise InputError(
            f"{path} is damaged: it is not what was written there, by its {SEAL!r}; make it anew "
            f"(if you changed it on purpose, remove {SEAL!r} from it)"
        )
    return value if with_seal else plain


def _seal(value: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # as it will be read again
    text = json.dumps(plain, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; InputError naming it where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; InputError naming it where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = tempfile.TemporaryFile(dir=path)  # noqa: SIM115 - closed on the next line
        probe.close()
    except OSError as error:
        raise InputError(f"cannot write in folder {path}: {error.strerror or error}") from None
    return path


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" where a known name is close, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}"
