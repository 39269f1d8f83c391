"""Rotation and translation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .. import draws as random_draws
from ..errors import InputError
from ..spatial import PARAMETERS, moved
from ..threat import Images, Threat
from .base import Attack, Items, Oracle, State, common_state, observe, pick
from .losses import margin_loss
from .minimum_norm import cosine

LENGTHS = (0.2, 0.01)  # of gradient steps, in units of what the threat model allows


class RotationTranslation(Attack):
    """Engstrom et al., "Exploring the landscape of spatial robustness", ICML 2019: the worst of a
    grid of rotations and shifts, of random ones, and of gradient steps from the best of these.

    The image alone does not show that it is a turned one, so the state's `witness` (N, 3) holds
    the parameters of `best` (see `holdfast.spatial.moved`); whoever doubts it applies them.

    Args:
        grid: how many rotations, and how many shifts each way; (0, 0) for none. (31, 5) as
            published: 775 points, both ends of each range among them.
        draws: random points after the grid (the paper's worst-of-k).
        steps: gradient steps after these, from the best point so far. In the paper they are the
            weakest of the three, because the loss has many local optima.

    Cost: rotations × shifts² + draws + steps forwards; as many backwards where there are steps.

    Raises:
        InputError: a setting outside its range.
    """

    norms = frozenset({"spatial"})

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

    def start(self, items: Items, threat: Threat) -> State:
        self.check_norm(threat)
        state = common_state(items, items.images)
        still = torch.zeros(len(items), PARAMETERS, device=items.images.device)
        return state | self._look(state, still, threat) | {"witness": still}

    def step(self, model: Oracle, state: State, threat: Threat) -> State:
        age, looked = state["age"], state["parameters"]
        climbing = age + 1 > self.on_grid + self.draws
        if self.steps:
            slope, logits, _ = model.gradient(
                state["point"], lambda z: margin_loss(z, state["labels"], state["targets"])
            )
        else:
            logits = model.logits(state["point"])
        best, score = observe(state, logits)
        witness = pick(score < state["score"], looked, state["witness"])
        state = {
            **state,
            "best": best,
            "score": score,
            "witness": witness,
            "age": age + 1,
            "finished": age >= self.iterations - 1,
        }
        following = looked
        if self.steps and bool(climbing.any()):
            following = self._climb(state, looked, slope, threat)
        return state | self._look(state, following, threat)

    def _look(
        self, state: State, following: Float[Tensor, "n 3"], threat: Threat
    ) -> dict[str, Images]:
        """`parameters` and `point` of the next look: `following` where the climb goes on."""
        limits, age = threat.limits(state["eps"]), state["age"]
        drawn = random_draws.uniform(state["seeds"], age, (PARAMETERS,)) * 2 - 1
        parameters = pick(age < self.on_grid, self._grid_point(age), drawn) * limits
        first = self.on_grid + self.draws
        parameters = pick(age == first, state.get("witness", following), parameters)
        parameters = pick(age > first, following, parameters)
        return {"parameters": parameters, "point": moved(state["x"], parameters)}

    def _grid_point(self, age: Tensor) -> Float[Tensor, "n 3"]:
        """The age-th point of the grid, (N, 3) in [−1, 1]; anything once the grid is done."""
        places = []
        for count in (self.shifts, self.shifts, self.rotations):
            place = age % max(count, 1)
            # One value alone stands in the middle.
            places.append(place * 2 / (count - 1) - 1 if count > 1 else 0.0 * place)
            age = age // max(count, 1)
        right, down, angle = places
        return torch.stack([angle, down, right], 1).float()

    def _climb(
        self, state: State, looked: Tensor, slope: Images, threat: Threat
    ) -> Float[Tensor, "n 3"]:
        """A signed step along the loss's gradient in the parameters, inside what is allowed."""
        with torch.enable_grad():
            parameters = looked.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(moved(state["x"], parameters), parameters, slope)
        limits = threat.limits(state["eps"])
        first = self.on_grid + self.draws
        length = cosine((state["age"] - first - 1).clamp_min(0), self.steps, *LENGTHS)[:, None]
        step = length * limits * gradient.nan_to_num(0.0, 0.0, 0.0).sign()
        return torch.minimum(torch.maximum(looked + step, -limits), limits)
