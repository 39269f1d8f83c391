"""PGD: projected gradient descent on the model's accuracy, with a fixed step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..threat import Threat, per_item
from ..types import Images
from .gradient_ascent import GradientAscent
from .losses import Loss
from .state import Items, State


@dataclass(frozen=True, kw_only=True, eq=False)
class PGDState(State):
    """What PGD remembers."""

    g: Float[Tensor, "n c h w"]  # the accumulated gradient; stays 0 without momentum


class PGD(GradientAscent[PGDState]):
    """Projected gradient ascent: steps of a fixed length from a random start.

    Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018;
    with `momentum`, Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018,
    algorithm 1.

    Args:
        steps: moves; each is one forward and one backward. The end is queried too.
        step_size: in units of ε; by default 2.5 / steps, which can cross the ball.
        start: `random` in the ball, or `clean`.
        momentum: μ, of the gradients, each divided by its mean absolute value; 0 for none.
        loss: `ce`, `dlr`, `margin`, or a function of (logits, labels, targets) to one value an
            image.

    Cost: steps + 1 forwards and as many backwards.

    Raises:
        InputError: steps below 1, an unknown start or loss.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> points = PGD(steps=10)(model, images, labels, Threat("linf", 0.1))
        >>> model(points).argmax(1)
        tensor([1])
    """

    name = "pgd"

    def __init__(
        self,
        *,
        steps: int = 40,
        step_size: float | None = None,
        start: str = "random",
        momentum: float = 0.0,
        loss: str | Loss = "ce",
    ):
        super().__init__(
            steps=steps, step_size=step_size, start=start, momentum=momentum, loss=loss
        )
        if start not in ("random", "clean"):
            raise InputError(f"start must be 'random' or 'clean', not {start!r}")
        self.length = 2.5 / steps if step_size is None else step_size
        self.random_start, self.momentum = start == "random", momentum

    def first_point(self, items: Items, threat: Threat) -> Images:
        return super().first_point(items, threat) if self.random_start else items.images

    def begin(self, items: Items, point: Images, threat: Threat) -> PGDState:
        return PGDState.begin(items, point, g=torch.zeros_like(items.images))

    def direction(
        self, gradient: Images, state: PGDState, threat: Threat
    ) -> tuple[Images, PGDState]:
        if self.momentum:
            # Dong et al., eq. 6: g_{k+1} = μ · g_k + ∇ / ‖∇‖₁, here with the mean for the sum.
            size = gradient.flatten(1).abs().mean(1).clamp_min(1e-30)
            gradient = self.momentum * state.g + gradient / per_item(size, gradient)
            state = state.replace(g=gradient)
        return super().direction(gradient, state, threat)

    def step_size(self, state: PGDState) -> Float[Tensor, " n"]:
        return state.eps * self.length
