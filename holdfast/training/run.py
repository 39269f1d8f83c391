"""A training run, from its recipe to its result."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import data as datasets
from ..data.base import DataSet
from ..errors import HoldfastError, InputError
from ..inputs import checked_device
from ..models import load_checkpoint
from ..models.own_networks import is_code
from ..runs.environment import circumstances
from ..runs.folder import finish, finished, on_date, open_run, withdraw_run
from ..runs.identity import digest
from ..runs.lock import claimed
from ..runs.progress import ProgressLine
from ..runs.records import TrainingRecord, Validation
from ..runs.records.base import ShownAsRecord
from ..runs.records.training import LENGTHENED
from .initialisation import builder
from .job import TrainingJob
from .lengthening import lengthened
from .recipe import Recipe, load_recipe
from .starting_weights import with_architecture
from .tracking import check_trackers
from .trainer import Trainer
from .validation import averaged_figures

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FILES = ("metrics.csv", "model/card.json", "model/model.safetensors")  # that a reader goes by


@dataclass(frozen=True, repr=False)
class TrainingResult(ShownAsRecord):
    """How a run ended; the model is in `run / "model"`, and `record` is what its `result.json`
    holds."""

    run: Path
    model: nn.Module
    epochs: float
    steps: int
    seconds: float
    validation: dict[str, float | int]
    events: list[dict[str, Any]] = field(default_factory=list)
    finished: str = ""  # when, ISO 8601, UTC
    record: TrainingRecord = field(default_factory=TrainingRecord)

    def as_record(self) -> TrainingRecord:
        return self.record


def train(
    recipe: Recipe | Path | str,
    data: DataSet | Path | str = "datasets",
    out: Path | str = "runs/train",
    *,
    changes: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
    log: Sequence[str] = (),
    model: nn.Module | None = None,
) -> TrainingResult:
    """Train a model by a recipe, or go on where the same call was interrupted.

    A finished run whose `epochs`, or `budget`, are set higher goes on from its end.

    Under torchrun or Slurm, all processes train one model together; another number of them may go
    on with a run.

    Args:
        recipe: a YAML file, a name from `holdfast list recipes`, or a `Recipe`. It fixes the run
            completely, together with data and seed.
        data: a folder (see `holdfast.data.load`), `digits`, or a loaded data set. Its `validation`
            chooses the weights that are kept. Its `test` is looked at for one thing alone: whether
            a recipe's extra images are among it.
        out: the run folder: `model/`, `metrics.csv`, `result.json`, `checkpoints/`.
        changes: `key=value` overrides of a recipe file, dots for nesting.
        seed: of initial weights, order, augmentation and attacks.
        device: `cpu`, `cuda`, …; by default the best there is.
        progress: show a progress bar (plain lines where there is no terminal).
        log: trackers besides metrics.csv: `tensorboard`, `mlflow`.
        model: a network of your own, from images (N, C, H, W) in [0, 1] to logits (N, K), in place
            of the recipe's. A copy of it is trained, beginning with the weights that it has; the
            module itself stays as it is. Where it answers another number of logits than the data
            has classes, the copy gets a new last layer.

    Returns:
        the trained model, in eval mode, and its validation figures.

    Raises:
        InputError (a ValueError): a bad recipe; bad data; `out` holds another run, or a longer
            one; a budget too short for one epoch; a tracker that is not installed; a network, or
            weights to start from, that do not fit the data.
        HoldfastError: training diverged.

    Example:
        >>> import holdfast as hf
        >>> result = hf.train("digits-interval", "digits", "runs/mine", changes=["epochs=1"])
        >>> result.epochs, sorted(result.validation)[-1]
        (1.0, 'verified_accuracy')
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> mine = hf.train("digits-gaussian", "digits", "runs/a", changes=["epochs=1"], model=net)
        >>> mine.model is net, len(mine.model)
        (False, 2)
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, changes)
    if model is not None:
        recipe = _of_a_module(recipe, model)
    recipe = with_architecture(recipe)
    if not isinstance(data, DataSet):
        data = datasets.load(data)
    data.split("validation")  # chooses the best weights: where there is none, that is said
    check_trackers(log)
    job = TrainingJob(recipe, data, Path(out), fabric_for(recipe, device), seed, log, model)
    # It refuses a recipe that does not fit the data, so it comes before anything is written.
    trainer = Trainer(job)
    _note_overlaps(trainer)
    with claimed(job.run) if job.leads else nullcontext():
        return _trained_once(trainer, progress)


def _of_a_module(recipe: Recipe, model: nn.Module) -> Recipe:
    """The recipe, whose network is a module that was given."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not a {type(model).__name__}")
    kind = type(model)
    name = f"{kind.__module__}:{kind.__qualname__}"
    spec = recipe.model.model_copy(update={"architecture": name, "arguments": {}})
    return recipe.model_copy(update={"model": spec})


def _asked(trainer: Trainer) -> dict[str, Any]:
    """What decides the outcome: the run's identity is a hash of it."""
    job = trainer.job
    chosen_by = job.data.validation
    return {
        "recipe": job.recipe.to_dict(),
        "seed": job.seed,
        "data": job.data.name,
        "images": digest(job.split.images, job.split.labels, chosen_by.images, chosen_by.labels),
        # What a recipe names by its place is known by its content.
        **({"extra": job.extra.digest} if job.extra else {}),
        **({"helper": trainer.objective.fingerprint} if trainer.objective.fingerprint else {}),
        **trainer.network.asked,
    }


