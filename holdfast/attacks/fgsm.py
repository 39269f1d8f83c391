"""One-step attacks: FGSM, and its noisy, unclipped form for training (N-FGSM)."""

from __future__ import annotations

from ..threat import Threat, per_item
from .base import Attack, Items, Oracle, State, common_state, observe
from .losses import loss_named


class FGSM(Attack):
    """One step of length `step` × ε along the steepest direction of the cross-entropy.

    Goodfellow, Shlens & Szegedy, ICLR 2015. With `noise=2, clip=False` it is N-FGSM (de Jorge
    et al., "Make some noise", NeurIPS 2022), whose points leave the ball on purpose: for
    training only.

    Args:
        step: in units of ε.
        noise: the start lies this many ε from the image at most (0: the image itself).
        clip: whether points are brought back into the ball. The box always holds.
        loss: `ce`, `dlr` or `margin`.

    Cost: 2 forwards and 2 backwards; 1 and 1 in training, where the end is not looked at.
    """

    name = "fgsm"
    norms = frozenset({"linf", "l2", "l1"})

    def __init__(
        self, *, step: float = 1.0, noise: float = 0.0, clip: bool = True, loss: str = "ce"
    ):

        self.iterations = 2
        super().__init__(step=step, noise=noise, clip=clip, loss=loss)
        self.length, self.noise, self.clip, self.loss = step, noise, clip, loss_named(loss)

    def _back(self, point, state, threat: Threat):
        if self.clip:
            return threat.project(point, state["x"], state["eps"])
        return point.clamp(0, 1)

    def start(self, items: Items, threat: Threat) -> State:
        self.check_norm(threat)
        norm = threat.table
        state = common_state(items, items.images)
        if self.noise:
            length = per_item(items.eps * self.noise, items.images)
            noisy = items.images + length * norm.noise(items.seeds, 0, items.images)
            state["point"] = self._back(noisy, state, threat)
        return state

    def step(self, model: Oracle, state: State, threat: Threat) -> State:
        gradient, logits, _ = model.gradient(
            state["point"], lambda z: self.loss(z, state["labels"], state["targets"])
        )
        best, score = observe(state, logits)
        length = per_item(state["eps"] * self.length, state["x"])
        moved = state["point"] + length * threat.table.steepest(gradient, state["point"])
        return {
            **state,
            "best": best,
            "score": score,
            "point": self._back(moved, state, threat),
            "age": state["age"] + 1,
            "finished": state["age"] >= 1,
        }
