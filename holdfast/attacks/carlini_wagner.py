"""Carlini–Wagner: distance and margin weighed against each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .adam import AdamState, adam, no_moments
from .base import Oracle
from .losses import Logits, Values, margin_loss
from .minimum_norm import MinimumNorm, MinimumNormState
from .state import Items, pick

INSIDE = 1 - 1e-6  # the box's own edge lies at infinity in the new variables
CHECKS = 10  # times a search asks whether it still improves
IMPROVED = 0.9999  # factor on the loss that counts as improvement


@dataclass(frozen=True, kw_only=True, eq=False)
class CarliniWagnerState(AdamState, MinimumNormState):
    """What a search over c remembers."""

    w: Float[Tensor, "n c h w"]  # x + δ = (tanh w + 1) / 2
    c: Float[Tensor, " n"]  # the weight of the margin
    too_small: Float[Tensor, " n"]  # the largest c that failed; 0 where none did
    enough: Float[Tensor, " n"]  # the smallest c that did not; ∞ where there is none
    succeeded: Bool[Tensor, " n"]  # whether this search found an adversarial point
    search: Int64[Tensor, " n"]  # searches done
    moves: Int64[Tensor, " n"]  # in this search
    loss_before: Float[Tensor, " n"]  # at the last check


class CarliniWagner(MinimumNorm[CarliniWagnerState]):
    """The closest point in L2, by weighing distance and margin against each other.

    Carlini & Wagner, "Towards evaluating the robustness of neural networks", S&P 2017: Adam on ‖δ‖²
    + c · max(margin, 0) in variables w with x + δ = (tanh w + 1) / 2, so that the box always holds.
    A search over c, `searches` times `steps` moves from the image, raises c tenfold until a point
    is adversarial and then bisects; a search that no longer improves ends early.

    Args:
        steps: moves of each search.
        searches: values of c that are tried.
        length: Adam's step, in w, above 0.
        weight: the first c, above 0.
        targeted: approach the boundary between the label and the item's target class; otherwise
            that of the strongest wrong class at each point.
        stop_inside: see `MinimumNorm`.

    Cost: at most searches × steps forwards and as many backwards.

    Raises:
        InputError: a setting outside its range.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> threat = Threat("l2", 0.5)
        >>> attack = CarliniWagner(steps=50, stop_inside=False)
        >>> points = attack(model, images, labels, threat)
        >>> round(float(threat.distance(points, images)), 2)  # the hyperplane is 0.1 away
        0.1
    """

    name = "carlini-wagner"
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
        self.name = "carlini-wagner" + "-targeted" * targeted
        self.targeted = targeted
        self.steps, self.searches, self.length, self.weight = steps, searches, length, weight
        self.iterations = steps * searches

    def begin(self, items: Items, point: Images, threat: Threat) -> CarliniWagnerState:
        zeros, w = torch.zeros_like(items.eps), _unbounded(point)
        return CarliniWagnerState.begin(
            items,
            point,
            w=w,
            c=torch.full_like(zeros, self.weight),
            too_small=zeros,
            enough=torch.full_like(zeros, torch.inf),
            succeeded=torch.zeros_like(items.labels, dtype=torch.bool),
            search=torch.zeros_like(items.labels),
            moves=torch.zeros_like(items.labels),
            loss_before=torch.full_like(zeros, torch.inf),
            **no_moments(w),
        )

    def value(self, logits: Logits, state: CarliniWagnerState) -> Values:
        return (-state.climbed(margin_loss, logits)).clamp_min(0)

    def step(self, oracle: Oracle, state: CarliniWagnerState, threat: Threat) -> CarliniWagnerState:
        x, point, c = state.images, state.point, state.c
        gradient, logits, value = oracle.gradient(point, lambda z: self.value(z, state))
        delta = point - x
        loss = delta.flatten(1).square().sum(1) + c * value
        moves = state.moves + 1
        check = moves % max(self.steps // CHECKS, 1) == 0
        over = (moves >= self.steps) | (check & (loss > IMPROVED * state.loss_before))
        last = over & (state.search == self.searches - 1)
        state, fooled = self.record(state, logits, threat, gave_up=last)
        succeeded = state.succeeded | fooled

        # In w: dx/dw = 2x(1 − x).
        gradient = (2 * delta + per_item(c, x) * gradient) * 2 * point * (1 - point)
        state, move = adam(state, gradient, moves)
        w = state.w - self.length * move

        # Where a search is over, the next one starts at the image with another c.
        enough = torch.where(over & succeeded, state.enough.minimum(c), state.enough)
        too_small = torch.where(over & ~succeeded, c, state.too_small)
        next_c = torch.where(enough.isinf(), c * 10, (too_small + enough) / 2)
        w = pick(over, _unbounded(x), w)
        return state.replace(
            m=pick(over, torch.zeros_like(w), state.m),
            v=pick(over, torch.zeros_like(w), state.v),
            w=w,
            c=torch.where(over, next_c, c),
            too_small=too_small,
            enough=enough,
            succeeded=succeeded & ~over,
            search=state.search + over,
            moves=torch.where(over, 0, moves),
            loss_before=torch.where(over, torch.inf, torch.where(check, loss, state.loss_before)),
            point=((w.tanh() + 1) / 2).clamp(0, 1),
            iteration=state.iteration + 1,
        )


def _unbounded(x: Images) -> Float[Tensor, "n c h w"]:
    """w with x = (tanh w + 1) / 2, a little inside the box."""
    return torch.atanh((x * 2 - 1) * INSIDE)
