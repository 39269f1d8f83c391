"""APGD: projected gradient ascent that chooses its own step size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from typing_extensions import TypeVar

from .. import draws
from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .base import Attack, Oracle
from .losses import Logits, Values, loss_named
from .state import Items, State, pick

MOMENTUM = 0.75
ENOUGH_RISES = 0.75  # share of a window's moves that must have raised the loss
L1_RADII = ((0.3, 3.0), (0.6, 2.0), (1.0, 1.0))  # up to this share of the steps, this many ε


@dataclass(frozen=True, kw_only=True, eq=False)
class APGDState(State):
    """What APGD remembers, with the symbols of the paper's algorithm 1."""

    moves: Int64[Tensor, " n"]  # N_iter: of this run, after the start
    previous: Float[Tensor, "n c h w"]  # x^(k−1)
    peak: Float[Tensor, "n c h w"]  # x_max, the point of the highest loss
    peak_gradient: Float[Tensor, "n c h w"]  # ∇f(x_max)
    peak_loss: Float[Tensor, " n"]  # f_max
    peak_loss_before: Float[Tensor, " n"]  # f_max at the last checkpoint
    last_loss: Float[Tensor, " n"]  # f(x^(k))
    rises: Int64[Tensor, " n"]  # moves of this window that raised the loss
    window: Int64[Tensor, " n"]  # w_j − w_{j−1}: moves between two checkpoints
    until_checkpoint: Int64[Tensor, " n"]  # moves
    halved: Bool[Tensor, " n"]  # whether the last checkpoint halved the step
    length: Float[Tensor, " n"]  # η: of the step, image units
    # In L1 alone:
    moved_share: Float[Tensor, " n"]  # of the components, in one step
    support: Float[Tensor, " n"]  # components that x_max changes


S = TypeVar("S", bound=APGDState, default=APGDState)


def share_of(moves: Int64[Tensor, " n"], share: float) -> Int64[Tensor, " n"]:
    """A share of each item's moves, in whole moves, at least one."""
    return (share * moves.double() + 1e-9).long().clamp_min(1)


def _or_random(gradient: Images, state: APGDState) -> Images:
    """The gradients, and a random direction in place of each that is zero in every component."""
    rows = (~gradient.flatten(1).any(1)).nonzero().squeeze(1)
    if not len(rows):
        return gradient
    # Draw 0 of an item is its start.
    drawn = draws.normal(state.seeds[rows], 1 + state.iteration[rows], gradient.shape[1:])
    return gradient.index_copy(0, rows, drawn.to(gradient))


