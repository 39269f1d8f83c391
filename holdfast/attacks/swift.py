"""Swift: many very short APGD runs, long ones where success is near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..threat import Threat
from .apgd import APGD, APGDState
from .base import Oracle
from .losses import Logits, Values, cross_entropy, difference_of_logits_ratio, margin_loss
from .state import Items

# The settings by norm, by measurement (`docs/swift.md`). In L1 the ball shrinks to ε in the course
# of a run, and which components it moves settles slowly; what decides there is the loss.
USUAL: dict[str, dict[str, Any]] = {
    "linf": {"steps": 3, "targets": 9, "near": 0.35, "long_steps": 20, "long_runs": 2},
    "l1": {
        "steps": 40,
        "targets": 2,
        "near": 0.5,
        "long_steps": 100,
        "long_runs": 2,
        "varied": True,
    },
}
USUAL["l2"] = USUAL["linf"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SwiftState(APGDState):
    """What a sequence of runs of APGD remembers; `targets` and `seeds` are those of the run."""

    run: Int64[Tensor, " n"]  # which of the runs this is
    first_margin: Float[Tensor, " n"]  # at the very first point
    # Classes by how close they came in the first two runs; −1 where there are not as many.
    close: Int64[Tensor, "n short_runs"]
    rival: Int64[Tensor, " n"]  # the strongest wrong class at `best`
    own_seeds: Int64[Tensor, " n"]  # the item's, from which each run's are drawn


class Swift(APGD[SwiftState]):
    """A short run of APGD for each way to be wrong, and long runs where that almost sufficed.

    At a step of 2ε, a handful of iterations tells how far a run will come; what another run finds
    depends on the class that it goes for. So the runs are short and many: the first climbs the
    margin to whichever wrong class is closest at each iteration, the second the cross-entropy, each
    of the others the margin to one class, in the order of how close they were at the best point of
    the first two. What then has come close to the boundary is searched by long runs: on the margin
    to the class that came closest, then on the margin to any; all else is left standing. Every run
    starts at random in the ball (`docs/swift.md`). Where one class alone is the goal, the runs that
    go for others are left out, and the last long run climbs the cross-entropy.

    APGD is of Croce & Hein, ICML 2020; to choose targets where the search stands rather than on
    the clean image, and to spend no more on hopeless images, are ideas of Adaptive Auto Attack
    (Liu et al., CVPR 2022).

    Args:
        steps: moves of a short run after its start.
        targets: short runs on the margin to one class, at least 0.
        near: share of the margin that an item began with, below which the long runs follow; 0 for
            none of them.
        long_steps: moves of a long run.
        long_runs: how many there are.
        varied: the runs that go for one class climb DLR, and the last long one the cross-entropy.

    The settings that are not given are those that the norm needs: in L1 `Swift.tuned` has fewer and
    longer runs, of varied losses; by itself, and in the other norms, this has the short ones.

    Cost: at most (2 + targets) × (steps + 1) + long_runs × (long_steps + 1) forwards, and as many
    backwards.

    Raises:
        InputError: a setting outside its range.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> points = Swift()(model, images, labels, Threat("linf", 0.1))
        >>> model(points).argmax(1)
        tensor([1])
    """

    name = "swift"
    state_type = SwiftState

    def __init__(
        self,
        *,
        steps: int | None = None,
        targets: int | None = None,
        near: float | None = None,
        long_steps: int | None = None,
        long_runs: int | None = None,
        varied: bool | None = None,
    ):
        given = {
            "steps": steps,
            "targets": targets,
            "near": near,
            "long_steps": long_steps,
            "long_runs": long_runs,
            "varied": varied,
        }
        self.given = {name: value for name, value in given.items() if value is not None}
        settings = {**USUAL["linf"], **self.given}
        steps, targets, near = settings["steps"], settings["targets"], settings["near"]
        long_steps, long_runs = settings["long_steps"], settings["long_runs"]
        super().__init__(steps=steps, loss="margin")
        if targets < 0 or long_runs < 0:
            raise InputError(f"targets and long_runs are at least 0, not {targets}, {long_runs}")
        if long_steps < 1:
            raise InputError(f"long_steps must be at least 1, not {long_steps}")
        if not 0 <= near < 1:
            raise InputError(f"near must be in [0, 1), not {near}")
        self.settings = settings
        self.name = "swift"  # not APGD's
        self.near, self.short_runs = near, 2 + targets
        self.varied = settings.get("varied", False)
        self.run_moves = [steps] * self.short_runs + [long_steps] * long_runs
        self.iterations = sum(moves + 1 for moves in self.run_moves)

    def tuned(self, threat: Threat) -> Swift:
        return Swift(**{**USUAL.get(threat.norm, {}), **self.given})

    def _moves(self, run: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        return torch.tensor(self.run_moves, device=run.device)[run]

    def start(self, items: Items, threat: Threat) -> SwiftState:
        self.check_norm(threat)
        run, unknown = torch.zeros_like(items.labels), torch.full_like(items.labels, -1)
        return self.begin_run(
            items,
            threat,
            self._moves(run),
            run=run,
            first_margin=torch.full_like(items.eps, torch.inf),
            close=unknown[:, None].repeat(1, self.short_runs),
            rival=unknown,
            own_seeds=items.seeds,
        )

    def iterations_left(self, state: SwiftState) -> Int64[Tensor, " n"]:
        iterations = torch.tensor(self.run_moves, device=state.run.device) + 1
        later = iterations.flip(0).cumsum(0).flip(0)[state.run] - iterations[state.run]
        return later + state.moves + 1 - state.iteration

    def value(self, logits: Logits, state: SwiftState) -> Values:
        """What is climbed: cross-entropy in the second run, and towards a goal in the last, too,
        a margin in the others. Varied, it is in the last in any case, and DLR towards a class."""
        last = state.run == len(self.run_moves) - 1
        if not self.varied:
            last = last & (state.goals >= 0)
        others = state.climbed(margin_loss, logits)
        if self.varied:
            ratio = state.climbed(difference_of_logits_ratio, logits)
            others = torch.where(state.targets >= 0, ratio, others)
        return torch.where((state.run == 1) | last, state.climbed(cross_entropy, logits), others)

    def observe(self, logits: Logits, state: SwiftState) -> SwiftState:
        """Take down what the runs to come need of this answer."""
        labels = state.labels
        now = state.margin(logits)
        first = (state.run == 0) & (state.iteration == 0)
        count = min(self.short_runs, logits.shape[1] - 1)
        others = logits.scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices
        close = state.close.clone()
        close[:, :count] = others
        nearer = now <= state.score
        # Where one class alone is the goal, there are no others to go for.
        orders = nearer & (state.run < 2) & (state.goals < 0)
        return state.replace(
            first_margin=torch.where(first, now, state.first_margin),
            close=torch.where(orders[:, None], close, state.close),
            rival=torch.where(nearer & (state.goals < 0), others[:, 0], state.rival),
        )

    def step(self, oracle: Oracle, state: SwiftState, threat: Threat) -> SwiftState:
        state = super().step(oracle, state, threat)
        following = self._following(state)
        # What began on the wrong side or without a margin is always near.
        far = state.score > self.near * state.first_margin.clamp_min(0)
        ends = far & (following == self.short_runs) | (following == len(self.run_moves))
        goes_on = state.finished & ~ends
        rows = goes_on.nonzero().squeeze(1)
        return self._begin_run(state, rows, following[rows], threat) if len(rows) else state

    def _following(self, state: SwiftState) -> Int64[Tensor, " n"]:
        """The run after each item's; targets that do not exist are passed over."""
        following = state.run + 1
        exists = self._target(state, following) >= 0
        passed = (following >= 2) & (following < self.short_runs) & ~exists
        return torch.where(passed, self.short_runs, following)

    def _target(self, state: SwiftState, run: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """What a run goes for; −1 for whichever class is closest at each point."""
        rank = (run - 2).clamp(0, self.short_runs - 1)
        ranked = state.close.gather(1, rank[:, None]).squeeze(1)
        target = torch.where((run >= 2) & (run < self.short_runs), ranked, -1)
        return torch.where(run == self.short_runs, state.rival, target)

    def _begin_run(
        self,
        state: SwiftState,
        rows: Int64[Tensor, " m"],
        run: Int64[Tensor, " m"],
        threat: Threat,
    ) -> SwiftState:
        """The state with the next run of some rows begun."""
        over = state.select(rows)
        seeds = draws.item_seeds(0, over.own_seeds.cpu(), run.cpu()).to(run.device)
        items = Items(
            images=over.images,
            labels=over.labels,
            targets=self._target(over, run),
            eps=over.eps,
            seeds=seeds,
            goals=over.goals,
        )
        begun = self.begin_run(
            items,
            threat,
            self._moves(run),
            run=run,
            # Of all runs:
            best=over.best,
            score=over.score,
            first_margin=over.first_margin,
            close=over.close,
            rival=over.rival,
            own_seeds=over.own_seeds,
        )
        return state.restore(rows, begun.tensors())
