"""HopSkipJump: along the boundary, from decisions alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..threat import Images, Threat, per_item
from .base import Items, Oracle, State, pick
from .minimum_norm import MinimumNorm

# What an item is doing; each look at the model serves one of these.
SEEK, BISECT, PROBE, LEAP = range(4)
FIRST_RADIUS = 0.1  # of the first probes, image units
FINEST = 1e-6  # a bisection cannot be finer than float32
SHORTEST_LEAP = 1e-3  # of the distance; below it the direction is given up


class HopSkipJump(MinimumNorm):
    """Chen, Jordan & Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack",
    S&P 2020. Looks at nothing but the predicted class.

    From a misclassified random image, each round goes to the boundary by bisection towards the
    clean image, estimates the boundary's normal from `probes` · √round random points around, and
    leaps along it, half as far until the point is adversarial.

    Every look is one forward pass, whatever the item is doing; so items in different rounds
    share a batch.

    Args:
        queries: looks in all. Under a thousand rarely suffices.
        probes: points of the first round's estimate.
        most_probes: of any round's.
        stop_inside: see `MinimumNorm`.

    Cost: `queries` forwards, no backwards.

    Raises:
        InputError: a setting outside its range.
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

    def start(self, items: Items, threat: Threat) -> State:
        self.check_norm(threat)
        x, zeros = items.images, torch.zeros_like(items.eps)
        return self.begin(items, _random_images(items.seeds, 0 * items.labels, x)) | {
            "phase": torch.full_like(items.labels, SEEK),
            "round": torch.zeros_like(items.labels),
            "outer": x,  # adversarial; bisection runs from the image to here
            "low": zeros,  # shares of that way: not adversarial here,
            "high": zeros,  # adversarial here
            "edge": x,  # adversarial, at the boundary
            "reach": zeros,  # distance of the edge
            "asked": zeros,  # probes of this round, the sum of their answers ±1,
            "answers": zeros,
            "sum": torch.zeros_like(x),  # of their offsets,
            "signed_sum": torch.zeros_like(x),  # and of answer × offset
            "direction": torch.zeros_like(x),
            "length": zeros,  # of the next leap
        }

    def step(self, model: Oracle, state: State, threat: Threat) -> State:
        x, looked, phase = state["x"], state["point"], state["phase"]
        size = x[0].numel()
        finest = max(size ** (-2.0 if threat.norm == "linf" else -1.5), FINEST)
        state, fooled = self.record(state, model.logits(looked), threat)
        seeks, bisects, probes, leaps = (phase == p for p in (SEEK, BISECT, PROBE, LEAP))

        # A found or leapt-to adversarial point is the far end of a new bisection.
        landed = (seeks | leaps) & fooled
        outer = pick(landed, looked, state["outer"])
        middle = (state["low"] + state["high"]) / 2
        high = torch.where(bisects & fooled, middle, state["high"])
        low = torch.where(bisects & ~fooled, middle, state["low"])
        low, high = torch.where(landed, 0.0, low), torch.where(landed, 1.0, high)
        arrived = bisects & (high - low <= finest)
        edge = pick(arrived, _toward(outer, x, high, threat), state["edge"])
        reach = torch.where(arrived, threat.distance(edge, x), state["reach"])

        # Offsets are measured after the box cut them.
        radius = self._radius(state["round"], state["reach"], size)
        answer = torch.where(fooled, 1.0, -1.0)
        offset = (looked - state["edge"]) / per_item(radius.clamp_min(1e-30), x)
        total = pick(probes, state["sum"] + offset, state["sum"])
        signed = pick(
            probes, state["signed_sum"] + per_item(answer, x) * offset, state["signed_sum"]
        )
        answers = torch.where(probes, state["answers"] + answer, state["answers"])
        asked = state["asked"] + probes
        wanted = (self.probes * state["round"].sqrt()).floor().clamp(1, self.most_probes)
        estimated = probes & (asked >= wanted)
        mean = answers / asked.clamp_min(1)
        # The mean answer is a baseline; where all answers agree, it would leave nothing.
        baseline = torch.where(mean.abs() < 1, mean, 0.0)
        normal = threat.table.steepest(signed - per_item(baseline, x) * total)
        direction = pick(estimated, normal, state["direction"])
        length = torch.where(estimated, reach / state["round"].clamp_min(1).sqrt(), state["length"])
        length = torch.where(leaps & ~fooled, length / 2, length)
        lost = leaps & ~fooled & (length < SHORTEST_LEAP * reach)

        fresh = arrived | lost  # a new round of probes begins
        phase = torch.where(landed, BISECT, phase)
        phase = torch.where(fresh, PROBE, phase)
        phase = torch.where(estimated, LEAP, phase)
        state |= {
            "phase": phase,
            "round": state["round"] + fresh,
            "outer": outer,
            "low": low,
            "high": high,
            "edge": edge,
            "reach": reach,
            "asked": torch.where(fresh, 0.0, asked),
            "answers": torch.where(fresh, 0.0, answers),
            "sum": pick(fresh, torch.zeros_like(x), total),
            "signed_sum": pick(fresh, torch.zeros_like(x), signed),
            "direction": direction,
            "length": length,
        }
        state["point"] = self._next(state, threat)
        return state

    def _radius(self, round_: Tensor, reach: Tensor, size: int) -> Tensor:
        """How far the probes of a round lie from the edge."""
        return torch.where(round_ <= 1, FIRST_RADIUS, reach / size)

    def _next(self, state: State, threat: Threat) -> Images:
        """Where to look next, by what each item is doing."""
        x, phase, seeds, age = state["x"], state["phase"], state["seeds"], state["age"]
        point = _toward(state["outer"], x, (state["low"] + state["high"]) / 2, threat)
        leap = state["edge"] + per_item(state["length"], x) * state["direction"]
        point = pick(phase == LEAP, leap, point)
        if bool((phase == PROBE).any()):
            if threat.norm == "l2":
                offset = draws.normal(seeds, age, x.shape[1:])
            else:
                offset = draws.uniform(seeds, age, x.shape[1:]) * 2 - 1
            radius = self._radius(state["round"], state["reach"], x[0].numel())
            scale = radius / offset.flatten(1).norm(dim=1).clamp_min(1e-12)
            probe = state["edge"] + per_item(scale, x) * offset
            point = pick(phase == PROBE, probe, point)
        if bool((phase == SEEK).any()):
            point = pick(phase == SEEK, _random_images(seeds, age, x), point)
        return point.clamp(0, 1)


def _toward(outer: Images, x: Images, share: Tensor, threat: Threat) -> Images:
    """The point at a share of the way from x to `outer`; in L∞, `outer` cut to that share of ε."""
    delta = outer - x
    if threat.norm == "l2":
        return x + per_item(share, x) * delta
    cut = per_item(share * threat.table.distance(delta), x)
    return x + delta.maximum(-cut).minimum(cut)


def _random_images(seeds: Tensor, age: Tensor, like: Images) -> Images:
    """Noise at even ages, one colour all over at odd ones: some classifiers see one class in all
    noise."""
    noise = draws.uniform(seeds, age, like.shape[1:])
    return pick(age % 2 == 0, noise, noise[:, :, :1, :1].expand_as(noise))
