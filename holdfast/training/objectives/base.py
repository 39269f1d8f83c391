"""What an objective is: points to train on, and a loss over them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ...attacks import Attack, Items, Oracle, losses, run
from ...threat import Threat
from ...types import Images
from ..averaging import frozen_statistics

Network = Callable[[Images], Float[Tensor, "n k"]]  # a module in training mode, or one moved


class Batch(NamedTuple):
    """Augmented images in [0, 1], labels, and one random seed an image.

    Where images were mixed (CutMix, mixup), `truth` holds the probability of each class, and
    `labels` the likeliest one. `weights` are what each image's loss is multiplied by, by its
    class; None where all count alike.
    """

    images: Images
    labels: Int64[Tensor, " n"]
    seeds: Int64[Tensor, " n"]
    truth: Float[Tensor, "n k"] | None = None
    weights: Float[Tensor, " n"] | None = None

    def mean(self, losses: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The mean over images of their losses, each multiplied by its weight.

        It is divided by the number of images, not by the sum of the weights, so that the gradients
        of several processes add up to those of one.
        """
        return losses.mean() if self.weights is None else (self.weights * losses).mean()

    def cross_entropy(
        self, logits: Float[Tensor, "n k"], label_smoothing: float = 0.0, reduction: str = "mean"
    ) -> Tensor:
        """Of what the model answers to these images, or to points near them.

        Args:
            reduction: `mean`, as `Batch.mean` takes it; or `none`, without weights, for attacks.
        """
        truth = self.labels if self.truth is None else self.truth
        weighs = reduction == "mean" and self.weights is not None
        losses = F.cross_entropy(
            logits,
            truth,
            label_smoothing=label_smoothing,
            reduction="none" if weighs else reduction,
        )
        return self.mean(losses) if weighs else losses

    def repeated(self, times: int) -> Batch:
        """Every image so many times in a row."""
        truth = None if self.truth is None else self.truth.repeat_interleave(times, 0)
        weights = None if self.weights is None else self.weights.repeat_interleave(times, 0)
        images, labels, seeds = (part.repeat_interleave(times, 0) for part in self[:3])
        return Batch(images, labels, seeds, truth, weights)

    def probabilities(self, classes: int) -> Float[Tensor, "n k"]:
        """`truth`, or 1 for the label."""
        return F.one_hot(self.labels, classes).float() if self.truth is None else self.truth


class Loss(NamedTuple):
    """What a step minimises, and what the model answered on the way."""

    value: Float[Tensor, ""]
    # Detached, one row an image of the batch; None for networks that classify nothing.
    logits: Float[Tensor, "n k"] | None


class Objective(ABC):
    """Call it with (model, batch, threat): it finds points to train on, then takes a loss there.

    Attributes:
        caution: raised by one after each collapse: attack with more steps.
        progress: how far the run has come, 0 to 1; set before every step.
        fingerprint: a hash of what decides the objective besides its arguments, such as the
            weights of another model; known once `prepare` was called.
        classifies: whether the network is a classifier. Others have no accuracies; `held_out`
            measures them.
        chosen_by: the columns of metrics.csv whose sum decides which weights are kept; none for
            the usual ones.
        defends: whether the network is trained for the recipe's threat model, which its card names
            then. Plain training and denoisers are not.
        mixes: whether images may be mixtures of two with labels to match (CutMix, mixup).
        only_answers: whether the loss asks nothing of the model but `model(images)`: only then can
            it be taken at weights that are moved around it.
    """

    classifies: bool = True
    defends: bool = True
    mixes: bool = True
    only_answers: bool = True
    chosen_by: tuple[str, ...] = ()
    caution: int = 0
    progress: float = 0.0
    fingerprint: str = ""

    def __call__(self, model: nn.Module, batch: Batch, threat: Threat) -> Loss:
        loss = self.loss(model, self.points(model, batch, threat), batch)
        self.observe(batch, loss)
        return loss

    @abstractmethod
    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        """What is minimised, given the points that `points` found."""

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """The batch as the model sees it in training: what its batch-norm statistics are of."""
        return batch.images

    def points(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """All images that the loss looks at, without gradients; a whole multiple of the batch."""
        return self.attacked(model, batch, threat)

    def held_out(self, model: nn.Module, batch: Batch, threat: Threat) -> dict[str, float]:
        """Figures of its own on held-out images: means over the batch, by their columns.

        Args:
            model: the averaged weights, in eval mode.
            batch: validation images as they are.
        """
        return {}

    def observe(self, batch: Batch, loss: Loss) -> None:  # noqa: B027 - most remember nothing
        """Take note of what the model answered; called once a step."""

    def prepare(self, images: Images, classes: int) -> None:  # noqa: B027 - most need nothing
        """Load whatever else is needed, before a run begins.

        Args:
            images: a few training images, on the device that the run is on.
            classes: number of classes.

        Raises:
            InputError: something is missing or does not fit.
        """

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs to go on alike."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:  # noqa: B027 - most have no state
        """Take back what `state` gave."""


def inside(model: Network) -> nn.Module:
    """The module itself.

    Fabric's wrapper allows no backward pass but the optimiser's own, and across processes it
    would wait for gradients of weights that an attack never computes.
    """
    module = getattr(model, "module", model)
    assert isinstance(module, nn.Module)
    return module


def perturb(model: nn.Module, batch: Batch, attack: Attack, threat: Threat, steps: int) -> Images:
    """`batch.images` after `steps` steps of the attack; the model's statistics stay untouched.

    Where images were mixed, an attack on the cross-entropy climbs that of the mixed labels.
    """
    if batch.truth is not None and getattr(attack, "loss", None) is losses.cross_entropy:
        attack = copy.copy(attack)
        attack.loss = lambda logits, *_: batch.cross_entropy(  # type: ignore[attr-defined]
            logits, reduction="none"
        )
    items = Items(
        images=batch.images,
        labels=batch.labels,
        targets=torch.full_like(batch.labels, -1),
        eps=threat.radii(batch.images),
        seeds=batch.seeds,
    )
    module = inside(model)
    with frozen_statistics(module):
        state = run(attack, Oracle(module), items, threat, steps=steps, own_draws=False)
    return state.point.detach()


@torch.no_grad()
def clean_logits(model: nn.Module, images: Images) -> Float[Tensor, "n k"]:
    """Float32 logits in training mode, as an attack compares with; no statistics change."""
    module = inside(model)
    with frozen_statistics(module):
        return module(images).float()


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes of a distributed run; itself in a single one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
