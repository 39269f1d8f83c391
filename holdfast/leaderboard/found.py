"""What lies below a folder: results of Holdfast's, and figures that others published."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..runs.files import read_json
from ..runs.records import (
    RESULT,
    EvaluationRecord,
    LeaderboardRecord,
    LeaderboardRow,
    Record,
    TrainingRecord,
    record_in,
)
from . import robustbench


@dataclass(frozen=True)
class FoundRecord:
    """A result and the file that holds it."""

    file: Path
    record: Record

    @property
    def folder(self) -> Path:
        return self.file.parent


@dataclass
class Found:
    """All that a leaderboard is made of.

    Attributes:
        evaluations, trainings: finished ones.
        elsewhere: rows that others published.
        left_out: what cannot be read, one line each.
        corruptions: published entries on common corruptions, which are no attack.
        others: results of other kinds, where they are asked for.
    """

    evaluations: list[FoundRecord] = field(default_factory=list)
    trainings: list[FoundRecord] = field(default_factory=list)
    elsewhere: list[LeaderboardRow] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    corruptions: int = 0
    others: list[FoundRecord] = field(default_factory=list)

    def take(self, file: Path, held: dict[str, Any] | InputError, all_kinds: bool = False) -> None:
        """Sort in a JSON file.

        Args:
            held: what it holds, or why that cannot be read.
            all_kinds: take finished runs of all verbs, in `others`.
        """
        schema = held.get("schema") if isinstance(held, dict) else None
        try:
            if isinstance(held, InputError):
                raise held
            if robustbench.is_entry(held):
                row = robustbench.row(file, held)
                self.corruptions += row is None
                self.elsewhere += [] if row is None else [row]
            elif schema == EvaluationRecord.SCHEMA:
                record = record_in(file, held)
                assert isinstance(record, EvaluationRecord)
                _check_whole(file, record)
                self.evaluations.append(FoundRecord(file, record))
            elif schema == TrainingRecord.SCHEMA:
                self.trainings.append(FoundRecord(file, record_in(file, held)))
            elif all_kinds and file.name == RESULT:
                self.others.append(FoundRecord(file, record_in(file, held)))
            elif not str(schema).startswith("holdfast/"):
                raise InputError(f"{file} is no result of Holdfast's")
        except InputError as error:
            # Other people's files may lie beside runs, under any name but this.
            known = schema == EvaluationRecord.SCHEMA
            if file.name == RESULT or known or (held and robustbench.is_entry(held)):
                self.left_out.append(str(error))

    def add(self, more: Found) -> None:
        """What was found elsewhere, too."""
        for name in ("evaluations", "trainings", "elsewhere", "left_out", "others"):
            getattr(self, name).extend(getattr(more, name))
        self.corruptions += more.corruptions


def _check_whole(file: Path, record: EvaluationRecord) -> None:
    """InputError naming what an evaluation lacks that a table needs."""
    for name in ("standard_accuracy", "robust_accuracy"):
        if getattr(record, name) is None or getattr(record, f"{name}_interval") is None:
            raise InputError(f"{file} lacks {name!r} or its interval")
    if not record.suite:
        raise InputError(f"{file} lacks 'suite'")


def json_files(folder: Path, inside: bool = False) -> Iterator[Path]:
    """Every JSON file below a folder, in order; sites of leaderboards are passed over.

    Args:
        inside: leave out hidden folders, and what a link leads to outside the folder.
    """
    root = os.path.realpath(folder)
    # os.walk passes over folders that cannot be read or that go away meanwhile.
    for place, folders, names in os.walk(folder):
        if inside:
            folders[:] = [name for name in folders if not name.startswith(".")]
        folders.sort()
        if LeaderboardRecord.FILE in names and "index.html" in names:
            folders.clear()
            continue
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix != ".json":
                continue
            if inside and not Path(os.path.realpath(path)).is_relative_to(root):
                continue
            yield path


def find(
    folder: Path,
    elsewhere: tuple[Path, ...] = (),
    read: Callable[[Path], dict[str, Any]] = read_json,
) -> Found:
    """All results below a folder, and what others published, there or in other folders.

    Raises:
        InputError: no such folder.
    """
    found = Found()
    for place in (folder, *elsewhere):
        if not os.path.isdir(place):  # no error, whatever the name is
            raise InputError(f"folder {place} does not exist")
        for file in json_files(place):
            held: dict[str, Any] | InputError
            try:
                held = read(file)
            except InputError as error:
                held = error
            found.take(file, held)
    return found
