"""Adversarial weight perturbation, around any objective."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ...threat import Threat
from ...types import Images
from ..averaging import frozen_statistics
from .base import Batch, Loss, Network, Objective, inside, mean_over_processes


class AWP(Objective):
    """The objective's loss where the weights are moved uphill by `gamma` of their own length.

    Wu, Xia & Wang, "Adversarial weight perturbation helps robust generalization", NeurIPS 2020:
    each matrix or convolution W is moved by γ ‖W‖ g / ‖g‖, g being the gradient of the same loss
    at the same points. The gradient at the moved weights then updates the weights themselves.
    They are never written to: the moved ones are weights plus a constant, so gradients pass
    through as they are.

    Args:
        objective: whatever is to be minimised.
        gamma: relative size of the move (0.005 in the paper).
        warmup: share of the schedule that goes by without any.
    """

    def __init__(self, objective: Objective, gamma: float, warmup: float):
        self.objective, self.gamma, self.warmup = objective, gamma, warmup
        self.classifies, self.chosen_by = objective.classifies, objective.chosen_by
        self.mixes, self.defends = objective.mixes, objective.defends

    def _inner(self) -> Objective:
        """The objective inside, with this one's caution and progress."""
        self.objective.caution, self.objective.progress = self.caution, self.progress
        return self.objective

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        return self._inner().attacked(model, batch, threat)

    def points(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        return self._inner().points(model, batch, threat)

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        objective = self._inner()
        if self.progress < self.warmup:
            return objective.loss(model, points, batch)
        assert isinstance(model, nn.Module)
        return objective.loss(_Moved(model, self._uphill(model, points, batch)), points, batch)

    def _uphill(self, model: nn.Module, points: Images, batch: Batch) -> dict[Tensor, Tensor]:
        """How far each matrix is moved."""
        module = inside(model)
        matrices = [p for p in module.parameters() if p.ndim > 1 and p.requires_grad]
        with torch.enable_grad(), frozen_statistics(module):
            value = self.objective.loss(module, points, batch).value
            gradients = torch.autograd.grad(value, matrices)
        moves: dict[Tensor, Tensor] = {}
        for weight, gradient in zip(matrices, gradients, strict=True):
            gradient = mean_over_processes(gradient)
            length = weight.detach().norm() / (gradient.norm() + 1e-20)
            moves[weight] = self.gamma * length * gradient
        return moves

    def held_out(self, model: nn.Module, batch: Batch, threat: Threat) -> dict[str, float]:
        return self._inner().held_out(model, batch, threat)

    def observe(self, batch: Batch, loss: Loss) -> None:
        self.objective.observe(batch, loss)

    def prepare(self, images: Images, classes: int) -> None:
        self.objective.prepare(images, classes)
        self.fingerprint = self.objective.fingerprint

    def state(self) -> dict[str, Tensor]:
        return self.objective.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.objective.restore(state)


class _Moved:
    """A model that answers as if its weights were elsewhere; gradients reach the weights."""

    def __init__(self, model: nn.Module, moves: dict[Tensor, Tensor]):
        self.model, self.module = model, inside(model)
        # By the names of the outer model, for its forward pass is what processes meet in.
        self.weights = {
            name: weight + moves[weight]
            for name, weight in model.named_parameters()
            if weight in moves
        }

    def __call__(self, images: Images) -> Float[Tensor, "n k"]:
        logits: Tensor = functional_call(self.model, self.weights, (images,), tie_weights=False)
        return logits
