"""Reading records: any file or run folder, by the schema that the file names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..files import file_digest, read_json
from ..lock import worker_on
from .base import Record, shown
from .card import Card
from .certification import CertificationRecord
from .comparison import ComparisonRecord
from .evaluation import EvaluationRecord
from .leaderboard import LeaderboardRecord
from .mixture import MixtureRecord
from .progress import ProgressRecord
from .request import RequestRecord
from .training import TrainingRecord
from .uncertainty import UncertaintyRecord

RESULTS: tuple[type[Record], ...] = (
    EvaluationRecord,
    TrainingRecord,
    CertificationRecord,
    UncertaintyRecord,
    MixtureRecord,
)
OTHERS: tuple[type[Record], ...] = (
    RequestRecord,
    Card,
    ComparisonRecord,
    LeaderboardRecord,
    ProgressRecord,
)
RECORDS: dict[str, type[Record]] = {kind.SCHEMA: kind for kind in RESULTS + OTHERS}
RESULT, REQUEST, CARD = Record.FILE, RequestRecord.FILE, Card.FILE


def read(path: Path | str) -> Record:
    """What a run folder, a model's folder or a file of one of them holds.

    Args:
        path: a finished run's folder (its `result.json` is read), a checkpoint's (its card), or a
            file: a result, a request or a card.

    Raises:
        InputError: nothing of that name; the run is not finished; a file is damaged, of a version
            that is not known, or another than was written with the result. One line that names
            the file and the field.

    Example:
        >>> import tempfile
        >>> from holdfast.runs.records import RequestRecord, read
        >>> folder = tempfile.mkdtemp()
        >>> file = RequestRecord(kind="evaluate", command=("holdfast", "evaluate")).save(folder)
        >>> read(file).kind
        'evaluate'
    """
    path = Path(path)
    if os.path.isfile(path):  # no error, whatever the name is
        record = read_file(path)
        if path.name == RESULT:
            check_files(path.parent, getattr(record, "files", None))
        return record
    if not os.path.isdir(path):
        raise InputError(f"{path} does not exist: give a run folder, or a file in one")
    card = path / CARD
    if os.path.isfile(card) and not any(os.path.lexists(path / n) for n in (RESULT, REQUEST)):
        return read_file(card)
    return read_result(path)


def read_result(folder: Path) -> Record:
    """The result of a finished run, none of whose files is damaged; as `read`."""
    path = folder / RESULT
    if not os.path.lexists(path):
        raise InputError(_why_none(folder))
    record = read_file(path)
    check_files(folder, getattr(record, "files", None))
    return record


def read_file(path: Path) -> Record:
    """The record in a file; as `read`, and no file beside it is looked at."""
    return record_in(path, read_json(path))


def record_in(path: Path, held: dict[str, Any]) -> Record:
    """The record that a file holds, whose JSON has been read; as `read_file`."""
    schema = held.get("schema")
    if schema is None:  # of files of one name, the first may not have said
        schema = {REQUEST: RequestRecord.SCHEMA, CARD: Card.SCHEMA}.get(path.name, "")
    if not isinstance(schema, str):
        raise InputError(f"{path}: 'schema' must be text, not {shown(schema)}")
    kind = RECORDS.get(schema)
    if kind is None:
        raise InputError(
            f"{path} has schema {shown(schema)}; this version of Holdfast reads "
            f"{', '.join(RECORDS)}"
        )
    if "status" in kind.model_fields and held.get("status") != "complete":
        raise InputError(
            f"{path} has status {shown(held.get('status') or '')}, not 'complete': issue the run's "
            "command again to finish it"
        )
    return kind.checked(held, str(path))


def check_files(folder: Path, sums: Any) -> None:
    """InputError where a file beside a result is not the one that was written with it.

    A file may be missing: results are published without those that are large.

    Args:
        sums: the result's `files`, SHA-256 by name; None for none.
    """
    if not isinstance(sums, dict | None):
        raise InputError(f"{folder / RESULT}: 'files' must be an object of checksums")
    for name, written in (sums or {}).items():
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


def _why_none(run: Path) -> str:
    """Why a folder holds no result, and what to do."""
    worker = worker_on(run)
    if worker is not None:
        return f"run {run} is under way, in process {worker}: report on it when it has finished"
    if (run / REQUEST).exists():
        return (
            f"{run / RESULT} does not exist: the run is not finished; issue its command again to "
            "finish it"
        )
    below = sorted(path.parent.name for path in run.glob(f"*/{RESULT}"))
    if below:
        return (
            f"{run} is no run but a folder of {len(below)} ({', '.join(below[:3])}"
            f"{', …' if below[3:] else ''}): name those to report on, or use "
            "`holdfast leaderboard` on it"
        )
    empty = "is empty" if not any(run.iterdir()) else "holds neither a result nor a request"
    return f"{run} is no run folder: it {empty}; give the --out of a finished command"


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON schema (2020-12) of every record, by what its files say under `schema`."""
    schemas = {}
    for name, kind in RECORDS.items():
        schema = kind.model_json_schema()
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        schema["properties"] = {"schema": {"const": name}, **schema["properties"]}
        schema["required"] = ["schema", *schema.get("required", [])]
        schemas[name] = schema
    return schemas
