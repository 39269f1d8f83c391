"""What is measured on held-out images during training, and what it tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from .. import draws
from ..attacks import FGSM, PGD
from ..attacks.losses import margin
from ..data.base import Split
from ..threat import Threat
from ..types import Images
from .initialisation import FORMAT
from .job import TrainingJob
from .objectives import Batch, Objective

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KNOWN_IMAGES = 500  # training images whose accuracy is measured beside validation images'
LIVE_IMAGES = 256  # on which the live weights are watched for a collapse
BATCH_SIZE = 250


class Validator:
    """Accuracies on the first images of the validation split, the same in every process.

    Beside them stand those on as many of the first training images, `KNOWN_IMAGES` at most: they
    show how much the network knows by heart.

    Attributes:
        images, labels: that are measured, on the run's device.
        known: training images and labels.
        form: the memory layout of the images that the network sees.
    """

    def __init__(self, job: TrainingJob, form: torch.memory_format = FORMAT):
        spec = job.recipe.validation
        self.steps, self.threat, self.seed = spec.steps, job.threat, job.seed
        self.fabric, self.form = job.fabric, form
        self.images, self.labels = self._first(job.data.validation, spec.images)
        self.known = self._first(job.split, min(spec.images, KNOWN_IMAGES))

    def _first(self, split: Split, count: int) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(np.asarray(split.images[:count])).to(self.fabric.device)
        labels = torch.from_numpy(split.labels[:count]).to(self.fabric.device)
        return images.float() / 255, labels

    def __len__(self) -> int:
        return len(self.labels)

    def figures(
        self, average: nn.Module, live: nn.Module, objective: Objective
    ) -> dict[str, float]:
        """The columns of metrics.csv about the averaged weights and about the live ones.

        Live weights show a collapse first, and fewer images and steps show it well enough.
        """
        own = self.own(average, objective)
        if not objective.classifies:
            return own
        found = self.accuracies(average, self.images, self.labels, self.steps)
        seen = self.accuracies(average, *self.known, self.steps)
        first = slice(LIVE_IMAGES)
        watched = self.accuracies(
            live, self.images[first], self.labels[first], max(self.steps // 2, 1)
        )
        return {
            "validation_accuracy": found["standard"],
            "validation_fgsm_accuracy": found["fgsm"],
            "validation_pgd_accuracy": found["pgd"],
            "train_pgd_accuracy": seen["pgd"],
            "live_accuracy": watched["standard"],
            "live_fgsm_accuracy": watched["fgsm"],
            "live_pgd_accuracy": watched["pgd"],
            **own,
        }

    def own(self, model: nn.Module, objective: Objective) -> dict[str, float]:
        """What the objective itself measures; leaves eval mode behind."""
        model.eval()
        sums: Counter[str] = Counter()
        for rows in torch.arange(len(self)).split(BATCH_SIZE):
            seeds = draws.item_seeds(self.seed, "validation", rows).to(self.images.device)
            images = self.images[rows].contiguous(memory_format=self.form)
            with torch.no_grad(), self.fabric.autocast():
                found = objective.held_out(
                    model, Batch(images, self.labels[rows], seeds), self.threat
                )
            sums.update({name: len(rows) * value for name, value in found.items()})
        return {name: total / len(self) for name, total in sums.items()}

    def accuracies(
        self, model: nn.Module, images: Images, labels: Tensor, steps: int
    ) -> dict[str, float]:
        """Clean, FGSM and PGD accuracy; leaves eval mode behind."""
        how = (self.threat, steps, self.seed, self.fabric, self.form)
        found = standing(model, images, labels, *how)
        return {name: float(each.float().mean()) for name, each in found.items()}


def standing(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    threat: Threat,
    steps: int,
    seed: int,
    fabric: Fabric,
    form: torch.memory_format = FORMAT,
) -> dict[str, Bool[Tensor, " n"]]:
    """Which images are classified rightly clean (`standard`), under `fgsm`, and under `pgd`.

    PGD climbs the margin, `steps` steps of ε/4. Leaves eval mode behind.
    """
    model.eval()

    def answer(x: Tensor) -> Tensor:
        with fabric.autocast():
            return model(x.contiguous(memory_format=form)).float()

    def right(x: Tensor) -> Bool[Tensor, " n"]:
        batches = zip(x.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
        with torch.no_grad():
            return torch.cat([margin(answer(a), b) for a, b in batches]) > 0

    found = {"standard": right(images)}
    attacks = {"fgsm": FGSM(), "pgd": PGD(steps=steps, step_size=0.25, loss="margin")}
    for name, attack in attacks.items():
        found[name] = right(
            attack(answer, images, labels, threat, seed=seed, batch_size=BATCH_SIZE)
        )
    return found


_USUAL = {"validation_accuracy": "standard_accuracy", "validation_pgd_accuracy": "pgd_accuracy"}


def averaged_figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the averaged weights in a row of metrics.csv, as results and cards name them:
    `standard_accuracy`, `pgd_accuracy`, and the objective's own."""
    return {
        _USUAL.get(name, name.removeprefix("validation_")): value
        for name, value in row.items()
        if name.startswith("validation_") and name != "validation_fgsm_accuracy"
    }


def in_words(figures: Mapping[str, float]) -> str:
    """What `averaged_figures` gives, on one line: accuracies in per cent."""
    return ", ".join(
        f"{name.removesuffix('_accuracy').replace('_', ' ').replace('pgd', 'PGD')} "
        + (f"{value:.1%}" if name.endswith("accuracy") else f"{value:.2f}")
        for name, value in figures.items()
        if name != "n"
    )


def collapsed(row: Mapping[str, Any], best_live: float) -> bool:
    """Catastrophic overfitting: FGSM accuracy holds, PGD accuracy is gone.

    Wong, Rice & Kolter, "Fast is better than free", ICLR 2020.

    Args:
        row: of metrics.csv.
        best_live: the best PGD accuracy of the live weights before.
    """
    fgsm, pgd = row["live_fgsm_accuracy"], row["live_pgd_accuracy"]
    return bool(pgd < 0.6 * best_live and fgsm > pgd + 0.15 and best_live > 0.1)
