"""The training loop: one for every objective."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.base import DataSet, held_back
from ..data.extra import load_extra
from ..errors import HoldfastError, InputError
from ..models import save_checkpoint
from ..runs.files import make_folder
from ..runs.progress import ProgressLine, clock
from ..threat import Threat
from .averaging import WeightAverage, estimate_statistics
from .batches import FORMAT, Feed
from .budget import Schedule, one_cycle, parse_seconds
from .checkpoints import Checkpoints, part
from .initialisation import initial_network
from .objectives import objective_named
from .optimisers import STATE, optimiser_for
from .recipe import Recipe
from .tracking import Tracking
from .validation import Validator, collapsed, in_words, kept

if TYPE_CHECKING:
    from lightning.fabric import Fabric

CHECKPOINT_SECONDS = 60.0  # between checkpoints inside an epoch
_MOMENTUM = {"momentum_buffer": "momentum"}  # shorter in a checkpoint
MEMORISING = "memorising"
MEMORISING_GAP = 0.10  # between PGD accuracy on training images and on others
STATISTICS_BATCHES = 8  # that batch-norm statistics of the averaged weights come from


class Trainer:
    """One training run: the model, its average, the optimiser, and how far it has come."""

    def __init__(
        self,
        recipe: Recipe,
        data: DataSet,
        run: Path,
        seed: int,
        fabric: Fabric,
        log: Sequence[str] = (),
    ):
        self.recipe, self.run, self.seed, self.fabric = recipe, run, seed, fabric
        self.classes = data.classes
        self.threat = Threat(recipe.threat.norm, recipe.threat.eps)  # type: ignore[arg-type]
        spec, split = recipe.objective, data.split(recipe.train_on)
        self.objective = objective_named(spec.name, spec.arguments, spec.awp, spec.awp_warmup)
        # Whether there is robustness to lose, and an attack that could be made stronger.
        self.robust = spec.name != "standard" and not self.objective.chosen_by
        channels, height, width = split.images.shape[1:]
        self.extra = None
        if recipe.extra.file is not None:
            shape = (channels, height, width)
            self.extra = load_extra(recipe.extra.file, shape, len(data.classes))
        self.feed = Feed(
            split,
            recipe.batch_size,
            recipe.augment.operations(),
            seed,
            fabric.device,
            len(data.classes),
            extra=self.extra,
            share=recipe.extra.share,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        self.held = held_back(recipe.train_on)
        if self.held and self.held < recipe.validation.images:
            raise InputError(
                f"validation.images is {recipe.validation.images}, but train_on "
                f"{recipe.train_on} holds back only {self.held}"
            )
        self.validator = Validator(
            data.validation, split, recipe.validation, self.threat, seed, fabric
        )
        self.objective.prepare(self.validator.images[:2], len(data.classes))
        model, self.arguments = initial_network(recipe, data, seed)
        self.average = WeightAverage(model, recipe.averaging, recipe.averaging_share)
        self.average.model.to(fabric.device, memory_format=FORMAT)  # type: ignore[call-overload]
        optimiser = optimiser_for(model, recipe.optimiser)
        model.to(memory_format=FORMAT)  # type: ignore[call-overload]
        self.model, self.optimiser = fabric.setup(model, optimiser)

        self.steps_per_epoch = self.feed.steps_per_epoch
        budget = None if recipe.budget is None else parse_seconds(recipe.budget)
        self.validation_every = recipe.validation.every * self.steps_per_epoch  # steps
        self.schedule = Schedule(
            math.ceil(recipe.epochs * self.steps_per_epoch), budget, self.validation_every
        )
        self.checkpoints = Checkpoints(run / "checkpoints")
        self.tracking = Tracking(run, log, recipe.to_dict())
        self.rows: list[dict[str, Any]] = []  # of metrics.csv
        self.events: list[dict[str, Any]] = []
        # What has to be said beside every validation figure.
        self._known = " (which are trained on)" if self.held == 0 else ""
        self.best: dict[str, Any] = {}  # figures of the best averaged weights so far
        self.best_live = 0.0  # PGD accuracy of the live weights
        self.window = {"loss": 0.0, "right": 0.0, "seen": 0, "seconds": 0.0}
        self.next_validation = 1
        self.lap_began = time.monotonic()

    def found_in_extra(self, split: str, images: int) -> None:
        """Note that extra images are held-out ones, which are to be judged by."""
        if images:
            detail = (
                f"{images} {split} images are among the extra images, pixel for pixel, so figures "
                f"on {split} images flatter this model; remove them from {self.recipe.extra.file}"
            )
            self.events.append({"epoch": 0.0, "kind": "held-out-images-in-extra", "detail": detail})

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
        self.tracking.close()

    def _step(self) -> float:
        """One optimiser step; returns the learning rate it was made with."""
        recipe, schedule = self.recipe, self.schedule
        # The first step of all needs a rate above 0.
        rates = recipe.optimiser
        cycle = one_cycle(max(schedule.progress, 1e-3), rates.warmup, rates.hold, rates.floor)
        for group in self.optimiser.param_groups:
            group["lr"] = cycle * group["peak"]
        batch = self.feed.batch(schedule.steps, strength=self._augmentation())
        self.optimiser.zero_grad(set_to_none=True)
        self.objective.progress = schedule.progress
        with self.fabric.autocast():
            loss = self.objective(self.model, batch, self._present_threat())
        self.fabric.backward(loss.value)
        if recipe.optimiser.clip_gradient:
            self.fabric.clip_gradients(
                self.model, self.optimiser, max_norm=recipe.optimiser.clip_gradient
            )
        self.optimiser.step()
        self.average.update(self.model.module)
        value = float(loss.value.detach())
        if not math.isfinite(value):
            raise self._diverged(f"training diverged: the loss became {value}")
        window = self.window
        window["loss"] += value * len(batch.labels)
        if loss.logits is not None:
            window["right"] += float((loss.logits.argmax(1) == batch.labels).sum())
        window["seen"] += len(batch.labels)
        return recipe.optimiser.learning_rate * cycle

    def _augmentation(self) -> float:
        """Strength of the augmentation at this point of the schedule, 0 to 1."""
        warmup = self.recipe.augment.warmup
        return min(self.schedule.progress / warmup, 1.0) if warmup else 1.0

    def _present_threat(self) -> Threat:
        """What is trained against at this point of the schedule."""
        warmup, threat = self.recipe.objective.eps_warmup, self.threat
        if self.schedule.progress >= warmup:
            return threat
        # At progress 0 there would be no ball at all.
        return threat.times(max(self.schedule.progress / warmup, 0.01))

    def _lap(self) -> float:
        """Seconds since the last call, the same on every process; nothing goes unmeasured."""
        began, self.lap_began = self.lap_began, time.monotonic()
        return self.fabric.broadcast(self.lap_began - began)

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

    def _diverged(self, what: str) -> HoldfastError:
        return HoldfastError(
            f"{what} at step {self.schedule.steps}; lower optimiser.learning_rate "
            "or set optimiser.clip_gradient (the last checkpoint is intact)"
        )

    # -- validation -----------------------------------------------------------------------

    def _fit_statistics(self) -> None:
        """Batch-norm statistics of the averaged weights, on images as training sees them."""
        average = self.average.model
        self.objective.progress = self.schedule.progress

        def batches():
            for k in range(min(STATISTICS_BATCHES, self.steps_per_epoch)):
                # Alike on every process.
                batch = self.feed.batch(k, whole=True, strength=self._augmentation())
                average.train()
                yield self.objective.attacked(average, batch, self._present_threat())

        # The attacks need a gradient; the passes that are counted do not.
        with self.fabric.autocast():
            estimate_statistics(average, list(batches()))

    def _validate(self, rate: float) -> dict[str, Any]:
        self._fit_statistics()
        figures = self.validator.figures(self.average.model, self.model.module, self.objective)
        self.model.train()
        window, epoch = self.window, self.schedule.steps / self.steps_per_epoch
        row = {
            "epoch": round(epoch, 4),
            "step": self.schedule.steps,
            "seconds": round(self.schedule.spent_seconds, 1),
            "learning_rate": round(rate, 6),
            "train_loss": round(window["loss"] / max(window["seen"], 1), 5),
            "train_accuracy": round(window["right"] / max(window["seen"], 1), 5)
            if self.objective.classifies
            else None,
            "images_per_second": round(
                window["seen"] * self.fabric.world_size / max(window["seconds"], 1e-9), 1
            ),
            **figures,
        }
        self.window = dict.fromkeys(window, 0.0)
        # What is decided from these figures must be decided alike on every process.
        row = self.fabric.broadcast(row)
        self.rows.append(row)
        return row

    def _after_validation(self, row: dict[str, Any], line: ProgressLine) -> None:
        self.fabric.barrier()  # the process that writes checkpoints has written the last one
        lost = self.robust and collapsed(row, self.best_live)
        if lost and self.checkpoints.file("good").exists():
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
            self.best_live = max(self.best_live, row.get("live_pgd_accuracy", 0.0))
            self._watch_memory(row, line)
            self._keep_if_best(row)
            self.save("good")
        if self.fabric.is_global_zero:
            self.tracking.log(self.rows)
        line.say(
            f"epoch {row['epoch']:6.2f}  {clock(row['seconds']):>8}  loss {row['train_loss']:.3f}  "
            f"{in_words(kept(row))}{self._known}{self._beside(row)}  "
            f"{row['images_per_second']:.0f} images/s"
        )

    def _beside(self, row: dict[str, Any]) -> str:
        """Accuracy under attack on training images, to stand beside that on others."""
        seen = row.get("train_pgd_accuracy")
        return "" if seen is None or self.held == 0 else f" (training images {seen:.1%})"

    def _watch_memory(self, row: dict[str, Any], line: ProgressLine) -> None:
        """Say it once, when robustness on training images leaves that on others behind."""
        seen, new = row.get("train_pgd_accuracy"), row.get("validation_pgd_accuracy")
        told = any(event["kind"] == MEMORISING for event in self.events)
        if seen is None or self.held == 0 or told or seen - new < MEMORISING_GAP:
            return
        detail = f"learns by heart: PGD accuracy {seen:.0%} on training images, {new:.0%} on others"
        self.events.append({"epoch": row["epoch"], "kind": MEMORISING, "detail": detail})
        line.say(
            f"epoch {row['epoch']:.1f}: {detail}; stronger augmentation or label smoothing may help"
        )

    def _keep_if_best(self, row: dict[str, Any]) -> None:
        """Both accuracies count alike: what is wanted is a model that has both."""
        usual = ("validation_accuracy", *["validation_pgd_accuracy"] * self.robust)
        keys = self.objective.chosen_by or usual

        def worth(row: dict[str, Any]) -> float:
            return sum(row[key] for key in keys)

        choose_last = self.held == 0
        if choose_last or not self.best or worth(row) >= worth(self.best):
            self.best = row
            if self.fabric.is_global_zero:
                self._save_model()

    def _save_model(self) -> None:
        state = self.average.model.state_dict().values()
        if not all(bool(value.isfinite().all()) for value in state):
            raise self._diverged("training diverged: the weights became NaN or infinite")
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
                        **kept(self.best),
                        "n": len(self.validator),
                        "epoch": self.best["epoch"],
                        "measured": f"first validation images{self._known}, "
                        f"PGD-{self.recipe.validation.steps}",
                    }
                },
            },
        )

    # -- checkpoints ----------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that has to survive: weights, their average, momentum, what the objective
        remembers."""
        tensors = {f"model.{k}": v for k, v in self.model.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.model.state_dict().items()}
        tensors |= {f"objective.{k}": v for k, v in self.objective.state().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:
                    tensors[f"{_MOMENTUM.get(name, name)}.{i}"] = value
        return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}

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

    def save(self, name: str) -> None:
        """Write a checkpoint: all that a run needs to go on as if nothing had happened."""
        if not self.fabric.is_global_zero:
            return
        tensors = self._tensors()
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise self._diverged("training diverged: the weights became NaN or infinite")
        self.checkpoints.save(name, tensors, self._progress())

    def restore(self, name: str, weights_only: bool = False) -> bool:
        """Go back to a checkpoint; False if there is none.

        Args:
            weights_only: take weights, average and momentum, but stay where the schedule is.

        Raises:
            InputError: it is damaged, or of another architecture.
        """
        held = self.checkpoints.load(name, self._progress().keys())
        if held is None:
            return False
        tensors, progress = held
        try:
            self.model.module.load_state_dict(part(tensors, "model."))
            self.average.model.load_state_dict(part(tensors, "average."))
        except RuntimeError:
            file = self.checkpoints.file(name)
            raise InputError(f"checkpoint {file} is of another architecture") from None
        state = self.optimiser.state_dict()
        state["state"] = {}
        for name in STATE:
            for i, value in part(tensors, f"{_MOMENTUM.get(name, name)}.").items():
                # In the layout of the weights: elementwise work on two layouts at once is slow.
                form = FORMAT if value.ndim == 4 else torch.contiguous_format
                of_weight = state["state"].setdefault(int(i), {})
                of_weight[name] = value.clone(memory_format=form)
        self.optimiser.load_state_dict(state)
        device = self.fabric.device
        self.objective.restore({k: v.to(device) for k, v in part(tensors, "objective.").items()})
        self.average.steps = progress["average_steps"]
        if not weights_only:
            self.schedule.restore(progress["schedule"])
            self.rows, self.events = progress["rows"], progress["events"]
            self.best, self.best_live = progress["best"], progress["best_live"]
            self.window, self.next_validation = progress["window"], progress["next_validation"]
            self.objective.caution = progress["caution"]
        return True
