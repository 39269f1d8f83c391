"""SPSA: gradients estimated from pairs of answers."""

from __future__ import annotations

import torch

from .. import draws
from ..errors import InputError
from ..threat import Threat, per_item
from .adam import adam_move, adam_start
from .base import Attack, Items, Oracle, State, common_state, observe
from .losses import margin_loss


class SPSA(Attack):
    """Uesato, O'Donoghue, van den Oord & Kohli, "Adversarial risk and the dangers of evaluating
    against weak attacks", ICML 2018: simultaneous perturbation stochastic approximation (Spall,
    1992) of the margin's gradient, for models without usable gradients.

    Adam steps inside ball and box, from a random start, along the mean over `samples` random
    sign vectors v of v · (f(x + r·v) − f(x − r·v)) / 2r.

    Args:
        steps: moves after the start.
        samples: pairs of answers a move.
        radius: r, image units.
        length: Adam's step, image units.

    Cost: (steps + 1) × (2 × samples + 1) forwards, no backwards.

    Raises:
        InputError: a setting outside its range.
    """

    name = "spsa"
    norms = frozenset({"linf", "l2"})
    needs_gradient = False

    def __init__(
        self, *, steps: int = 100, samples: int = 128, radius: float = 0.01, length: float = 0.01
    ):
        for name, count in (("steps", steps), ("samples", samples)):
            if count < 1:
                raise InputError(f"{name} must be at least 1, not {count}")
        for name, value in (("radius", radius), ("length", length)):
            if value <= 0:
                raise InputError(f"{name} must be above 0, not {value}")
        super().__init__(steps=steps, samples=samples, radius=radius, length=length)
        self.steps, self.samples, self.radius, self.length = steps, samples, radius, length
        self.iterations = steps + 1

    def start(self, items: Items, threat: Threat) -> State:
        self.check_norm(threat)
        norm = threat.table
        x = items.images
        noisy = x + per_item(items.eps, x) * norm.noise(items.seeds, 0, x)
        return common_state(items, threat.project(noisy, x, items.eps)) | adam_start(x)

    def step(self, model: Oracle, state: State, threat: Threat) -> State:
        x, looked, age = state["x"], state["point"], state["age"]
        best, score = observe(state, model.logits(looked))
        gradient = torch.zeros_like(x)
        for sample in range(self.samples):
            # Counters 0 and 1 belong to the start.
            counter = 2 + age * self.samples + sample
            signs = (draws.uniform(state["seeds"], counter, x.shape[1:]) < 0.5).float() * 2 - 1
            ahead, behind = (
                margin_loss(
                    model.logits((looked + side * self.radius * signs).clamp(0, 1)),
                    state["labels"],
                    state["targets"],
                )
                for side in (1, -1)
            )
            slope = (ahead - behind) / (2 * self.radius * self.samples)
            # NaN where the model answers nothing on one side: that says nothing of the slope.
            gradient += per_item(slope.nan_to_num(0.0, 0.0, 0.0), x) * signs

        moments, move = adam_move(state, gradient, age + 1)
        return {
            **state,
            **moments,
            "best": best,
            "score": score,
            "point": threat.project(looked + self.length * move, x, state["eps"]),
            "age": age + 1,
            "finished": age >= self.steps,
        }
