"""Carlini–Wagner: distance and margin weighed against each other."""

from __future__ import annotations

import torch

from ..errors import InputError
from ..threat import Threat, per_item
from .adam import adam_move, adam_start
from .base import Items, Oracle, State, pick
from .losses import margin_loss
from .minimum_norm import MinimumNorm

INSIDE = 1 - 1e-6  # the box's own edge lies at infinity in the new variables
CHECKS = 10  # times a search asks whether it still improves
IMPROVED = 0.9999  # factor on the loss that counts as improvement


class CarliniWagner(MinimumNorm):
    """Carlini & Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, L2.

    Adam on ‖δ‖² + c · max(margin, 0) in variables w with x + δ = (tanh w + 1) / 2, so that the
    box always holds. A search over c, `searches` times `steps` moves from the image, raises c
    tenfold until a point is adversarial and then bisects; a search that no longer improves ends
    early.

    Args:
        steps: moves of each search.
        searches: values of c that are tried.
        length: Adam's step, in w.
        weight: the first c, above 0.
        targeted: approach the boundary between the label and the item's target class; otherwise
            that of the strongest wrong class at each point.
        stop_inside: see `MinimumNorm`.

    Cost: at most searches × steps forwards and as many backwards.

    Raises:
        InputError: a setting outside its range.
    """

    norms = frozenset({"l2"})

    def __init__(
        self,
        *,
        steps: int = 1000,
        searches: int = 9,
        length: float = 0.01,
        weight: float = 1e-3,
        targeted: bool = False,
        stop_inside: bool = True,
    ):
        for name, count in (("steps", steps), ("searches", searches)):
            if count < 1:
                raise InputError(f"{name} must be at least 1, not {count}")
        for name, value in (("length", length), ("weight", weight)):
            if value <= 0:
                raise InputError(f"{name} must be above 0, not {value}")
        super().__init__(
            steps=steps,
            searches=searches,
            length=length,
            weight=weight,
            targeted=targeted,
            stop_inside=stop_inside,
        )
        self.name = "carlini-wagner-targeted" if targeted else "carlini-wagner"
        self.targeted = targeted
        self.steps, self.searches, self.length, self.weight = steps, searches, length, weight
        self.iterations = steps * searches

    def start(self, items: Items, threat: Threat) -> State:
        self.check_norm(threat)
        inner = torch.atanh((items.images * 2 - 1) * INSIDE)
        return (
            self.begin(items, items.images)
            | adam_start(inner)
            | {
                "inner": inner,
                "weight": torch.full_like(items.eps, self.weight),
                "too_small": torch.zeros_like(items.eps),  # the largest c that failed
                "enough": torch.full_like(items.eps, torch.inf),  # the smallest c that did not
                "succeeded": torch.zeros_like(items.labels, dtype=torch.bool),  # in this search
                "search": torch.zeros_like(items.labels),
                "moves": torch.zeros_like(items.labels),  # in this search
                "loss_before": torch.full_like(items.eps, torch.inf),  # at the last check
            }
        )

    def step(self, model: Oracle, state: State, threat: Threat) -> State:
        x, looked, weight = state["x"], state["point"], state["weight"]
        gradient, logits, value = model.gradient(
            looked,
            lambda z: (-margin_loss(z, state["labels"], state["targets"])).clamp_min(0),
        )
        delta = looked - x
        loss = delta.flatten(1).square().sum(1) + weight * value
        moves = state["moves"] + 1
        check = moves % max(self.steps // CHECKS, 1) == 0
        over = (moves >= self.steps) | (check & (loss > IMPROVED * state["loss_before"]))
        last = over & (state["search"] == self.searches - 1)
        state, fooled = self.record(state, logits, threat, gave_up=last)
        succeeded = state["succeeded"] | fooled

        # In w: dx/dw = 2x(1 − x).
        gradient = (2 * delta + per_item(weight, x) * gradient) * 2 * looked * (1 - looked)
        moments, move = adam_move(state, gradient, moves)
        inner = state["inner"] - self.length * move

        # Where a search is over, the next one starts at the image with another c.
        enough = torch.where(over & succeeded, state["enough"].minimum(weight), state["enough"])
        too_small = torch.where(over & ~succeeded, weight, state["too_small"])
        next_weight = torch.where(enough.isinf(), weight * 10, (too_small + enough) / 2)
        inner = pick(over, torch.atanh((x * 2 - 1) * INSIDE), inner)
        moments = {key: pick(over, torch.zeros_like(v), v) for key, v in moments.items()}
        return {
            **state,
            **moments,
            "inner": inner,
            "weight": torch.where(over, next_weight, weight),
            "too_small": too_small,
            "enough": enough,
            "succeeded": succeeded & ~over,
            "search": state["search"] + over,
            "moves": torch.where(over, 0, moves),
            "loss_before": torch.where(
                over, torch.inf, torch.where(check, loss, state["loss_before"])
            ),
            "point": ((inner.tanh() + 1) / 2).clamp(0, 1),
        }
