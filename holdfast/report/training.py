"""What the page of a training run shows, and which runs pages of evaluations lead to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from markupsafe import Markup

from .. import charts
from . import format as words
from .evaluation import Facts
from .evaluation_run import Evaluation
from .runs import Run
from .training_run import Training

_ACCURACIES = (
    ("train_accuracy", "training images, as trained on", "tone-3"),
    ("train_pgd_accuracy", "training images, PGD", "tone-2"),
    ("validation_accuracy", "validation, clean", "standard"),
    ("validation_fgsm_accuracy", "validation, FGSM", "tone-1"),
    ("validation_pgd_accuracy", "validation, PGD", "robust"),
    ("live_pgd_accuracy", "validation, shorter PGD before averaging", "tone-4"),
)


@dataclass(frozen=True)
class TrainingCharts:
    accuracy: Markup | None
    loss: Markup | None
    learning_rate: Markup | None
    table: Markup


def facts(run: Training) -> Facts:
    speed = [value for value in run.metrics.get("images_per_second", []) if value is not None]
    return [
        ("Data", " ".join(word for word in (run.data, run.split) if word) or words.NONE),
        ("Pixels", run.pixels or words.NONE),
        *run.remarks,
        ("Epochs", words.figure(run.epochs)),
        ("Steps", words.count(run.steps)),
        ("Time", words.duration(run.seconds)),
        ("Weights kept from epoch", words.figure(run.best_epoch)),
        ("Images a second, median", words.count(median(speed) if speed else None)),
        ("Validation images", words.count(run.standard.n)),
    ]


def curves(run: Training) -> TrainingCharts | None:
    epochs = run.metrics.get("epoch", [])
    known = [(i, epoch) for i, epoch in enumerate(epochs) if epoch is not None]
    if not known:
        return None
    x = [epoch for _, epoch in known]
    low, high = min(0.0, *x), max(x) or 1.0
    axis = charts.Axis("epoch", low, high, charts.ticks(low, high), "{:.4g}".format)

    def line(column: str, title: str, tone: str) -> charts.Line | None:
        values = run.metrics.get(column, [])
        y = [values[i] for i, _ in known] if values else []
        return charts.Line(title, tone, x, y) if any(v is not None for v in y) else None

    def small(column: str, title: str) -> Markup | None:
        shown = line(column, title, "robust")
        if shown is None:
            return None
        top = max(value for value in shown.y if value is not None) or 1.0
        y = charts.Axis(title, 0, top * 1.05, charts.ticks(0, top * 1.05, 5), "{:.4g}".format)
        return charts.line_chart(f"{title} by epoch", axis, y, [shown])

    events = [
        charts.Event(event.epoch, words.name(event.kind) or "event", "alarm")
        for event in run.events
        if event.epoch is not None and low <= event.epoch <= high
    ]
    if run.best_epoch is not None and low <= run.best_epoch <= high:
        events.append(charts.Event(run.best_epoch, "weights kept", "calm"))
    lines = [shown for shown in (line(*spec) for spec in _ACCURACIES) if shown]
    accuracy = None
    if lines:
        accuracy = charts.line_chart(
            "Accuracies by epoch; the table below holds the same figures.",
            axis,
            charts.fraction_axis("accuracy"),
            lines,
            events=events,
            write=words.percent,
        )
    columns = [
        charts.Line(words.name(column), "", x, [values[i] for i, _ in known])
        for column, values in run.metrics.items()
        if column != "epoch"
    ]
    return TrainingCharts(
        accuracy,
        small("train_loss", "training loss"),
        small("learning_rate", "learning rate"),
        charts.data_table("epoch", columns, "{:.4g}".format, "{:.4g}".format),
    )


def linked_trainings(runs: Sequence[Run]) -> list[Path]:
    """Training runs that evaluations name and that are not among `runs` themselves.

    A name is looked up from the working folder, then from the evaluation's own. One that leads
    nowhere is left out, for runs are moved about; so is one that leads to anywhere but a folder
    beside the evaluation's: a page shows nothing that somebody's file picked elsewhere.
    """
    known = {run.path.resolve() for run in runs}
    found = []
    for run in runs:
        if not isinstance(run, Evaluation) or not run.training_run or "\0" in run.training_run:
            continue
        for path in (Path(run.training_run), run.path / run.training_run):
            beside = os.path.dirname(os.path.realpath(run.path))
            place = os.path.realpath(path)
            if place.startswith(os.path.join(beside, "")) and os.path.isfile(path / "result.json"):
                if path.resolve() not in known:
                    known.add(path.resolve())
                    found.append(path)
                break
    return found
