"""Run folders: how a run is begun, found again, and finished."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError
from ..threat import Threat
from .files import PARTIAL, file_digest, make_folder, write_json
from .lock import LOCK
from .records import REQUEST, RESULT, ProgressRecord, Record, RequestRecord, check_files, read_file

R = TypeVar("R", bound=Record)


def open_run(
    folder: Path | str, kind: str, key: str, request: dict[str, Any], besides: str = ""
) -> tuple[Path, bool]:
    """Begin a run in a folder, or find that the same one was begun there.

    Args:
        folder: created if need be.
        kind: `train`, `evaluate`, `uncertainty`, `certify` or `mix`.
        key: the run's identity.
        request: what is written to `request.json` for a new run.
        besides: the names of files, as a pattern, that may be there before the run is.

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
        not (entry.name.endswith(PARTIAL) or entry.name == LOCK or fnmatch(entry.name, besides))
        for entry in folder.iterdir()
    ):
        raise InputError(f"{folder} holds other files; choose another --out")
    make_folder(folder)
    asked = RequestRecord.checked({**request, "kind": kind, "identity": key}, "the request")
    write_json(file, asked.to_dict(), sealed=True)
    return folder, False


def _held(folder: Path) -> dict[str, Any]:
    """The request of the run in a folder."""
    try:
        return read_file(folder / REQUEST).to_dict()
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


def finish(folder: Path, result: R, files: Iterable[str] = ()) -> R:
    """Write a run's `result.json`, its last file, so that its presence means done.

    Args:
        result: what it holds, besides when the run was `finished`, and the checksums of `files`.
        files: names of the run's other files that a reader goes by.

    Returns:
        what it holds.
    """
    sums = {name: file_digest(folder / name) for name in files if (folder / name).is_file()}
    held = {"finished": now(), **result.to_dict(), "files": sums}
    record = type(result).checked(held, str(folder / RESULT))
    write_json(folder / RESULT, record.to_dict(), sealed=True)
    (folder / ProgressRecord.FILE).unlink(missing_ok=True)
    return record


def finished(folder: Path | str, kind: type[R] = Record) -> R | None:  # type: ignore[assignment]
    """The result of a run that is whole; None where the run, or a file of it, is not there.

    Args:
        kind: of record that it must be.

    Raises:
        InputError: a file is damaged; one line that says what to do.
    """
    folder = Path(folder)
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        result = read_file(path)
        if not isinstance(result, kind):
            raise InputError(f"{path} has schema {result.SCHEMA!r}, not {kind.SCHEMA!r}")
    except InputError as error:
        raise InputError(
            f"{error}; remove it and issue the run's command again, which writes it anew"
        ) from None
    files = getattr(result, "files", None) or {}
    check_files(folder, files)
    if getattr(result, "finished", None) is None:  # of a version that did not say
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        result = result.model_copy(update={"finished": written.isoformat(timespec="seconds")})
    return result if all(os.path.isfile(folder / name) for name in files) else None


def on_date(finished: str) -> str:
    """`2026-11-30T02:51:44+00:00` as a reader writes it: 30 November 2026, 02:51 UTC."""
    try:
        moment = datetime.fromisoformat(finished).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return str(finished)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def withdraw_run(folder: Path) -> None:
    """Forget a run that failed before it wrote anything, so that its folder is free again."""
    if {entry.name for entry in folder.iterdir()} - {LOCK, ProgressRecord.FILE} == {REQUEST}:
        (folder / ProgressRecord.FILE).unlink(missing_ok=True)
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
    "corruptions": "the corrupted images are others",
    "human_labels": "the human labels are others",
    "weights": "the models' weights are others",
    "network": "the network's code, or the module, is another",
    "first_weights": "the network begins with other weights",
}
# Words that change no figure, and what only follows from something else that is named.
_ASIDE = {
    "pixels", "source", "architecture", "more_test", "more_held", "training", "classes",
    "classes_without_images", "overlaps", "seen_in_training", "trained_on", "told", "brought",
}  # fmt: skip


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
        if path not in before or before[path] == value or last in _ASIDE:
            continue
        if path.startswith("threat."):  # said below, in one
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
    differences = [*named] or [*sums] or ["made by another version of the code or on other data"]
    return "; ".join(differences[:3])


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
