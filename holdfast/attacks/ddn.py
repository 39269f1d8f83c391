"""DDN: decoupled direction and norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .losses import Logits, Values, loss_named
from .minimum_norm import MinimumNorm, MinimumNormState
from .schedules import cosine
from .state import Items


@dataclass(frozen=True, kw_only=True, eq=False)
class DDNState(MinimumNormState):
    """What DDN remembers."""

    radius: Float[Tensor, " n"]  # ε_k of the paper: of the sphere, image units


class DDN(MinimumNorm[DDNState]):
    """The closest point in L2, on spheres that shrink and grow.

    Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks
    and defenses", CVPR 2019, algorithm 1. Steps along the normalised gradient of the loss, of
    length 1 falling to 0.01 with a cosine, are brought to a sphere around the image, whose radius
    shrinks by `rate` after an adversarial point and grows by it after any other.

    Args:
        steps: moves after the start.
        radius: ε_0, of the first sphere, in image units.
        rate: γ, by which the radius changes, in (0, 1).
        loss: `ce` as published, `dlr` or `margin`.
        targeted: approach the item's target class; not with `ce`.
        stop_inside: see `MinimumNorm`.

    Cost: steps + 1 forwards and as many backwards.

    Raises:
        InputError: a setting outside its range.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> threat = Threat("l2", 0.5)
        >>> points = DDN(stop_inside=False)(model, images, labels, threat)
        >>> round(float(threat.distance(points, images)), 2)  # the hyperplane is 0.1 away
        0.1
    """

    name = "ddn"
    norms = frozenset({"l2"})

    def __init__(
        self,
        *,
        steps: int = 100,
        radius: float = 1.0,
        rate: float = 0.05,
        loss: str = "ce",
        targeted: bool = False,
        stop_inside: bool = True,
    ):
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        if radius <= 0:
            raise InputError(f"radius must be above 0, not {radius}")
        if not 0 < rate < 1:
            raise InputError(f"rate must be in (0, 1), not {rate}")
        if targeted and loss == "ce":
            raise InputError("targeted DDN climbs 'dlr' or 'margin', not 'ce'")
        super().__init__(
            steps=steps,
            radius=radius,
            rate=rate,
            loss=loss,
            targeted=targeted,
            stop_inside=stop_inside,
        )
        self.name = "ddn" + "-targeted" * targeted
        self.steps, self.radius, self.rate = steps, radius, rate
        self.loss, self.targeted = loss_named(loss), targeted
        self.iterations = steps + 1

    def begin(self, items: Items, point: Images, threat: Threat) -> DDNState:
        return DDNState.begin(items, point, radius=torch.full_like(items.eps, self.radius))

    def value(self, logits: Logits, state: DDNState) -> Values:
        return state.climbed(self.loss, logits)

    def move(
        self,
        state: DDNState,
        gradient: Images,
        value: Values,
        fooled: Bool[Tensor, " n"],
        threat: Threat,
    ) -> DDNState:
        x, gamma = state.images, self.rate
        alpha = cosine(state.iteration, self.steps, 1.0, 0.01)
        # δ_{k+1} = δ_k + α ∇ / ‖∇‖₂
        delta = state.point - x + per_item(alpha, x) * threat.table.steepest(gradient)
        # ε_{k+1} = (1 − γ) ε_k where x_k is adversarial, (1 + γ) ε_k elsewhere
        radius = state.radius * torch.where(fooled, 1 - gamma, 1 + gamma)
        # x_{k+1} = x + ε_{k+1} δ_{k+1} / ‖δ_{k+1}‖₂, cut to the box
        onto_sphere = radius / threat.table.distance(delta).clamp_min(1e-12)
        point = (x + per_item(onto_sphere, x) * delta).clamp(0, 1)
        return state.replace(radius=radius, point=point)