class APGD(Attack[S]):
    """Auto-PGD: projected gradient ascent that chooses its own step size.

    Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", ICML 2020, algorithm 1. Steps start at 2ε and are halved, going back to
    the best point, whenever a window of steps ends in which too few steps raised the loss or
    nothing was gained since the last window.

    In L1 (Croce & Hein, "Mind the box! l1-APGD", ICML 2021) a step moves only as many components
    as the best point so far uses, the ball shrinks from 3ε over 2ε to ε, and points are
    projected onto ball ∩ box exactly.

    Unlike the published ones, these do not stay where they are when a gradient is zero in every
    component, as behind a rounded input: the step then goes in a random direction, so that all
    queries are at different points.

    Args:
        steps: moves after the start.
        loss: `ce`, `dlr` or `margin`.
        targeted: move towards each item's target class.

    Cost: steps + 1 forwards and as many backwards.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> points = APGD(steps=10)(model, images, labels, Threat("l2", 0.15))
        >>> model(points).argmax(1)
        tensor([1])
    """

    name = "apgd"
    norms = frozenset({"linf", "l2", "l1"})
    reaches = True
    state_type: type[APGDState] = APGDState  # a subclass's own

    def __init__(self, *, steps: int = 100, loss: str = "ce", targeted: bool = False):
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        if targeted and loss == "ce":
            raise InputError("targeted APGD climbs 'dlr' or 'margin', not 'ce'")
        super().__init__(steps=steps, loss=loss, targeted=targeted)
        self.name = f"apgd-{loss}" + "-targeted" * targeted
        self.steps, self.loss, self.targeted = steps, loss_named(loss), targeted
        self.iterations = steps + 1

    def start(self, items: Items, threat: Threat) -> S:
        self.check_norm(threat)
        return self.begin_run(items, threat, torch.full_like(items.labels, self.steps))

    def begin_run(
        self, items: Items, threat: Threat, moves: Int64[Tensor, " n"], **own: Tensor
    ) -> S:
        """The state before the first query of runs of so many moves.

        Args:
            own: what a subclass's state adds.
        """
        norm = threat.table
        x, eps = items.images, items.eps
        if threat.norm == "linf":
            # As published: scaled so that the largest component is ε, whatever was drawn.
            noise = norm.noise(items.seeds, 0, x)
            noise = noise / per_item(noise.flatten(1).abs().amax(1), x)
        else:
            noise = draws.normal(items.seeds, 0, x.shape[1:])
            noise = noise / per_item(norm.distance(noise), x)
        radius = self._radius(torch.zeros_like(moves), moves, eps, threat)
        start = threat.project(x + per_item(radius, x) * noise, x, radius)
        in_l1 = threat.norm == "l1"
        window = share_of(moves, 0.04 if in_l1 else 0.22)
        return self.state_type.begin(  # type: ignore[return-value]
            items,
            start,
            moves=moves,
            previous=start,
            peak=start,
            peak_gradient=torch.zeros_like(x),
            peak_loss=torch.full_like(eps, -torch.inf),
            peak_loss_before=torch.full_like(eps, -torch.inf),
            last_loss=torch.full_like(eps, torch.inf),
            rises=torch.zeros_like(items.labels),
            window=window,
            until_checkpoint=window,
            halved=torch.ones_like(items.labels, dtype=torch.bool),
            length=radius if in_l1 else 2 * eps,
            moved_share=torch.full_like(eps, 0.2),
            support=torch.full_like(eps, x.shape[1:].numel()),
            **own,
        )

    def value(self, logits: Logits, state: S) -> Values:
        """What is climbed, (N,)."""
        return state.climbed(self.loss, logits)

    def observe(self, logits: Logits, state: S) -> S:
        """The state with what else is worth keeping of an answer; nothing here."""
        return state

    def step(self, oracle: Oracle, state: S, threat: Threat) -> S:
        gradient, logits, value = oracle.gradient(state.point, lambda z: self.value(z, state))
        state = self.observe(logits, state)
        higher = value > state.peak_loss
        begun = state.iteration > 0  # the first query is at the start: it belongs to no window
        peak_loss = torch.where(higher, value, state.peak_loss)
        # In L1, points of the wider balls do not count.
        radius = self._radius(state.iteration, state.moves, state.eps, threat)
        counts = radius <= state.eps
        seen = state.observe(logits)
        state = state.replace(
            peak=pick(higher, state.point, state.peak),
            peak_gradient=pick(higher, gradient, state.peak_gradient),
            peak_loss=peak_loss,
            peak_loss_before=torch.where(begun, state.peak_loss_before, peak_loss),
            rises=state.rises + (value > state.last_loss),
            last_loss=value,
            until_checkpoint=state.until_checkpoint - begun.long(),
            best=pick(counts, seen.best, state.best),
            score=torch.where(counts, seen.score, state.score),
        )
        move = self._move_l1 if threat.norm == "l1" else self._move
        return move(state, gradient, threat).replace(
            finished=state.iteration >= state.moves, iteration=state.iteration + 1
        )

    def _move(self, state: S, gradient: Images, threat: Threat) -> S:
        """L∞ and L2: halve the step where a checkpoint says so, then step with momentum."""
        x, window = state.images, state.window
        checkpoint = state.until_checkpoint == 0
        # Conditions 1 and 2 of the paper.
        stuck = (state.rises <= ENOUGH_RISES * window) | (
            ~state.halved & (state.peak_loss_before >= state.peak_loss)
        )
        halve = checkpoint & stuck
        length = torch.where(halve, state.length / 2, state.length)
        point = pick(halve, state.peak, state.point)
        gradient = _or_random(pick(halve, state.peak_gradient, gradient), state)
        shorter = (window - share_of(state.moves, 0.03)).maximum(share_of(state.moves, 0.06))
        window = torch.where(checkpoint, shorter, window)

        # z^(k+1), and x^(k+1) = Π(x^(k) + α (z^(k+1) − x^(k)) + (1 − α) (x^(k) − x^(k−1))).
        eta = per_item(length, x)
        z = threat.project(point + eta * threat.table.steepest(gradient), x, state.eps)
        alpha = per_item(torch.where(state.iteration == 0, 1.0, MOMENTUM), x)
        mixed = point + alpha * (z - point) + (1 - alpha) * (point - state.previous)
        return state.replace(
            length=length,
            halved=torch.where(checkpoint, halve, state.halved),
            peak_loss_before=torch.where(checkpoint, state.peak_loss, state.peak_loss_before),
            rises=torch.where(checkpoint, 0, state.rises),
            window=window,
            until_checkpoint=torch.where(checkpoint, window, state.until_checkpoint),
            previous=point,
            point=threat.project(mixed, x, state.eps),
        )

    def _radius(
        self, k: Int64[Tensor, " n"], moves: Int64[Tensor, " n"], eps: Tensor, threat: Threat
    ) -> Float[Tensor, " n"]:
        """The ball in which an item searches at iteration k."""
        if threat.norm != "l1":
            return eps
        factor = torch.full_like(eps, L1_RADII[-1][1])
        for share, wider in reversed(L1_RADII[:-1]):
            factor = torch.where(k < (share * moves.double()).long(), wider, factor)
        return factor * eps

    def _move_l1(self, state: S, gradient: Images, threat: Threat) -> S:
        """L1: adapt step and sparsity at checkpoints, then step along the largest components."""
        x, eps, k = state.images, state.eps, state.iteration
        size = x[0].numel()
        radius = self._radius(k, state.moves, eps, threat)
        smaller = self._radius(k + 1, state.moves, eps, threat)
        shrinks = smaller < radius
        checkpoint = (state.until_checkpoint == 0) | shrinks

        support = (state.peak - x).flatten(1).ne(0).sum(1).to(eps)
        sparser = checkpoint & ((support / state.support < 0.95) | shrinks)
        length = torch.where(sparser, smaller, state.length)
        length = torch.where(checkpoint & ~sparser, length / 1.5, length)
        length = length.maximum(smaller / 10).minimum(smaller)
        moved_share = torch.where(checkpoint, support / size / 1.5, state.moved_share)
        point = pick(sparser, state.peak, state.point)
        gradient = pick(sparser, state.peak_gradient, gradient)
        gradient = _or_random(gradient, state).flatten(1)

        # The threshold above which a share of the components lies.
        place = ((1 - moved_share) * size).long().clamp(0, size - 1)
        threshold = gradient.abs().sort(dim=1).values.gather(1, place[:, None])
        direction = torch.where(gradient.abs() >= threshold, gradient.sign(), 0.0)
        direction = direction / direction.abs().sum(1, keepdim=True).clamp_min(1)
        stepped = point + per_item(length, x) * direction.view_as(x)
        return state.replace(
            length=length,
            moved_share=moved_share,
            support=torch.where(checkpoint, support.clamp_min(1), state.support),
            # A loss from a wider ball must not stand as the peak of a smaller one.
            peak_loss=torch.where(shrinks, -torch.inf, state.peak_loss),
            until_checkpoint=torch.where(checkpoint, state.window, state.until_checkpoint),
            # Where the ball shrinks, the next query is at the old peak, brought inside.
            point=threat.project(pick(shrinks, state.peak, stepped), x, smaller),
        )
