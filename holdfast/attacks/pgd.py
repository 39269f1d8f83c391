"""Projected gradient ascent with a fixed step."""

from __future__ import annotations

from ..errors import InputError
from ..threat import Threat, per_item
from .base import Attack, Items, Oracle, State, common_state, observe
from .losses import Loss, loss_named


class PGD(Attack):
    """`steps` projected steps of length `step_size` × ε from a random start.

    Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018;
    with `momentum`, Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018.

    Args:
        steps: moves; each is one forward and one backward. The end is looked at too.
        step_size: in units of ε; by default 2.5 / steps, which can cross the ball.
        start: `random` in the ball, or `clean`.
        momentum: of the gradients, each divided by its mean absolute value; 0 for none.
        loss: `ce`, `dlr`, `margin`, or a function of (logits, labels, targets) to one value an
            image.
    """

    name = "pgd"
    norms = frozenset({"linf", "l2", "l1"})

    def __init__(
        self,
        *,
        steps: int = 40,
        step_size: float | None = None,
        start: str = "random",
        momentum: float = 0.0,
        loss: str | Loss = "ce",
    ):
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        if start not in ("random", "clean"):
            raise InputError(f"start must be 'random' or 'clean', not {start!r}")
        super().__init__(
            steps=steps,
            step_size=step_size,
            start=start,
            momentum=momentum,
            loss=loss if isinstance(loss, str) else getattr(loss, "__qualname__", repr(loss)),
        )
        self.steps, self.iterations = steps, steps + 1
        self.length = 2.5 / steps if step_size is None else step_size
        self.random_start = start == "random"
        self.momentum = momentum
        self.loss = loss_named(loss) if isinstance(loss, str) else loss

    def start(self, items: Items, threat: Threat) -> State:
        self.check_norm(threat)
        norm = threat.table
        state = common_state(items, items.images)
        if self.random_start:
            noise = norm.noise(items.seeds, 0, items.images)
            noisy = items.images + per_item(items.eps, items.images) * noise
            state["point"] = threat.project(noisy, items.images, items.eps)
        if self.momentum:
            state["velocity"] = items.images.new_zeros(items.images.shape)
        return state

    def step(self, model: Oracle, state: State, threat: Threat) -> State:
        gradient, logits, _ = model.gradient(
            state["point"], lambda z: self.loss(z, state["labels"], state["targets"])
        )
        best, score = observe(state, logits)
        new = {**state, "best": best, "score": score, "age": state["age"] + 1}
        if self.momentum:
            size = gradient.flatten(1).abs().mean(1).clamp_min(1e-30)
            gradient = self.momentum * state["velocity"] + gradient / per_item(size, gradient)
            new["velocity"] = gradient
        length = per_item(state["eps"] * self.length, state["x"])
        moved = state["point"] + length * threat.table.steepest(gradient, state["point"])
        new["point"] = threat.project(moved, state["x"], state["eps"])
        new["finished"] = state["age"] >= self.steps
        return new
