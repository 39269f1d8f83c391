"""The training loop: one for every objective."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .. import draws
from ..attacks import FGSM, PGD
from ..attacks.losses import margin
from ..data.augment import Augment
from ..data.base import DataSet, Split
from ..errors import HoldfastError, InputError
from ..files import make_folder, write_atomically, write_json
from ..models import build, load_checkpoint, save_checkpoint
from ..progress import ProgressLine, clock
from ..runs import circumstances, digest, identity, open_run, withdraw_run
from ..threat import Threat
from .averaging import WeightAverage, estimate_statistics
from .budget import Schedule, one_cycle, parse_seconds
from .objectives import Batch, Objective, objective_named
from .optimisers import optimiser_for
from .recipe import Recipe

if TYPE_CHECKING:
    from lightning.fabric import Fabric

CHECKPOINT_SECONDS = 60.0  # between checkpoints inside an epoch
STATISTICS_BATCHES = 8  # that batch-norm statistics of the averaged weights come from
LIVE_IMAGES = 256  # validation images on which the live weights are watched for a collapse
FORMAT = torch.channels_last


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


class Trainer:
    """One training run: the model, its average, the optimiser, and how far it has come."""

    def __init__(self, recipe: Recipe, data: DataSet, run: Path, seed: int, fabric: Fabric):
        self.recipe, self.run, self.seed, self.fabric = recipe, run, seed, fabric
        self.classes = data.classes
        self.threat = Threat(recipe.threat.norm, recipe.threat.eps)  # type: ignore[arg-type]
        self.objective: Objective = objective_named(
            recipe.objective.name, recipe.objective.arguments
        )
        self.robust = recipe.objective.name != "standard"
        self.augment = Augment(**vars(recipe.augment))
        self.images, self.labels = self._on_device(data.split(recipe.train_on))
        if len(self.images) < recipe.batch_size:
            raise InputError(
                f"batch_size {recipe.batch_size} is more than the {len(self.images)} images "
                "to train on"
            )
        classes = recipe.model.arguments.get("classes", len(data.classes))
        if classes != len(data.classes):
            raise InputError(
                f"the recipe's model has {classes} classes, the data {len(data.classes)}; "
                "leave model.arguments.classes out"
            )
        held_out, held_labels = self._on_device(data.validation)
        count = min(recipe.validation.images, len(held_out))
        self.held_out = held_out[:count].float() / 255
        self.held_labels = held_labels[:count]

        # Weights are drawn on the CPU from the run's own stream: the same on every device.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(draws.item_seeds(seed, "weights")))
            arguments = {"classes": len(data.classes), **recipe.model.arguments}
            channels = self.images.shape[1]
            if channels != 3 and "mean" not in arguments:
                flat = data.train.images.swapaxes(0, 1).reshape(channels, -1) / 255
                arguments["mean"] = [round(float(m), 4) for m in flat.mean(1)]
                arguments["std"] = [round(float(s), 4) for s in flat.std(1)]
            model = build(recipe.model.architecture, arguments)
        if model.get_buffer("normalise.mean").shape[1] != channels:
            raise InputError(
                f"model {recipe.model.architecture!r} normalises another number of channels than "
                f"the images have; set model.arguments.mean and std to {channels} numbers each"
            )
        self.arguments = arguments
        self.average = WeightAverage(model, recipe.averaging)
        self.average.model.to(fabric.device, memory_format=FORMAT)  # type: ignore[call-overload]
        optimiser = optimiser_for(model, recipe.optimiser)
        model.to(memory_format=FORMAT)  # type: ignore[call-overload]
        self.model, self.optimiser = fabric.setup(model, optimiser)

        self.steps_per_epoch = len(self.images) // recipe.batch_size
        budget = None if recipe.budget is None else parse_seconds(recipe.budget)
        self.validation_every = recipe.validation.every * self.steps_per_epoch  # steps
        self.schedule = Schedule(
            math.ceil(recipe.epochs * self.steps_per_epoch), budget, self.validation_every
        )
        self.order_of: tuple[int, Tensor] = (-1, torch.empty(0))
        self.rows: list[dict[str, Any]] = []  # of metrics.csv
        self.events: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}  # figures of the best averaged weights so far
        self.best_live = 0.0  # PGD accuracy of the live weights
        self.window = {"loss": 0.0, "right": 0.0, "seen": 0, "seconds": 0.0}
        self.next_validation = 1
        self.lap_began = time.monotonic()

    # -- data -----------------------------------------------------------------------------

    def _on_device(self, split: Split) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(split.images).to(self.fabric.device)
        return images, torch.from_numpy(split.labels).to(self.fabric.device)

    def _batch(self, step: int) -> Batch:
        """This process's share of the batch that belongs to a step; a function of seed and step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self.order_of[0] != epoch:
            shuffle = torch.Generator().manual_seed(
                int(draws.item_seeds(self.seed, "order", epoch))
            )
            self.order_of = (epoch, torch.randperm(len(self.images), generator=shuffle))
        size = self.recipe.batch_size
        rows = self.order_of[1][place * size : (place + 1) * size]
        rows = rows[self.fabric.global_rank :: self.fabric.world_size].to(self.fabric.device)
        images = self.augment(self.images[rows], rows, epoch, self.seed)
        seeds = draws.item_seeds(self.seed, "perturb", epoch, rows.cpu()).to(rows.device)
        images = (images.float() / 255).contiguous(memory_format=FORMAT)
        return Batch(images, self.labels[rows], seeds)

    # -- one step -------------------------------------------------------------------------

    def _step(self) -> float:
        """One optimiser step; returns the learning rate it was made with."""
        recipe, step = self.recipe, self.schedule.steps
        # The first step of all needs a rate above 0.
        cycle = one_cycle(max(self.schedule.progress, 1e-3), recipe.optimiser.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = cycle * group["peak"]
        batch = self._batch(step)
        self.optimiser.zero_grad(set_to_none=True)
        with self.fabric.autocast():
            loss = self.objective(self.model, batch, self.threat)
        self.fabric.backward(loss.value)
        if recipe.optimiser.clip_gradient:
            self.fabric.clip_gradients(
                self.model, self.optimiser, max_norm=recipe.optimiser.clip_gradient
            )
        self.optimiser.step()
        self.average.update(self.model.module)
        value = float(loss.value.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}")
        window = self.window
        window["loss"] += value * len(batch.labels)
        window["right"] += float((loss.logits.argmax(1) == batch.labels).sum())
        window["seen"] += len(batch.labels)
        return recipe.optimiser.learning_rate * cycle

    def _diverged(self, what: str) -> HoldfastError:
        return HoldfastError(
            f"{what} at step {self.schedule.steps}; lower optimiser.learning_rate "
            "or set optimiser.clip_gradient (the last checkpoint is intact)"
        )

    def _lap(self) -> float:
        """Seconds since the last call, the same on every process; nothing goes unmeasured."""
        began, self.lap_began = self.lap_began, time.monotonic()
        return self.fabric.broadcast(self.lap_began - began)

    # -- validation -----------------------------------------------------------------------

    def _accuracies(self, model: nn.Module, count: int, steps: int) -> dict[str, float]:
        """Clean, FGSM and PGD accuracy of a model in eval mode on held-out images."""
        model.eval()
        images, labels = self.held_out[:count], self.held_labels[:count]

        def answer(x: Tensor) -> Tensor:
            with self.fabric.autocast():
                return model(x.contiguous(memory_format=FORMAT)).float()

        def standing(x: Tensor) -> float:
            with torch.no_grad():
                margins = torch.cat(
                    [
                        margin(answer(a), b)
                        for a, b in zip(x.split(250), labels.split(250), strict=True)
                    ]
                )
            return float((margins > 0).float().mean())

        attacks = {
            "fgsm": FGSM(),
            "pgd": PGD(steps=steps, step_size=0.25, loss="margin"),
        }
        found = {"standard": standing(images)}
        for name, attack in attacks.items():
            found[name] = standing(
                attack(answer, images, labels, self.threat, seed=self.seed, batch_size=250)
            )
        return found

    def _fit_statistics(self) -> None:
        """Batch-norm statistics of the averaged weights, on images as training sees them."""
        average = self.average.model

        def batches():
            for k in range(min(STATISTICS_BATCHES, self.steps_per_epoch)):
                batch = self._batch(k)
                average.train()
                yield self.objective.attacked(average, batch, self.threat)

        # The attacks need a gradient; the passes that are counted do not.
        with self.fabric.autocast():
            estimate_statistics(average, list(batches()))

    def _validate(self, rate: float) -> dict[str, Any]:
        recipe = self.recipe
        self._fit_statistics()
        count = len(self.held_out)
        found = self._accuracies(self.average.model, count, recipe.validation.steps)
        live = self._accuracies(
            self.model.module, min(LIVE_IMAGES, count), max(recipe.validation.steps // 2, 1)
        )
        self.model.train()
        window, epoch = self.window, self.schedule.steps / self.steps_per_epoch
        row = {
            "epoch": round(epoch, 4),
            "step": self.schedule.steps,
            "seconds": round(self.schedule.spent_seconds, 1),
            "learning_rate": round(rate, 6),
            "train_loss": round(window["loss"] / max(window["seen"], 1), 5),
            "train_accuracy": round(window["right"] / max(window["seen"], 1), 5),
            "images_per_second": round(
                window["seen"] * self.fabric.world_size / max(window["seconds"], 1e-9), 1
            ),
            "validation_accuracy": found["standard"],
            "validation_fgsm_accuracy": found["fgsm"],
            "validation_pgd_accuracy": found["pgd"],
            "live_accuracy": live["standard"],
            "live_fgsm_accuracy": live["fgsm"],
            "live_pgd_accuracy": live["pgd"],
        }
        self.window = dict.fromkeys(window, 0.0)
        # What is decided from these figures must be decided alike on every process.
        row = self.fabric.broadcast(row)
        self.rows.append(row)
        return row

    def _collapsed(self, row: dict[str, Any]) -> bool:
        """Catastrophic overfitting: FGSM accuracy holds, PGD accuracy is gone.

        Wong, Rice & Kolter, "Fast is better than free", ICLR 2020.
        """
        if not self.robust:  # nothing to lose, and no attack that could be made stronger
            return False
        fgsm, pgd = row["live_fgsm_accuracy"], row["live_pgd_accuracy"]
        return pgd < 0.6 * self.best_live and fgsm > pgd + 0.15 and self.best_live > 0.1

    def _keep_if_best(self, row: dict[str, Any]) -> None:
        """Both accuracies count alike: what is wanted is a model that has both."""
        choose_last = self.recipe.train_on != "train"
        keys = ["validation_accuracy"] + ["validation_pgd_accuracy"] * self.robust

        def worth(row: dict[str, Any]) -> float:
            return sum(row[key] for key in keys)

        if choose_last or not self.best or worth(row) >= worth(self.best):
            self.best = row
            if self.fabric.is_global_zero:
                self._save_model()

    def _save_model(self) -> None:
        save_checkpoint(
            make_folder(self.run / "model"),
            self.average.model,
            {
                "architecture": self.recipe.model.architecture,
                "arguments": self.arguments,
                "classes": list(self.classes),
                "threat": {"norm": self.threat.norm, "eps": self.threat.eps},
                "recipe": self.recipe.to_dict(),
                "seed": self.seed,
                "trained_on": self.recipe.train_on,
                "figures": {
                    "validation": {
                        "standard_accuracy": self.best["validation_accuracy"],
                        "pgd_accuracy": self.best["validation_pgd_accuracy"],
                        "n": len(self.held_out),
                        "epoch": self.best["epoch"],
                        "measured": f"first validation images, PGD-{self.recipe.validation.steps}",
                    }
                },
            },
        )

    # -- checkpoints ----------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that has to survive: weights, their average, momentum."""
        tensors = {f"model.{k}": v for k, v in self.model.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.model.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            if state.get("momentum_buffer") is not None:
                tensors[f"momentum.{i}"] = state["momentum_buffer"]
        return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}

    def save(self, name: str) -> None:
        """One file, whole or not at all: weights, average, momentum, and how far the run is."""
        if not self.fabric.is_global_zero:
            return
        tensors, progress = self._tensors(), json.dumps(self._progress())
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise self._diverged("the weights became NaN or infinite")
        metadata = {"progress": progress, "sha256": _checksum(tensors, progress)}
        file = make_folder(self.run / "checkpoints") / f"{name}.safetensors"
        write_atomically(file, save(tensors, metadata))

    def _progress(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule.state(),
            "average_steps": self.average.steps,
            "rows": self.rows,
            "events": self.events,
            "best": self.best,
            "best_live": self.best_live,
            "window": self.window,
            "next_validation": self.next_validation,
            "caution": self.objective.caution,
        }

    def restore(self, name: str, weights_only: bool = False) -> bool:
        """Go back to a checkpoint; False if there is none.

        Args:
            weights_only: take weights, average and momentum, but stay where the schedule is.
        """
        file = self.run / "checkpoints" / f"{name}.safetensors"
        if not file.exists():
            return False
        try:
            with safe_open(file, "pt") as reader:
                tensors = {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118
                metadata = reader.metadata() or {}
            progress = json.loads(metadata["progress"])
            if sorted(progress) != sorted(self._progress()):
                raise ValueError("written by another version of the code")
            if metadata.get("sha256") not in (None, _checksum(tensors, metadata["progress"])):
                raise ValueError("its checksum differs")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"checkpoint {file} is damaged: {' '.join(str(error).split())}; remove it to go on "
                "from the last validation, or from the start"
            ) from None
        try:
            self.model.module.load_state_dict(_part(tensors, "model."))
            self.average.model.load_state_dict(_part(tensors, "average."))
        except RuntimeError:
            raise InputError(f"checkpoint {file} is of another architecture") from None
        state = self.optimiser.state_dict()
        # In the layout of the weights: elementwise work on two layouts at once is slow.
        state["state"] = {
            int(i): {
                "momentum_buffer": buffer.clone(
                    memory_format=FORMAT if buffer.ndim == 4 else torch.contiguous_format
                )
            }
            for i, buffer in _part(tensors, "momentum.").items()
        }
        self.optimiser.load_state_dict(state)
        self.average.steps = progress["average_steps"]
        if not weights_only:
            self.schedule.restore(progress["schedule"])
            self.rows, self.events = progress["rows"], progress["events"]
            self.best, self.best_live = progress["best"], progress["best_live"]
            self.window, self.next_validation = progress["window"], progress["next_validation"]
            self.objective.caution = progress["caution"]
        return True

    def _write_metrics(self) -> None:
        if not self.rows or not self.fabric.is_global_zero:
            return
        table = io.StringIO()
        writer = csv.DictWriter(table, self.rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.run / "metrics.csv", table.getvalue())

    # -- the whole way --------------------------------------------------------------------

    def fit(self, line: ProgressLine) -> None:
        """Train from where the run stands to its end."""
        schedule = self.schedule
        self.model.train()
        saved = self.lap_began = time.monotonic()
        while not schedule.done:
            schedule.spent_seconds += self._lap()  # the checkpoint
            rate = self._step()
            taken = self._lap()
            self.window["seconds"] += taken
            schedule.advance(taken)
            self._check_budget()
            seen = self.window
            line.update(
                schedule.progress,
                f"epoch {schedule.steps / self.steps_per_epoch:.1f}  "
                f"loss {seen['loss'] / seen['seen']:.3f}  "
                f"{seen['seen'] * self.fabric.world_size / seen['seconds']:.0f} images/s",
            )
            due = schedule.steps >= self.next_validation * self.validation_every
            due = schedule.done or (due and schedule.has_time_to_validate())
            if due:
                self.next_validation = 1 + math.floor(schedule.steps / self.validation_every + 1e-9)
                self._after_validation(self._validate(rate), line)
                schedule.validated(self._lap())
            if due or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save("latest")
                saved = time.monotonic()

    def _check_budget(self) -> None:
        """Refuse a budget too short for an epoch while hardly anything is lost."""
        schedule = self.schedule
        first = schedule.steps == 5 or (schedule.done and schedule.steps < 5)
        if schedule.budget_seconds is None or not first:
            return
        step = schedule.step_seconds or schedule.spent_seconds / schedule.steps
        epoch = step * self.steps_per_epoch
        if epoch > schedule.budget_seconds:
            raise InputError(
                f"budget {self.recipe.budget} is too short: "
                f"one epoch takes about {clock(epoch)} here"
            )

    def _after_validation(self, row: dict[str, Any], line: ProgressLine) -> None:
        if self._collapsed(row) and (self.run / "checkpoints" / "good.safetensors").exists():
            self.objective.caution += 1
            self.restore("good", weights_only=True)
            event = {
                "epoch": row["epoch"],
                "kind": "catastrophic-overfitting",
                "detail": f"FGSM accuracy {row['live_fgsm_accuracy']:.1%} but PGD accuracy "
                f"{row['live_pgd_accuracy']:.1%}: back to the last good weights, "
                "with more attack steps from here on",
            }
            self.events.append(event)
            line.say(f"epoch {row['epoch']:.1f}: {event['detail']}")
        else:
            self.best_live = max(self.best_live, row["live_pgd_accuracy"])
            self._keep_if_best(row)
            self.save("good")
        self._write_metrics()
        line.say(
            f"epoch {row['epoch']:6.2f}  {clock(row['seconds']):>8}  loss {row['train_loss']:.3f}  "
            f"standard {row['validation_accuracy']:.1%}  PGD-{self.recipe.validation.steps} "
            f"{row['validation_pgd_accuracy']:.1%}  {row['images_per_second']:.0f} images/s"
        )


def _checksum(tensors: dict[str, Tensor], progress: str) -> str:
    return digest(progress, *(part for name in sorted(tensors) for part in (name, tensors[name])))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def fit_recipe(
    recipe: Recipe,
    data: DataSet,
    out: Path | str,
    *,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> TrainingResult:
    """Train by a recipe into a run folder, or go on where the same command was interrupted.

    Args:
        recipe: fixes the run completely, together with data and seed.
        data: images and labels; `validation` chooses the weights that are kept, `test` is not
            looked at.
        out: the run folder: `model/`, `metrics.csv`, `result.json`, `checkpoints/`.
        seed: of initial weights, order, augmentation and attacks.
        device: `cpu`, `cuda`, …; by default the best there is.
        progress: show a progress bar (plain lines where there is no terminal).

    Raises:
        InputError: `out` holds another run; a bad recipe; a budget too short for one epoch.
    """
    from lightning.fabric import Fabric  # takes seconds to import

    # Its remarks on precision are in the recipe already; standard error is for errors.
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        fabric = Fabric(
            accelerator=device or "auto",
            devices="auto" if _launched() else 1,
            precision="bf16-mixed" if recipe.precision == "bf16" else "32-true",
        )
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"device {device or 'auto'!r} cannot be used: {said}") from None
    if _launched():
        fabric.launch()
    split = data.split(recipe.train_on)
    asked = {"recipe": recipe.to_dict(), "seed": seed, "data": data.name}
    key = identity(**asked, images=digest(split.images, split.labels, data.validation.images))
    run = Path(out)
    # It refuses a recipe that does not fit the data, so it comes before anything is written.
    trainer = Trainer(recipe, data, run, seed, fabric)
    if fabric.is_global_zero:
        open_run(
            run,
            "train",
            key,
            {"asked": asked, "pixels": split.pixels, **circumstances(fabric.device)},
        )
    fabric.barrier()
    with ProgressLine(
        f"training {recipe.model.architecture}", progress and fabric.is_global_zero
    ) as line:
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
    validation = {
        "standard_accuracy": trainer.best["validation_accuracy"],
        "pgd_accuracy": trainer.best["validation_pgd_accuracy"],
        "n": len(trainer.held_out),
    }
    epochs = schedule.steps / trainer.steps_per_epoch
    if fabric.is_global_zero:
        write_json(
            run / "result.json",
            {
                "schema": "holdfast/training/1",
                "status": "complete",
                "identity": key,
                "model": "model",
                "data": {"name": data.name, "split": recipe.train_on, "pixels": split.pixels},
                "epochs": epochs,
                "steps": schedule.steps,
                "seconds": schedule.spent_seconds,
                "images_per_second": sum(r["images_per_second"] for r in trainer.rows)
                / len(trainer.rows),
                "best_epoch": trainer.best["epoch"],
                "validation": validation,
                "events": trainer.events,
                "seed": seed,
            },
        )
    fabric.barrier()
    return TrainingResult(
        run,
        load_checkpoint(run / "model"),
        epochs,
        schedule.steps,
        schedule.spent_seconds,
        validation,
        trainer.events,
    )


def _launched() -> bool:
    """Whether torchrun or Slurm started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1
