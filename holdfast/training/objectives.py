"""What training minimises: each objective is a small class over the shared loop.

An objective is given the model in training mode, a batch, and the threat model, and returns the
loss with the logits it is about. Inner attacks are those of `holdfast.attacks`, stepped a fixed
number of times.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..attacks import FGSM, PGD, Attack, Items, Oracle
from ..errors import InputError
from ..files import nearest
from ..threat import Images, Threat
from .averaging import frozen_statistics


class Batch(NamedTuple):
    """Augmented images in [0, 1], labels, and one random seed an image."""

    images: Images
    labels: Int64[Tensor, " n"]
    seeds: Int64[Tensor, " n"]


class Loss(NamedTuple):
    value: Float[Tensor, ""]
    logits: Float[Tensor, "n k"]  # detached, of the images that the model was trained on


def perturb(model: nn.Module, batch: Batch, attack: Attack, threat: Threat, steps: int) -> Images:
    """`batch.images` after `steps` steps of the attack; the model's statistics stay untouched."""
    items = Items(
        batch.images,
        batch.labels,
        torch.full_like(batch.labels, -1),
        threat.radii(batch.images),
        batch.seeds,
    )
    # Around Fabric's wrapper: it allows no backward pass but the optimiser's own, and across
    # processes it would wait for gradients of weights that are never computed here.
    inner = getattr(model, "module", model)
    oracle = Oracle(inner)
    with frozen_statistics(inner):
        state = attack.start(items, threat)
        for _ in range(steps):
            state = attack.step(oracle, state, threat)
    return state["point"].detach()


class Objective(ABC):
    """Call it with (model, batch, threat); `attacked` gives the images it trains on."""

    caution = 0  # raised when training collapsed: attack with more steps

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch, threat: Threat) -> Loss: ...

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """The batch as the model sees it in training: what its batch-norm statistics are of."""
        return batch.images


class Standard(Objective):
    """Cross-entropy on clean images."""

    def __init__(self, *, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing

    def __call__(self, model: nn.Module, batch: Batch, threat: Threat) -> Loss:
        logits = model(self.attacked(model, batch, threat))
        value = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        return Loss(value, logits.detach())


class NFGSM(Standard):
    """N-FGSM: noise of ±`noise` ε, then one step of `step` ε, nothing clipped to the ball.

    De Jorge et al., "Make some noise: reliable and efficient single-step adversarial training",
    NeurIPS 2022. One extra forward and backward a batch. After a collapse, the step is taken in
    several parts.
    """

    def __init__(self, *, noise: float = 2.0, step: float = 1.0, label_smoothing: float = 0.0):
        super().__init__(label_smoothing=label_smoothing)
        self.noise, self.step = noise, step

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        parts = 1 + self.caution
        attack = FGSM(step=self.step / parts, noise=self.noise, clip=False)
        return perturb(model, batch, attack, threat, parts)


class PGDTraining(Standard):
    """Madry et al., ICLR 2018: cross-entropy on the end of `steps` PGD steps of `step_size` ε."""

    def __init__(self, *, steps: int = 10, step_size: float = 0.25, label_smoothing: float = 0.0):
        super().__init__(label_smoothing=label_smoothing)
        self.steps, self.step_size = steps, step_size

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        attack = PGD(steps=self.steps, step_size=self.step_size)
        return perturb(model, batch, attack, threat, self.steps + 2 * self.caution)


class TRADES(Objective):
    """Cross-entropy on clean images + `beta` × KL(clean ‖ attacked).

    Zhang et al., "Theoretically principled trade-off between robustness and accuracy", ICML
    2019. The inner attack climbs the same divergence. Clean and attacked images pass through
    the model as one batch, so that batch norm sees the mixture it is evaluated on.
    """

    def __init__(self, *, beta: float = 6.0, steps: int = 10, step_size: float = 0.25):
        self.beta, self.steps, self.step_size = beta, steps, step_size

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        inner = getattr(model, "module", model)
        with torch.no_grad(), frozen_statistics(inner):
            clean = F.softmax(inner(batch.images).float(), 1)

        def divergence(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
            return F.kl_div(F.log_softmax(logits, 1), clean, reduction="none").sum(1)

        attack = PGD(steps=self.steps, step_size=self.step_size, loss=divergence)
        attacked = perturb(model, batch, attack, threat, self.steps + 2 * self.caution)
        return torch.cat([batch.images, attacked])

    def __call__(self, model: nn.Module, batch: Batch, threat: Threat) -> Loss:
        logits = model(self.attacked(model, batch, threat))
        clean, attacked = logits.chunk(2)
        divergence = F.kl_div(
            F.log_softmax(attacked, 1),
            F.log_softmax(clean, 1),
            reduction="batchmean",
            log_target=True,
        )
        value = F.cross_entropy(clean, batch.labels) + self.beta * divergence
        return Loss(value, clean.detach())


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "standard": Standard,
    "n-fgsm": NFGSM,
    "pgd": PGDTraining,
    "trades": TRADES,
}


def objective_named(name: str, arguments: Mapping[str, Any]) -> Objective:
    """An objective by its recipe name; InputError with the nearest known name or argument."""
    if name not in OBJECTIVES:
        raise InputError(f"objective {name!r} is unknown{nearest(name, OBJECTIVES)}")
    known = inspect.signature(OBJECTIVES[name]).parameters
    for key, value in arguments.items():
        if key not in known:
            raise InputError(f"objective {name!r} has no argument {key!r}{nearest(key, known)}")
        whole = isinstance(known[key].default, int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            kind = "a whole number" if whole else "a number"
            raise InputError(f"objective {name!r}: {key} must be {kind}, not {value!r}")
        least = 1 if whole else 0
        if not least <= value < math.inf:
            raise InputError(f"objective {name!r}: {key} must be at least {least}, not {value!r}")
        if key == "label_smoothing" and value >= 1:
            raise InputError(f"objective {name!r}: {key} must be below 1, not {value!r}")
    return OBJECTIVES[name](**arguments)
