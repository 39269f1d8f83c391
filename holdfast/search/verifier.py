"""The verifier decides verdicts: it is the original model, or a vote over draws of a random one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from scipy.stats import binom
from torch import Tensor

from ..attacks.base import Model
from ..draws import fixed_draws, image_seeds, item_seeds, repeated_draws
from ..models.metered import rows_asked
from ..models.wrapper import NO_PREDICTION, predicted
from ..types import Images

MAJORITY_OF = 21  # draws behind a verdict on a random model; odd, so that two classes do not tie
FIRST_DRAWS = 5  # where these find no success, the others are spared
CHANCE = 0.02  # p-value at which a search stops: the label is outvoted beyond luck
_TOGETHER = 256  # copies in a pass


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for N images, on its device.

    Attributes:
        prediction: int64 (N,), the class that most draws predict; `NO_PREDICTION` (−1) where most
            give no class (NaN logits), which is never right.
        confidence: float32 (N,), the softmax probability of that class; 0 without one.
        logits: float32 (N, K), over several draws their mean; NaN where no draw has any.
        draws: int64 (N, D), the class that each draw predicts, or `NO_PREDICTION`.
    """

    prediction: Int64[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    logits: Float[Tensor, "n k"]
    draws: Int64[Tensor, "n d"]


class Verifier:
    """The original model, in its own precision.

    Args:
        model: images → logits.
        draws: how many decide, by majority; 1 for a model that always answers the same.
    """

    def __init__(self, model: Model, draws: int = 1):
        self.model, self.draws = model, draws

    def predict(
        self, images: Images, seeds: Int64[Tensor, " n"], count: int | None = None
    ) -> Predictions:
        """The model's predictions.

        Args:
            seeds: int64 (N,), of what random defences draw; each purpose has seeds of its own.
            count: how many draws of a random model; by default as many as decide.

        Cost: `count` forwards.
        """
        count = count or self.draws
        with torch.no_grad():
            every = self._logits(images, seeds, count)
        predicted_classes = predicted(
            every
        )  # of the logits: the softmax rounds close ones to a tie
        logits = (
            every.nanmean(1) if bool((predicted_classes == NO_PREDICTION).any()) else every.mean(1)
        )
        votes = _votes(predicted_classes, every.shape[2])
        # In a tie between a class and no class, the class wins.
        prediction = votes.argmax(1)
        prediction = torch.where(
            (predicted_classes == NO_PREDICTION).sum(1) > votes.amax(1), NO_PREDICTION, prediction
        )
        confidence = logits.softmax(1).gather(1, prediction.clamp_min(0)[:, None]).squeeze(1)
        confidence = torch.where(prediction == NO_PREDICTION, 0.0, confidence)
        return Predictions(prediction, confidence, logits, predicted_classes)

    def _logits(
        self, images: Images, seeds: Int64[Tensor, " n"], count: int
    ) -> Float[Tensor, "n d k"]:
        if self.draws == 1:
            return self.model(images).float()[:, None]
        with fixed_draws(seeds), repeated_draws(count):
            own = image_seeds(count * len(images))
        copies = images.repeat_interleave(count, 0)
        parts = []
        for rows in torch.arange(len(copies)).split(_TOGETHER):
            with fixed_draws(own[rows]), rows_asked(rows // count):
                parts.append(self.model(copies[rows.to(copies.device)]).float())
        return torch.cat(parts).unflatten(0, (len(images), count))

    def fooled(
        self,
        images: Images,
        labels: Int64[Tensor, " n"],
        seeds: Int64[Tensor, " n"],
        goals: Int64[Tensor, " n"] | None = None,
    ) -> tuple[Bool[Tensor, " n"], Int64[Tensor, " n"]]:
        """Whether a search may stop at each image, and the forwards that it took to say so.

        Of a random model, another class must outvote the label beyond doubt in fresh draws (a
        binomial test on the two, after Hung & Fithian, 2019): a search that asks often enough
        would sooner or later meet a lucky majority. Where one class alone counts, it must outvote
        every other.

        Args:
            goals: int64 (N,), these classes; −1 where any mistake will do. By default it does.
        """
        passes = torch.ones_like(labels)
        goals = torch.full_like(labels, -1) if goals is None else goals
        if self.draws == 1:
            return succeeded(self.predict(images, seeds).prediction, labels, goals), passes
        first = self.predict(images, item_seeds(0, "first", seeds), FIRST_DRAWS)
        fooled = succeeded(first.prediction, labels, goals)
        rows = fooled.nonzero().squeeze(1)
        passes = passes * FIRST_DRAWS + fooled * self.draws
        if len(rows):
            with rows_asked(rows):
                second = self.predict(images[rows], item_seeds(0, "second", seeds[rows.cpu()]))
            fooled[rows] = _outvoted(second, labels[rows], goals[rows])
        return fooled, passes


def succeeded(
    prediction: Int64[Tensor, "*n"], labels: Int64[Tensor, "*n"], goals: Int64[Tensor, "*n"]
) -> Bool[Tensor, "*n"]:
    """Whether predictions are what an attacker wants: the goal, or where there is none (−1)
    anything but the label.

    Example:
        >>> prediction, labels = torch.tensor([2, 2, 1]), torch.tensor([1, 1, 1])
        >>> succeeded(prediction, labels, goals=torch.tensor([-1, 0, -1]))
        tensor([ True, False, False])
    """
    return torch.where(goals >= 0, prediction == goals, prediction != labels)


def _votes(draws: Int64[Tensor, "n d"], classes: int) -> Int64[Tensor, "n k"]:
    """How many draws predict each class; draws without a prediction count for none."""
    return F.one_hot(draws + 1, classes + 1).sum(1)[:, 1:]


def _outvoted(
    answers: Predictions, labels: Int64[Tensor, " n"], goals: Int64[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Whether the label loses against some class, or the goal wins against all."""
    votes = _votes(answers.draws, answers.logits.shape[1])
    one = torch.where(goals >= 0, goals, labels)
    own = votes.gather(1, one[:, None]).squeeze(1)
    rivals = votes.scatter(1, one[:, None], 0).amax(1)
    rivals = rivals.maximum((answers.draws == NO_PREDICTION).sum(1))
    wins = torch.where(goals >= 0, own, rivals)
    by_chance = binom.sf((wins - 1).cpu().numpy(), (own + rivals).cpu().numpy(), 0.5)
    return torch.from_numpy(by_chance <= CHANCE).to(labels.device)
