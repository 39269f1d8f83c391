"""The network that a run starts with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from .. import draws
from ..errors import InputError
from ..models import arguments_of, build
from .job import TrainingJob


def initial_network(job: TrainingJob) -> tuple[nn.Module, dict[str, Any]]:
    """A network as the recipe asks for, its weights drawn from the run's seed, and its arguments.

    The number of classes is the data's; images of another number of channels than three are
    normalised by what the training images measure, unless the recipe says otherwise.

    Raises:
        InputError: an architecture or argument that does not exist or does not fit the data.
    """
    spec, data = job.recipe.model, job.data
    known = arguments_of(spec.architecture)
    classes = spec.arguments.get("classes", len(data.classes))
    if classes != len(data.classes):
        raise InputError(
            f"the recipe's model has {classes} classes, the data {len(data.classes)}; "
            "leave model.arguments.classes out"
        )
    channels = data.train.images.shape[1]
    # What the data decides, as far as the architecture asks for it.
    decided = {"classes": len(data.classes), "channels": channels}
    arguments = {k: v for k, v in decided.items() if k in known} | spec.arguments
    if channels != 3 and "mean" in known and "mean" not in arguments:
        flat = np.asarray(data.train.images).swapaxes(0, 1).reshape(channels, -1) / 255
        arguments["mean"] = [round(float(m), 4) for m in flat.mean(1)]
        arguments["std"] = [round(float(s), 4) for s in flat.std(1)]
    # Drawn on the CPU from the run's own stream: the same on every device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(draws.item_seeds(job.seed, "weights")))
        model = build(spec.architecture, arguments)
    normalised = model.get_buffer("normalise.mean").shape[1] if "mean" in known else channels
    if normalised != channels:
        raise InputError(
            f"model {spec.architecture!r} normalises another number of channels than "
            f"the images have; set model.arguments.mean and std to {channels} numbers each"
        )
    return model, arguments
