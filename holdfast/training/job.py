"""What a training run is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..data.base import DataSet, Split, held_back
from ..data.extra import ExtraImages, load_extra
from ..errors import InputError
from ..models.own_networks import is_code
from ..threat import Threat
from .recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class TrainingJob:
    """All that decides a training run, and where it happens. Its parts are built from it alone.

    Attributes:
        recipe: what to train and how.
        data: images and labels; `validation` chooses the weights that are kept.
        run: the run folder.
        fabric: the device, the precision, and this process among others.
        seed: of initial weights, order, augmentation and attacks.
        log: trackers besides metrics.csv.
        model: a network to train a copy of, in place of the recipe's architecture.

    Raises:
        InputError: the recipe does not fit the data.
    """

    recipe: Recipe
    data: DataSet
    run: Path
    fabric: Fabric = field(repr=False)
    seed: int = 0
    log: Sequence[str] = ()
    model: nn.Module | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        unseen, measured = self.unseen, self.recipe.validation.images
        if unseen and unseen < measured:
            raise InputError(
                f"validation.images is {measured}, but train_on "
                f"{self.recipe.train_on} holds back only {unseen}"
            )

    @cached_property
    def split(self) -> Split:
        """The images that are trained on."""
        return self.data.split(self.recipe.train_on).in_memory()

    @cached_property
    def extra(self) -> ExtraImages | None:
        """Further images that are trained on, in the shape of the data's own."""
        file = self.recipe.extra.file
        if file is None:
            return None
        channels, height, width = self.split.images.shape[1:]
        return load_extra(file, (channels, height, width), len(self.data.classes))

    @property
    def threat(self) -> Threat:
        """What the model is trained against."""
        return Threat(self.recipe.threat.norm, self.recipe.threat.eps)  # type: ignore[arg-type]

    @property
    def unseen(self) -> int | None:
        """How many of the first validation images are not trained on; None for all of them."""
        return held_back(self.recipe.train_on)

    @property
    def own_network(self) -> bool:
        """Whether the network is somebody's own, not one of Holdfast's architectures."""
        return self.model is not None or is_code(self.recipe.model.architecture)

    @property
    def network_name(self) -> str:
        """What the network is called in messages."""
        return f"the network {self.recipe.model.architecture!r}"

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files."""
        return self.fabric.is_global_zero
