"""Calibrators: maps from logits to better calibrated logits, fitted on the fitting split.

Each has `fit(logits, labels)` and is called on logits (N, K). The result is logits again, so that
every score works on a calibrated model too (`Calibrated`).

Example:
    >>> generator = torch.Generator().manual_seed(0)
    >>> logits = torch.randn(500, 3, generator=generator)
    >>> labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    >>> overconfident = 4 * logits
    >>> temperature = TemperatureScaling.fit(overconfident, labels)
    >>> 3.5 < temperature.temperature < 4.5
    True
    >>> temperature(overconfident).shape
    torch.Size([500, 3])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from sklearn.isotonic import IsotonicRegression
from torch import Tensor, nn

from ..types import Labels, Logits
from .inputs import check_every_class, checked_labels, checked_logits


class Calibrator(Protocol):
    """Logits (N, K) to calibrated logits (N, K)."""

    def __call__(self, logits: Logits) -> Logits: ...


class Calibrated(nn.Module):
    """A model behind a calibrator: images to calibrated logits.

    Args:
        model: images to logits.
        calibrator: logits to logits.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> Calibrated(model, TemperatureScaling(2.0))(torch.rand(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, model: Callable[[Tensor], Logits], calibrator: Calibrator) -> None:
        super().__init__()
        self.model, self.calibrator = model, calibrator

    def forward(self, images: Float[Tensor, "n c h w"]) -> Logits:
        return self.calibrator(self.model(images))


def _check_split(logits: Logits, labels: Labels) -> tuple[Float64[Tensor, "n k"], Labels]:
    z = checked_logits(logits)
    y = checked_labels(labels, *z.shape)
    check_every_class(y, z.shape[1])
    return torch.from_numpy(z), torch.from_numpy(y)


def _minimise_nll(
    calibrated: Callable[[], Logits], parameters: list[Tensor], labels: Labels
) -> None:
    """Minimise the negative log-likelihood by L-BFGS, from parameters 0: the identity.

    A penalty of 10⁻⁶ on the squared parameters decides where the likelihood has no maximum: if
    every prediction is right, a smaller temperature is always likelier. Elsewhere its effect is
    far below the sampling error.
    """
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=200,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = sum(parameter.square().sum() for parameter in parameters)
        loss = F.cross_entropy(calibrated(), labels) + 1e-6 * penalty
        loss.backward()
        return loss

    optimizer.step(closure)


@dataclass(frozen=True)
class TemperatureScaling:
    """z / T, with one temperature T above 0. It changes no prediction.

    Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", ICML 2017.

    Example:
        >>> TemperatureScaling(2.0)(torch.tensor([[4.0, 1.0]]))
        tensor([[2.0000, 0.5000]])
    """

    temperature: float

    @classmethod
    def fit(cls, logits: Logits, labels: Labels) -> Self:
        """The temperature of the highest likelihood.

        Args:
            logits: (N, K) of the fitting split.
            labels: (N,) in 0 … K−1.

        Raises:
            InputError: logits that are NaN or infinite; labels out of range; a class without
                images.
        """
        z, y = _check_split(logits, labels)
        log_slope = torch.zeros((), dtype=torch.float64, requires_grad=True)
        _minimise_nll(lambda: z * log_slope.exp(), [log_slope], y)
        return cls(math.exp(-log_slope.item()))

    def __call__(self, logits: Logits) -> Logits:
        return logits / self.temperature


@dataclass(frozen=True)
class VectorScaling:
    """w_k · z_k + b_k, with a slope w_k above 0 and an offset b_k for each class.

    Guo et al. 2017, who allow any slope.

    Example:
        >>> scaling = VectorScaling(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0]))
        >>> scaling(torch.tensor([[4.0, 1.0]]))
        tensor([[4.0000, 1.5000]])
    """

    slope: Float[Tensor, " k"]
    offset: Float[Tensor, " k"]

    @classmethod
    def fit(cls, logits: Logits, labels: Labels) -> Self:
        """The slopes and offsets of the highest likelihood; as `TemperatureScaling.fit`."""
        z, y = _check_split(logits, labels)
        log_slope, offset = (
            torch.zeros(z.shape[1], dtype=torch.float64, requires_grad=True) for _ in range(2)
        )
        _minimise_nll(lambda: z * log_slope.exp() + offset, [log_slope, offset], y)
        return cls(log_slope.detach().exp(), offset.detach())

    def __call__(self, logits: Logits) -> Logits:
        return logits * self.slope.to(logits) + self.offset.to(logits)


@dataclass(frozen=True)
class IsotonicScaling:
    """For each class, an increasing curve from its probability to how often it is the true class.

    Each class is calibrated against the rest, and probabilities are scaled to sum to 1: Zadrozny &
    Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD
    2002. The curves differ between classes, so predictions may change. Between their knots the
    curves are linear, and flat for the most part, so most gradients through them are 0: attacks
    differentiate the model without them.

    Attributes:
        knots: probabilities and frequencies (M,), 0..1, class by class.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> isotonic = IsotonicScaling.fit(logits, torch.tensor([0, 1, 1, 1]))
        >>> isotonic(logits).softmax(1)[:, 0]
        tensor([0.8889, 0.1111, 0.1111, 0.1111])
    """

    knots: list[tuple[Float64[Tensor, " m"], Float64[Tensor, " m"]]]  # (probability, frequency)

    @classmethod
    def fit(cls, logits: Logits, labels: Labels) -> Self:
        """The increasing curves of the least squared error; as `TemperatureScaling.fit`."""
        z, y = _check_split(logits, labels)
        # A class that is never true among N images is not impossible: its frequency is 0.5 / N.
        least = 0.5 / len(z)
        knots = []
        for k, p in enumerate(z.softmax(1).T):
            curve = IsotonicRegression(y_min=least, y_max=1, out_of_bounds="clip")
            curve.fit(p.numpy(), (y == k).numpy())
            knots.append(
                (torch.from_numpy(curve.X_thresholds_), torch.from_numpy(curve.y_thresholds_))
            )
        return cls(knots)

    def __call__(self, logits: Logits) -> Logits:
        p = logits.double().softmax(1)
        frequencies = [
            _interpolate(p[:, k], x.to(p), y.to(p)) for k, (x, y) in enumerate(self.knots)
        ]
        return torch.stack(frequencies, 1).log().to(logits)


def _interpolate(
    p: Float[Tensor, " n"], x: Float[Tensor, " m"], y: Float[Tensor, " m"]
) -> Float[Tensor, " n"]:
    if len(x) == 1:
        return y.expand_as(p)
    p = p.clamp(x[0], x[-1])
    right = torch.searchsorted(x, p.detach().contiguous()).clamp(1, len(x) - 1)
    left = right - 1
    return y[left] + (y[right] - y[left]) * (p - x[left]) / (x[right] - x[left])
