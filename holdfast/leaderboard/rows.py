"""Rows of a leaderboard: of each model the lowest robust accuracy known, table by table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.result import distinct_names
from ..report.format import norm
from ..runs.records import DataInfo, EvaluationRecord, LeaderboardRow, ModelInfo, threat_in
from ..threat import Threat
from .found import Found, FoundRecord
from .trained import Trained, Trainings

HIDING = ("hidden-gradients", "gradients-vanish", "forward-computes-gradients")
NONE_HIDDEN, HIDDEN, REPAIRED = "none hidden", "hidden", "hidden, repaired"


@dataclass(frozen=True)
class Model:
    """A model in a table.

    Attributes:
        row: its figures.
        evaluations: all of them, the deciding one first; none where it was measured elsewhere.
        trained: how it came about.
    """

    row: LeaderboardRow
    evaluations: tuple[FoundRecord, ...] = ()
    trained: Trained = field(default_factory=Trained)

    @property
    def here(self) -> bool:
        """Whether it was measured here."""
        return bool(self.evaluations)


@dataclass(frozen=True)
class Table:
    """Models under one threat model on one data set, the most robust first."""

    data: str
    threat: Threat
    aimed: bool
    models: tuple[Model, ...]

    @property
    def title(self) -> str:
        """`cifar10 test, L∞ 8/255`."""
        return f"{self.data}, {self.threat}{', one class wanted' if self.aimed else ''}"

    @property
    def same_images(self) -> bool:
        return len({_images(model.row) for model in self.models}) == 1


def tables(found: Found, folder: Path) -> list[Table]:
    """What was found, as tables."""
    trainings = Trainings(folder, found.trainings)
    groups: dict[tuple[str, str, float, str, bool], list[Model]] = {}
    for evaluations in _of_one_model(found.evaluations):
        model = _model(evaluations, trainings)
        groups.setdefault(_key(model.row), []).append(model)
    for row in found.elsewhere:
        groups.setdefault(_key(row), []).append(Model(row))
    # Tables with figures of one's own come first, the largest first.
    order = sorted(
        groups.items(),
        key=lambda item: (-sum(m.here for m in item[1]), -len(item[1]), item[0]),
    )
    return [
        Table(key[0], threat_in(models[0].row.threat), key[-1], _ranked(models))
        for key, models in order
    ]


def _key(row: LeaderboardRow) -> tuple[str, str, float, str, bool]:
    threat = threat_in(row.threat)
    return (_data(row.data), norm(threat), round(threat.eps, 9), str(threat), row.goal == "target")


def _data(data: DataInfo | None) -> str:
    """The name of a data set and its split."""
    data = data or DataInfo()
    return " ".join(word for word in (data.name, data.split) if word) or "images of one's own"


def _images(row: LeaderboardRow) -> tuple[int | None, str | None, int | None]:
    data = row.data or DataInfo()
    return row.n, data.pixels, data.first


def _ranked(models: Sequence[Model]) -> tuple[Model, ...]:
    """The most robust first, with names that tell them apart."""
    ranked = sorted(
        models, key=lambda m: (-m.row.robust_accuracy, -m.row.standard_accuracy, m.row.model)
    )
    names = distinct_names(
        [model.row.model for model in ranked],
        [model.row.sha256 or model.row.measured_by for model in ranked],
    )
    seen: dict[str, int] = {}
    apart = []
    for name, model in zip(names, ranked, strict=True):
        if names.count(name) > 1:  # without weights to tell them apart
            seen[name] = seen.get(name, 0) + 1
            name = f"{name} ({seen[name]})" if seen[name] > 1 else name
        row = model.row.model_copy(update={"model": name})
        apart.append(Model(row, model.evaluations, model.trained))
    return tuple(apart)


def _record(found: FoundRecord) -> EvaluationRecord:
    assert isinstance(found.record, EvaluationRecord)
    return found.record


def _of_one_model(found: Sequence[FoundRecord]) -> list[list[FoundRecord]]:
    """Evaluations of the same model on the same data under the same threat model, together."""
    groups: dict[tuple[str, ...], list[FoundRecord]] = {}
    for evaluation in found:
        record = _record(evaluation)
        model = record.model or ModelInfo()
        # What has no checksum, such as a function, is itself alone.
        weights = model.sha256 or str(evaluation.file)
        of = (model.title, weights, _data(record.data), str(threat_in(record.threat)), record.goal)
        groups.setdefault(of, []).append(evaluation)
    return [decided(group) for group in groups.values()]


def decided(evaluations: Sequence[FoundRecord]) -> list[FoundRecord]:
    """Evaluations of one model, the one first whose robust accuracy is the lowest that is known.

    It is the lowest of those on the most images. One on fewer images comes before it only where its
    whole interval lies below: otherwise the difference may be chance.
    """

    def value(found: FoundRecord) -> float:
        return _record(found).robust_accuracy or 0.0

    most = max(_record(found).n for found in evaluations)
    lead = min((found for found in evaluations if _record(found).n == most), key=value)
    for other in sorted(evaluations, key=lambda found: -_record(found).n):
        low = _record(lead).interval_shown("robust_accuracy")
        its = _record(other).interval_shown("robust_accuracy")
        if low is not None and its is not None and its[1] < low[0]:
            lead = other
    rest = sorted((found for found in evaluations if found is not lead), key=value)
    return [lead, *rest]


def gradients(record: EvaluationRecord) -> str | None:
    """Whether the model hides its gradients, and what was done about it."""
    if record.repairs:
        return REPAIRED
    known = [flag for flag in record.flags if flag.name in HIDING and flag.fired is not None]
    if not known:
        return None
    return HIDDEN if any(flag.fired for flag in known) else NONE_HIDDEN


def _model(evaluations: list[FoundRecord], trainings: Trainings) -> Model:
    record, folder = _record(evaluations[0]), evaluations[0].folder
    model = record.model or ModelInfo()
    trained = trainings.of(evaluations[0])
    assert record.standard_accuracy is not None and record.robust_accuracy is not None
    fired = dict.fromkeys(
        flag.name for found in evaluations for flag in _record(found).fired
    )  # of any suite: what one noticed is true of the model
    row = LeaderboardRow(
        model=model.title if model.name else folder.resolve().name,
        architecture=model.architecture,
        sha256=model.sha256,
        data=record.data,
        threat=record.threat,
        goal=record.goal,
        suite=record.suite,
        n=record.n,
        population=record.population if record.is_sample else None,
        standard_accuracy=record.standard_accuracy,
        standard_accuracy_interval=record.interval_shown("standard_accuracy"),
        robust_accuracy=record.robust_accuracy,
        robust_accuracy_interval=record.interval_shown("robust_accuracy"),
        flags=tuple(fired),
        gradients=next((g for e in evaluations if (g := gradients(_record(e)))), None),
        parameters=trained.parameters,
        training_seconds=trained.seconds,
        training_budget=trained.budget,
        training_machine=trained.machine,
        trained_on=trained.data,
        run=str(folder),
        runs=tuple(str(found.folder) for found in evaluations),
    )
    return Model(row, tuple(evaluations), trained)
