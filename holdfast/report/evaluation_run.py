"""An evaluation run as it is read from its folder."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..evaluation.result import RAN, outcome_of
from ..runs.tensors import read_tensors
from .fields import Accuracy, Fields, csv_column, csv_rows
from .measured import Flag, Measured, measured, read_flags

SCHEMA = "holdfast/evaluation/1"


@dataclass(frozen=True)
class Attack:
    name: str
    broken: int | None
    forwards: int | None
    backwards: int | None
    seconds: float | None
    outcome: str = RAN

    @property
    def ran(self) -> bool:
        return self.outcome == RAN


@dataclass(frozen=True)
class Curve:
    """Robust accuracy against ε, found by one attack: `accuracies[i]` at `eps[i]`, ascending."""

    attack: str
    n: int | None
    eps: list[float]
    accuracies: list[Accuracy]


@dataclass(frozen=True)
class DrawFigure:
    """Accuracies over fresh draws of a random model: `average`, `worst` or `majority`."""

    kind: str
    draws: int | None
    standard: Accuracy
    robust: Accuracy


@dataclass(frozen=True)
class Verdicts:
    """The columns of `verdicts.csv`, each of length n. Predictions are -1, and confidences and
    distances NaN, where there is none."""

    index: np.ndarray
    label: np.ndarray
    clean_prediction: np.ndarray
    clean_confidence: np.ndarray
    broken: np.ndarray
    attack: list[str]
    adversarial_prediction: np.ndarray
    adversarial_confidence: np.ndarray
    distance: np.ndarray

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
class Evaluation(Measured):
    """A finished evaluation run."""

    kind = "evaluation"

    standard: Accuracy
    robust: Accuracy
    suite: str
    attacks: list[Attack]
    flags: list[Flag]
    classes: list[str]
    curve: Curve | None
    forwards: int | None
    backwards: int | None
    seed: int | None
    precision: str
    training_run: str
    verdicts: Verdicts | None
    examples: Examples | None
    defences: list[str] = field(default_factory=list)
    draws: list[DrawFigure] = field(default_factory=list)
    unaware: Accuracy | None = None  # against an attacker who does not know of the defences
    unaware_attack: str = ""

    @property
    def fired(self) -> list[Flag]:
        return [flag for flag in self.flags if flag.fired]

    def class_name(self, index: int) -> str:
        if index < 0:
            return ""
        return self.classes[index] if index < len(self.classes) else str(index)


def read_evaluation(run: Path, result: Fields) -> Evaluation:
    shared = measured(run, result)
    n = shared["n"]
    classes = result.list("classes")
    if not all(isinstance(name, str) for name in classes):
        raise InputError(f"{result.where}: 'classes' must be a list of names")
    verdicts = _read_verdicts(run / "verdicts.csv")
    if verdicts is not None:
        _check_verdicts(run / "verdicts.csv", verdicts, n, result)
    return Evaluation(
        **shared,
        standard=result.accuracy("standard_accuracy", "standard_accuracy_interval", n),
        robust=result.accuracy("robust_accuracy", "robust_accuracy_interval", n),
        suite=result.text("suite"),
        attacks=[
            Attack(
                attack.text("name"),
                attack.whole("broken"),
                attack.whole("forwards"),
                attack.whole("backwards"),
                attack.number("seconds"),
                outcome_of(attack.value),
            )
            for attack in result.objects("attacks")
        ],
        flags=read_flags(result),
        classes=classes,
        curve=_read_curve(result),
        forwards=result.whole("forwards"),
        backwards=result.whole("backwards"),
        seed=result.whole("seed", -(2**63)),
        precision=result.text("precision"),
        training_run=result.text("training_run"),
        verdicts=verdicts,
        examples=_read_examples(run / "examples.safetensors", verdicts) if verdicts else None,
        **_read_defence(result, result.object("model"), n),
    )


def _read_defence(result: Fields, model: Fields, n: int) -> dict[str, Any]:
    """The fields of an `Evaluation` that defended and random models have."""
    defences = model.list("defences")
    if not all(isinstance(name, str) for name in defences):
        raise InputError(f"{model.where}: 'defences' must be a list of names")
    unaware, name = result.object("unaware"), "robust_accuracy"
    return {
        "defences": defences,
        "draws": [
            DrawFigure(
                figure.text("kind"),
                figure.whole("draws", 1),
                figure.accuracy("standard_accuracy", "standard_accuracy_interval", n),
                figure.accuracy(name, f"{name}_interval", n),
            )
            for figure in result.objects("draws")
        ],
        "unaware": unaware.accuracy(name, f"{name}_interval", unaware.whole("n", 1))
        if unaware.value
        else None,
        "unaware_attack": unaware.text("attack"),
    }


def _whole_number(text: str) -> int:
    value = int(text)
    if not -1 <= value < 2**63:
        raise ValueError(text)
    return value


_WHOLE = ("index", "label", "clean_prediction", "adversarial_prediction")
_REAL = ("clean_confidence", "adversarial_confidence", "distance")


def _read_verdicts(path: Path) -> Verdicts | None:
    rows = csv_rows(path, (*_WHOLE, *_REAL, "broken", "attack"))
    if rows is None:
        return None
    columns: dict[str, Any] = {
        name: np.array(csv_column(path, rows, name, _whole_number, -1), np.int64) for name in _WHOLE
    }
    columns |= {
        name: np.array(csv_column(path, rows, name, float, math.nan), np.float64) for name in _REAL
    }
    broken = csv_column(path, rows, "broken", lambda text: bool(("0", "1").index(text)), False)
    return Verdicts(
        **columns, broken=np.array(broken, bool), attack=[row["attack"] for row in rows]
    )


def _check_verdicts(path: Path, verdicts: Verdicts, n: int, result: Fields) -> None:
    """Two files that disagree are worth nothing: which of them would the page believe?"""
    if len(verdicts.index) != n:
        raise InputError(f"{path} holds {len(verdicts.index)} images, but {result.where} says {n}")
    for name, right in (
        ("standard_accuracy", verdicts.clean_right),
        ("robust_accuracy", ~verdicts.broken),
    ):
        stated = result.number(name, 0, 1)
        if stated is not None and abs(stated * n - right.sum()) > 0.5:
            raise InputError(
                f"{path} counts {right.sum()} of {n} images for {name}, "
                f"but {result.where} says {stated}"
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


def _read_curve(result: Fields) -> Curve | None:
    if result.value.get("curve") is None:
        return None
    curve = result.object("curve")
    n = curve.whole("n", 1)
    points = []
    for point in curve.objects("points"):
        eps = point.number("eps")
        if eps is None:
            raise InputError(f"{point.where} has no 'eps'")
        points.append((eps, point.accuracy("robust_accuracy", "interval", n)))
    if not points:
        return None
    points.sort(key=lambda point: point[0])
    return Curve(curve.text("attack"), n, [e for e, _ in points], [a for _, a in points])
