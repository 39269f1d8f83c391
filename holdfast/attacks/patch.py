"""A square patch that may hold anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .base import Attack, Oracle
from .losses import margin_loss
from .schedules import cosine
from .state import Items, State, pick

# Steps in image units, from the first to the last of a place's share and of the final search.
TRIAL_LENGTHS = (0.5, 0.1)
FINAL_LENGTHS = (0.25, 0.01)


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchState(State):
    """What the search for a patch remembers."""

    slope: Float[Tensor, "n c h w"]  # of the loss at the image
    corners: Int64[Tensor, "n places 2"]  # (row, column) of the top left pixels to be tried
    corner: Int64[Tensor, "n 2"]  # of the patch at `point`
    best_corner: Int64[Tensor, "n 2"]  # of the patch at `best`


class Patch(Attack[PatchState]):
    """One square of pixels, all channels, set to any values, where it harms the image most.

    After Brown et al., "Adversarial patch", 2017, but one patch an image, at a place of its own.
    A patch of side s changes at most C·s² components, so it lives in the L0 ball: s is the
    largest that ε allows. It is the weaker for being a square, and a verdict says so: standing
    against this attack is no claim about L0 attacks in general.

    The first query, at the image, scores every place: by how much the loss rises, to first order,
    if each component of the square goes to its better wall. Each of the best `places`, which
    overlap by half at most, is then tried for `trials` signed gradient steps from there; the best
    point found goes on for `steps` more.

    Args:
        steps: moves after the place is chosen.
        places: how many are tried.
        trials: queries of each.
        corner: (row, column) of the top left pixel, in place of a search for it.
        side: of the square in pixels; by default the largest that ε allows.
        start: `slope`, the best places to first order, or `random` places and values.
        targeted: climb towards the item's target class rather than the strongest wrong one.

    Cost: 1 + places × trials + steps forwards and as many backwards.

    Raises:
        InputError: a setting outside its range; at `start`, a side that exceeds ε or the image, or
            a corner outside of it.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> attack = Patch(places=2, trials=2, steps=4)
        >>> attack(model, images, labels, Threat("l0", 1)).flatten()
        tensor([0.0000, 0.3000, 0.3000, 0.3000])
    """

    name = "patch"
    norms = frozenset({"l0"})
    reaches = True

    def __init__(
        self,
        *,
        steps: int = 100,
        places: int = 10,
        trials: int = 10,
        corner: tuple[int, int] | None = None,
        side: int | None = None,
        start: str = "slope",
        targeted: bool = False,
    ):
        for name, count in (("places", places), ("trials", trials), ("side", side)):
            if count is not None and count < 1:
                raise InputError(f"{name} must be at least 1, not {count}")
        if steps < 0:
            raise InputError(f"steps must be at least 0, not {steps}")
        if start not in ("slope", "random"):
            raise InputError(f"start must be 'slope' or 'random', not {start!r}")
        super().__init__(
            steps=steps,
            places=places,
            trials=trials,
            corner=None if corner is None else list(corner),
            side=side,
            start=start,
            targeted=targeted,
        )
        self.name = f"patch{'-targeted' * targeted}{'-random' * (start == 'random')}"
        self.targeted, self.random_start = targeted, start == "random"
        self.steps, self.trials, self.corner, self.side = steps, trials, corner, side
        self.places = places if corner is None else 1
        self.iterations = 1 + self.places * trials + steps

    def begin(self, items: Items, point: Images, threat: Threat) -> PatchState:
        x = items.images
        side = self._side(x, threat.eps)
        here = torch.zeros(len(x), 2, dtype=torch.int64, device=x.device)
        corners = here[:, None].repeat(1, self.places, 1)
        if self.corner is not None:
            row, column = self.corner
            if not (0 <= row <= x.shape[2] - side and 0 <= column <= x.shape[3] - side):
                raise InputError(
                    f"a patch of side {side} at corner {self.corner} leaves images of "
                    f"{x.shape[2]} × {x.shape[3]} pixels"
                )
            corners = corners + torch.tensor(self.corner, device=x.device)
        return PatchState.begin(
            items, point, slope=torch.zeros_like(x), corners=corners, corner=here, best_corner=here
        )

    def step(self, oracle: Oracle, state: PatchState, threat: Threat) -> PatchState:
        x, k = state.images, state.iteration
        side = self._side(x, threat.eps)
        gradient, logits, _ = oracle.gradient(state.point, lambda z: state.climbed(margin_loss, z))
        seen = state.observe(logits)
        best_corner = pick(seen.score < state.score, state.corner, state.best_corner)
        first = k == 0
        slope = pick(first, gradient, state.slope)
        corners = state.corners
        if bool(first.any()) and self.corner is None:
            found = self._choose(x, gradient, state.seeds, side)
            corners = pick(first, found, corners)
        # The clean image has no patch: from there a search would go on at the first place.
        best_corner = pick(first, corners[:, 0], best_corner)

        # What the next query, the (k + 1)-th after the first, belongs to.
        place = (k // self.trials).clamp_max(self.places - 1)
        searching = k >= self.places * self.trials
        opening = ~searching & (k % self.trials == 0)
        closing = k == self.places * self.trials
        fresh = corners.gather(1, place.view(-1, 1, 1).expand(-1, 1, 2)).squeeze(1)
        corner = pick(opening, fresh, pick(closing, best_corner, state.corner))

        length = torch.where(
            searching,
            cosine(k - self.places * self.trials, max(self.steps, 1), *FINAL_LENGTHS),
            cosine(k % self.trials, self.trials, *TRIAL_LENGTHS),
        )
        moved = state.point + per_item(length, x) * gradient.sign()
        if self.random_start:
            filled = draws.uniform(state.seeds, 2 * place + 1, x.shape[1:])
        else:
            filled = torch.where(slope == 0, x, (slope > 0).to(x))
        point = pick(opening, filled, pick(closing, seen.best, moved)).clamp(0, 1)
        return seen.replace(
            best_corner=best_corner,
            slope=slope,
            corners=corners,
            corner=corner,
            # Outside of the patch the components are the image's own, bit for bit.
            point=torch.where(_square(corner, side, x), point, x),
            iteration=k + 1,
            finished=k >= self.iterations - 1,
        )

    def _side(self, x: Images, eps: float) -> int:
        channels, height, width = x.shape[1:]
        largest = int((eps / channels) ** 0.5 + 1e-6)
        side = self.side or min(largest, height, width)
        if side > largest or side > min(height, width) or side < 1:
            raise InputError(
                f"a patch of side {max(side, 1)} changes up to {channels * max(side, 1) ** 2} "
                f"components of images of {channels} × {height} × {width}; ε is {eps:g}"
            )
        return side

    def _choose(
        self, x: Images, slope: Images, seeds: Int64[Tensor, " n"], side: int
    ) -> Int64[Tensor, "n places 2"]:
        """The corners of the places to try."""
        rows, columns = x.shape[2] - side + 1, x.shape[3] - side + 1
        if self.random_start:
            shares = draws.uniform(seeds, 0, (self.places, 2))
            return (shares * torch.tensor([rows, columns], device=x.device)).long()
        return best_places(x, slope, side, self.places)


def best_places(
    x: Images, slope: Float[Tensor, "n c h w"], side: int, count: int
) -> Int64[Tensor, "n count 2"]:
    """Corners of the squares in which a linear function rises most, the best first.

    Each leaves a distance of half a side at least to the better ones; where there are not so
    many, the best is repeated.

    Args:
        slope: of the function, which each component raises most by going to its better wall.
    """
    gain = torch.where(slope > 0, 1 - x, -x) * slope
    gain = F.avg_pool2d(gain.sum(1, keepdim=True), side, stride=1).squeeze(1)  # mean or sum: alike
    rows = torch.arange(gain.shape[1], device=x.device)[:, None]
    columns = torch.arange(gain.shape[2], device=x.device)
    apart = max(1, -(-side // 2))
    corners = []
    for _ in range(count):
        place = gain.flatten(1).argmax(1)
        row, column = place // gain.shape[2], place % gain.shape[2]
        corners.append(torch.stack([row, column], 1))
        near = ((rows - per_item(row, gain)).abs() < apart) & (
            (columns - per_item(column, gain)).abs() < apart
        )
        taken = gain.masked_fill(near, -1.0)  # gains are never below 0
        gain = pick((taken < 0).flatten(1).all(1), gain, taken)
    return torch.stack(corners, 1)


def _square(corner: Int64[Tensor, "n 2"], side: int, x: Images) -> Tensor:
    """bool (N, 1, H, W): the pixels of each square."""
    row = torch.arange(x.shape[2], device=x.device)[:, None] - corner[:, 0].view(-1, 1, 1, 1)
    column = torch.arange(x.shape[3], device=x.device) - corner[:, 1].view(-1, 1, 1, 1)
    return (row >= 0) & (row < side) & (column >= 0) & (column < side)
