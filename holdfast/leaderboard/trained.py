"""What is known of how a model came about: its size, its training's cost, its data."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models.checkpoint import WEIGHTS
from ..models.zoo import zoo_models
from ..runs.records import CARD, REQUEST, Card, RequestRecord, TrainingRecord, read_file
from ..runs.records.evaluation import EvaluationRecord
from ..runs.tensors import opened
from .found import FoundRecord

# No parameters: statistics of batches, and of the normalisation.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", ".mean", ".std")


@dataclass(frozen=True)
class Trained:
    """None is "not known"."""

    parameters: int | None = None
    seconds: float | None = None
    budget: str | None = None
    machine: str | None = None
    data: str | None = None
    card: Card | None = None


class Trainings:
    """Trainings below the folder of a leaderboard, and checkpoints there and in the zoo."""

    def __init__(self, folder: Path, trainings: Sequence[FoundRecord]):
        self.root = os.path.realpath(folder)
        self.by_folder = {os.path.realpath(found.folder): found for found in trainings}
        self.zoo: Mapping[str, Path] | None = None

    def of(self, evaluation: FoundRecord) -> Trained:
        """What is known of the model that an evaluation judged."""
        record = evaluation.record
        assert isinstance(record, EvaluationRecord)
        training = self._training(evaluation, record)
        checkpoint = self._checkpoint(record, training)
        card = parameters = None
        if checkpoint is not None:
            card, parameters = _card(checkpoint), _parameters(checkpoint / WEIGHTS)
        model, data = record.model, None
        if training is not None:
            held = training.record
            assert isinstance(held, TrainingRecord)
            if held.data is not None:
                data = " ".join(word for word in (held.data.name, held.data.split) if word)
        return Trained(
            parameters=(model.parameters if model else None) or parameters,
            seconds=getattr(training.record, "seconds", None) if training else None,
            budget=_budget(card),
            machine=_machine(training.folder) if training else None,
            data=data
            or (card.trained_on if card else None)
            or (model and model.trained_on)
            or None,
            card=card,
        )

    def _training(self, evaluation: FoundRecord, record: EvaluationRecord) -> FoundRecord | None:
        """The training run that the evaluation names, or that lies in its folder."""
        named = [record.training_run, record.model.source if record.model else None]
        places = [
            place
            for name in named
            if name and "\0" not in name
            for start in (Path(name), evaluation.folder / name)
            for place in (start, start.parent)  # a training's model lies in its folder
        ]
        for place in (evaluation.folder / "training", *places):
            found = self.by_folder.get(os.path.realpath(place))
            if found is not None:
                return found
        return None

    def _checkpoint(self, record: EvaluationRecord, training: FoundRecord | None) -> Path | None:
        """The folder of the model: of the zoo's, or below the leaderboard's folder, nowhere else:
        nothing is read that somebody's file picked elsewhere."""
        source = (record.model.source if record.model else None) or ""
        places = [] if training is None else [training.folder / "model"]
        if source and "\0" not in source:
            places += [Path(source), Path(source) / "model"]
        for place in places:
            real = os.path.realpath(place)
            if real.startswith(os.path.join(self.root, "")) and os.path.isfile(place / CARD):
                return place
        if self.zoo is None:
            self.zoo = zoo_models()
        return self.zoo.get(source.removeprefix("zoo/"))


def _card(folder: Path) -> Card | None:
    try:
        card = read_file(folder / CARD)
    except InputError:  # nobody asked for it by name
        return None
    return card if isinstance(card, Card) else None


def _parameters(file: Path) -> int | None:
    """How many parameters a file of weights holds, by its header."""

    def count(content: Any) -> int:
        names = [name for name in content.keys() if not name.endswith(BUFFERS)]  # noqa: SIM118
        return sum(math.prod(content.get_slice(name).get_shape()) for name in names)

    try:
        return opened(file, count) or None
    except InputError:
        return None


def _budget(card: Card | None) -> str | None:
    """What the recipe allowed: a time, else epochs."""
    recipe = (card.recipe if card else None) or {}
    budget, epochs = recipe.get("budget"), recipe.get("epochs")
    if isinstance(budget, str) and budget:
        return budget
    return f"{epochs:g} epochs" if isinstance(epochs, int | float) else None


def _machine(folder: Path) -> str | None:
    try:
        request = read_file(folder / REQUEST)
    except InputError:
        return None
    return request.machine if isinstance(request, RequestRecord) else None
