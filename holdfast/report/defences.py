"""What a page shows of a defence: its figures by what the attacker knows, and what it does to a few
images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..evaluation.defence_examples import FILE
from ..evaluation.result import distinct_names
from . import format, pictures
from .runs import Accuracy, EvaluationRun, read_arrays

# The pictures of a strip, in the order of the answers in the file.
FRAMES = (
    ("clean", "as it is", "the network"),
    ("unaware", "attacked, the defence unknown", "the network"),
    ("unaware_shown", "what the defence makes of it", "the defended model"),
    ("adaptive", "attacked, the defence known", "the network"),
    ("adaptive_shown", "what the defence makes of it", "the defended model"),
)


@dataclass(frozen=True)
class Frame:
    picture: str
    what: str
    whose: str  # answer it is
    answer: str
    confidence: str
    wrong: bool


@dataclass(frozen=True)
class Strip:
    index: int
    label: str
    frames: list[Frame]


@dataclass(frozen=True)
class Knowledge:
    """An attacker, and what he leaves standing."""

    attacker: str
    attack: str
    accuracy: Accuracy


@dataclass(frozen=True)
class DrawRow:
    """Accuracies of a random model over fresh draws."""

    kind: str
    draws: int | None
    standard: Accuracy
    robust: Accuracy


@dataclass(frozen=True)
class Defended:
    names: tuple[str, ...]
    rows: list[Knowledge]
    draws: list[DrawRow]
    strips: list[Strip]
    note: str


@dataclass(frozen=True)
class TableRow:
    number: int
    run: EvaluationRun
    model: str
    names: str
    search: str


def defended(run: EvaluationRun) -> Defended | None:
    """The section on a run's defences; None for a model without any.

    Raises:
        InputError: the file of strips is damaged, or shows images that the verdicts do not hold.
    """
    record = run.record
    if not run.model.defences and not record.draws:
        return None
    rows = [Knowledge("none", "clean images", run.standard)]
    if record.unaware is not None and run.unaware is not None:
        rows.append(Knowledge("does not know of the defence", record.unaware.attack, run.unaware))
    rows.append(Knowledge("knows all of it", f"suite {record.suite or ''}", run.robust))
    draws = [
        DrawRow(
            figure.kind,
            figure.draws,
            Accuracy.stated(figure.standard_accuracy, figure.standard_accuracy_interval, run.n),
            Accuracy.stated(figure.robust_accuracy, figure.robust_accuracy_interval, run.n),
        )
        for figure in record.draws
    ]
    strips, note = _strips(run)
    return Defended(run.model.defences, rows, draws, strips, note)


def defence_table(runs: Sequence[EvaluationRun]) -> list[TableRow]:
    """Defended runs beside each other and beside the bare models; empty where none is defended."""
    if not any(run.model.defences for run in runs):
        return []
    models = distinct_names(
        [run.model.name or run.path.resolve().name for run in runs],
        [run.model.sha256 or "" for run in runs],
    )
    return [
        TableRow(
            number,
            run,
            models[number - 1],
            ", then ".join(run.model.defences) or "none",
            f"{run.record.suite or format.NONE} · {run.threat}",
        )
        for number, run in enumerate(runs, 1)
    ]


def _strips(run: EvaluationRun) -> tuple[list[Strip], str]:
    path = run.path / FILE
    if not os.path.lexists(path) or run.verdicts is None:
        return [], ""
    tensors = _read(path)
    images = tensors["clean"]
    if images.shape[1] not in (1, 3):
        return [], f"Images of {images.shape[1]} channels cannot be shown; 1 or 3 can."
    row_of = {int(index): row for row, index in enumerate(run.verdicts.index)}
    strips = []
    for i, index in enumerate(tensors["index"].tolist()):
        if index not in row_of:
            raise InputError(f"{path} shows image {index}, which has no row in verdicts.csv")
        label = int(run.verdicts.label[row_of[index]])
        frames = [
            Frame(
                picture=pictures.png(tensors[name][i]),
                what=what,
                whose=whose,
                answer=run.class_name(int(tensors["answers"][i, place])),
                confidence=format.percent(float(tensors["confidences"][i, place])),
                wrong=int(tensors["answers"][i, place]) != label,
            )
            for place, (name, what, whose) in enumerate(FRAMES)
        ]
        strips.append(Strip(index, run.class_name(label), frames))
    return strips, ""


def _read(path: Path) -> dict[str, np.ndarray]:
    real, whole = [*(name for name, _, _ in FRAMES), "confidences"], ["answers", "index"]
    tensors = dict(zip((*real, *whole), read_arrays(path, real, whole), strict=True))
    shapes = {tensors[name].shape for name, _, _ in FRAMES}
    answers = {tensors[name].shape for name in ("answers", "confidences")}
    count = tensors["index"].shape
    (first, *others), wanted = sorted(shapes), (*count, len(FRAMES))
    if others or len(first) != 4 or first[:1] != count or answers != {wanted}:
        raise InputError(f"{path}: its pictures, answers and indices do not belong together")
    if not all(np.isfinite(tensors[name]).all() for name, _, _ in FRAMES):
        raise InputError(f"{path} holds images with values that are not finite")
    return tensors
