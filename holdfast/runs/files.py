"""Files that appear whole or not at all, and the words for what is wrong with them."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..terminal import csv_cell

PARTIAL = ".partial"  # ends the names of temporaries; a killed process leaves one behind
SEAL = "seal"  # key of the checksum over the rest of a JSON object
MOST = 2**28  # bytes of a JSON, CSV or YAML file; larger ones are none of Holdfast's
DEEPEST = 50  # levels of a JSON file: nothing that reads one has to fear for its stack


def write_atomically(path: Path, content: bytes | str | Iterable[bytes]) -> None:
    """Write to a temporary neighbour, flush it to the disk, then rename it over `path`.

    Args:
        content: all of it, or piece by piece.

    Raises:
        InputError: the disk is full or the folder cannot be written; `path` is untouched.
    """
    pieces = [_encoded(content)] if isinstance(content, bytes | str) else content
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL
        )
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
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


def _encoded(content: bytes | str) -> bytes:
    # A lone surrogate, from a path that is no UTF-8, becomes the escape that JSON has for it.
    return content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content


def write_json(path: Path, value: dict[str, Any], *, sealed: bool = False) -> dict[str, Any]:
    """`value` as indented JSON, atomically. NaN and infinity are refused: they are no JSON.

    Args:
        sealed: with a checksum that `read_json` checks, so that nothing is ever read from it that
            was not written.

    Returns:
        what the file holds.
    """
    value = add_seal(value) if sealed else value
    write_atomically(path, json_text(value))
    return value


def add_seal(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with the checksum over the rest of it."""
    plain = {key: item for key, item in value.items() if key != SEAL}
    return {**plain, SEAL: _seal(plain)}


def json_text(value: Any) -> str:
    """`value` as `write_json` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_named(path: Path, content: bytes | str, ours: Callable[[bytes], bool]) -> None:
    """Write a file where a user says, over nothing but what Holdfast wrote itself.

    A symbolic link stays, and what it leads to is written. What is neither a regular file nor a
    folder, such as a pipe or `/dev/null`, is written to, not replaced.

    Args:
        path: its folder is made if need be.
        ours: whether the bytes that a file holds are what is written here.

    Raises:
        InputError: the path is a folder, or a file of somebody else's; it cannot be written.
            Whatever was there is untouched.
    """
    if check_named(path, ours):
        target = Path(os.path.realpath(path))
        make_folder(target.parent)
        write_atomically(target, content)
        return
    try:
        with open(path, "wb", buffering=0) as stream:
            rest = memoryview(_encoded(content))
            while rest:
                rest = rest[stream.write(rest) :]
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def check_named(path: Path, ours: Callable[[bytes], bool]) -> bool:
    """Whether a named regular file is or will be there; InputError where `write_named` refuses.

    Long work asks before it begins.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {path}: {said}") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder: give the name of a file to write")
    if not stat.S_ISREG(mode):
        return False
    try:
        held = read_bytes(path)
        mine = not held or ours(held)
    except InputError:
        mine = False
    if not mine:
        raise InputError(
            f"{path} holds something that Holdfast did not write there; choose another name, or "
            "remove it"
        )
    # The name behind /dev/stdout may be of a file that is gone.
    return os.path.exists(target := os.path.realpath(path)) and os.path.samefile(path, target)


def write_result(path: Path, value: dict[str, Any]) -> None:
    """A result as JSON where a user says; as `write_named`, over no other result or file."""
    write_named(path, json_text(value), _is_result)


def _is_result(content: bytes) -> bool:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and str(value.get("schema", "")).startswith("holdfast/")


def csv_text(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; no cell is what a spreadsheet would take for a formula."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in names])
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return table.getvalue()


def read_bytes(path: Path, most: int = MOST, pipes: bool = False) -> bytes:
    """What a file holds.

    Args:
        most: bytes it may have.
        pipes: take what is no regular file too, such as `/dev/stdin`.

    Raises:
        InputError: it does not exist, cannot be read, is too large, or no regular file: a pipe
            that nobody writes to would be waited for without end.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            if stat.S_ISREG(os.fstat(handle).st_mode) or pipes:
                os.set_blocking(handle, True)
                content = file.read(most + 1)
                if len(content) <= most:
                    return content
                why = f"it is larger than {most // 2**20} MiB"
            else:
                why = "it is no regular file"
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = getattr(error, "strerror", None) or str(error)
    raise InputError(f"{path} cannot be read: {why}")


def check_regular(path: Path) -> None:
    """InputError if there is no regular file at a path, for readers that open files themselves."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path} cannot be read: it is no regular file")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def read_text(path: Path, most: int = MOST, pipes: bool = False) -> str:
    """The UTF-8 text in a file; as `read_bytes`."""
    content = read_bytes(path, most, pipes)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, without its seal; InputError naming the file if there is none, if
    it is not what was sealed, or if it is nested deeper than `DEEPEST` levels.

    A whole number of more than 20 digits is read as a float.
    """
    text = read_text(path)
    try:
        value = json.loads(text, parse_int=_whole)
        _check_depth(value)
    except RecursionError:
        raise InputError(f"{path} cannot be read: it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    plain = {key: item for key, item in value.items() if key != SEAL}
    if SEAL in value and value[SEAL] != _seal(plain):
        raise InputError(
            f"{path} is damaged: it is not what was written there, by its {SEAL!r}; make it anew "
            f"(if you changed it on purpose, remove {SEAL!r} from it)"
        )
    return plain


def _seal(value: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # as it will be read again
    text = json.dumps(plain, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; InputError naming it where it cannot be read."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= 20 else float(digits)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise RecursionError


def inside(folder: Path, name: str) -> Path:
    """The path of what a file in `folder` names.

    Raises:
        InputError: it leads out of the folder, by `..`, as an absolute path or by a link.
    """
    try:
        root, path = os.path.realpath(folder), os.path.realpath(folder / name)
        within = not os.path.isabs(name) and Path(path).is_relative_to(root)
    except (OSError, ValueError):
        within = False
    if not within:
        raise InputError(f"{name!r} leads out of {folder}: files may only name what lies there")
    return folder / name


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; InputError naming it where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = tempfile.TemporaryFile(dir=path)  # noqa: SIM115 - closed on the next line
        probe.close()
    except OSError as error:
        raise InputError(f"cannot write in folder {path}: {error.strerror or error}") from None
    return path
