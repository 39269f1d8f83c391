"""The runs that pages show: their records, and the other files of their folders.

`result.json` is required. The other files of a run (`request.json`, `verdicts.csv`,
`examples.safetensors`, `metrics.csv`) may be absent, for results are published without them; one
that is there must be whole, and must say the same as `result.json`.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch

from ..data.base import holds_out
from ..errors import InputError
from ..intervals import clopper_pearson
from ..runs.files import read_text
from ..runs.records import (
    REQUEST,
    RESULT,
    CertificationRecord,
    DataInfo,
    EvaluationRecord,
    Flag,
    Measurement,
    ModelInfo,
    Record,
    RequestRecord,
    TrainingRecord,
    UncertaintyRecord,
    Validation,
    read_file,
    read_result,
    threat_in,
)
from ..runs.records.base import shown
from ..runs.tensors import read_tensors
from ..threat import Threat


@dataclass(frozen=True)
class Accuracy:
    """A fraction in [0, 1] of n images and its 95 % interval; None is "has no value"."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def count(self) -> int | None:
        """How many images the fraction stands for."""
        return None if self.value is None or self.n is None else round(self.value * self.n)

    @classmethod
    def of(cls, count: int, n: int) -> Accuracy:
        """`count` of n with its 95 % interval; no value where n is 0."""
        if n == 0:
            return cls(None, n=0)
        return cls.stated(count / n, clopper_pearson(count, n), n)

    @classmethod
    def stated(
        cls, value: float | None, interval: tuple[float, float] | None, n: int | None
    ) -> Accuracy:
        """As a record has it."""
        low, high = interval or (None, None)
        return cls(value, low, high, n)


@dataclass(frozen=True)
class Verdicts:
    """The columns of `verdicts.csv`, each of length n. Predictions and fingerprints are -1, and
    confidences and distances NaN, where there is none."""

    index: np.ndarray
    label: np.ndarray
    clean_prediction: np.ndarray
    clean_confidence: np.ndarray
    broken: np.ndarray
    attack: list[str]
    adversarial_prediction: np.ndarray
    adversarial_confidence: np.ndarray
    distance: np.ndarray
    fingerprint: np.ndarray  # of the clean images, see `holdfast.runs.identity`
    target: np.ndarray  # the class that an attack aimed at

    @property
    def clean_right(self) -> np.ndarray:
        return self.clean_prediction == self.label

    @property
    def broken_by_attack(self) -> np.ndarray:
        return self.broken & self.clean_right