def _note_overlaps(trainer: Trainer) -> None:
    """Note where extra images are held-out ones too: figures on those flatter the model."""
    job = trainer.job
    if job.extra is None:
        return
    for name in ("validation", "test"):
        found = job.extra.holds(getattr(job.data, name).images)
        if found:
            trainer.history.note(
                0.0,
                "held-out-images-in-extra",
                f"{found} {name} images are among the extra images, pixel for pixel, so figures on "
                f"{name} images flatter this model; remove them from {job.recipe.extra.file}",
            )


def _trained_once(trainer: Trainer, progress: bool) -> TrainingResult:
    """Train in a run folder that no other process works on, or read what it holds."""
    job = trainer.job
    request = {
        "asked": _asked(trainer),
        "pixels": job.split.pixels,
        **circumstances(job.fabric.device),
    }
    key = ""
    done: TrainingRecord | None = None
    if job.leads:
        key = lengthened(job.run, request)
        _, begun = open_run(job.run, "train", key, request)
        done = finished(job.run, TrainingRecord) if begun else None
    key, done = job.fabric.broadcast((key, done))
    title = f"training {job.recipe.model.architecture}"
    seen = job.run if job.leads else None
    with ProgressLine(title, progress and job.leads, run=seen) as line:
        if done is None:
            _train(trainer, line)
            done = _result(trainer, key)
            if job.leads:
                done = finish(job.run, done, FILES)
            done = job.fabric.broadcast(done)
        else:
            day = on_date(done.finished or "")
            line.say(f"{job.run} was finished on {day}: read, not trained again")
    return TrainingResult(
        job.run,
        load_checkpoint(job.run / "model", network=builder(job)),
        done.epochs or 0.0,
        done.steps or 0,
        done.seconds or 0.0,
        (done.validation or Validation()).to_dict(),
        [event.to_dict() for event in done.events],
        done.finished or "",
        done,
    )


def _train(trainer: Trainer, line: ProgressLine) -> None:
    """From the last checkpoint, or the start, to the end."""
    job = trainer.job
    for told in trainer.told:
        line.say(told)
    for event in trainer.history.events:
        line.say(event["detail"])
    if trainer.restore("latest") or trainer.restore("good"):
        epoch = trainer.schedule.steps / trainer.steps_per_epoch
        line.say(f"going on from epoch {epoch:.2f} in {job.run}")
        for event in trainer.history.events:
            if event["kind"] == LENGTHENED:
                line.say(f"epoch {event['epoch']:.2f}: {event['detail']}")
    try:
        trainer.fit(line)
    except HoldfastError:
        if job.leads:
            withdraw_run(job.run)
        raise


def _result(trainer: Trainer, key: str) -> TrainingRecord:
    """What `result.json` holds of a run at its end."""
    job, schedule, history = trainer.job, trainer.schedule, trainer.history
    held = {
        "status": "complete",
        "identity": key,
        "model": "model",
        "data": {
            "name": job.data.name,
            "split": job.recipe.train_on,
            "pixels": job.split.pixels,
            **job.data.result_fields("validation", len(trainer.validator)),
        },
        "epochs": schedule.steps / trainer.steps_per_epoch,
        "steps": schedule.steps,
        "seconds": schedule.spent_seconds,
        "images_per_second": sum(row["images_per_second"] for row in history.rows)
        / len(history.rows),
        "best_epoch": history.best["epoch"],
        "validation": {**averaged_figures(history.best), "n": len(trainer.validator)},
        "events": history.events,
        "started_from": trainer.network.started_from,
        "class_weights": trainer.class_weights,
        "seed": job.seed,
    }
    return TrainingRecord.checked(held, str(job.run))


# By whether the network is somebody's own: it may have weights that a step leaves out.
_STRATEGY = {False: "ddp", True: "ddp_find_unused_parameters_true"}


def fabric_for(recipe: Recipe, device: str | None) -> Fabric:
    """Where and in what precision to compute, alone or as one of several processes."""
    from lightning_fabric import Fabric  # takes seconds to import

    # Its remarks on precision are in the recipe already; standard error is for errors.
    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    processes, nodes = _launched()
    kind, _, number = (device or "auto").partition(":")  # cuda:1 is the second GPU
    if kind not in ("auto", "gpu"):  # Lightning's own words are no devices of torch's
        checked_device(device)
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=[int(number)]
            if number and kind != "cpu" and processes == 1
            else processes // nodes,
            num_nodes=nodes,
            strategy="auto" if processes == 1 else _STRATEGY[is_code(recipe.model.architecture)],
            precision="bf16-mixed" if recipe.precision == "bf16" else "32-true",
        )
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"device {device or 'auto'!r} cannot be used: {said}") from None
    if processes > 1:
        fabric.launch()
    return fabric


def _launched() -> tuple[int, int]:
    """Processes and nodes, as torchrun or Slurm started them; (1, 1) for one by itself."""
    environment = os.environ
    if "WORLD_SIZE" in environment:
        processes = int(environment["WORLD_SIZE"])
        return processes, processes // int(environment.get("LOCAL_WORLD_SIZE", processes))
    return int(environment.get("SLURM_NTASKS", 1)), int(environment.get("SLURM_NNODES", 1))
