"""What the searches for the *closest* adversarial point share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import TypeVar

from ..threat import Threat
from ..types import Images
from . import losses
from .base import Attack, Oracle
from .losses import Logits, Values
from .state import Items, State, pick


@dataclass(frozen=True, kw_only=True, eq=False)
class MinimumNormState(State):
    """What every search for the closest adversarial point remembers.

    Attributes:
        distance: float32 (N,), from the image to `best`, the closest adversarial point found; ∞,
            and `best` the image itself, while there is none.
    """

    distance: Float[Tensor, " n"]

    @classmethod
    def begin(cls, items: Items, point: Images, **own: Tensor) -> Self:
        return super().begin(items, point, distance=torch.full_like(items.eps, torch.inf), **own)


S = TypeVar("S", bound=MinimumNormState, default=Any)


class MinimumNorm(Attack[S]):
    """An attack that searches for the closest adversarial point, wherever the ball ends.

    Its score is the smallest adversarial distance less ε, so `best` lies inside the ball exactly
    when the score says that the image is broken, and may lie outside it before. Called alone, such
    an attack returns the closest point that it found, in the box but perhaps outside the ball, and
    the image itself where it found none.

    A subclass that follows a gradient fills in `move` (where to go from a point whose answer and
    gradient are known) and, where they differ, `value` (the gradient of what), `first_point` and
    `begin`. One that asks the model for something else writes `step` itself, calls `record` on each
    answer, and counts iterations.

    Args:
        stop_inside: believe in a success as soon as a point inside the ball is found. If False,
            the score stays at ∞ until the whole budget is spent, so that nobody stops the search
            early: for the smallest distance, whatever ε is.
    """

    minimum_norm = True
    reaches = True

    def __init__(self, *, stop_inside: bool = True, **settings: Any):
        super().__init__(stop_inside=stop_inside, **settings)
        self.stop_inside = stop_inside

    # -- hooks ----------------------------------------------------------------------------

    def begin(self, items: Items, point: Images, threat: Threat) -> S:
        return MinimumNormState.begin(items, point)  # type: ignore[return-value]

    def value(self, logits: Logits, state: S) -> Values:
        """What `move` gets the gradient of, (N,): by default z_t − z_y, for the target class t or
        the best wrong one, which is above 0 where the point is adversarial."""
        return state.climbed(losses.margin_loss, logits)

    def move(
        self,
        state: S,
        gradient: Images,
        value: Values,
        fooled: Bool[Tensor, " n"],
        threat: Threat,
    ) -> S:
        """The state with the next `point`.

        Args:
            state: after `record`; `state.iteration` is the number of moves so far.
            gradient, value: of `value`, at `state.point`.
            fooled: whether that point is adversarial.
        """
        raise NotImplementedError

    # -- the algorithm --------------------------------------------------------------------

    def step(self, oracle: Oracle, state: S, threat: Threat) -> S:
        gradient, logits, value = oracle.gradient(state.point, lambda z: self.value(z, state))
        state, fooled = self.record(state, logits, threat)
        moved = self.move(state, gradient, value, fooled, threat)
        return moved.replace(iteration=moved.iteration + 1)

    def record(
        self,
        state: S,
        logits: Float[Tensor, "n k"],
        threat: Threat,
        gave_up: Bool[Tensor, " n"] | None = None,
    ) -> tuple[S, Bool[Tensor, " n"]]:
        """The state after the model answered `logits` at `point`, and whether each was fooled.

        `point` becomes `best` where it is adversarial and closer than all before. Items are
        finished after `iterations` queries; `gave_up` adds those whose search is over already.
        """
        fooled = state.margin(logits) < 0
        return self.keep(state, fooled, threat, gave_up), fooled

    def keep(
        self,
        state: S,
        fooled: Bool[Tensor, " n"],
        threat: Threat,
        gave_up: Bool[Tensor, " n"] | None = None,
    ) -> S:
        """The same, where it is known already whether the model is fooled at `point`."""
        distance = threat.distance(state.point, state.images)
        closer = fooled & (distance < state.distance)
        distance = torch.where(closer, distance, state.distance)
        finished = state.iteration >= self.iterations - 1
        if gave_up is not None:
            finished = finished | gave_up
        # Counts are whole, and a distance of ε is inside the ball.
        inside = 0.5 if threat.norm == "l0" else 0.0
        score = distance - (state.eps + inside)
        if not self.stop_inside:
            score = torch.where(finished, score, torch.inf)
        return state.replace(
            best=pick(closer, state.point, state.best),
            distance=distance,
            score=score,
            finished=finished,
        )
