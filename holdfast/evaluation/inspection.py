"""What is known about a model before it is attacked."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..attacks import Square, Stage, Suite, adaptive
from ..attacks.suite import UNDEFENDED
from ..defences import declared, steps, undefended, views, with_network
from ..draws import fixed_draws, repeated_draws
from ..errors import InputError
from ..inputs import check_labels, check_logits
from ..models.mixture import Mixture
from ..models.wrapper import unwrapped
from ..runs.identity import digest, settings_digest, weights_digest
from ..search import FastCopy, Level
from ..search.fast_copies import levels_of, original
from ..types import Model
from . import health
from .classes import logits_without_images
from .request import Request
from .result import Flag

PROBE = 64  # images that fast copies are compared and health is checked on

Levels = list[Level]


class Inspection:
    """All that is known about a model before it is attacked, in one place.

    Each fact is measured when it is first asked for, and once.

    Attributes:
        model: as it is evaluated.
        images, labels: the probe, the first `PROBE` images, on the model's device.
        weights: SHA-256 of its weights and buffers, defences included; None for a bare function.
        logits: float32 (P, K), its answers to the probe.
        classes: flag: the model answers more classes than the data has.
        log: why something faster than the model is not searched on.

    Raises:
        InputError: the model's logits are not finite on the probe, not (N, K), or fewer than the
            classes; a label that the model has no logit for.
    """

    def __init__(self, request: Request):
        self.model, self.precision = request.model, request.precision
        self.images = request.images[:PROBE].to(request.device)
        self.labels = request.labels[:PROBE].to(request.device)
        self.log: list[str] = []
        # Before it is asked anything: a model may change itself.
        self.weights = weights_digest(unwrapped(self.model))
        with torch.no_grad(), fixed_draws(0):
            logits = self.model(self.images)
        named = request.described.get("classes")
        self.classes: Flag = logits_without_images(logits.shape[1], request.labels, named)
        self.logits = check_logits(logits, len(self.images), self.labels)
        count, classes = len(request.labels), self.logits.shape[1]
        check_labels(request.labels, count, classes)
        if isinstance(request.targets, Tensor):
            check_labels(request.targets, count, classes, name="targets")

    # -- which model it is ----------------------------------------------------------------

    @cached_property
    def network(self) -> Model | None:
        """The network behind the defences; None without defences, or where it takes no images."""
        network = undefended(self.model)
        if network is self.model:
            return None
        try:
            with torch.no_grad():
                network(self.images[:2])
        except InputError:  # it wants the codes that a defence makes
            return None
        return network

    @cached_property
    def known_by(self) -> str:
        """What the model is known by: its weights, or its logits where it is a function."""
        # The digest of a defended function's defences says nothing of the function.
        if isinstance(unwrapped(self.network or self.model), nn.Module) and self.weights:
            return self.weights
        return digest(self.weights or "", self.logits)

    @cached_property
    def settings(self) -> str:
        """SHA-256 of what it computes with besides its weights."""
        return settings_digest(unwrapped(self.model))

    # -- how it answers -------------------------------------------------------------------

    @cached_property
    def changes(self) -> Flag:
        """Whether two calls on the same images differ."""
        return health.outputs_change(self.model, self.images)

    @property
    def random(self) -> bool:
        """Whether it draws random numbers, by its declaration or its answers."""
        return declared(self.model).random or self.changes.fired

    @cached_property
    def gradients(self) -> Flag:
        """Whether gradients vanish, or are not there."""
        return health.gradients(self.model, self.images, self.labels)

    @property
    def differentiable(self) -> bool:
        return health.differentiable(self.gradients)

    def health(self, samples: int) -> list[Flag]:
        """The checks that need no attack; `samples`: draws that an iteration averages over."""
        return [
            health.outputs_like_probabilities(self.logits),
            self.classes,
            health.averaged(self.changes, samples),
            health.depends_on_batch(self.model, self.images, self.changes.fired),
            health.forward_computes_gradients(self.model, self.images),
            self.gradients,
        ]

    # -- how it may be searched -----------------------------------------------------------

    @cached_property
    def views(self) -> dict[str, Levels]:
        """For each `Stage.view` the levels that a search runs on, the model itself ("") first.

        Fast copies are made of the network behind the defences: defences compute in float32, and
        a random one answers as its fast copy does where both draw the same.
        """
        model, network = self.model, self.network
        by_name: dict[str, Model] = {"": model, **views(model)}
        if network is None:
            # A traced copy of a defence would lose the backward pass that it declares.
            of = (lambda view: [Level(original(view))]) if steps(model) else self._levels
            return {name: of(view) for name, view in by_name.items()}
        of_network = self._levels(network)

        def behind(view: Model) -> Levels:
            # A network that offers backward passes of its own has a fast copy for each of them.
            bare = undefended(view)
            levels = of_network if bare is network else self._levels(bare)
            return [_in_front(view, level) for level in levels]

        return {name: behind(view) for name, view in by_name.items()} | {UNDEFENDED: of_network}

    def _levels(self, model: Model) -> Levels:
        return levels_of(model, self.images, self.labels, self._precision, self.log.append)

    @cached_property
    def _precision(self) -> str:
        # Fast copies are compared by their answers: behind defences, by the network's alone.
        changes = self.changes
        if self.network is not None:
            changes = health.outputs_change(self.network, self.images)
        return "original" if changes.fired or not self.differentiable else self.precision

    @cached_property
    def blind(self) -> set[str]:
        """The views that PyTorch cannot differentiate."""
        models = views(self.model)
        if self.network is not None:
            models[UNDEFENDED] = self.network
        found = {n: health.gradients(view, self.images, self.labels) for n, view in models.items()}
        found[""] = self.gradients
        return {name for name, flag in found.items() if not health.differentiable(flag)}

    # -- which suite serves ---------------------------------------------------------------

    def adaptive_suite(self, samples: int, norm: str) -> Suite:
        """The suite `adaptive` for this model."""
        seen = list(views(self.model))
        if self.network is not None:
            seen.append(UNDEFENDED)
        return adaptive(seen, random=self.random, samples=samples, norm=norm)

    def without_blind(self, suite: Suite) -> Suite:
        """The suite without the stages that need gradients of what has none."""
        stages = suite.keeping(lambda s: s.view not in self.blind or not s.attack.needs_gradient)
        if any(s.attack.needs_gradient for s in stages) or stages == suite.stages:
            return replace(suite, stages=stages)
        name = f"{suite.name}, gradient-free part"
        return Suite(name, stages or (Stage(Square(queries=5000)),), suite.closest and bool(stages))


def _in_front(view: Model, level: Level) -> Level:
    """The level of a network, behind the defences of a view."""
    copy = level.fast_copy
    behind = FastCopy(with_network(view, copy.model), copy.name, copy.error)
    return Level(behind, level.near, level.slopes)


def reason(model: Model) -> str:
    """In words, why a model needs the suite `adaptive`; empty where others serve."""
    why = []
    if isinstance(undefended(model), Mixture):
        why.append("a mixture's gradients follow whichever of its parts is less sure")
    for step in steps(model):
        traits = ["draws random numbers"] if step.random else []
        traits += [] if step.differentiable else ["has no gradient of its own"]
        if traits:
            why.append(f"{step.spec} {' and '.join(traits)}")
    return "; ".join(why)


def frozen(model: Model, samples: int) -> Model:
    """The mean logits over `samples` draws that are the same for every image and every call.

    Health checks and curves search and count on it: they measure what an attack does with more
    steps or in a larger ball, not what it does with luck.
    """

    def mean(images: Tensor) -> Tensor:
        seeds = torch.zeros(len(images), dtype=torch.int64)
        with fixed_draws(seeds), repeated_draws(samples):
            copies = model(images.repeat_interleave(samples, 0)).float()
        return copies.unflatten(0, (len(images), samples)).mean(1)

    return mean
