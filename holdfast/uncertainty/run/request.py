"""What an uncertainty run is to measure: models, images and promises, checked and in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ...attacks.suite import Suite
from ...data.corruptions import CORRUPTIONS
from ...data.out_of_distribution import OutOfDistribution
from ...data.published_corruptions import PublishedCorruptions
from ...models.wrapper import wrapped
from ...threat import Threat
from ...types import Model


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with labels.

    Attributes:
        images: 0..255 as data sets store them, or floats in [0, 1].
        labels: in 0 … K−1.
        items: the number of each image in its data set, to which random draws belong.
    """

    images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    items: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> LabelledImages:
        return LabelledImages(self.images[rows], self.labels[rows], self.items[rows])

    @property
    def floats(self) -> Float[Tensor, "n c h w"]:
        """The images in [0, 1]."""
        return self.images.float() / 255 if self.images.dtype == torch.uint8 else self.images


@dataclass(frozen=True, eq=False)
class Request:
    """What to measure.

    Attributes:
        model: images to logits, in eval mode, on `device`.
        members: further models, which form a deep ensemble with `model`.
        threat: what attacks may change.
        suite: the attacks on predictions.
        test: what is measured and attacked.
        fitting: the fitting split: validation images on which calibrators are fitted.
        calibration: the calibration split: other validation images, on which thresholds and
            conformal sets are calibrated.
        more_test, more_calibration: begin with `test` and `calibration`, and go on with further
            images of the same splits. Whatever needs no attack is measured on these.
        training: training images, whose features detectors compare with.
        classes: names of the K classes.
        out_of_distribution: sets of images of other kinds.
        human: (N, K), how many of a test image's human labellers chose each class, as shares;
            None where that is not known.
        alpha: share of conformal sets that may miss the true class, in (0, 1).
        risk: share of wrong predictions that abstaining promises to stay below, in (0, 1).
        coverage: share of images that abstaining promises to predict, in (0, 1).
        radius: of the robust conformal sets, L2, in image units, above 0.
        sigma: standard deviation of the robust sets' noise, in image units, above 0.
        seed: of all random draws.
        device: where the models are.
        corruptions: published corrupted test images, which take the place of generated ones.
    """

    model: Model
    members: Sequence[Model]
    threat: Threat
    suite: Suite
    test: LabelledImages
    fitting: LabelledImages
    calibration: LabelledImages
    more_test: LabelledImages
    more_calibration: LabelledImages
    training: LabelledImages
    classes: tuple[str, ...]
    out_of_distribution: Sequence[OutOfDistribution]
    human: Float[Tensor, "n k"] | None
    alpha: float
    risk: float
    coverage: float
    radius: float
    sigma: float
    seed: int
    device: torch.device
    corruptions: PublishedCorruptions | None = None

    @property
    def corruption_names(self) -> tuple[str, ...]:
        """The corruptions that are measured."""
        return tuple(CORRUPTIONS) if self.corruptions is None else self.corruptions.names

    @property
    def corruption_labels(self) -> Int64[Tensor, " n"]:
        """The labels of the corrupted images."""
        return self.test.labels if self.corruptions is None else self.corruptions.labels

    @property
    def splits(self) -> tuple[LabelledImages, ...]:
        """All labelled images, in the order in which a run's identity holds them."""
        return (
            self.test,
            self.fitting,
            self.calibration,
            self.more_test,
            self.more_calibration,
            self.training,
        )

    def with_wrapped_models(self) -> Request:
        """The same request, every model behind `WrappedModel`."""
        members = [wrapped(member) for member in self.members]
        return replace(self, model=wrapped(self.model), members=members)
