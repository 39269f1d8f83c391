"""What an attacker on uncertainty wants: a number to raise, and a condition that must hold.

A goal reads a model's *outputs*: logits (N, K), or, where a detector watches the model
(`detection.WithDetector`), (N, K + 1) with the detector's score in the last column. Of an item it
knows its `labels`, the true classes, and its `targets`, here the classes that the model answers on
the clean images. `attacks.Ascent` climbs a goal.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..attacks import Items
from ..attacks.losses import best_other, margin
from ..errors import InputError

Outputs = Float[Tensor, "n o"]
Values = Float[Tensor, " n"]


def log_odds(logits: Float[Tensor, "n k"], classes: Tensor) -> Values:
    """log p_c / (1 − p_c) of one class an image, −∞..∞: confidence that does not saturate."""
    others = logits.scatter(1, classes[:, None], -math.inf)
    return logits.gather(1, classes[:, None]).squeeze(1) - others.logsumexp(1)


class Goal(ABC):
    """What to raise (`value`), and what must stay above 0 for a point to count (`kept`).

    Attributes:
        name: stable; part of random seeds and of reports.
        holds_answers: whether the answers on the clean images (`targets`) have to stay.
    """

    name: str
    holds_answers: ClassVar[bool] = False

    @abstractmethod
    def value(self, outputs: Outputs, items: Items) -> Values:
        """Higher is better for the attacker; differentiable."""

    def kept(self, outputs: Outputs, items: Items) -> Values:
        """Above 0 where the condition holds; raised first where it does not. None by default."""
        return torch.full_like(outputs[:, 0], math.inf)


class Miscalibrate(Goal):
    """Right answers look unsure and wrong ones sure, while every answer stays as it is.

    Accuracy does not change by one image, and the calibration error rises as far as it can: the
    maximum miscalibration attack of Obadinma, Zhu & Guo, "Calibration attacks: a comprehensive
    study of adversarial attacks on model confidence", 2024; on right answers alone it is their
    underconfidence attack (also Galil & El-Yaniv, "Disrupting deep uncertainty estimation without
    harming accuracy", NeurIPS 2021), on wrong ones alone their overconfidence attack.
    """

    name = "miscalibrate"
    holds_answers = True

    def value(self, outputs: Outputs, items: Items) -> Values:
        confidence = log_odds(outputs, items.targets)
        return torch.where(items.targets == items.labels, -confidence, confidence)

    def kept(self, outputs: Outputs, items: Items) -> Values:
        return margin(outputs, items.targets)


class Evade(Goal):
    """A wrong answer that a detector does not see: the label broken *and* the score low."""

    name = "evade"

    def value(self, outputs: Outputs, items: Items) -> Values:
        return -outputs[:, -1]

    def kept(self, outputs: Outputs, items: Items) -> Values:
        return -margin(outputs[:, :-1], items.labels)


class LookFamiliar(Goal):
    """An out-of-distribution image that the model is sure of, whatever it calls it."""

    name = "look-familiar"

    def value(self, outputs: Outputs, items: Items) -> Values:
        return log_odds(outputs, outputs.detach().argmax(1))


class Miscover(Goal):
    """A set without the true class: its probability as low as can be."""

    name = "miscover"

    def value(self, outputs: Outputs, items: Items) -> Values:
        # The best wrong class alone, once it leads: pushing all of them at once wastes the step.
        best = best_other(outputs, items.labels)
        return best - outputs.gather(1, items.labels[:, None]).squeeze(1)


class Enlarge(Goal):
    """A set that says nothing: as many classes as can be above the probability that lets one in.

    Args:
        threshold: that probability, in [0, 1): 1 − q of the `lac` sets.

    Raises:
        InputError: a threshold outside [0, 1).
    """

    name = "enlarge"

    def __init__(self, threshold: float) -> None:
        if not 0 <= threshold < 1:
            raise InputError(f"threshold must lie in [0, 1), not {threshold}")
        self.log_threshold = math.log(max(threshold, 1e-12))

    def value(self, outputs: Outputs, items: Items) -> Values:
        above = (outputs.log_softmax(1) - self.log_threshold).sort(1, descending=True).values
        count = (above >= 0).sum(1, keepdim=True)
        # Those that are in, and the next one: raised only until they are safely in, so that
        # probability is left for others. Spread over all classes at once, it would let none in.
        place = torch.arange(above.shape[1], device=above.device)
        wanted = (place <= count) * above.clamp_max(0.1)
        return count.squeeze(1) + torch.sigmoid(wanted.sum(1) / (count.squeeze(1) + 1))
