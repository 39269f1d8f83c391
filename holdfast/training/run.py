"""A training run, from its recipe to its result."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..data.base import DataSet
from ..errors import HoldfastError, InputError
from ..inputs import checked_device
from ..models import load_checkpoint
from ..runs.environment import circumstances
from ..runs.folder import claimed, finish, finished, on_date, open_run, withdraw_run
from ..runs.identity import digest, identity
from ..runs.progress import ProgressLine
from .loop import Trainer
from .recipe import Recipe
from .tracking import check_trackers
from .validation import kept

if TYPE_CHECKING:
    from lightning.fabric import Fabric

FILES = ("metrics.csv", "model/card.json", "model/model.safetensors")  # that a reader goes by


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended; the model is in `run / "model"`."""

    run: Path
    model: nn.Module
    epochs: float
    steps: int
    seconds: float
    validation: dict[str, float | int]
    events: list[dict[str, Any]] = field(default_factory=list)
    finished: str = ""  # when, ISO 8601, UTC


def fit_recipe(
    recipe: Recipe,
    data: DataSet,
    out: Path | str,
    *,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
    log: Sequence[str] = (),
    held_out: Mapping[str, np.ndarray] | None = None,
) -> TrainingResult:
    """Train by a recipe into a run folder, or go on where the same command was interrupted.

    Under torchrun or Slurm, all processes train one model together; another number of them may go
    on with a run.

    Args:
        recipe: fixes the run completely, together with data and seed.
        data: images and labels; `validation` chooses the weights that are kept, `test` is not
            looked at.
        out: the run folder: `model/`, `metrics.csv`, `result.json`, `checkpoints/`.
        seed: of initial weights, order, augmentation and attacks.
        device: `cpu`, `cuda`, …; by default the best there is.
        progress: show a progress bar (plain lines where there is no terminal).
        log: trackers besides metrics.csv: `tensorboard`, `mlflow`.
        held_out: further images, uint8 (M, C, H, W) by what they are called, of which it is said
            if they are among the extra images; nothing else is done with them.

    Raises:
        InputError: `out` holds another run; a bad recipe; a budget too short for one epoch; a
            tracker that is not installed.
    """
    check_trackers(log)
    fabric = fabric_for(recipe, device)
    split = data.split(recipe.train_on)
    run = Path(out)
    # It refuses a recipe that does not fit the data, so it comes before anything is written.
    trainer = Trainer(recipe, data, run, seed, fabric, log)
    chosen_by = data.validation
    asked = {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "data": data.name,
        "images": digest(split.images, split.labels, chosen_by.images, chosen_by.labels),
        # What a recipe names by its place is known by its content.
        **({"extra": trainer.extra.digest} if trainer.extra else {}),
        **({"helper": trainer.objective.fingerprint} if trainer.objective.fingerprint else {}),
    }
    key = identity(**asked)
    told = {"asked": asked, "pixels": split.pixels, **circumstances(fabric.device)}
    about = data.told("validation", len(trainer.validator))
    if trainer.extra is not None:
        for name, images in {"validation": data.validation.images, **(held_out or {})}.items():
            trainer.found_in_extra(name, trainer.extra.holds(images))
    with claimed(run) if fabric.is_global_zero else nullcontext():
        return _fit(trainer, key, told, about, progress)


def _fit(
    trainer: Trainer, key: str, told: dict[str, Any], about: dict[str, Any], progress: bool
) -> TrainingResult:
    """Train in a run folder that no other process works on."""
    recipe, fabric, run = trainer.recipe, trainer.fabric, trainer.run
    done: dict[str, Any] | None = None
    if fabric.is_global_zero:
        _, begun = open_run(run, "train", key, told)
        done = finished(run) if begun else None
    done = fabric.broadcast(done)
    with ProgressLine(
        f"training {recipe.model.architecture}", progress and fabric.is_global_zero
    ) as line:
        if done is None:
            done = _trained(trainer, key, told, about, line)
        else:
            line.say(f"{run} was finished on {on_date(done['finished'])}: read, not trained again")
    return TrainingResult(
        run,
        load_checkpoint(run / "model"),
        done["epochs"],
        done["steps"],
        done["seconds"],
        done["validation"],
        done["events"],
        done["finished"],
    )


def _trained(
    trainer: Trainer,
    key: str,
    told: dict[str, Any],
    about: dict[str, Any],
    line: ProgressLine,
) -> dict[str, Any]:
    """Train to the end, and write `result.json`: what it holds, on every process."""
    recipe, fabric, run = trainer.recipe, trainer.fabric, trainer.run
    for event in trainer.events:
        line.say(event["detail"])
    if trainer.restore("latest") or trainer.restore("good"):
        epoch = trainer.schedule.steps / trainer.steps_per_epoch
        line.say(f"going on from epoch {epoch:.2f} in {run}")
    try:
        trainer.fit(line)
    except HoldfastError:
        if fabric.is_global_zero:
            withdraw_run(run)
        raise
    schedule = trainer.schedule
    result = {
        "schema": "holdfast/training/1",
        "status": "complete",
        "identity": key,
        "model": "model",
        "data": {
            "name": told["asked"]["data"],
            "split": recipe.train_on,
            "pixels": told["pixels"],
            **about,
        },
        "epochs": schedule.steps / trainer.steps_per_epoch,
        "steps": schedule.steps,
        "seconds": schedule.spent_seconds,
        "images_per_second": sum(r["images_per_second"] for r in trainer.rows) / len(trainer.rows),
        "best_epoch": trainer.best["epoch"],
        "validation": {**kept(trainer.best), "n": len(trainer.validator)},
        "events": trainer.events,
        "seed": trainer.seed,
    }
    if fabric.is_global_zero:
        result = finish(run, result, FILES)
    return fabric.broadcast(result)


def fabric_for(recipe: Recipe, device: str | None) -> Fabric:
    """Where and in what precision to compute, alone or as one of several processes."""
    from lightning.fabric import Fabric  # takes seconds to import

    # Its remarks on precision are in the recipe already; standard error is for errors.
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
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
            strategy="ddp" if processes > 1 else "auto",
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
    told = os.environ
    if "WORLD_SIZE" in told:
        processes = int(told["WORLD_SIZE"])
        return processes, processes // int(told.get("LOCAL_WORLD_SIZE", processes))
    return int(told.get("SLURM_NTASKS", 1)), int(told.get("SLURM_NNODES", 1))
