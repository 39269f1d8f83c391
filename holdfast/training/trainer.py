"""The training loop: one for every objective."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import draws
from ..errors import HoldfastError, InputError
from ..models import save_checkpoint
from ..parsing import one_line, parse_seconds
from ..runs.files import make_folder
from ..runs.folder import now, on_date
from ..runs.progress import ProgressLine, clock
from ..runs.records.training import COLLAPSED, LENGTHENED, MEMORISING, PATIENCE
from ..runs.tensors import apart
from ..threat import Threat
from .averaging import WeightAverage, estimate_statistics
from .batches import Batches
from .checkpoints import Checkpoints, part
from .class_weights import class_weights, in_figures
from .history import History, Window
from .initialisation import initial_network
from .job import TrainingJob
from .lengthening import in_epochs
from .objectives import objective_named
from .optimisers import STATE, optimiser_for
from .schedule import Schedule, one_cycle
from .self_distillation import softened
from .tracking import Tracking
from .validation import Validator, averaged_figures, collapsed, in_words

CHECKPOINT_SECONDS = 60.0  # between checkpoints inside an epoch
_MOMENTUM = {"momentum_buffer": "momentum"}  # shorter in a checkpoint
STATISTICS_BATCHES = 8  # that batch-norm statistics of the averaged weights come from


class Trainer:
    """One training run: the model, its average, the optimiser, and how far it has come."""

    def __init__(self, job: TrainingJob):
        self.job = job
        recipe, fabric, spec = job.recipe, job.fabric, job.recipe.objective
        self.recipe, self.fabric, self.threat = recipe, fabric, job.threat
        self.objective = objective_named(spec.name, spec.arguments, spec.awp, spec.awp_warmup)
        # Whether there is robustness to lose, and an attack that could be made stronger.
        self.robust = spec.name != "standard" and not self.objective.chosen_by
        self.network = initial_network(job)
        model, self.form = self.network.model, self.network.form
        weights = class_weights(job)
        self.class_weights = None if weights is None else in_figures(weights, job.data.classes)
        self.batches = Batches.of(job, weights, self.form)
        self.validator = Validator(job, self.form)
        self.objective.prepare(self.validator.images[:2], len(job.data.classes))
        self.average = WeightAverage(model, recipe.averaging, recipe.averaging_share)
        self.average.model.to(fabric.device, memory_format=self.form)  # type: ignore[call-overload]
        optimiser = optimiser_for(model, recipe.optimiser, self.network.is_classifier)
        model.to(memory_format=self.form)  # type: ignore[call-overload]
        self.model, self.optimiser = fabric.setup(model, optimiser)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.schedule = Schedule(
            math.ceil(recipe.epochs * self.steps_per_epoch),
            None if recipe.budget is None else parse_seconds(recipe.budget),
            recipe.validation.every * self.steps_per_epoch,
        )
        self.history = History()
        self.checkpoints = Checkpoints(job.run / "checkpoints")
        self.tracking = Tracking(job.run, job.log, recipe.to_dict())
        self.lap_began = time.monotonic()

    # -- the whole way --------------------------------------------------------------------

    def fit(self, line: ProgressLine) -> None:
        """Train from where the run stands to its end."""
        # What a network draws itself, as dropout does, comes from the run's seed and the step.
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._fit(line)

    @property
    def told(self) -> list[str]:
        """What a reader should know of the network and the images at the beginning, a line each."""
        said = list(self.network.told)
        if self.class_weights is not None:
            named = (f"{name} {weight:.3g}" for name, weight in self.class_weights.items())
            first, rest = list(named)[:10], len(self.class_weights) - 10
            said.append(f"class weights: {', '.join(first)}{f', and {rest} more' * (rest > 0)}")
        return said

    def _fit(self, line: ProgressLine) -> None:
        schedule, history = self.schedule, self.history
        self.model.train()
        saved = self.lap_began = time.monotonic()
        while not schedule.done:
            schedule.spent_seconds += self._lap()  # the checkpoint
            self._seed("step")
            rate = self._step()
            taken = self._lap()
            history.window.seconds += taken
            schedule.advance(taken)
            self._check_budget()
            seen = history.window
            line.update(
                schedule.progress,
                f"epoch {schedule.steps / self.steps_per_epoch:.1f}  "
                f"loss {seen.loss / seen.seen:.3f}  "
                f"{seen.seen * self.fabric.world_size / seen.seconds:.0f} images/s",
            )
            due = schedule.steps >= history.next_validation * schedule.validation_every
            due = schedule.done or (due and schedule.has_time_to_validate())
            if due:
                validated = math.floor(schedule.steps / schedule.validation_every + 1e-9)
                history.next_validation = 1 + validated
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
        batch = self.batches.batch(schedule.steps, strength=self._augmentation())
        self.optimiser.zero_grad(set_to_none=True)
        self.objective.progress = schedule.progress
        with self._own_errors():
            with self.fabric.autocast():
                if share := recipe.objective.self_distillation * schedule.progress:
                    batch = softened(batch, self.average.model, share)
                loss = self.objective(self.model, batch, self._present_threat())
            self.fabric.backward(loss.value)
        if schedule.steps < recipe.optimiser.frozen_epochs * self.steps_per_epoch:
            self._freeze_backbone()
        if recipe.optimiser.clip_gradient:
            self.fabric.clip_gradients(
                self.model, self.optimiser, max_norm=recipe.optimiser.clip_gradient
            )
        self.optimiser.step()
        self.average.update(self.model.module)
        value = float(loss.value.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}")
        window = self.history.window
        window.loss += value * len(batch.labels)
        if loss.logits is not None:
            window.right += float((loss.logits.argmax(1) == batch.labels).sum())
        window.seen += len(batch.labels)
        return recipe.optimiser.learning_rate * cycle

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """What somebody's own network raises, in a line that says when."""
        try:
            yield
        except HoldfastError:
            raise
        except Exception as error:
            if not self.job.own_network:
                raise
            raise InputError(
                f"{self.job.network_name} fails at step {self.schedule.steps}: {one_line(error)}"
            ) from error

    def _freeze_backbone(self) -> None:
        """Leave all weights but the classifier's as they are in this step."""
        # Without gradients, not without requiring them: across processes each weight must have one.
        for group in self.optimiser.param_groups:
            if not group["classifier"]:
                for weight in group["params"]:
                    weight.grad = None

    def _seed(self, what: str) -> None:
        """Seed torch's own generator for what comes next."""
        rank = self.fabric.global_rank if what == "step" else 0
        torch.manual_seed(
            int(draws.item_seeds(self.job.seed, f"own {what}", self.schedule.steps, rank))
        )

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

    def _check_finite(self, tensors: Iterable[Tensor]) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise self._diverged("the weights became NaN or infinite")

    def _diverged(self, what: str) -> HoldfastError:
        return HoldfastError(
            f"training diverged: {what} at step {self.schedule.steps}; lower "
            "optimiser.learning_rate or set optimiser.clip_gradient (the last checkpoint is intact)"
        )

    # -- validation -----------------------------------------------------------------------

    def _fit_statistics(self) -> None:
        """Batch-norm statistics of the averaged weights, on images as training sees them."""
        average = self.average.model
        self.objective.progress = self.schedule.progress

        def batches():
            for k in range(min(STATISTICS_BATCHES, self.steps_per_epoch)):
                # Alike on every process.
                batch = self.batches.batch(k, whole=True, strength=self._augmentation())
                average.train()
                yield self.objective.attacked(average, batch, self._present_threat())

        # The attacks need a gradient; the passes that are counted do not.
        with self.fabric.autocast():
            estimate_statistics(average, list(batches()))

    def _validate(self, rate: float) -> dict[str, Any]:
        """The next row of metrics.csv; `rate` is the learning rate of the last step."""
        self._seed("validation")
        with self._own_errors():
            self._fit_statistics()
            figures = self.validator.figures(self.average.model, self.model.module, self.objective)
        self.model.train()
        window, epoch = self.history.window, self.schedule.steps / self.steps_per_epoch
        row = {
            "epoch": round(epoch, 4),
            "step": self.schedule.steps,
            "seconds": round(self.schedule.spent_seconds, 1),
            "learning_rate": round(rate, 6),
            "train_loss": round(window.loss / max(window.seen, 1), 5),
            "train_accuracy": round(window.right / max(window.seen, 1), 5)
            if self.objective.classifies
            else None,
            "images_per_second": round(
                window.seen * self.fabric.world_size / max(window.seconds, 1e-9), 1
            ),
            **figures,
        }
        self.history.window = Window()
        # What is decided from these figures must be decided alike on every process.
        row = self.fabric.broadcast(row)
        self.history.rows.append(row)
        return row

    def _after_validation(self, row: dict[str, Any], line: ProgressLine) -> None:
        """Keep the weights if they are the best, or go back where robustness collapsed."""
        self.fabric.barrier()  # the process that writes checkpoints has written the last one
        history, epoch = self.history, row["epoch"]
        lost = self.robust and collapsed(row, history.best_live)
        if lost and self.checkpoints.file("good").exists():
            self.objective.caution += 1
            self.restore("good", weights_only=True)
            detail = (
                f"FGSM accuracy {row['live_fgsm_accuracy']:.1%} but PGD accuracy "
                f"{row['live_pgd_accuracy']:.1%}: back to the last good weights, "
                "with more attack steps from here on"
            )
            history.note(epoch, COLLAPSED, detail)
            line.say(f"epoch {epoch:.1f}: {detail}")
        else:
            history.best_live = max(history.best_live, row.get("live_pgd_accuracy", 0.0))
            memorises = None if self.job.unseen == 0 else history.memorises(row)
            if memorises:
                history.note(epoch, MEMORISING, memorises)
                advice = "stronger augmentation or label smoothing may help"
                line.say(f"epoch {epoch:.1f}: {memorises}; {advice}")
            self._keep_if_best(row)
            self.save("good")
        self._heed_patience(row)
        if self.job.leads:
            self.tracking.log(history.rows)
        line.say(
            f"epoch {epoch:6.2f}  {clock(row['seconds']):>8}  loss {row['train_loss']:.3f}  "
            f"{in_words(averaged_figures(row))}{self._known}{self._beside(row)}  "
            f"{row['images_per_second']:.0f} images/s"
        )
        if self.schedule.stopped:
            line.say(f"epoch {epoch:.1f}: {history.events[-1]['detail']}")

    def _heed_patience(self, row: dict[str, Any]) -> None:
        """Stop where robust accuracy has not risen for as long as the recipe waits."""
        history, schedule = self.history, self.schedule
        watched = ("validation_pgd_accuracy",) if self.robust else self._chosen_by
        value = sum(row[column] for column in watched)
        stops = history.waits(value, self.recipe.patience)
        if not stops or schedule.done:
            return
        schedule.stopped = True
        title = " + ".join(column.removeprefix("validation_") for column in watched)
        history.note(
            row["epoch"],
            PATIENCE,
            f"stopped after {schedule.progress:.0%} of the schedule: {in_words({title: value})} is "
            f"the {history.waited}. validation in a row without a rise over "
            f"{in_words({title: history.risen or 0.0})}",
        )

    @property
    def _known(self) -> str:
        """What has to be said beside every validation figure."""
        return " (which are trained on)" if self.job.unseen == 0 else ""

    def _beside(self, row: dict[str, Any]) -> str:
        """Accuracy under attack on training images, to stand beside that on others."""
        seen = row.get("train_pgd_accuracy")
        return "" if seen is None or self.job.unseen == 0 else f" (training images {seen:.1%})"

    @property
    def _chosen_by(self) -> tuple[str, ...]:
        """The columns of metrics.csv whose sum decides which weights are kept."""
        usual = ("validation_accuracy", *["validation_pgd_accuracy"] * self.robust)
        return self.objective.chosen_by or usual

    def _keep_if_best(self, row: dict[str, Any]) -> None:
        """Both accuracies count alike: what is wanted is a model that has both."""
        choose_last = self.job.unseen == 0
        if choose_last or self.history.is_best(row, self._chosen_by):
            self.history.best = row
            if self.job.leads:
                self._save_model()

    def _save_model(self) -> None:
        """Write the averaged weights, and a card with what was measured of them."""
        self._check_finite(self.average.model.state_dict().values())
        network = self.network
        began = network.started_from
        save_checkpoint(
            make_folder(self.job.run / "model"),
            self.average.model,
            {
                "architecture": self.recipe.model.architecture,
                "arguments": network.arguments,
                "classes": list(self.job.data.classes),
                "images": self.job.data.shown,
                **({"classifier": network.classifier} if network.given_classes else {}),
                **({"started_from": began} if began is not None else {}),
                **({"threat": self.threat.describe()} if self.objective.defends else {}),
                "recipe": self.recipe.to_dict(),
                "seed": self.job.seed,
                "trained_on": self.recipe.train_on,
                "figures": {
                    "validation": {
                        **averaged_figures(self.history.best),
                        "n": len(self.validator),
                        "epoch": self.history.best["epoch"],
                        "measured": f"first validation images{self._known}, "
                        f"PGD-{self.recipe.validation.steps}",
                    }
                },
            },
        )

    # -- checkpoints ----------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything that has to survive: weights, their average, momentum, what the objective
        remembers."""
        tensors = {f"model.{k}": v for k, v in self.model.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.model.state_dict().items()}
        tensors |= {f"objective.{k}": v for k, v in self.objective.state().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:
                    tensors[f"{_MOMENTUM.get(name, name)}.{i}"] = value
        return apart({k: v.detach().cpu().contiguous() for k, v in tensors.items()})

    def _progress(self) -> dict[str, Any]:
        """How far the run is, as a checkpoint holds it beside the tensors."""
        return {
            "schedule": self.schedule.state(),
            "average_steps": self.average.steps,
            "caution": self.objective.caution,
            **self.history.to_dict(),
        }

    def save(self, name: str) -> None:
        """Write a checkpoint: all that a run needs to go on as if nothing had happened."""
        if not self.job.leads:
            return
        tensors = self.tensors()
        self._check_finite(tensors.values())
        self.checkpoints.save(name, tensors, self._progress())

    def restore(self, name: str, weights_only: bool = False) -> bool:
        """Go back to a checkpoint; False if there is none.

        Args:
            weights_only: take weights, average and momentum, but stay where the schedule is.

        Raises:
            InputError: it is damaged, or of another architecture.
        """
        held = self.checkpoints.load(name, self._progress().keys(), History.LATER)
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
                form = self.form if value.ndim == 4 else torch.contiguous_format
                of_weight = state["state"].setdefault(int(i), {})
                of_weight[name] = value.clone(memory_format=form)
        self.optimiser.load_state_dict(state)
        device = self.fabric.device
        self.objective.restore({k: v.to(device) for k, v in part(tensors, "objective.").items()})
        self.average.steps = progress["average_steps"]
        if not weights_only:
            asked = self.schedule.total_steps, self.schedule.budget_seconds
            self.schedule.restore(progress["schedule"])
            self.history.restore(progress)
            self.objective.caution = progress["caution"]
            if asked != (self.schedule.total_steps, self.schedule.budget_seconds):
                self._lengthen(*asked)
        return True

    def _lengthen(self, total_steps: int, budget_seconds: float | None) -> None:
        """Go on beyond what was the end of the schedule."""
        schedule, history, rates = self.schedule, self.history, self.recipe.optimiser
        reached = schedule.steps / self.steps_per_epoch
        before = clock(schedule.budget_seconds) if schedule.budget_seconds else in_epochs(reached)
        schedule.lengthen(total_steps, budget_seconds)
        after = clock(budget_seconds) if budget_seconds else in_epochs(self.recipe.epochs)
        history.risen, history.waited = None, 0
        rate = one_cycle(schedule.progress, rates.warmup, rates.hold, rates.floor)
        detail = (
            f"lengthened from {before} to {after} on {on_date(now())}: the schedule goes on at "
            f"{schedule.progress:.0%} of its new length, with a learning rate of {rate:.0%} of "
            "its peak"
        )
        if schedule.progress < self.recipe.objective.eps_warmup:
            detail += f" and ε {self._present_threat().eps / self.threat.eps:.0%} of its last value"
        history.note(round(reached, 4), LENGTHENED, detail)
