"""Optimisers: Nesterov SGD, Muon for convolutions, and Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .averaging import batch_norms

if TYPE_CHECKING:
    from .recipe import OptimiserSpec

# What an optimiser keeps for a weight: all of it has to survive in a checkpoint.
STATE = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")
# An odd polynomial that lifts small singular values fastest and keeps all of them near 1
# (the figures of the publication).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Float[Tensor, "rows columns"], steps: int = 3) -> Tensor:
    """The matrix with its singular values brought near 1: U Sᵀ V becomes about U Vᵀ.

    Newton–Schulz iterations multiply a matrix x by polynomials of x xᵀ, which all commute. So they
    are taken on x xᵀ alone, and the wide matrix itself is multiplied once, by all of them.

    Args:
        matrix: any shape; multiplied in bfloat16, which is accurate enough for a direction.
        steps: of the iteration, at least 1.

    Returns:
        The same shape, singular values in about [0.5, 1.3] where the matrix's own were not tiny.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = (x / (x.norm() + 1e-7)).bfloat16()
    gram = (x @ x.T).float()
    one = torch.eye(len(gram), device=gram.device)

    def polynomial(gram: Tensor) -> Tensor:
        return a * one + b * gram + c * gram @ gram

    lift = step = polynomial(gram)
    for _ in range(steps - 1):
        gram = step @ gram @ step
        step = polynomial(gram)
        lift = step @ lift
    x = lift.bfloat16() @ x
    return (x if wide else x.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose every step has the same size in all directions of a weight matrix.

    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. Groups that
    do not ask to `orthogonalise` are stepped by Nesterov SGD.

    A convolution's filters (out, in, h, w) are the rows of a matrix (out, in·h·w). Each is kept
    at a norm of √out, as batch norm makes its scale meaningless: so `lr` is the relative change
    that a step makes. Groups have `lr`, `momentum` and `weight_decay`
    (used without orthogonalising only).
    """

    # `torch.optim.Muon` takes matrices only, not the four-dimensional filters that are to be
    # orthogonalised here; nor does it keep filters at their norm.

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "orthogonalise": False,
        }
        super().__init__(groups, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        gradient = weight.grad
        assert gradient is not None
        if not group["orthogonalise"]:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"]
        momentum.mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(momentum, alpha=group["momentum"])
        if group["orthogonalise"]:
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            direction = orthogonalised(direction.flatten(1)).view_as(weight)
        weight.sub_(direction, alpha=group["lr"])


def optimiser_for(
    model: nn.Module, spec: OptimiserSpec, is_classifier: Callable[[str], bool] = lambda name: False
) -> torch.optim.Optimizer:
    """The optimiser that a recipe asks for; every group has its `peak` learning rate, and says in
    `classifier` whether it is the classifier's.

    Args:
        is_classifier: whether a weight of that name belongs to the classifier, whose rate may be
            another.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in weights if p.ndim > 1]
    biases = [norm.bias for norm in batch_norms(model)] if spec.bias_rate != 1 else []
    biases = [bias for bias in biases if bias is not None and bias.requires_grad]
    vectors = [p for p in weights if p.ndim <= 1 and not any(p is b for b in biases)]
    decay, rate = spec.weight_decay, spec.learning_rate
    plain = [
        {"params": vectors, "weight_decay": 0.0, "peak": rate},
        {"params": biases, "weight_decay": 0.0, "peak": rate * spec.bias_rate},
    ]
    head = {id(p) for name, p in model.named_parameters() if is_classifier(name)}

    def split(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if spec.parts_differ:
            groups = [part for group in groups for part in _parts(group, head, spec)]
        return [group for group in groups if group["params"]]

    if spec.name == "sgd":
        groups = [{"params": matrices, "weight_decay": decay, "peak": rate}, *plain]
        return torch.optim.SGD(
            split(groups),
            lr=rate,
            momentum=spec.momentum,
            nesterov=spec.momentum > 0,
        )
    if spec.name == "adam":
        groups = [{"params": matrices, "weight_decay": decay, "peak": rate}, *plain]
        return torch.optim.AdamW(split(groups), lr=rate, betas=(spec.momentum, 0.999))
    convolutions = [p for p in matrices if p.ndim == 4]
    others = [p for p in matrices if p.ndim != 4]
    groups = [
        {"params": convolutions, "orthogonalise": True, "peak": spec.matrix_rate},
        {"params": others, "weight_decay": decay, "peak": rate},
        *plain,
    ]
    return Muon(split(groups), lr=rate, momentum=spec.momentum)


def _parts(group: dict[str, Any], head: set[int], spec: OptimiserSpec) -> list[dict[str, Any]]:
    """A group's weights of the backbone and of the classifier, each with its rate."""
    backbone = [p for p in group["params"] if id(p) not in head]
    classifier = [p for p in group["params"] if id(p) in head]
    peak = group["peak"]
    return [
        {**group, "params": backbone, "peak": peak * spec.backbone_rate, "classifier": False},
        {**group, "params": classifier, "peak": peak * spec.classifier_rate, "classifier": True},
    ]
