"""Detectors: a score rejects the images that it is unsure of. How often does an attacker pass?"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import InputError
from ..types import Images, Model
from .inputs import Array, checked_flags, checked_scores, checked_share
from .scores import FeatureScore, LayerFeatures, LogitScore, Score


class WithDetector(nn.Module):
    """A model with a detector: images to (N, K + 1), the logits and, last, the detector's score.

    Both are differentiable: an attacker who knows the detector attacks this. Model and score share
    one pass where the score is a function of the logits or of a layer's features.

    Args:
        model: images to logits.
        detector: a score, higher = less sure.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> WithDetector(model, LogitScore(model, "entropy"))(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2, 4])
    """

    def __init__(self, model: Model, detector: Score) -> None:
        super().__init__()
        self.model, self.detector = model, detector

    def forward(self, images: Images) -> Float[Tensor, "n o"]:
        detector = self.detector
        if isinstance(detector, LogitScore) and detector.model is self.model:
            logits = self.model(images)
            scores = detector.measure(logits)
        elif (
            isinstance(detector, FeatureScore)
            and isinstance(detector.features, LayerFeatures)
            and detector.features.model is self.model
        ):
            features, logits = detector.features.with_output(images)
            # Distances between features drown in the rounding of a coarse number format.
            with torch.autocast(images.device.type, enabled=False):
                scores = detector.from_features(features.float())
        else:
            logits, scores = self.model(images), detector(images)
        return torch.cat([logits.float(), scores.float()[:, None]], 1)


def last_linear(model: Model) -> str | None:
    """The name of a model's last linear layer, whose input is usually called the features.

    None for a model without one.

    Example:
        >>> last_linear(nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        '3'
    """
    if not isinstance(model, nn.Module):
        return None
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name]
    return names[-1] if names else None


class Detection(NamedTuple):
    """What a detector that may reject images does to n clean ones and to n attacked ones.

    Attributes:
        false_positive_rate: share of clean calibration images that may be rejected, 0..1.
        threshold: an image with a score above it is rejected.
        clean_rejected: share of the n clean images that are rejected, 0..1.
        robust_error: share of images on which the attacker gets a wrong prediction accepted, 0..1.
        n: number of images.
    """

    false_positive_rate: float
    threshold: float
    clean_rejected: float
    robust_error: float
    n: int


def threshold_at_fpr(scores: Float[Array, " n"], false_positive_rate: float) -> float:
    """The threshold at which a detector rejects at most this share of clean images.

    Args:
        scores: (N,) of clean calibration images, higher = less sure.
        false_positive_rate: in (0, 1).

    Returns:
        the smallest of the scores above which at most this share of them lies.

    Raises:
        InputError: a rate outside (0, 1); scores that are NaN or constant.

    Example:
        >>> threshold_at_fpr(np.arange(1, 21), 0.1)
        18.0
    """
    share = checked_share("false_positive_rate", false_positive_rate)
    s = np.sort(checked_scores(scores))
    return float(s[len(s) - 1 - math.floor(share * len(s))])


def evaluate_detector(
    calibration: Float[Array, " m"],
    clean: Float[Array, " n"],
    attacked: Float[Array, " n"],
    wrong: Bool[Array, " n"],
    false_positive_rate: float,
) -> Detection:
    """The robust error of a model with a detector.

    An image counts where its prediction is wrong *and* the detector accepts it (Bryniarski et al.,
    "Evading adversarial example detection defenses with orthogonal projected gradient descent",
    ICLR 2022; Tramèr, "Detecting adversarial examples is (nearly) as hard as classifying them",
    ICML 2022).

    Args:
        calibration: scores (M,) of clean calibration images, on which the threshold is chosen.
        clean: scores (N,) of clean images.
        attacked: scores (N,) of the images that the attacker hands in instead. The attacker may
            leave an image as it is.
        wrong: bool (N,), whether the prediction of the attacker's image is wrong.
        false_positive_rate: share of clean images that may be rejected, in (0, 1).

    Raises:
        InputError: arrays of different length; scores that are NaN.

    Example:
        >>> outcome = evaluate_detector(
        ...     calibration=np.arange(20.0),
        ...     clean=np.array([3.0, 19.0]),
        ...     attacked=np.array([18.0, 9.0]),
        ...     wrong=np.array([True, True]),
        ...     false_positive_rate=0.1,
        ... )
        >>> outcome.threshold, outcome.clean_rejected, outcome.robust_error
        (17.0, 0.5, 0.5)
    """
    threshold = threshold_at_fpr(calibration, false_positive_rate)
    before, after = (np.asarray(values, dtype=np.float64) for values in (clean, attacked))
    w = checked_flags("wrong", wrong, len(after))
    if before.shape != after.shape or np.isnan(before).any() or np.isnan(after).any():
        raise InputError(
            f"clean scores {before.shape} and attacked ones {after.shape} must have one shape, "
            "without NaN"
        )
    return Detection(
        false_positive_rate,
        threshold,
        float((before > threshold).mean()),
        float((w & (after <= threshold)).mean()),
        len(w),
    )
