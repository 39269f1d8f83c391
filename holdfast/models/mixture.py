"""Mixtures: the probabilities of a robust and of an accurate network, averaged.

Bai, Zhou, Patel & Sojoudi, "MixedNUTS: training-free accuracy-robustness balance via nonlinearly
mixed classifiers", TMLR 2024. A robust network is surer of its right predictions than of its wrong
ones, even under attack. A transformation of its logits widens this gap. Where the robust network
is sure, it then decides; elsewhere the accurate network does.
"""

from __future__ import annotations

import math

import torch
import torch.fx
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..types import Images
from .backward import OffersBackwards, replace_backward

# torch.fx cannot trace a function with its own backward pass: traced copies call it as it is.
torch.fx.wrap("replace_backward")


def sharpened(
    logits: Float[Tensor, "*n k"], scale: float, power: float, shift: float
) -> Float[Tensor, "*n k"]:
    """scale · |v|^power · sign(v), where v = GELU(u + shift) and u are the standardised logits.

    Equation 5 of the paper. Standardised logits have mean 0 and variance 1 over the classes. The
    order of all classes with u + shift > 0 stays the same.

    Example:
        >>> sharpened(torch.tensor([[2.0, 1.0, 0.0]]), scale=2.0, power=3.0, shift=0.0)
        tensor([[ 2.5872,  0.0000, -0.0049]])
    """
    standardised = F.layer_norm(logits, logits.shape[-1:])
    clamped = F.gelu(standardised + shift)
    return scale * clamped.abs().pow(power) * clamped.sign()


class Mixture(OffersBackwards):
    """log((1 − weight) · softmax(accurate) + weight · softmax(sharpened(robust))).

    Attacks may choose between two backward passes. `exact` differentiates through both networks
    and the transformation. Where the sharpened robust network is certain, its slope is nearly 0,
    and the exact gradient is almost that of the accurate network, which does not decide there. So
    `surrogate` takes the gradient of the robust network's own logits.

    Args:
        robust, accurate: images (N, C, H, W) → logits (N, K), the same classes in the same order.
        weight: of the robust network, 0 to 1. Above ½, the robust network can overrule the
            accurate one, and the accurate one cannot overrule the robust one.
        scale: above 0; None leaves the robust network's logits as they are, so that
            probabilities are simply averaged.
        power: at least 1.
        shift: any number; see `sharpened`.

    Raises:
        InputError: a parameter out of its range.

    Example:
        >>> robust, accurate = (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2))
        >>> mixture = Mixture(robust, accurate, weight=0.7, scale=2.0, power=3.0)
        >>> mixture(torch.rand(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """

    backwards = ("exact", "surrogate")

    def __init__(
        self,
        robust: nn.Module,
        accurate: nn.Module,
        *,
        weight: float = 0.5,
        scale: float | None = None,
        power: float = 1.0,
        shift: float = 0.0,
    ):
        super().__init__()
        for name, value, good, says in (
            ("weight", weight, lambda v: 0 <= v <= 1, "from 0 to 1"),
            ("scale", 1.0 if scale is None else scale, lambda v: v > 0, "above 0"),
            ("power", power, lambda v: v >= 1, "of at least 1"),
            ("shift", shift, lambda v: True, "that is finite"),
        ):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and good(value)):
                raise InputError(f"{name} of a mixture must be a number {says}, not {value!r}")
        self.robust, self.accurate = robust, accurate
        self.weight, self.scale, self.power, self.shift = weight, scale, power, shift

    def extra_repr(self) -> str:
        return f"weight={self.weight}, scale={self.scale}, power={self.power}, shift={self.shift}"

    def forward(self, images: Images) -> Float[Tensor, "n k"]:
        # The robust network may write to its images, so it gets a copy.
        robust, accurate = self.robust(images.clone()).float(), self.accurate(images).float()
        sharp = robust
        if self.scale is not None:
            sharp = sharpened(robust, self.scale, self.power, self.shift)
        # In logarithms, so that a class of tiny probability still has a gradient.
        mixed = torch.logaddexp(
            F.log_softmax(sharp, 1) + _log(self.weight),
            F.log_softmax(accurate, 1) + _log(1 - self.weight),
        )
        return mixed if self.backward == "exact" else replace_backward(mixed, robust)


def _log(value: float) -> float:
    return math.log(value) if value else -math.inf