@dataclass(frozen=True)
class Examples:
    """Images to show: (M, C, H, W) float32 in [0, 1], and the rows of the verdicts they belong
    to, (M,)."""

    images: np.ndarray
    adversarial: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run that measured a model on images."""

    path: Path
    record: Measurement
    request: RequestRecord | None

    @property
    def model(self) -> ModelInfo:
        return self.record.model or ModelInfo()

    @property
    def data(self) -> DataInfo:
        return self.record.data or DataInfo()

    @property
    def threat(self) -> Threat:
        return threat_in(self.record.threat)

    @property
    def n(self) -> int:
        return self.record.n

    @property
    def fired(self) -> tuple[Flag, ...]:
        return self.record.fired

    @property
    def doubts(self) -> tuple[Flag, ...]:
        return self.record.doubts

    def accuracy(self, name: str) -> Accuracy:
        """`standard_accuracy`, say, with its interval."""
        value, bounds = (getattr(self.record, key) for key in (name, f"{name}_interval"))
        return Accuracy.stated(value, bounds, self.n)


@dataclass(frozen=True)
class EvaluationRun(MeasuredRun):
    """A finished evaluation."""

    kind: ClassVar[str] = "evaluation"

    record: EvaluationRecord
    verdicts: Verdicts | None
    examples: Examples | None

    def accuracy(self, name: str) -> Accuracy:
        """`standard_accuracy`, say, with the interval that stands first."""
        bounds = self.record.interval_shown(name)
        return Accuracy.stated(getattr(self.record, name), bounds, self.n)

    @property
    def standard(self) -> Accuracy:
        return self.accuracy("standard_accuracy")

    @property
    def robust(self) -> Accuracy:
        return self.accuracy("robust_accuracy")

    @property
    def aimed(self) -> bool:
        """Whether one class alone counted as a success, and not any mistake."""
        return self.record.target_reached is not None

    @property
    def reached(self) -> Accuracy:
        """The share of images on which the target was reached."""
        record = self.record
        return Accuracy.stated(record.target_reached, record.target_reached_interval, self.n)

    @property
    def unaware(self) -> Accuracy | None:
        """Against an attacker who does not know of the defences."""
        found = self.record.unaware
        if found is None:
            return None
        return Accuracy.stated(found.robust_accuracy, found.robust_accuracy_interval, found.n)

    def class_name(self, index: int) -> str:
        if index < 0:
            return ""
        classes = self.record.classes
        return classes[index] if index < len(classes) else str(index)


@dataclass(frozen=True)
class CertificationRun(MeasuredRun):
    """A finished certification."""

    kind: ClassVar[str] = "certification"

    record: CertificationRecord


@dataclass(frozen=True)
class UncertaintyRun(MeasuredRun):
    """A finished uncertainty run."""

    kind: ClassVar[str] = "uncertainty"

    record: UncertaintyRecord


@dataclass(frozen=True)
class TrainingRun:
    """A finished training; `metrics` maps each column of `metrics.csv` to one value a validation,
    None where the field was empty."""

    kind: ClassVar[str] = "training"

    path: Path
    record: TrainingRecord
    request: RequestRecord | None
    metrics: dict[str, list[float | None]] = field(default_factory=dict)

    @property
    def data(self) -> DataInfo:
        return self.record.data or DataInfo()

    @property
    def standard(self) -> Accuracy:
        return self._validated("standard_accuracy")

    @property
    def pgd(self) -> Accuracy:
        return self._validated("pgd_accuracy")

    def _validated(self, name: str) -> Accuracy:
        kept = self.record.validation or Validation()
        value, n = getattr(kept, name), kept.n
        return Accuracy(value) if value is None or n is None else Accuracy.of(round(value * n), n)

    @property
    def held_out(self) -> bool:
        """Whether the validation images were left out of training."""
        return holds_out(self.data.split or "")


# What a page can show. A new kind of run is one class here and one template named after its kind.
Run: TypeAlias = EvaluationRun | TrainingRun | UncertaintyRun | CertificationRun


def read_run(folder: Path) -> Run:
    """Read a finished run folder.

    Raises:
        InputError: there is no such folder; the run is not finished; a file in it is damaged, is
            of a schema this version does not know, or contradicts another. One line naming the
            file.
    """
    folder = Path(folder)
    if os.path.isfile(folder):  # no error, whatever the name is
        raise InputError(f"{folder} is a file; give the run's folder, such as {folder.parent}")
    if not os.path.isdir(folder):
        raise InputError(f"run folder {folder} does not exist")
    record = read_result(folder)
    request = _read_request(folder, record)
    match record:
        case EvaluationRecord():
            verdicts = _read_verdicts(folder / "verdicts.csv")
            examples = None
            if verdicts is not None:
                _check_verdicts(folder / "verdicts.csv", verdicts, record)
                examples = _read_examples(folder / "examples.safetensors", verdicts)
            return EvaluationRun(folder, record, request, verdicts, examples)
        case TrainingRecord():
            return TrainingRun(folder, record, request, _read_metrics(folder / "metrics.csv"))
        case UncertaintyRecord():
            return UncertaintyRun(folder, record, request)
        case CertificationRecord():
            return CertificationRun(folder, record, request)
    raise InputError(f"{folder / RESULT} has schema {record.SCHEMA!r}, of which there is no page")


def _read_request(folder: Path, record: Record) -> RequestRecord | None:
    path = folder / REQUEST
    if not path.exists():
        return None
    request = read_file(path)
    if not isinstance(request, RequestRecord):
        raise InputError(f"{path} is no request")
    identity = getattr(record, "identity", None)
    if request.identity and identity and request.identity != identity:
        raise InputError(f"{path} asks for another run than {folder / RESULT} answers (identity)")
    return request


def _read_metrics(path: Path) -> dict[str, list[float | None]]:
    rows = _csv_rows(path) or []
    return {
        name: [
            None if value is None or not math.isfinite(value) else value
            for value in _csv_column(path, rows, name, float, None)
        ]
        for name in (rows[0] if rows else ())
    }


def _whole_number(text: str) -> int:
    value = int(text)
    if not -1 <= value < 2**63:
        raise ValueError(text)
    return value


_WHOLE = ("index", "label", "clean_prediction", "adversarial_prediction")
_REAL = ("clean_confidence", "adversarial_confidence", "distance")


def _read_verdicts(path: Path) -> Verdicts | None:
    rows = _csv_rows(path, (*_WHOLE, *_REAL, "broken", "attack"))
    if rows is None:
        return None
    columns: dict[str, Any] = {
        name: np.array(_csv_column(path, rows, name, _whole_number, -1), np.int64)
        for name in _WHOLE
    }
    columns |= {
        name: np.array(_csv_column(path, rows, name, float, math.nan), np.float64) for name in _REAL
    }
    for name in ("fingerprint", "target"):  # which files of before, or of others, may lack
        known = rows if rows and name in rows[0] else [{name: ""} for _ in rows]
        columns[name] = np.array(_csv_column(path, known, name, _whole_number, -1), np.int64)
    broken = _csv_column(path, rows, "broken", lambda text: bool(("0", "1").index(text)), False)
    return Verdicts(
        **columns, broken=np.array(broken, bool), attack=[row["attack"] for row in rows]
    )


def _check_verdicts(path: Path, verdicts: Verdicts, result: EvaluationRecord) -> None:
    """Two files that disagree are worth nothing: which of them would the page believe?"""
    n, where = result.n, path.parent / RESULT
    if len(verdicts.index) != n:
        raise InputError(f"{path} holds {len(verdicts.index)} images, but {where} says {n}")
    for name, right in (
        ("standard_accuracy", verdicts.clean_right),
        ("robust_accuracy", ~verdicts.broken),
    ):
        stated = getattr(result, name)
        if stated is not None and abs(stated * n - right.sum()) > 0.5:
            raise InputError(
                f"{path} counts {right.sum()} of {n} images for {name}, but {where} says {stated}"
            )


def _read_examples(path: Path, verdicts: Verdicts) -> Examples | None:
    if not os.path.lexists(path):
        return None
    images, adversarial, index = read_arrays(path, ("images", "adversarial"), ("index",))
    if images.ndim != 4 or images.shape != adversarial.shape or index.shape != images.shape[:1]:
        raise InputError(
            f"{path}: images {images.shape}, adversarial {adversarial.shape} and index "
            f"{index.shape} do not belong together; (M, C, H, W) twice and (M,) do"
        )
    if not (np.isfinite(images).all() and np.isfinite(adversarial).all()):
        raise InputError(f"{path} holds images with values that are not finite")
    row_of = {int(index): row for row, index in enumerate(verdicts.index)}
    unknown = [int(i) for i in index if int(i) not in row_of]
    if unknown:
        raise InputError(f"{path} shows image {unknown[0]}, which has no row in verdicts.csv")
    rows = np.array([row_of[int(i)] for i in index], np.int64)
    return Examples(images, adversarial, rows)


def read_arrays(path: Path, real: Sequence[str], whole: Sequence[str]) -> list[np.ndarray]:
    """The tensors of a safetensors file by name, as float32, then as int64.

    Raises:
        InputError: the file is damaged, or lacks one, or holds one of another kind.
    """
    tensors = read_tensors(path)
    arrays = []
    for name in (*real, *whole):
        if name not in tensors:
            raise InputError(f"{path} holds no tensor {name!r}")
        tensor, kind = tensors[name], torch.float32 if name in real else torch.int64
        if tensor.is_complex() or tensor.is_floating_point() != (name in real):
            raise InputError(f"{path}: {name!r} is of type {tensor.dtype}, not {kind}")
        arrays.append(tensor.to(kind).numpy())
    return arrays


def _csv_rows(path: Path, needed: tuple[str, ...] = ()) -> list[dict[str, str]] | None:
    """The rows of a CSV file with a header, or None where there is no such file."""
    try:
        if not os.path.lexists(path):
            return None
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        rows = list(reader)
        names = reader.fieldnames or []
    except InputError:
        raise
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}")
    for line, row in enumerate(rows, 2):
        # DictReader files surplus fields under None, and fills absent ones with None.
        if None in row or None in row.values():
            raise InputError(f"{path} line {line} has not the {len(names)} fields of its header")
    return rows


def _csv_column(
    path: Path, rows: list[dict[str, str]], name: str, kind: Callable[[str], Any], empty: Any
) -> list[Any]:
    values = []
    for line, row in enumerate(rows, 2):
        text = row[name].strip()
        try:
            values.append(kind(text) if text else empty)
        except (ValueError, OverflowError):
            raise InputError(f"{path} line {line}: {name} is {shown(text)}, not a number") from None
    return values
