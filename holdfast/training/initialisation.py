"""The network that a run starts with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import draws
from ..errors import InputError
from ..models import arguments_of, build
from ..models.own_networks import (
    Builder,
    built_by_code,
    give_classes,
    is_code,
    parameters_of,
    source_of,
)
from ..models.registry import DENOISERS
from ..parsing import nearest, one_line
from ..runs.identity import digest, settings_digest, weights_digest
from ..types import Images
from .job import TrainingJob
from .starting_weights import put_in, starting_weights

FORMAT = torch.channels_last  # of images and weights: what fast convolutions want


@dataclass
class InitialNetwork:
    """A network before its first step.

    Attributes:
        model: on the CPU, float32.
        arguments: that it was built with.
        form: the memory layout that it is trained in.
        classifier: the layer that answers one logit a class; None where nobody asked for it.
        given_classes: whether that layer was put there to answer as many as the data has.
        started_from: the weights that it starts from, for the card; None for a random start.
        asked: what of it belongs to a run's identity, besides the recipe.
        told: what a reader should know, a line each.
    """

    model: nn.Module
    arguments: dict[str, Any]
    form: torch.memory_format = FORMAT
    classifier: str | None = None
    given_classes: bool = False
    started_from: dict[str, Any] | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def is_classifier(self, name: str) -> bool:
        """Whether a weight or buffer belongs to the classifier."""
        return self.classifier is not None and f"{name}.".startswith(f"{self.classifier}.")


def initial_network(job: TrainingJob) -> InitialNetwork:
    """A network as the recipe asks for, its weights drawn from the run's seed, or given.

    The number of classes is the data's; images of another number of channels than three are
    normalised by what the training images measure, unless the recipe says otherwise.

    Raises:
        InputError: an architecture or argument that does not exist or does not fit the data; code
            of one's own that fails; weights that do not fit.
    """
    spec = job.recipe.model
    with torch.random.fork_rng(devices=[]):
        if job.model is None and is_code(spec.architecture):
            torch.manual_seed(0)  # for what the code draws when it is read, which it is once
            parameters_of(spec.architecture)
        # Drawn on the CPU from the run's own stream: the same on every device.
        torch.manual_seed(int(draws.item_seeds(job.seed, "weights")))
        network = _own(job) if job.own_network else _registered(job)
        wanted = spec.weights or spec.classifier or job.recipe.optimiser.parts_differ
        if wanted and network.classifier is None:
            network.classifier = _classifier(job, network)
    if spec.weights is not None:
        weights = starting_weights(spec.weights)
        network.started_from, told = put_in(
            network.model, weights, network.is_classifier, job.recipe.model, job.data.classes
        )
        network.asked["weights"] = weights.sha256
        network.told += told
    return network


def builder(job: TrainingJob) -> Builder | None:
    """What builds the network of the run's checkpoints; None where their card says it."""
    if job.model is not None:
        given = job.model
        return lambda arguments: copy.deepcopy(given)
    if is_code(job.recipe.model.architecture):
        name = job.recipe.model.architecture
        return lambda arguments: built_by_code(name, arguments)
    return None


# -- Holdfast's own ---------------------------------------------------------------------------


def _registered(job: TrainingJob) -> InitialNetwork:
    spec = job.recipe.model
    channels = job.data.train.images.shape[1]
    known = arguments_of(spec.architecture)
    arguments = _arguments(job, known)
    if channels != 3 and "mean" in known and "mean" not in arguments:
        flat = np.asarray(job.data.train.images).swapaxes(0, 1).reshape(channels, -1) / 255
        arguments["mean"] = [round(float(m), 4) for m in flat.mean(1)]
        arguments["std"] = [round(float(s), 4) for s in flat.std(1)]
    model = build(spec.architecture, arguments)
    normalised = model.get_buffer("normalise.mean").shape[1] if "mean" in known else channels
    if normalised != channels:
        raise InputError(
            f"model {spec.architecture!r} normalises another number of channels than "
            f"the images have; set model.arguments.mean and std to {channels} numbers each"
        )
    return InitialNetwork(model, arguments)


