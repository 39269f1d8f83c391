"""Detectors: a score that rejects what it is unsure of, and how an attacker fares against it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import InputError
from .inputs import Array, check_flags, check_scores, check_share
from .scores import FeatureScore, Images, LayerFeatures, LogitScore, Model, Score


class Watched(nn.Module):
    """A model and the detector that watches it, from one pass where that is possible.

    Images to (N, K + 1): logits, and the detector's score in the last column, both
    differentiable. It is what an attacker who knows the detector looks at.

    Args:
        model: images to logits.
        detector: a score, higher = less sure.
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
                scores = detector.of(features.float())
        else:
            logits, scores = self.model(images), detector(images)
        return torch.cat([logits.float(), scores.float()[:, None]], 1)


def last_linear(model: Model) -> str | None:
    """The name of a module's last linear layer, whose input is usually taken for its features."""
    if not isinstance(model, nn.Module):
        return None
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name]
    return names[-1] if names else None


class Detection(NamedTuple):
    """What becomes of n images where a detector may reject.

    Attributes:
        false_positives: promised share of clean images rejected, 0..1.
        threshold: on scores; above it, an image is rejected.
        clean_rejected: share of these clean images rejected: what became of the promise.
        robust_error: share of images for which the attacker gets a wrong answer accepted, 0..1.
    """

    false_positives: float
    threshold: float
    clean_rejected: float
    robust_error: float
    n: int


def threshold_at(scores: Float[Array, " n"], false_positives: float) -> float:
    """The least of the clean validation scores above which at most this share of them lies.

    Raises:
        InputError: a share outside (0, 1); scores that are NaN or constant.
    """
    share = check_share("false_positives", false_positives)
    s = np.sort(check_scores(scores))
    return float(s[len(s) - 1 - math.floor(share * len(s))])


def verifier(
    validation: Float[Array, " m"],
    clean: Float[Array, " n"],
    attacked: Float[Array, " n"],
    wrong: Bool[Array, " n"],
    false_positives: float,
) -> Detection:
    """Robust error with a detector (Bryniarski et al., ICLR 2022; Tramèr, ICML 2022).

    Args:
        validation: scores of clean validation images, on which the threshold is chosen.
        clean: scores of the clean images.
        attacked: scores of the attacker's images; where an attack has nothing better, the clean
            image: the attacker may leave it.
        wrong: bool (N,), whether the attacker's image is misclassified.
        false_positives: share of clean images that may be rejected, in (0, 1).

    Raises:
        InputError: arrays of different length; scores that are NaN.
    """
    threshold = threshold_at(validation, false_positives)
    before, after = (np.asarray(values, dtype=np.float64) for values in (clean, attacked))
    w = check_flags("wrong", wrong, len(after))
    if before.shape != after.shape or np.isnan(before).any() or np.isnan(after).any():
        raise InputError(
            f"clean scores {before.shape} and attacked ones {after.shape} must have one shape, "
            "without NaN"
        )
    return Detection(
        false_positives,
        threshold,
        float((before > threshold).mean()),
        float((w & (after <= threshold)).mean()),
        len(w),
    )
