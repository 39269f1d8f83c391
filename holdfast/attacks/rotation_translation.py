"""Rotation and translation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .. import draws as random_draws
from ..errors import InputError
from ..spatial import PARAMETERS, transformed
from ..threat import Threat
from ..types import Images
from .base import Attack, Oracle
from .losses import margin_loss
from .schedules import cosine
from .state import Items, State, pick

LENGTHS = (0.2, 0.01)  # of gradient steps, in units of what the threat model allows


@dataclass(frozen=True, kw_only=True, eq=False)
class RotationTranslationState(State):
    """What the search remembers; `witness` (N, 3) are the parameters of `best`."""

    parameters: Float[Tensor, "n 3"]  # of `point`: degrees, pixels down, pixels right


class RotationTranslation(Attack[RotationTranslationState]):
    """The worst of a grid of rotations and shifts, of random ones, and of gradient steps.

    Engstrom et al., "Exploring the landscape of spatial robustness", ICML 2019. Gradient steps
    begin at the best point of the grid and the random ones.

    The image alone does not show that it is a turned one, so the state's `witness` (N, 3) holds
    the parameters of `best` (see `holdfast.spatial.transformed`); whoever doubts it applies them.

    Args:
        grid: how many rotations, and how many shifts each way; (0, 0) for none. (31, 5) as
            published: 775 points, both ends of each range among them.
        draws: random points after the grid (the paper's worst-of-k).
        steps: gradient steps after these, from the best point so far. In the paper they are the
            weakest of the three, because the loss has many local optima.

    Cost: rotations × shifts² + draws + steps forwards; as many backwards where there are steps.

    Raises:
        InputError: a setting outside its range.

    Example:
        A bright line that lies on the left half; the model answers class 0 where it does:

        >>> images, labels = torch.zeros(1, 1, 8, 8), torch.tensor([0])
        >>> images[..., 3] = 1
        >>> model = lambda x: torch.stack([x[..., :4].sum((1, 2, 3)), x[..., 4:].sum((1, 2, 3))], 1)
        >>> threat = Threat("spatial", 1, degrees=0, pixels=2)
        >>> points = RotationTranslation(grid=(1, 3))(model, images, labels, threat)
        >>> points[0, 0, 0]
        tensor([0., 0., 0., 0., 0., 1., 0., 0.])
    """

    name = "rotation-translation"
    norms = frozenset({"spatial"})
    reaches = True

    def __init__(self, *, grid: tuple[int, int] = (31, 5), draws: int = 0, steps: int = 0):
        rotations, shifts = grid
        for what, count in (
            ("rotations of the grid", rotations),
            ("shifts of the grid", shifts),
            ("draws", draws),
            ("steps", steps),
        ):
            if count < 0:
                raise InputError(f"{what} must be at least 0, not {count}")
        super().__init__(grid=list(grid), draws=draws, steps=steps)
        self.on_grid = rotations * shifts**2
        self.iterations = self.on_grid + draws + steps
        if self.iterations < 1:
            raise InputError("a grid, draws or steps: one of them must not be 0")
        self.rotations, self.shifts, self.draws, self.steps = rotations, shifts, draws, steps
        self.needs_gradient = steps > 0
        kind = "-gradient" if steps else "" if self.on_grid else "-random"
        self.name = f"rotation-translation{kind}"

    @property
    def needs_scores(self) -> bool:
        return self.steps > 0  # grid and draws only try

    def begin(self, items: Items, point: Images, threat: Threat) -> RotationTranslationState:
        still = torch.zeros(len(items), PARAMETERS, device=items.images.device)
        state = RotationTranslationState.begin(items, point, parameters=still, witness=still)
        return self._turned(state, still, threat)

    def step(
        self, oracle: Oracle, state: RotationTranslationState, threat: Threat
    ) -> RotationTranslationState:
        k, parameters = state.iteration, state.parameters
        if self.steps:
            slope, logits, _ = oracle.gradient(state.point, lambda z: state.climbed(margin_loss, z))
        else:
            logits = oracle.logits(state.point)
        seen = state.observe(logits)
        seen = seen.replace(
            witness=pick(seen.score < state.score, parameters, state.witness),
            iteration=k + 1,
            finished=k >= self.iterations - 1,
        )
        climbing = k + 1 > self.on_grid + self.draws
        if self.steps and bool(climbing.any()):
            parameters = self._climb(seen, parameters, slope, threat)
        return self._turned(seen, parameters, threat)

    def _turned(
        self, state: RotationTranslationState, climbed: Float[Tensor, "n 3"], threat: Threat
    ) -> RotationTranslationState:
        """The state with the next `parameters` and `point`: `climbed` where a climb goes on."""
        limits, k = threat.limits(state.eps), state.iteration
        drawn = random_draws.uniform(state.seeds, k, (PARAMETERS,)) * 2 - 1
        parameters = pick(k < self.on_grid, self._grid_point(k), drawn) * limits
        first = self.on_grid + self.draws
        parameters = pick(k == first, state.witness, parameters)
        parameters = pick(k > first, climbed, parameters)
        return state.replace(parameters=parameters, point=transformed(state.images, parameters))

    def _grid_point(self, k: Int64[Tensor, " n"]) -> Float[Tensor, "n 3"]:
        """The k-th point of the grid, (N, 3) in [−1, 1]; anything once the grid is done."""
        places = []
        for count in (self.shifts, self.shifts, self.rotations):
            place = k % max(count, 1)
            # One value alone stands in the middle.
            places.append(place * 2 / (count - 1) - 1 if count > 1 else 0.0 * place)
            k = k // max(count, 1)
        right, down, angle = places
        return torch.stack([angle, down, right], 1).float()

    def _climb(
        self, state: State, parameters: Float[Tensor, "n 3"], slope: Images, threat: Threat
    ) -> Float[Tensor, "n 3"]:
        """A signed step along the loss's gradient in the parameters, inside what is allowed."""
        with torch.enable_grad():
            leaf = parameters.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(transformed(state.images, leaf), leaf, slope)
        limits = threat.limits(state.eps)
        first = self.on_grid + self.draws
        length = cosine((state.iteration - first - 1).clamp_min(0), self.steps, *LENGTHS)[:, None]
        step = length * limits * gradient.nan_to_num(0.0, 0.0, 0.0).sign()
        return torch.minimum(torch.maximum(parameters + step, -limits), limits)
