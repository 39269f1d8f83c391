"""Who decides a verdict: the original model, by its answer or by a vote over fresh draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from scipy.stats import binom
from torch import Tensor

from ..attacks.base import Model
from ..draws import fixed_draws, image_seeds, item_seeds, repeated_draws
from ..models.wrapper import NO_PREDICTION, predicted
from ..types import Images

MAJORITY_OF = 21  # draws behind a verdict on a random model; odd, so that two classes do not tie
FIRST_LOOK = 5  # draws that spare the others where a point is nowhere near a success
CHANCE = 0.02  # that a label as likely as its strongest rival loses by so much as ends a search
_TOGETHER = 256  # copies in a pass


@dataclass(frozen=True)
class Answers:
    """What a model says of N images, on its device.

    Attributes:
        prediction: int64 (N,), the class that most draws answer; `NOTHING` (−1) where most
            answer none, which is never right.
        confidence: float32 (N,), its softmax probability; 0 where nothing is answered.
        logits: float32 (N, K), over several draws their mean; NaN where no draw has any.
        draws: int64 (N, D), the class that each draw answers, or `NOTHING`.
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

    def ask(self, images: Images, seeds: Int64[Tensor, " n"], count: int | None = None) -> Answers:
        """The model's answers.

        Args:
            seeds: for what random defences draw, one an image; whoever asks for another purpose
                brings others.
            count: how many draws of a random model; by default as many as decide.

        Cost: `count` forwards.
        """
        count = count or self.draws
        with torch.no_grad():
            every = self._logits(images, seeds, count)
        said = predicted(every)  # of the logits: the softmax rounds close ones to a tie
        logits = every.nanmean(1) if bool((said == NO_PREDICTION).any()) else every.mean(1)
        votes = _votes(said, every.shape[2])
        # Of a tie between a class and no answer, the class has it.
        prediction = votes.argmax(1)
        prediction = torch.where(
            (said == NO_PREDICTION).sum(1) > votes.amax(1), NO_PREDICTION, prediction
        )
        confidence = logits.softmax(1).gather(1, prediction.clamp_min(0)[:, None]).squeeze(1)
        confidence = torch.where(prediction == NO_PREDICTION, 0.0, confidence)
        return Answers(prediction, confidence, logits, said)

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
            with fixed_draws(own[rows]):
                parts.append(self.model(copies[rows.to(copies.device)]).float())
        return torch.cat(parts).unflatten(0, (len(images), count))

    def fooled(
        self, images: Images, labels: Int64[Tensor, " n"], seeds: Int64[Tensor, " n"]
    ) -> tuple[Bool[Tensor, " n"], Int64[Tensor, " n"]]:
        """Whether a search may stop at each image, and the forwards that it took to say so.

        Of a random model, another class must outvote the label beyond doubt in fresh draws (a
        binomial test on the two, after Hung & Fithian, 2019): a search that asks often enough
        would sooner or later meet a lucky majority.
        """
        passes = torch.ones_like(labels)
        if self.draws == 1:
            return self.ask(images, seeds).prediction != labels, passes
        first = self.ask(images, item_seeds(0, "first", seeds), FIRST_LOOK)
        fooled = first.prediction != labels
        rows = fooled.nonzero().squeeze(1)
        passes = passes * FIRST_LOOK + fooled * self.draws
        if len(rows):
            second = self.ask(images[rows], item_seeds(0, "second", seeds[rows.cpu()]))
            fooled[rows] = _outvoted(second, labels[rows])
        return fooled, passes


def _votes(said: Int64[Tensor, "n d"], classes: int) -> Int64[Tensor, "n k"]:
    """How many draws answer each class; those that answer nothing answer none of them."""
    return F.one_hot(said + 1, classes + 1).sum(1)[:, 1:]


def _outvoted(answers: Answers, labels: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    votes = _votes(answers.draws, answers.logits.shape[1])
    own = votes.gather(1, labels[:, None]).squeeze(1).cpu().numpy()
    rivals = votes.scatter(1, labels[:, None], 0).amax(1)
    rival = rivals.maximum((answers.draws == NO_PREDICTION).sum(1)).cpu().numpy()
    by_chance = binom.sf(rival - 1, own + rival, 0.5)
    return torch.from_numpy(by_chance <= CHANCE).to(labels.device)
