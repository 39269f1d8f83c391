"""What a run folder holds, read into plain records. Nothing here draws.

`result.json` is required. The other files of a run (`request.json`, `verdicts.csv`,
`examples.safetensors`, `metrics.csv`) may be absent, for results are published without them; one
that is there must be whole, and must say the same as `result.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..errors import InputError
from ..files import read_json
from ..threat import Threat
from .fields import Accuracy, Fields, csv_column, csv_rows, shown

if TYPE_CHECKING:
    from .certification import Certification
    from .uncertainty_run import Uncertainty


@dataclass(frozen=True)
class Attack:
    name: str
    broken: int | None
    forwards: int | None
    backwards: int | None
    seconds: float | None


@dataclass(frozen=True)
class Flag:
    """One health check; `fired` is None where it could not be run."""

    name: str
    fired: bool | None
    detail: str
    figures: dict[str, Any]


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
class Measured:
    """What every finished run tells that measured a model on images."""

    path: Path
    request: dict[str, Any] | None
    model: str
    architecture: str
    source: str
    sha256: str
    data: str
    split: str
    first: int | None
    pixels: str
    n: int
    threat: Threat
    seconds: float | None


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


@dataclass(frozen=True)
class Event:
    epoch: float | None
    kind: str
    detail: str


@dataclass(frozen=True)
class Training:
    """A finished training run; epochs may be fractions. `metrics` maps each column of
    `metrics.csv` to one value a validation, None where the field was empty."""

    kind = "training"

    path: Path
    request: dict[str, Any] | None
    data: str
    split: str
    pixels: str
    epochs: float | None
    steps: int | None
    seconds: float | None
    best_epoch: float | None
    standard: Accuracy
    pgd: Accuracy
    events: list[Event]
    metrics: dict[str, list[float | None]] = field(default_factory=dict)


Run: TypeAlias = "Evaluation | Training | Uncertainty | Certification"


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
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        images, adversarial = tensors["images"], tensors["adversarial"]
        index = tensors["index"]
    except KeyError as error:
        raise InputError(f"{path} holds no tensor {error}") from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}") from None
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
    return Examples(images.astype(np.float32), adversarial.astype(np.float32), rows)


def read_request(run: Path, result: Fields) -> dict[str, Any] | None:
    path = run / "request.json"
    if not path.exists():
        return None
    request = Fields(read_json(path), str(path))
    asked, answered = request.text("identity"), result.text("identity")
    if asked and answered and asked != answered:
        raise InputError(f"{path} asks for another run than {result.where} answers (identity)")
    return request.value


def read_threat(result: Fields) -> Threat:
    threat = result.object("threat")
    try:
        return Threat(
            threat.text("norm"),
            threat.number("eps") or 0.0,
            **{
                name: threat.number(name) or 0.0
                for name in ("degrees", "pixels")
                if name in threat.value
            },
        )
    except InputError as error:
        raise InputError(f"{threat.where}: {error}") from None


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


def measured(run: Path, result: Fields) -> dict[str, Any]:
    """The fields of `Measured`.

    Raises:
        InputError: there is no number of images.
    """
    n = result.whole("n", 1)
    if n is None:
        raise InputError(f"{result.where} has no 'n', the number of images")
    model, data = result.object("model"), result.object("data")
    return {
        "path": run,
        "request": read_request(run, result),
        "model": model.text("name"),
        "architecture": model.text("architecture"),
        "source": model.text("source"),
        "sha256": model.text("sha256"),
        "data": data.text("name"),
        "split": data.text("split"),
        "first": data.whole("first"),
        "pixels": data.text("pixels"),
        "n": n,
        "threat": read_threat(result),
        "seconds": result.number("seconds"),
    }


def read_flags(result: Fields) -> list[Flag]:
    return [
        Flag(
            flag.text("name"),
            flag.truth("fired"),
            flag.text("detail"),
            flag.object("figures").value,
        )
        for flag in result.objects("flags")
    ]


def _read_evaluation(run: Path, result: Fields) -> Evaluation:
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


def _read_training(run: Path, result: Fields) -> Training:
    validation, data = result.object("validation"), result.object("data")
    n = validation.whole("n", 1)

    def accuracy(name: str) -> Accuracy:
        value = validation.number(name, 0, 1)
        return Accuracy(value) if value is None or n is None else Accuracy.of(round(value * n), n)

    path = run / "metrics.csv"
    rows = csv_rows(path) or []
    return Training(
        path=run,
        request=read_request(run, result),
        data=data.text("name"),
        split=data.text("split"),
        pixels=data.text("pixels"),
        epochs=result.number("epochs"),
        steps=result.whole("steps"),
        seconds=result.number("seconds"),
        best_epoch=result.number("best_epoch"),
        standard=accuracy("standard_accuracy"),
        pgd=accuracy("pgd_accuracy"),
        events=[
            Event(event.number("epoch"), event.text("kind"), event.text("detail"))
            for event in result.objects("events")
        ],
        metrics={
            name: [
                None if value is None or not math.isfinite(value) else value
                for value in csv_column(path, rows, name, float, None)
            ]
            for name in (rows[0] if rows else ())
        },
    )


# What a page can show. A new kind of run is one reader here and one template named after its kind.
READERS: dict[str, Callable[[Path, Fields], Run]] = {
    "holdfast/evaluation/1": _read_evaluation,
    "holdfast/training/1": _read_training,
}


def read_run(run: Path) -> Run:
    """Read a finished run folder.

    Raises:
        InputError: there is no such folder; the run is not finished; a file in it is damaged, is
            of a schema this version does not know, or contradicts another. One line naming the
            file.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"run folder {run} does not exist")
    path = run / "result.json"
    if not path.exists():
        raise InputError(
            f"{path} does not exist: the run is not finished; issue its command again to finish it"
        )
    result = Fields(read_json(path), str(path))
    schema = result.text("schema")
    if schema not in READERS:
        raise InputError(
            f"{path} has schema {shown(schema)}; this version of Holdfast reads "
            f"{' and '.join(READERS)}"
        )
    status = result.text("status")
    if status != "complete":
        raise InputError(
            f"{path} has status {shown(status)}, not 'complete': issue the run's command again "
            f"to finish it"
        )
    return READERS[schema](run, result)
