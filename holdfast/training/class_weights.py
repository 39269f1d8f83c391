"""How much the images of each class weigh in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..parsing import nearest
from .job import TrainingJob


def class_weights(job: TrainingJob) -> Float[Tensor, " k"] | None:
    """What the loss of an image is multiplied by, for each class; None where all count alike.

    `balanced` is n / (K · n_k) for n_k of n images (King & Zeng, "Logistic regression in rare
    events data", 2001, as scikit-learn has it). All weights are scaled so that their mean over
    the images of an epoch, extra ones included, is 1: the learning rate keeps its meaning.

    Raises:
        InputError: another number of weights than classes, an unknown class, or only zeros.
    """
    asked, classes = job.recipe.class_weights, job.data.classes
    if asked is None:
        return None
    share = _shares(job)
    if asked == "balanced":
        weights = np.where(share > 0, 1 / np.maximum(share, 1e-12), 0.0)
    elif isinstance(asked, dict):
        for name in asked:
            if name not in classes:
                raise InputError(
                    f"class_weights: the data has no class {name!r}{nearest(name, classes)}"
                )
        weights = np.array([asked.get(name, 1.0) for name in classes])
    else:
        if len(asked) != len(classes):
            raise InputError(
                f"class_weights holds {len(asked)} numbers, the data has {len(classes)} classes"
            )
        weights = np.array(asked, float)
    mean = float((share * weights).sum())
    if not 0 < mean < np.inf:
        raise InputError("class_weights: at least one class with images must weigh more than 0")
    return torch.tensor(weights / mean, dtype=torch.float32)


def in_figures(weights: Float[Tensor, " k"], classes: Sequence[str]) -> dict[str, float]:
    """The weights by the names of the classes."""
    return {name: round(float(weight), 6) for name, weight in zip(classes, weights, strict=True)}


def _shares(job: TrainingJob) -> np.ndarray:
    """Which share of the images that are trained on each class has, (K,)."""
    k = len(job.data.classes)
    share = np.bincount(job.split.labels, minlength=k) / len(job.split)
    if job.extra is not None:
        more = np.bincount(job.extra.labels, minlength=k) / len(job.extra)
        extra = round(job.recipe.extra.share * job.recipe.batch_size) / job.recipe.batch_size
        share = (1 - extra) * share + extra * more
    return share
