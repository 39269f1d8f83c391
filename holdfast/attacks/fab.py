"""FAB: fast adaptive boundary attack."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .base import Oracle
from .hyperplane import nearest_hyperplane, shortest_move
from .losses import margin_loss
from .minimum_norm import MinimumNorm, MinimumNormState
from .state import Items, pick


class FAB(MinimumNorm[MinimumNormState]):
    """The closest point, by projections onto the linearised decision boundary inside the box.

    Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
    ICML 2020. Each move mixes the projections of the current point and of the image onto the
    hyperplane, both overshot; an adversarial point is first pulled back towards the image. Here the
    boundary is linearised at the point that was queried, also where that point is then pulled back;
    the paper asks the model a second time for each such point.

    Args:
        steps: moves after the start.
        targeted: approach the boundary between the label and the item's target class. Otherwise
            the nearest boundary of all, at K − 1 backwards a step.
        start: `clean`, or `random`: at a distance of ε/2.
        image_share: α_max, largest weight of the image's own projection, in [0, 1); 0.1 as
            published.
        overshoot: η, factor on the projections, at least 1; 1.05 as published.
        pull_back: β, factor on the distance of an adversarial point, in (0, 1]; 0.9 as published.
        stop_inside: see `MinimumNorm`.

    Cost: steps + 1 forwards, and as many backwards; K − 1 times as many where untargeted.

    Raises:
        InputError: a setting outside its range.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> threat = Threat("linf", 0.5)
        >>> points = FAB(steps=10, stop_inside=False)(model, images, labels, threat)
        >>> round(float(threat.distance(points, images)), 2)  # the hyperplane is 0.05 away
        0.05
    """

    name = "fab"
    norms = frozenset({"linf", "l2", "l1"})

    def __init__(
        self,
        *,
        steps: int = 100,
        targeted: bool = False,
        start: str = "clean",
        image_share: float = 0.1,
        overshoot: float = 1.05,
        pull_back: float = 0.9,
        stop_inside: bool = True,
    ):
        if steps < 1:
            raise InputError(f"steps must be at least 1, not {steps}")
        if start not in ("clean", "random"):
            raise InputError(f"start must be 'clean' or 'random', not {start!r}")
        if not 0 <= image_share < 1:
            raise InputError(f"image_share must be in [0, 1), not {image_share}")
        if overshoot < 1:
            raise InputError(f"overshoot must be at least 1, not {overshoot}")
        if not 0 < pull_back <= 1:
            raise InputError(f"pull_back must be in (0, 1], not {pull_back}")
        super().__init__(
            steps=steps,
            targeted=targeted,
            start=start,
            image_share=image_share,
            overshoot=overshoot,
            pull_back=pull_back,
            stop_inside=stop_inside,
        )
        self.name = "fab" + "-targeted" * targeted
        self.targeted, self.random_start = targeted, start == "random"
        self.image_share, self.overshoot, self.pull_back = image_share, overshoot, pull_back
        self.iterations = steps + 1

    def first_point(self, items: Items, threat: Threat) -> Images:
        x = items.images
        if not self.random_start:
            return x
        if threat.norm == "linf":
            noise = draws.uniform(items.seeds, 0, x.shape[1:]) * 2 - 1
        else:
            noise = draws.normal(items.seeds, 0, x.shape[1:])
        length = items.eps / 2 / threat.table.distance(noise).clamp_min(1e-12)
        return (x + per_item(length, x) * noise).clamp(0, 1)

    def step(self, oracle: Oracle, state: MinimumNormState, threat: Threat) -> MinimumNormState:
        x, queried, labels = state.images, state.point, state.labels
        one_boundary = self.targeted or state.aimed
        if one_boundary:
            normal, logits, value = oracle.gradient(
                queried, lambda z: state.climbed(margin_loss, z)
            )
        else:
            normals, values, logits = oracle.class_differences(queried, labels)
        state, fooled = self.record(state, logits, threat)
        # An adversarial point is pulled back: x_i = (1 − β) x + β x_i.
        point = pick(fooled, x + self.pull_back * (queried - x), queried)
        back = torch.where(fooled, 1 - self.pull_back, 0.0)  # share of the way to the image
        if one_boundary:
            rise = _dot(normal, queried - x)
        else:
            rises = torch.stack([_dot(n, queried - x) for n in normals.unbind(1)], 1)
            nearest, _ = nearest_hyperplane(
                point, normals, values - back[:, None] * rises, threat.norm
            )
            rows = torch.arange(len(x), device=x.device)
            normal, value, rise = (v[rows, nearest] for v in (normals, values, rises))
        # d_i and d: the shortest moves from x_i and from the image x to the hyperplane.
        d_i = shortest_move(point, normal, value - back * rise, threat.norm)
        d = shortest_move(x, normal, value - rise, threat.norm)
        # α = min(‖d_i‖ / (‖d_i‖ + ‖d‖), α_max)
        length = threat.table.distance(d_i)
        both = (length + threat.table.distance(d)).clamp_min(1e-12)
        alpha = per_item((length / both).clamp_max(self.image_share), x)
        # x_{i+1} = (1 − α) (x_i + η d_i) + α (x + η d), cut to the box
        eta = self.overshoot
        moved = (1 - alpha) * (point + eta * d_i) + alpha * (x + eta * d)
        return state.replace(point=moved.clamp(0, 1), iteration=state.iteration + 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))
