"""DeepFool: to the nearest linearised boundary, again and again."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..threat import Threat
from ..types import Images
from .base import Oracle
from .hyperplane import nearest_hyperplane, shortest_move
from .losses import margin_loss
from .minimum_norm import MinimumNorm, MinimumNormState
from .state import Items


@dataclass(frozen=True, kw_only=True, eq=False)
class DeepFoolState(MinimumNormState):
    """What DeepFool remembers."""

    path: Float[Tensor, "n c h w"]  # x + Σ r_i, the point before it was overshot


class DeepFool(MinimumNorm[DeepFoolState]):
    """The closest point, by steps to the nearest linearised class boundary.

    Moosavi-Dezfooli, Fawzi & Frossard, "DeepFool: a simple and accurate method to fool deep neural
    networks", CVPR 2016, algorithm 2. Each move goes to the nearest of the linearised class
    boundaries, by the shortest way inside the box (the paper leaves the box and clips). The search
    ends at the first adversarial point.

    Args:
        steps: moves at most.
        overshoot: share by which the way from the image is lengthened, to cross the boundary.
        stop_inside: see `MinimumNorm`.

    Cost: at most steps + 1 forwards and (steps + 1) × (K − 1) backwards; usually a few.

    Raises:
        InputError: a setting outside its range.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> import torch
        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> threat = Threat("l2", 0.5)
        >>> points = DeepFool()(model, images, labels, threat)
        >>> round(float(threat.distance(points, images)), 2)  # the hyperplane is 0.1 away
        0.1
    """

    name = "deepfool"
    norms = frozenset({"linf", "l2"})

    def __init__(self, *, steps: int = 50, overshoot: float = 0.02, stop_inside: bool = True):
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        if overshoot < 0:
            raise InputError(f"overshoot must not be below 0, not {overshoot}")
        super().__init__(steps=steps, overshoot=overshoot, stop_inside=stop_inside)
        self.overshoot = overshoot
        self.iterations = steps + 1

    def begin(self, items: Items, point: Images, threat: Threat) -> DeepFoolState:
        return DeepFoolState.begin(items, point, path=point)

    def step(self, oracle: Oracle, state: DeepFoolState, threat: Threat) -> DeepFoolState:
        x = state.images
        if state.aimed:  # one boundary, between the goal and the strongest other class
            normal, logits, value = oracle.gradient(
                state.point, lambda z: state.climbed(margin_loss, z)
            )
            r = shortest_move(state.point, normal, value, threat.norm)
        else:
            normals, values, logits = oracle.class_differences(state.point, state.labels)
            _, r = nearest_hyperplane(state.point, normals, values, threat.norm)
        state, _ = self.record(state, logits, threat, gave_up=state.margin(logits) < 0)
        # The path keeps the way without the overshoot, which would else grow with every step.
        path = state.path + r
        return state.replace(
            path=path,
            point=(x + (1 + self.overshoot) * (path - x)).clamp(0, 1),
            iteration=state.iteration + 1,
        )
