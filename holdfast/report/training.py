"""What the page of a training run shows, and which runs pages of evaluations lead to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from markupsafe import Markup

from .. import charts
from . import format
from .evaluation import Facts, remarks
from .runs import EvaluationRun, Run, TrainingRun

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


def facts(run: TrainingRun) -> Facts:
    speed = [value for value in run.metrics.get("images_per_second", []) if value is not None]
    record, data = run.record, run.data
    return [
        ("Data", " ".join(word for word in (data.name, data.split) if word) or format.NONE),
        ("Pixels", data.pixels or format.NONE),
        *remarks(data),
        ("Epochs", format.figure(record.epochs)),
        ("Steps", format.count(record.steps)),
        ("Time", format.duration(record.seconds)),
        ("Weights kept from epoch", format.figure(record.best_epoch)),
        ("Images a second, median", format.count(median(speed) if speed else None)),
        ("Validation images", format.count(run.standard.n)),
    ]


def curves(run: TrainingRun) -> TrainingCharts | None:
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
        charts.Event(event.epoch, format.name(event.kind) or "event", "alarm")
        for event in run.record.events
        if event.epoch is not None and low <= event.epoch <= high
    ]
    best = run.record.best_epoch
    if best is not None and low <= best <= high:
        events.append(charts.Event(best, "weights kept", "calm"))
    lines = [shown for shown in (line(*spec) for spec in _ACCURACIES) if shown]
    accuracy = None
    if lines:
        accuracy = charts.line_chart(
            "Accuracies by epoch; the table below holds the same figures.",
            axis,
            charts.fraction_axis("accuracy"),
            lines,
            events=events,
            write=format.percent,
        )
    columns = [
        charts.Line(format.name(column), "", x, [values[i] for i, _ in known])
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
        named = run.record.training_run if isinstance(run, EvaluationRun) else None
        if not named or "\0" in named:
            continue
        for path in (Path(named), run.path / named):
            beside = os.path.dirname(os.path.realpath(run.path))
            place = os.path.realpath(path)
            if place.startswith(os.path.join(beside, "")) and os.path.isfile(path / "result.json"):
                if path.resolve() not in known:
                    known.add(path.resolve())
                    found.append(path)
                break
    return found
