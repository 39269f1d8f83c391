"""The conformal set of one image: where its thresholds come from, and what it promises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..figures.subject import Subject
from ..models.chain import undefended
from ..types import Images
from ..uncertainty.conformal import SplitConformal

SCORE = "lac"  # the same answer every time: no draw decides what is in the set of one image
ALPHA = 0.1
IMAGES = 500  # that are calibrated on, where there are so many
IMAGES_OF_RANDOM = 100  # of a random defence each costs many passes
SHIPPED = Path(__file__).with_name("calibrations.json")
AT_ONCE = 100


@dataclass(frozen=True)
class Calibration:
    """What makes sets out of probabilities, or why nothing does.

    Attributes:
        conformal: the thresholds; None where there are none.
        on: what they were fitted on, such as `500 validation images of cifar10`.
        unavailable: why there are none.
    """

    conformal: SplitConformal | None = None
    on: str = ""
    unavailable: str = ""

    @classmethod
    def fit(
        cls,
        subject: Subject,
        images: Images,
        labels: Tensor,
        alpha: float = ALPHA,
        on: str = "",
    ) -> Calibration:
        """On clean images that the model was not trained on.

        Args:
            subject: the model, defences included.
            images, labels: (N, C, H, W) in [0, 1], and (N,); the first of them are taken.
            alpha: share of sets that may miss the true class.
            on: what the images are.
        """
        most = IMAGES_OF_RANDOM if subject.random else IMAGES
        images, labels = images[:most], labels[:most]
        rows = torch.arange(len(images))
        parts = [
            subject.answers(images[part], rows[part], "calibration") for part in rows.split(AT_ONCE)
        ]
        logits = torch.cat([part.logits for part in parts])
        if bool(torch.cat([part.confidence for part in parts]).isnan().all()):
            return cls(unavailable="the model answers with labels alone, without probabilities")
        if not bool(logits.isfinite().all()):
            return cls(unavailable="the model leaves some of these images without an answer")
        probabilities = logits.double().softmax(1)
        try:
            conformal = SplitConformal.fit(probabilities, labels, alpha, score=SCORE)
        except InputError as error:
            return cls(unavailable=str(error))
        return cls(conformal, f"{len(labels)} {on or 'images'}")

    @classmethod
    def of(cls, model: Any, defences: bool = False) -> Calibration:
        """The one that came with a model of the zoo, for the weights that it was made with.

        Args:
            defences: whether defences that its card does not name stand in front of it.
        """
        card: Mapping[str, Any] = getattr(undefended(model), "card", None) or {}
        known = json.loads(SHIPPED.read_text(encoding="utf-8"))
        found = known["models"].get(str(card.get("weights_sha256")))
        if found is None:
            return cls(unavailable="the model has no calibration: give images to calibrate on")
        if defences:
            return cls(
                unavailable="the model's calibration is of the model without this defence: give "
                "images to calibrate on"
            )
        thresholds = np.full(len(card.get("classes") or ()), found["threshold"])
        conformal = SplitConformal(known["alpha"], SCORE, thresholds, known["n"], 0)
        return cls(conformal, f"{known['n']} {known['images']}")

    @property
    def promise(self) -> str:
        """What the sets promise, in a sentence; why there are none where there are none."""
        if self.conformal is None:
            return f"No conformal set: {self.unavailable}."
        return (
            f"Sets hold the true class of {1 - self.conformal.alpha:.0%} of clean images like "
            f"those calibrated on ({self.on}); under attack nothing is promised."
        )

    def classes(self, probabilities: Tensor) -> tuple[int, ...] | None:
        """The set of one image, the likeliest class first; None where there is none.

        Args:
            probabilities: (K,).

        Raises:
            InputError: of other classes than it was calibrated for.
        """
        if self.conformal is None or bool(probabilities.isnan().any()):
            return None
        held = self.conformal.sets(probabilities[None].double().numpy())[0]
        order = probabilities.argsort(descending=True).tolist()
        return tuple(label for label in order if held[label])
