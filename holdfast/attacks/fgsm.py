"""One-step attacks: FGSM, and its noisy, unclipped form for training (N-FGSM)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..threat import Threat, per_item
from ..types import Images
from .gradient_ascent import GradientAscent
from .state import Items, State


class FGSM(GradientAscent):
    """One step of length `step` × ε along the steepest direction of the cross-entropy.

    Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015. With
    `noise=2, clip=False` it is N-FGSM (de Jorge et al., "Make some noise", NeurIPS 2022), whose
    points leave the ball on purpose: for training only.

    Args:
        step: in units of ε.
        noise: the start lies this many ε from the image at most (0: the image itself).
        clip: whether points are brought back into the ball. The box always holds.
        loss: `ce`, `dlr` or `margin`.

    Cost: 2 forwards and 2 backwards; 1 and 1 in training, where the end is not queried.

    Raises:
        InputError: an unknown loss.

    Example:
        A model that answers class 0 where the sum of the pixels is above 1:

        >>> import torch
        >>> images, labels = torch.full((1, 1, 2, 2), 0.3), torch.tensor([0])
        >>> model = lambda x: (x.sum((1, 2, 3)) - 1)[:, None] * torch.tensor([1.0, -1.0])
        >>> FGSM()(model, images, labels, Threat("linf", 0.1)).flatten()
        tensor([0.2000, 0.2000, 0.2000, 0.2000])
    """

    name = "fgsm"

    def __init__(
        self, *, step: float = 1.0, noise: float = 0.0, clip: bool = True, loss: str = "ce"
    ):
        super().__init__(steps=1, loss=loss)
        self.settings = {"step": step, "noise": noise, "clip": clip, "loss": loss}
        self.length, self.noise, self.clip = step, noise, clip

    def first_point(self, items: Items, threat: Threat) -> Images:
        x = items.images
        if not self.noise:
            return x
        noise = per_item(items.eps * self.noise, x) * threat.table.noise(items.seeds, 0, x)
        return self.project(x + noise, items, threat)

    def step_size(self, state: State) -> Float[Tensor, " n"]:
        return state.eps * self.length

    def project(self, point: Images, items: Items, threat: Threat) -> Images:
        if self.clip:
            return super().project(point, items, threat)
        return point.clamp(0, 1)
