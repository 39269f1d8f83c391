"""Swift: short APGD runs on the classes that are close, given up where no run can succeed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..threat import Threat
from .apgd import APGD
from .base import Items, Oracle, State
from .losses import Logits, Values, cross_entropy, margin, margin_loss


class Swift(APGD):
    """A few short runs of APGD an image, in the order of what they break.

    The first run climbs the cross-entropy; the second the margin to whichever wrong class is
    closest at each look; each of the others the margin to one class, in the order of how close
    they were at the best point of the first two, which has spent its run on the closest. Every
    run starts at random in the ball. After each, an item whose smallest margin is still above a
    share of the margin it began with is given up (`docs/swift.md`).

    APGD is of Croce & Hein, ICML 2020; to choose targets where the search stands rather than on
    the clean image, and to leave hopeless images early, are ideas of Adaptive Auto Attack (Liu
    et al., CVPR 2022).

    Args:
        steps: moves of each run after its start.
        give_up: for each run but the last, the share of the first margin above which an item
            ends there. So there are len(give_up) + 1 runs, at least 2.

    Cost: at most runs × (steps + 1) forwards and as many backwards.
    """

    def __init__(self, *, steps: int = 20, give_up: Sequence[float] = (1.0, 0.95, 0.9)):
        if not give_up:
            raise InputError("give_up must hold a share for each run but the last, at least one")
        super().__init__(steps=steps, loss="margin")
        self.settings = {"steps": steps, "give_up": list(give_up)}
        self.name = "swift"
        self.give_up = tuple(give_up)
        self.runs = len(self.give_up) + 1
        self.run_looks = self.looks
        self.looks = self.runs * self.run_looks

    def start(self, items: Items, threat: Threat) -> State:
        return super().start(items, threat) | {
            "run": torch.zeros_like(items.labels),
            "first_margin": torch.full_like(items.eps, torch.inf),
            # The classes that the later runs go for; −1 where there are not as many.
            "close": torch.full_like(items.labels, -1)[:, None].repeat(1, self.runs),
            "own_seeds": items.seeds,
        }

    def looks_left(self, state: State) -> Tensor:
        return self.looks - state["run"] * self.run_looks - state["age"]

    def values(self, logits: Logits, state: State) -> Values:
        """What is climbed: cross-entropy in the first run, a margin in the others."""
        return torch.where(
            state["run"] == 0,
            cross_entropy(logits, state["labels"], state["targets"]),
            margin_loss(logits, state["labels"], state["targets"]),
        )

    def observed(self, logits: Logits, state: State) -> State:
        """Take down what the runs to come need of this look."""
        labels = state["labels"]
        now = margin(logits, labels)
        first = (state["run"] == 0) & (state["age"] == 0)
        count = min(self.runs, logits.shape[1] - 1)
        others = logits.scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices
        close = state["close"].clone()
        close[:, :count] = others
        nearer = (state["run"] < 2) & (now <= state["score"])
        return {
            **state,
            "first_margin": torch.where(first, now, state["first_margin"]),
            "close": torch.where(nearer[:, None], close, state["close"]),
        }

    def step(self, model: Oracle, state: State, threat: Threat) -> State:
        state = super().step(model, state, threat)
        ends = state["finished"]
        shares = state["eps"].new_tensor([*self.give_up, 0.0])[state["run"]]
        # Nothing is given up that began on the wrong side or without a margin.
        hopeless = state["score"] > shares * state["first_margin"].clamp_min(0)
        goes_on = ends & ~hopeless & (state["run"] < self.runs - 1)
        rows = goes_on.nonzero().squeeze(1)
        state["finished"] = ends & ~goes_on
        if len(rows):
            self._next_run(state, rows, threat)
        return state

    def _next_run(self, state: State, rows: Tensor, threat: Threat) -> None:
        """Start the next run of some rows, in place."""
        run = state["run"][rows] + 1
        # Rank 0 is what the second run went for.
        rank = (run - 1).clamp_min(0)
        targets = state["close"][rows].gather(1, rank[:, None]).squeeze(1)
        items = Items(
            images=state["x"][rows],
            labels=state["labels"][rows],
            targets=torch.where(run == 1, -1, targets),
            eps=state["eps"][rows],
            seeds=draws.item_seeds(0, state["own_seeds"][rows].cpu(), run.cpu()).to(run.device),
        )
        started = super().start(items, threat) | {"run": run}
        for key in ("best", "score"):  # of all runs
            del started[key]
        for key, value in started.items():
            state[key] = state[key].index_copy(0, rows, value.to(state[key].dtype))
