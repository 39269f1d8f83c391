"""FMN: fast minimum-norm attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .losses import Values
from .minimum_norm import MinimumNorm, MinimumNormState
from .schedules import cosine
from .state import Items


@dataclass(frozen=True, kw_only=True, eq=False)
class FMNState(MinimumNormState):
    """What FMN remembers."""

    # ε_k of the paper: of the ball, image units; a number of components in L0.
    radius: Float[Tensor, " n"]


class FMN(MinimumNorm[FMNState]):
    """The closest point, in a ball whose radius adapts.

    Pintor, Roli, Brendel & Biggio, "Fast minimum-norm adversarial attacks through adaptive norm
    constraints", NeurIPS 2021, algorithm 1. Steps along the normalised gradient of the margin are
    projected onto a ball whose radius is, until a first adversarial point is found, the linear
    estimate of the distance to the boundary (L0: one component more each time); then it shrinks
    after adversarial points and grows after others, by a share that falls with a cosine.

    Args:
        steps: moves after the start.
        length: of the first step in the L2 norm, image units; it falls to a hundredth. By default
            1, but 2·√(C·H·W) in L0, where a component had better go all the way at once.
        rate: γ_0, share by which the radius changes at first, in (0, 1); it falls to `last_rate`.
        last_rate: in (0, rate].
        targeted: approach the boundary between the label and the item's target class; otherwise
            that of the strongest wrong class at each point.
        stop_inside: see `MinimumNorm`.

    Cost: steps + 1 forwards and as many backwards.

    Raises:
        InputError: a setting outside its range.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> threat = Threat("l1", 0.5)
        >>> points = FMN(stop_inside=False)(model, images, labels, threat)
        >>> round(float(threat.distance(points, images)), 2)  # the hyperplane is 0.2 away
        0.2
    """

    name = "fmn"
    norms = frozenset({"linf", "l2", "l1", "l0"})

    def __init__(
        self,
        *,
        steps: int = 100,
        length: float | None = None,
        rate: float = 0.05,
        last_rate: float = 0.001,
        targeted: bool = False,
        stop_inside: bool = True,
    ):
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        if length is not None and length <= 0:
            raise InputError(f"length must be above 0, not {length}")
        if not 0 < last_rate <= rate < 1:
            raise InputError(
                f"rates must satisfy 0 < last_rate ≤ rate < 1, not {last_rate} and {rate}"
            )
        super().__init__(
            steps=steps,
            length=length,
            rate=rate,
            last_rate=last_rate,
            targeted=targeted,
            stop_inside=stop_inside,
        )
        self.name = "fmn" + "-targeted" * targeted
        self.targeted = targeted
        self.steps, self.length, self.rate, self.last_rate = steps, length, rate, last_rate
        self.iterations = steps + 1

    def begin(self, items: Items, point: Images, threat: Threat) -> FMNState:
        first = 1.0 if threat.norm == "l0" else torch.inf
        return FMNState.begin(items, point, radius=torch.full_like(items.eps, first))

    def move(
        self,
        state: FMNState,
        gradient: Images,
        value: Values,
        fooled: Bool[Tensor, " n"],
        threat: Threat,
    ) -> FMNState:
        x, k = state.images, state.iteration
        gamma = cosine(k, self.steps, self.rate, self.last_rate)
        # ε_k: min((1 − γ) ε, ‖δ*‖) where x_k is adversarial; elsewhere the estimated distance to
        # the boundary, ‖δ_k‖ + |L| / ‖∇L‖_q, while none was found, then (1 + γ) ε.
        if threat.norm == "l0":
            radius = _next_count(state.radius, fooled, gamma)
        else:
            reach = threat.distance(state.point, x) + value.abs() / _dual(gradient, threat.norm)
            # Growing from the estimate, too, gets across a boundary that it only touches.
            found = state.distance.isfinite()
            grown = torch.where(found, state.radius, reach) * (1 + gamma)
            shrunk = (state.radius * (1 - gamma)).minimum(state.distance)
            radius = torch.where(fooled, shrunk, grown)
        # δ_{k+1} = Π(δ_k + α ∇L / ‖∇L‖₂), Π onto the ball of radius ε_k and the box
        size = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)
        first = self.length or (2 * x[0].numel() ** 0.5 if threat.norm == "l0" else 1.0)
        alpha = cosine(k, self.steps, first, first / 100) / size
        moved = state.point + per_item(alpha, x) * gradient
        if threat.norm == "l0":
            point = _keep_useful(moved, x, gradient, radius)
        else:
            point = threat.project(moved, x, radius)
        return state.replace(radius=radius, point=point)


def _next_count(count: Tensor, fooled: Tensor, rate: Tensor) -> Tensor:
    """L0's radius moves by whole components, at least one at a time."""
    fewer = (count - 1).minimum((count * (1 - rate)).floor())
    more = (count + 1).maximum((count * (1 + rate)).floor())
    return torch.where(fooled, fewer, more).clamp_min(1)


def _keep_useful(moved: Images, x: Images, gradient: Images, count: Tensor) -> Images:
    """`moved` in the box with all but `count` components set back to the image's.

    Those stay whose change raises the value most, to first order. (The paper keeps the largest
    changes; but in L0 a component costs the same whatever its change.)
    """
    moved = moved.clamp(0, 1)
    use = ((moved - x) * gradient).flatten(1)
    order = use.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(use.shape[1], device=x.device).expand_as(order)
    )
    return torch.where((rank < count[:, None]).view_as(x), moved, x)


def _dual(gradient: Tensor, norm: str) -> Tensor:
    """The gradient's dual norm, (N,): how much a unit of distance changes the value at most."""
    flat = gradient.flatten(1)
    order = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[norm]
    return torch.linalg.vector_norm(flat, order, dim=1).clamp_min(1e-30)
