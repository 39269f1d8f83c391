"""Calibration: maps from logits to better-calibrated logits, fitted on validation images.

Each has `fit(logits, labels)`, is called on logits (N, K), and wraps a model through
`Calibrated`. What comes out are logits again, so that every score works on a calibrated model too.
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
from .inputs import check_calibration_split, check_labels, check_logits


class Calibrator(Protocol):
    """Logits (N, K) to calibrated logits (N, K)."""

    def __call__(self, logits: Logits) -> Logits: ...


class Calibrated(nn.Module):
    """A model whose logits go through a calibrator."""

    def __init__(self, model: Callable[[Tensor], Logits], calibrator: Calibrator) -> None:
        super().__init__()
        self.model, self.calibrator = model, calibrator

    def forward(self, images: Float[Tensor, "n c h w"]) -> Logits:
        return self.calibrator(self.model(images))


def _check_split(logits: Logits, labels: Labels) -> tuple[Float64[Tensor, "n k"], Labels]:
    z = check_logits(logits)
    y = check_labels(labels, *z.shape)
    check_calibration_split(y, z.shape[1])
    return torch.from_numpy(z), torch.from_numpy(y)


def _minimise_nll(
    calibrated: Callable[[], Logits], parameters: list[Tensor], labels: Labels
) -> None:
    """LBFGS in float64 on the negative log-likelihood, from and around the identity at 0.

    The pull to the identity moves no digit that matters, except where the likelihood has no
    maximum: on images that are all right, a sharper model is always likelier.
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
        pull = sum(parameter.square().sum() for parameter in parameters)
        loss = F.cross_entropy(calibrated(), labels) + 1e-6 * pull
        loss.backward()
        return loss

    optimizer.step(closure)


@dataclass(frozen=True)
class TemperatureScaling:
    """z / T: one positive temperature, which changes no prediction.

    Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", ICML 2017.
    """

    temperature: float

    @classmethod
    def fit(cls, logits: Logits, labels: Labels) -> Self:
        """The temperature of the highest likelihood on validation images.

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
    """w_k · z_k + b_k: a positive slope and an offset a class (Guo et al. 2017)."""

    slope: Float[Tensor, " k"]
    offset: Float[Tensor, " k"]

    @classmethod
    def fit(cls, logits: Logits, labels: Labels) -> Self:
        """The slopes and offsets of the highest likelihood; errors as for the temperature."""
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
    """One rising curve a class, from its probability to how often it came true.

    One against the rest, scaled to sum to 1: Zadrozny & Elkan, "Transforming classifier scores
    into accurate multiclass probability estimates", KDD 2002. The curves differ, so predictions
    may change. They are linear between their knots, mostly flat, and constant beyond: gradients
    through them are mostly 0, so an attack differentiates the model underneath.
    """

    knots: list[tuple[Float64[Tensor, " m"], Float64[Tensor, " m"]]]  # (probability, frequency)

    @classmethod
    def fit(cls, logits: Logits, labels: Labels) -> Self:
        """The least-squares rising curves on validation images; errors as for the temperature."""
        z, y = _check_split(logits, labels)
        # Nothing seen 0 times among N images is impossible: no frequency below half an image.
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