def _arguments(job: TrainingJob, known: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The recipe's arguments, and before them what the data decides, as far as it is asked for."""
    spec, classes = job.recipe.model, len(job.data.classes)
    for name in ("classes", "num_classes"):
        given = spec.arguments.get(name, classes)
        if given != classes:
            raise InputError(
                f"the recipe's model has {given} classes, the data {classes}; "
                f"leave model.arguments.{name} out"
            )
    channels = job.data.train.images.shape[1]
    decided = {"classes": classes, "num_classes": classes, "channels": channels}
    return {k: v for k, v in decided.items() if k in known} | spec.arguments


# -- somebody's own ---------------------------------------------------------------------------


def _own(job: TrainingJob) -> InitialNetwork:
    """A network of somebody's own, tried on two images before anything is written."""
    spec = job.recipe.model
    told = []
    if job.model is not None:
        try:
            model, arguments = copy.deepcopy(job.model), {}
        except Exception as error:  # of the network's own parts
            raise InputError(f"the model cannot be copied: {one_line(error)}") from error
        asked = {"network": digest(weights_digest(model) or "", settings_digest(model))}
    else:
        arguments = _arguments(job, parameters_of(spec.architecture))
        model = built_by_code(spec.architecture, arguments)
        asked = {"network": digest(source_of(spec.architecture))}
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if kinds:
        name = str(kinds.pop()).removeprefix("torch.")
        told.append(f"the network's weights are {name}: they are trained as float32")
    model.float().register_forward_hook(_unwrap)
    network = InitialNetwork(model, arguments, asked=asked, told=told)
    images, classes = _two_images(job), len(job.data.classes)
    logits = _answer(job, network.model, images)  # lazy layers get their shapes
    if job.model is None:
        network.asked["first_weights"] = weights_digest(model) or ""
    if logits.shape[1] != classes:
        network.classifier = spec.classifier or _last_layer(job, model, images, logits.shape[1])
        if network.classifier is None:
            raise InputError(
                f"{job.network_name} answers {logits.shape[1]} logits, the data has {classes} "
                "classes; let it take an argument `classes`"
            )
        give_classes(model, network.classifier, classes)
        network.given_classes = True
        network.told.append(
            f"the network answered {logits.shape[1]} logits: its last layer, {network.classifier}, "
            f"was replaced by one with {classes} outputs"
        )
        logits = _answer(job, model, images)
        if logits.shape[1] != classes:
            raise InputError(
                f"{job.network_name} still answers {logits.shape[1]} logits after its layer "
                f"{network.classifier!r} was given {classes} outputs; say model.classifier"
            )
    network.form = _layout(job, model, images)
    return network


def _unwrap(module: nn.Module, inputs: Any, output: Any) -> Any:
    """The logits in an answer that is an object, a dictionary or a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        found = output.get("logits", next(iter(output.values()), None))
    elif hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    else:
        found = None
    if not isinstance(found, Tensor):
        raise InputError(f"it answers a {type(output).__name__}, in which there are no logits")
    return found


def _two_images(job: TrainingJob) -> Images:
    return torch.from_numpy(np.asarray(job.data.train.images[:2])).float() / 255


def _answer(job: TrainingJob, model: nn.Module, images: Images) -> Float[Tensor, "n k"]:
    """The logits for some images, in eval mode; InputError in a line where there are none."""
    model.eval()
    try:
        with torch.no_grad():
            logits = model(images)
    except Exception as error:  # the user's own code: say what it said
        shape = "×".join(map(str, images.shape[1:]))
        raise InputError(
            f"{job.network_name} fails on images of {shape}: {one_line(error)}"
        ) from error
    if logits.ndim != 2 or len(logits) != len(images) or not logits.is_floating_point():
        shape = "×".join(map(str, logits.shape))
        raise InputError(
            f"{job.network_name} answers {len(images)} images by {logits.dtype} of {shape}, where "
            "logits (N, K) are needed"
        )
    return logits


def _layout(job: TrainingJob, model: nn.Module, images: Images) -> torch.memory_format:
    """The fastest memory layout that a network can be trained in, by trying a step in it."""
    said: Exception | None = None
    for form in (FORMAT, torch.contiguous_format):
        try:
            tried = copy.deepcopy(model).train()
            tried.to(memory_format=form)  # type: ignore[call-overload]
            points = images.clone(memory_format=form).requires_grad_()
            tried(points).float().logsumexp(1).sum().backward()
        except Exception as error:  # the user's own code
            said = error
            continue
        if all(weight.grad is None for weight in tried.parameters()):
            raise InputError(f"{job.network_name} has no weight that its answers depend on")
        if points.grad is None:
            raise InputError(
                f"{job.network_name} hides its gradient: none reaches the images, so nothing can "
                "be attacked in training"
            )
        return form
    assert said is not None
    raise InputError(f"{job.network_name} fails in training: {one_line(said)}") from said


# -- the classifier ---------------------------------------------------------------------------


def _classifier(job: TrainingJob, network: InitialNetwork) -> str | None:
    """The layer that answers one logit a class: as the recipe says, else the last that does."""
    named = job.recipe.model.classifier
    if named is not None:
        names = [name for name, _ in network.model.named_modules() if name]
        weights = [name for name, _ in network.model.named_parameters()]
        if named not in names + weights:
            hint = nearest(named, [n for n in names if not n.count(".") or n.endswith(named)])
            raise InputError(f"model.classifier: the network has no layer {named!r}{hint}")
        return named
    if job.recipe.model.architecture in DENOISERS:
        found = None
    else:
        found = _last_layer(job, network.model, _two_images(job), len(job.data.classes))
    if found is None and job.recipe.optimiser.parts_differ:
        raise InputError(
            "optimiser.classifier_rate, backbone_rate and frozen_epochs need to know the layer "
            "that answers one logit a class, and none was found; say model.classifier"
        )
    return found


def _last_layer(job: TrainingJob, model: nn.Module, images: Images, outputs: int) -> str | None:
    """The last layer called that has so many outputs, by its name."""
    called: list[str] = []
    with _watched(model, outputs, called):
        _answer(job, model, images)
    return called[-1] if called else None


@contextmanager
def _watched(model: nn.Module, outputs: int, called: list[str]) -> Iterator[None]:
    """Inside, `called` gets the names of the called layers whose weight has so many rows."""

    def watch(name: str) -> Any:
        return lambda module, inputs, output: called.append(name)

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if name
        and isinstance(weight := getattr(module, "weight", None), Tensor)
        and weight.ndim > 1
        and len(weight) == outputs
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
