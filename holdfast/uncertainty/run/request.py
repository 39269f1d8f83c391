"""What an uncertainty run is to measure: models, images and promises, checked.

Images may be many and large: what would fill more than 512 MiB as float32 is read as it is needed
(`UnreadImages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ...attacks.suite import Suite
from ...data.base import Split
from ...data.corruptions import CORRUPTIONS
from ...data.images import part
from ...data.out_of_distribution import OutOfDistribution
from ...data.published_corruptions import PublishedCorruptions
from ...models.wrapper import wrapped
from ...stored import ModelImages, NotInMemory, StoredImages, exceeds_memory
from ...threat import Threat
from ...types import Model


class UnreadImages:
    """Images uint8 (N, C, H, W) that are indexed as a tensor is; what is indexed is read.

    Args:
        source: uint8 (N, C, H, W), which has a `part` (`holdfast.data.LazyImages`).
    """

    dtype = torch.uint8

    def __init__(self, source: Any):
        self.source = source

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size(self.source.shape)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Any) -> UInt8[Tensor, "m c h w"]:
        return torch.from_numpy(np.asarray(self.source[self._numbers(rows)]))

    def part(self, rows: Any) -> UnreadImages:
        """Some of the images, which are not read yet."""
        return UnreadImages(self.source.part(self._numbers(rows)))

    def _numbers(self, rows: Any) -> Int64[np.ndarray, " m"]:
        numbers: np.ndarray = np.arange(len(self))
        return numbers[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with labels.

    Attributes:
        images: 0..255 as data sets store them, or floats in [0, 1]; in memory or not.
        labels: in 0 … K−1.
        items: the number of each image in its data set, to which random draws belong.
    """

    images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"] | UnreadImages | NotInMemory
    labels: Int64[Tensor, " n"]
    items: Int64[Tensor, " n"]

    @staticmethod
    def of(split: Split, rows: Int64[np.ndarray, " n"], items: Tensor) -> LabelledImages:
        """Some of the images of a split; they are read as they are needed where its are."""
        images, labels = part(split.images, rows), torch.from_numpy(split.labels[rows])
        held = torch.from_numpy(images) if isinstance(images, np.ndarray) else UnreadImages(images)
        return LabelledImages(held, labels, items)

    def held(self) -> LabelledImages:
        """The same, read if they are few."""
        few = not exceeds_memory(self.images.shape)
        return replace(self, images=self.images[:]) if few else self

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> LabelledImages:
        images = self.images[rows] if isinstance(self.images, Tensor) else self.images.part(rows)
        return LabelledImages(images, self.labels[rows], self.items[rows])

    @property
    def floats(self) -> ModelImages:
        """The images in [0, 1], in memory if they are few."""
        images = self.images
        if isinstance(images, NotInMemory) or images.dtype != torch.uint8:
            return images  # type: ignore[return-value]
        if exceeds_memory(images.shape):
            return StoredImages(images.source if isinstance(images, UnreadImages) else images)
        return images[:].float() / 255


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
