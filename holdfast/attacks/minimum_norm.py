"""What the searches for the *closest* adversarial point share."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..threat import Images, Threat
from . import losses
from .base import Attack, Items, State, common_state, pick


class MinimumNorm(Attack):
    """An attack that looks for the closest adversarial point, wherever the ball ends.

    To the keys that every state has (see `common_state`) it adds

    distance: float32 (N,) from the image to `best`, the closest adversarial point found; ∞, and
        `best` the image itself, while there is none.

    The score is that distance less ε, so `best` lies inside the ball exactly when the score says
    that the image is broken, and may lie outside it before. Called alone, such an attack returns
    the closest point that it found, in the box but perhaps outside the ball, and the image itself
    where it found none.

    Args:
        stop_inside: believe in a success as soon as a point inside the ball is found. If False,
            the score stays at ∞ until the whole budget is spent, so that nobody stops the search
            early: for the smallest distance, whatever ε is.
    """

    minimum_norm = True

    def __init__(self, *, stop_inside: bool = True, **settings: Any):
        super().__init__(stop_inside=stop_inside, **settings)
        self.stop_inside = stop_inside

    def begin(self, items: Items, point: Images) -> State:
        """The state before anything was looked at; the first look is at `point`."""
        state = common_state(items, point)
        state["distance"] = torch.full_like(items.eps, torch.inf)
        return state

    def record(
        self,
        state: State,
        logits: Float[Tensor, "n k"],
        threat: Threat,
        gave_up: Tensor | None = None,
    ) -> tuple[State, Bool[Tensor, " n"]]:
        """The state after the model answered `logits` at `point`, and whether each was fooled.

        `point` becomes `best` where it is adversarial and closer than all before. Items are
        finished after `looks` looks; `gave_up` (N,) adds those whose search is over already.
        """
        fooled = losses.margin(logits, state["labels"]) < 0
        distance = threat.distance(state["point"], state["x"])
        closer = fooled & (distance < state["distance"])
        distance = torch.where(closer, distance, state["distance"])
        finished = state["age"] >= self.iterations - 1
        if gave_up is not None:
            finished = finished | gave_up
        # Counts are whole, and a distance of ε is inside the ball.
        inside = 0.5 if threat.norm == "l0" else 0.0
        score = distance - (state["eps"] + inside)
        if not self.stop_inside:
            score = torch.where(finished, score, torch.inf)
        return {
            **state,
            "best": pick(closer, state["point"], state["best"]),
            "distance": distance,
            "score": score,
            "age": state["age"] + 1,
            "finished": finished,
        }, fooled


def cosine(age: Tensor, steps: int, first: float, last: float) -> Float[Tensor, " n"]:
    """From `first` at age 0 to `last` at age `steps` and after; age int64 (N,)."""
    share = (age / steps).clamp_max(1)
    return last + (first - last) * (1 + (torch.pi * share).cos()) / 2
