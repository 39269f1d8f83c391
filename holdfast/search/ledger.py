"""What is known about every image while an evaluation runs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..stored import ModelImages, part
from .points import AdversarialImages

STANDING = -2
CLEAN = -1  # broken before any attack: the clean image is misclassified, or its goal predicted


@dataclass
class Ledger:
    """One row an image; all tensors live on the CPU.

    Attributes:
        index: the image's place in the whole data set; random draws belong to it.
        clean_prediction, clean_confidence: answer and softmax probability on the clean image.
        broken: whether the label was changed inside the threat model (or is wrong as it is).
        stage: which stage of the suite broke it, `CLEAN`, or `STANDING`.
        item: which restart and target of that stage, −1 where none did.
        target: the class that the breaking attack aimed at, −1 where none.
        goal: the class that alone counts as a success; −1 where any mistake does.
        adversarial: the breaking image, or the one with the smallest margin found. Where the images
            are not in memory, they are read from the journal.
        score: the smallest margin found, in logits; below 0 for broken ones. Infinite where no
            attack inside the ball has looked yet. In a search for the closest points: the
            distance less ε of the closest adversarial point found, infinite where there is none.
        found, found_item: which stage, and which of its items, found `adversarial`; −1 where none
            did and it is the clean image.
        witness: (N, P) what shows that `adversarial` is legal, where the image alone does not
            (see `Threat`); P = 0 in the balls of norms.
        forwards, backwards: passes spent on the image up to its verdict.
    """

    index: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    clean_prediction: Int64[Tensor, " n"]
    clean_confidence: Float[Tensor, " n"]
    broken: Bool[Tensor, " n"]
    stage: Int64[Tensor, " n"]
    item: Int64[Tensor, " n"]
    target: Int64[Tensor, " n"]
    goal: Int64[Tensor, " n"]
    adversarial: AdversarialImages
    score: Float[Tensor, " n"]
    found: Int64[Tensor, " n"]
    found_item: Int64[Tensor, " n"]
    witness: Float[Tensor, "n p"]
    forwards: Int64[Tensor, " n"]
    backwards: Int64[Tensor, " n"]

    @staticmethod
    def of(
        images: ModelImages,
        labels: Tensor,
        index: Tensor,
        witness_size: int = 0,
        goal: Tensor | None = None,
        adversarial: AdversarialImages | None = None,
    ) -> Ledger:
        """A ledger on which nothing is known yet.

        Args:
            adversarial: where the images that are found are kept; by default in memory.
        """
        n = len(images)

        def whole(value: int) -> Tensor:
            return torch.full((n,), value, dtype=torch.int64)

        return Ledger(
            index=index,
            labels=labels,
            clean_prediction=whole(-1),
            clean_confidence=torch.full((n,), torch.nan),
            broken=torch.zeros(n, dtype=torch.bool),
            stage=whole(STANDING),
            item=whole(-1),
            target=whole(-1),
            goal=whole(-1) if goal is None else goal,
            adversarial=images[:].clone() if adversarial is None else adversarial,
            score=torch.full((n,), torch.inf),
            found=whole(-1),
            found_item=whole(-1),
            witness=torch.zeros(n, witness_size),
            forwards=whole(0),
            backwards=whole(0),
        )

    def select(self, rows: Int64[Tensor, " r"]) -> Ledger:
        """Some of the images."""
        return Ledger(**{each.name: part(getattr(self, each.name), rows) for each in fields(self)})
