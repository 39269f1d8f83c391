"""DDN: decoupled direction and norm."""

from __future__ import annotations

import torch

from ..errors import InputError
from ..threat import Threat, per_item
from .base import Items, Oracle, State
from .losses import loss_named
from .minimum_norm import MinimumNorm, cosine


class DDN(MinimumNorm):
    """Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial
    attacks and defenses", CVPR 2019.

    Steps along the normalised gradient of the loss, of length 1 falling to 0.01 with a
    cosine, are brought to a sphere around the image, whose radius shrinks by `rate` after an
    adversarial point and grows by it after any other.

    Args:
        steps: moves after the start.
        radius: of the first sphere, in image units.
        rate: in (0, 1).
        loss: `ce` as published, `dlr` or `margin`.
        targeted: approach the item's target class; not with `ce`.
        stop_inside: see `MinimumNorm`.

    Cost: steps + 1 forwards and as many backwards.

    Raises:
        InputError: a setting outside its range.
    """

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
        self.name = "ddn-targeted" if targeted else "ddn"
        self.steps, self.radius, self.rate = steps, radius, rate
        self.loss, self.targeted = loss_named(loss), targeted
        self.iterations = steps + 1

    def start(self, items: Items, threat: Threat) -> State:
        self.check_norm(threat)
        return self.begin(items, items.images) | {"radius": torch.full_like(items.eps, self.radius)}

    def step(self, model: Oracle, state: State, threat: Threat) -> State:
        x, looked, age = state["x"], state["point"], state["age"]
        gradient, logits, _ = model.gradient(
            looked, lambda z: self.loss(z, state["labels"], state["targets"])
        )
        state, fooled = self.record(state, logits, threat)
        length = cosine(age, self.steps, 1.0, 0.01)
        delta = looked - x + per_item(length, x) * threat.table.steepest(gradient)
        state["radius"] = state["radius"] * torch.where(fooled, 1 - self.rate, 1 + self.rate)
        grow = state["radius"] / threat.table.distance(delta).clamp_min(1e-12)
        state["point"] = (x + per_item(grow, x) * delta).clamp(0, 1)
        return state
