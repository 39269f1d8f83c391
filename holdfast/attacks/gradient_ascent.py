"""Projected gradient ascent: what one-step and many-step attacks inside a ball share."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypeVar

from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .base import Attack, Oracle
from .losses import Logits, Loss, Values, loss_named
from .state import Items, State

S = TypeVar("S", bound=State, default=Any)


class GradientAscent(Attack[S]):
    """Projected gradient ascent: the base of attacks that step along a gradient inside the ball.

    x_{k+1} = Π(x_k + α_k · d_k), where d_k is the steepest direction of the loss at x_k and Π
    projects onto ball ∩ box.

    A subclass fills in the hooks that differ: `first_point` (x₀; by default a random point of the
    ball), `step_size` (α_k), `direction` (d_k, and what it remembers in a `State` of its own, which
    `begin` makes), `value` (what is climbed, where it is more than `loss`), `gradient` (where it is
    not that of `value`), `observe` (what is kept of an answer) and `project` (Π). CONTRIBUTING.md
    has a whole attack that fills in one of them.

    Args:
        steps: moves; the end is queried too.
        loss: what is climbed: `ce`, `dlr`, `margin`, or a function of (logits, labels, targets) to
            one value an image.
        settings: the subclass's own, for reports and the run's identity.

    Cost: steps + 1 forwards and as many backwards.

    Raises:
        InputError: steps below 1, an unknown loss.
    """

    norms = frozenset({"linf", "l2", "l1"})
    reaches = True

    def __init__(self, *, steps: int = 40, loss: str | Loss = "ce", **settings: Any):
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        shown = loss if isinstance(loss, str) else getattr(loss, "__qualname__", repr(loss))
        super().__init__(**{"steps": steps, **settings, "loss": shown})
        self.steps, self.iterations = steps, steps + 1
        self.loss = loss_named(loss) if isinstance(loss, str) else loss

    # -- hooks ----------------------------------------------------------------------------

    def first_point(self, items: Items, threat: Threat) -> Images:
        """x₀, (N, C, H, W) inside ball and box: drawn in the ball."""
        x = items.images
        noisy = x + per_item(items.eps, x) * threat.table.noise(items.seeds, 0, x)
        return threat.project(noisy, x, items.eps)

    def value(self, logits: Logits, state: S) -> Values:
        """What is climbed, (N,)."""
        return state.climbed(self.loss, logits)

    def gradient(self, oracle: Oracle, state: S) -> tuple[Images, Logits]:
        """∂value/∂x at x_k, and the model's answer there."""
        gradient, logits, _ = oracle.gradient(state.point, lambda z: self.value(z, state))
        return gradient, logits

    def observe(self, logits: Logits, state: S) -> S:
        """The state with what is kept of the answer at x_k: the best point and its score."""
        return state.observe(logits)

    def direction(self, gradient: Images, state: S, threat: Threat) -> tuple[Images, S]:
        """d_k, (N, C, H, W) of norm 1, and the state with what is remembered for the next one."""
        return threat.table.steepest(gradient, state.point), state

    def step_size(self, state: S) -> Float[Tensor, " n"]:
        """α_k of each item, in image units, from `state.iteration`, its number of moves so far."""
        return state.eps * (2.5 / self.steps)

    def project(self, point: Images, items: Items, threat: Threat) -> Images:
        """Π: the closest point of ball ∩ box."""
        return threat.project(point, items.images, items.eps)

    # -- the algorithm --------------------------------------------------------------------

    def step(self, oracle: Oracle, state: S, threat: Threat) -> S:
        gradient, logits = self.gradient(oracle, state)
        state = self.observe(logits, state)
        d, state = self.direction(gradient, state, threat)
        alpha = per_item(self.step_size(state), d)
        return state.replace(
            point=self.project(state.point + alpha * d, state, threat),
            iteration=state.iteration + 1,
            finished=state.iteration >= self.steps,
        )
