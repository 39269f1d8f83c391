"""HopSkipJump: along the boundary, from decisions alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from . import losses
from .base import Oracle
from .minimum_norm import MinimumNorm, MinimumNormState
from .state import Items, pick

# What an item is doing; each query serves one of these.
SEEK, BISECT, PROBE, LEAP = range(4)
FIRST_RADIUS = 0.1  # of the first probes, image units
FINEST = 1e-6  # a bisection cannot be finer than float32
SHORTEST_LEAP = 1e-3  # of the distance; below it the direction is given up
TOGETHER = 100  # probes that an item asks for in one step
MOST_COMPONENTS = 2**22  # of these probes: large images ask for fewer


@dataclass(frozen=True, kw_only=True, eq=False)
class HopSkipJumpState(MinimumNormState):
    """What HopSkipJump remembers."""

    phase: Int64[Tensor, " n"]  # SEEK, BISECT, PROBE or LEAP: what the next query serves
    queried: Int64[Tensor, " n"]  # queries so far; one step may make many
    round: Int64[Tensor, " n"]  # t of the paper: times that the boundary was reached
    outer: Float[Tensor, "n c h w"]  # adversarial; bisection runs from the image to here
    low: Float[Tensor, " n"]  # share of that way at which the point is not adversarial
    high: Float[Tensor, " n"]  # share at which it is
    edge: Float[Tensor, "n c h w"]  # x_t of the paper: adversarial, at the boundary
    reach: Float[Tensor, " n"]  # distance of the edge from the image
    probed: Float[Tensor, " n"]  # probes of this round
    answers: Float[Tensor, " n"]  # sum of their answers φ = ±1
    sum: Float[Tensor, "n c h w"]  # of their offsets u
    signed_sum: Float[Tensor, "n c h w"]  # of φ · u
    direction: Float[Tensor, "n c h w"]  # of the next leap
    length: Float[Tensor, " n"]  # ξ of the paper: of the next leap


@dataclass
class _Heard:
    """What the queries of a step say of each item.

    Attributes:
        point, fooled: the closest point that fooled the model, else any that was asked.
        asked: how many points.
        offsets, signed_offsets, answers: sums over the probes, as in `HopSkipJumpState`.
    """

    point: Images
    fooled: Bool[Tensor, " n"]
    asked: Int64[Tensor, " n"]
    offsets: Float[Tensor, "n c h w"]
    signed_offsets: Float[Tensor, "n c h w"]
    answers: Float[Tensor, " n"]


class HopSkipJump(MinimumNorm[HopSkipJumpState]):
    """The closest point from predicted classes alone, along the boundary.

    Chen, Jordan & Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", S&P
    2020, algorithm 2. From a misclassified random image, each round goes to the boundary by
    bisection towards the clean image, estimates the boundary's normal from `probes` · √round random
    points around, and leaps along it, half as far until the point is adversarial.

    The probes of a round do not wait for each other: a step asks for up to `TOGETHER` of them at
    once, an item's in one batch. Bisections and leaps ask for one point a step, and items in
    different rounds share a batch.

    Args:
        queries: in all. Under a thousand rarely suffices.
        probes: points of the first round's estimate.
        most_probes: of any round's.
        stop_inside: see `MinimumNorm`.

    Cost: `queries` forwards, no backwards.

    Raises:
        InputError: a setting outside its range.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> threat = Threat("l2", 0.5)
        >>> attack = HopSkipJump(queries=500, stop_inside=False)
        >>> points = attack(model, images, labels, threat)
        >>> round(float(threat.distance(points, images)), 2)  # the hyperplane is 0.1 away
        0.1
    """

    name = "hop-skip-jump"
    norms = frozenset({"linf", "l2"})
    needs_gradient = False
    decisions = True

    def __init__(
        self,
        *,
        queries: int = 10_000,
        probes: int = 100,
        most_probes: int = 10_000,
        stop_inside: bool = True,
    ):
        if queries < 1:
            raise InputError(f"queries must be at least 1, not {queries}")
        if not 1 <= probes <= most_probes:
            raise InputError(
                f"probes must satisfy 1 ≤ probes ≤ most_probes, not {probes} and {most_probes}"
            )
        super().__init__(
            queries=queries, probes=probes, most_probes=most_probes, stop_inside=stop_inside
        )
        self.probes, self.most_probes = probes, most_probes
        self.iterations = queries

    def first_point(self, items: Items, threat: Threat) -> Images:
        noise = _random_images(items.seeds, torch.zeros_like(items.labels), items.images)
        # Noise is rarely of one given class; `items.start` is an image of it, if there is one.
        return pick(items.goals >= 0, items.start, noise)

    def begin(self, items: Items, point: Images, threat: Threat) -> HopSkipJumpState:
        x, zeros = items.images, torch.zeros_like(items.eps)
        return HopSkipJumpState.begin(
            items,
            point,
            phase=torch.full_like(items.labels, SEEK),
            queried=torch.zeros_like(items.labels),
            round=torch.zeros_like(items.labels),
            outer=x,
            low=zeros,
            high=zeros,
            edge=x,
            reach=zeros,
            probed=zeros,
            answers=zeros,
            sum=torch.zeros_like(x),
            signed_sum=torch.zeros_like(x),
            direction=torch.zeros_like(x),
            length=zeros,
        )

    def iterations_left(self, state: HopSkipJumpState) -> Int64[Tensor, " n"]:
        return self.iterations - state.queried

    def step(self, oracle: Oracle, state: HopSkipJumpState, threat: Threat) -> HopSkipJumpState:
        x, phase = state.images, state.phase
        size = x[0].numel()
        finest = max(size ** (-2.0 if threat.norm == "linf" else -1.5), FINEST)
        seeks, bisects, probes, leaps = (phase == p for p in (SEEK, BISECT, PROBE, LEAP))
        heard = self._ask(oracle, state, threat)
        fooled, asked, queried = heard.fooled, heard.asked, heard.point
        spent = state.queried + asked >= self.iterations
        state = self.keep(state.replace(point=queried), fooled, threat, gave_up=spent)

        # A found or leapt-to adversarial point is the far end of a new bisection.
        landed = (seeks | leaps) & fooled
        outer = pick(landed, queried, state.outer)
        middle = (state.low + state.high) / 2
        high = torch.where(bisects & fooled, middle, state.high)
        low = torch.where(bisects & ~fooled, middle, state.low)
        low, high = torch.where(landed, 0.0, low), torch.where(landed, 1.0, high)
        arrived = bisects & (high - low <= finest)
        edge = pick(arrived, _toward(outer, x, high, threat), state.edge)
        reach = torch.where(arrived, threat.distance(edge, x), state.reach)

        total, signed = state.sum + heard.offsets, state.signed_sum + heard.signed_offsets
        answers = state.answers + heard.answers
        probed = torch.where(probes, state.probed + asked, state.probed)
        estimated = probes & (probed >= self._wanted(state))
        mean = answers / probed.clamp_min(1)
        # The mean answer is a baseline; where all answers agree, it would leave nothing.
        baseline = torch.where(mean.abs() < 1, mean, 0.0)
        normal = threat.table.steepest(signed - per_item(baseline, x) * total)
        direction = pick(estimated, normal, state.direction)
        length = torch.where(estimated, reach / state.round.clamp_min(1).sqrt(), state.length)
        length = torch.where(leaps & ~fooled, length / 2, length)
        lost = leaps & ~fooled & (length < SHORTEST_LEAP * reach)

        fresh = arrived | lost  # a new round of probes begins
        phase = torch.where(landed, BISECT, phase)
        phase = torch.where(fresh, PROBE, phase)
        phase = torch.where(estimated, LEAP, phase)
        state = state.replace(
            iteration=state.iteration + 1,
            queried=state.queried + asked,
            phase=phase,
            round=state.round + fresh,
            outer=outer,
            low=low,
            high=high,
            edge=edge,
            reach=reach,
            probed=torch.where(fresh, 0.0, probed),
            answers=torch.where(fresh, 0.0, answers),
            sum=pick(fresh, torch.zeros_like(x), total),
            signed_sum=pick(fresh, torch.zeros_like(x), signed),
            direction=direction,
            length=length,
        )
        return state.replace(point=self._next(state, threat))

    def _wanted(self, state: HopSkipJumpState) -> Float[Tensor, " n"]:
        """Probes of each item's round."""
        return (self.probes * state.round.sqrt()).floor().clamp(1, self.most_probes)

    def _counts(self, state: HopSkipJumpState) -> Int64[Tensor, " n"]:
        """How many queries each item makes in this step: of the probes, which do not wait for each
        other's answers, many; of all else one."""
        many = max(1, min(TOGETHER, MOST_COMPONENTS // state.images[0].numel()))
        probes = (self._wanted(state) - state.probed).clamp(0, many).long()
        counts = torch.where(state.phase == PROBE, probes, torch.ones_like(probes))
        return counts.minimum(self.iterations - state.queried).clamp_min(0)

    def _ask(self, oracle: Oracle, state: HopSkipJumpState, threat: Threat) -> _Heard:
        """All queries of a step. An item's probes stand in one batch, whatever is beside them:
        how they are summed depends on nothing but the item."""
        x, counts = state.images, self._counts(state)
        heard = _Heard(
            point=state.point.clone(),
            fooled=torch.zeros_like(state.finished),
            asked=counts,
            offsets=torch.zeros_like(x),
            signed_offsets=torch.zeros_like(x),
            answers=torch.zeros_like(state.eps),
        )
        probing = state.phase == PROBE
        alone = ((counts > 0) & ~probing).nonzero().squeeze(1)
        for rows in alone.split(oracle.at_once) if len(alone) else ():
            logits = oracle.logits_of(state.point[rows], rows, len(state))
            heard.fooled[rows] = losses.margin(logits, state.labels[rows], state.goals[rows]) < 0
        for items in _groups((counts * probing).tolist(), oracle.at_once):
            self._probe(oracle, state, items, heard, threat)
        return heard

    def _probe(
        self,
        oracle: Oracle,
        state: HopSkipJumpState,
        items: Sequence[int],
        heard: _Heard,
        threat: Threat,
    ) -> None:
        """Ask for the probes of some items, in one batch."""
        counts = heard.asked[items]
        rows = torch.tensor(items, device=counts.device).repeat_interleave(counts)
        number = torch.cat([torch.arange(n, device=rows.device) for n in counts.tolist()])
        points = self._probes(state, rows, number, threat)
        logits = oracle.logits_of(points, rows, len(state))
        fooled = losses.margin(logits, state.labels[rows], state.goals[rows]) < 0
        distance = threat.distance(points, state.images[rows])
        distance = torch.where(fooled, distance, torch.inf)
        # Offsets are measured after the box cut them.
        radius = self._radius(state)[rows].clamp_min(1e-30)
        offsets = (points - state.edge[rows]) / per_item(radius, points)
        answers = torch.where(fooled, 1.0, -1.0)
        signed = per_item(answers, points) * offsets
        begin = 0
        for item, count in zip(items, counts.tolist(), strict=True):
            own = slice(begin, begin + count)
            begin += count
            closest = distance[own].argmin()
            heard.point[item], heard.fooled[item] = points[own][closest], fooled[own][closest]
            heard.offsets[item] = offsets[own].sum(0)
            heard.signed_offsets[item] = signed[own].sum(0)
            heard.answers[item] = answers[own].sum()

    def _radius(self, state: HopSkipJumpState) -> Float[Tensor, " n"]:
        """How far the probes of a round lie from the edge."""
        return torch.where(state.round <= 1, FIRST_RADIUS, state.reach / state.images[0].numel())

    def _next(self, state: HopSkipJumpState, threat: Threat) -> Images:
        """The next query, by what each item is doing."""
        x, phase, seeds, k = state.images, state.phase, state.seeds, state.queried
        point = _toward(state.outer, x, (state.low + state.high) / 2, threat)
        leap = state.edge + per_item(state.length, x) * state.direction
        point = pick(phase == LEAP, leap, point)
        probing = (phase == PROBE).nonzero().squeeze(1)
        if len(probing):
            first = self._probes(state, probing, torch.zeros_like(probing), threat)
            point = point.index_copy(0, probing, first)
        if bool((phase == SEEK).any()):
            point = pick(phase == SEEK, _random_images(seeds, k, x), point)
        return point.clamp(0, 1)

    def _probes(
        self, state: HopSkipJumpState, rows: Tensor, number: Tensor, threat: Threat
    ) -> Images:
        """Random points around the edges of some items: of each the `number`-th, (M,), after its
        last query."""
        draw = draws.normal if threat.norm == "l2" else _either_way
        offset = draw(state.seeds[rows], state.queried[rows] + number, state.images.shape[1:])
        scale = self._radius(state)[rows] / offset.flatten(1).norm(dim=1).clamp_min(1e-12)
        return (state.edge[rows] + per_item(scale, offset) * offset).clamp(0, 1)


def _groups(counts: Sequence[int], most: int) -> Iterator[list[int]]:
    """Items that ask something, together about `most` queries or those of one item."""
    group: list[int] = []
    size = 0
    for item, count in enumerate(counts):
        if count and group and size + count > most:
            yield group
            group, size = [], 0
        if count:
            group.append(item)
            size += count
    if group:
        yield group


def _either_way(seeds: Tensor, counter: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform in [−1, 1)."""
    return draws.uniform(seeds, counter, shape) * 2 - 1


def _toward(outer: Images, x: Images, share: Tensor, threat: Threat) -> Images:
    """The point at a share of the way from x to `outer`; in L∞, `outer` cut to that share of ε."""
    delta = outer - x
    if threat.norm == "l2":
        return x + per_item(share, x) * delta
    cut = per_item(share * threat.table.distance(delta), x)
    return x + delta.maximum(-cut).minimum(cut)


def _random_images(seeds: Tensor, k: Tensor, like: Images) -> Images:
    """Noise at even iterations k, one colour all over at odd ones: some classifiers see one class
    in all noise."""
    noise = draws.uniform(seeds, k, like.shape[1:])
    return pick(k % 2 == 0, noise, noise[:, :, :1, :1].expand_as(noise))
