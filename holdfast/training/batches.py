"""What each step trains on: a function of the run's seed and the step's number alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from .. import draws
from ..data.augment import Augment
from ..data.base import Split
from ..data.extra import ExtraImages
from ..errors import InputError
from .initialisation import FORMAT
from .job import TrainingJob
from .objectives import Batch

# rows (on the CPU) → uint8 images (N, C, H, W) and labels, on the run's device
Take = Callable[[Int64[Tensor, " n"]], tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]]


class Source:
    """An endless sequence of images in random order, `size` of them a step.

    Args:
        take: the images of some rows.
        count: how many rows there are. Each is seen once a pass; what is left over after a pass's
            last whole step is left out.
        classes: how many there are.
        weights: of each class, (K,), on the run's device; None where all count alike.
        form: the memory layout of images.
    """

    def __init__(
        self,
        take: Take,
        count: int,
        size: int,
        augment: Augment,
        seed: int,
        classes: int,
        weights: Tensor | None = None,
        form: torch.memory_format = FORMAT,
    ):
        self.take, self.count, self.size, self.classes = take, count, size, classes
        self.augment, self.seed, self.weights, self.form = augment, seed, weights, form
        self.order: tuple[int, Tensor] = (-1, torch.empty(0))

    def batch(self, step: int, share: slice, strength: float) -> Batch:
        """Some rows of what belongs to a step, augmented by so much of the recipe's strength."""
        number, place = divmod(step, self.count // self.size)
        if self.order[0] != number:
            shuffle = torch.Generator().manual_seed(
                int(draws.item_seeds(self.seed, "order", number))
            )
            self.order = (number, torch.randperm(self.count, generator=shuffle))
        rows = self.order[1][place * self.size : (place + 1) * self.size][share]
        images, labels, truth = self.seen(rows, number, strength)
        seeds = draws.item_seeds(self.seed, "perturb", number, rows).to(images.device)
        images = (images.float() / 255).contiguous(memory_format=self.form)
        weights = None
        if self.weights is not None:
            weights = self.weights[labels] if truth is None else truth @ self.weights
        return Batch(images, labels, seeds, truth, weights)

    def seen(
        self, rows: Int64[Tensor, " n"], number: int, strength: float
    ) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"], Float[Tensor, "n k"] | None]:
        """What a pass shows of some rows: augmented images, their labels, and where images are
        mixed the share of each class."""

        def views(rows: Tensor) -> tuple[Tensor, Tensor]:
            images, labels = self.take(rows)
            return self.augment(images, rows, number, self.seed, strength), labels

        images, labels = views(rows)
        truth: Tensor | None = None
        mixing = self.augment.mixing(rows, self.count, number, self.seed, strength)
        if mixing is not None:
            others, their_labels = views(mixing.others)
            images, own = mixing(images, others)
            truth = own[:, None] * functional.one_hot(labels, self.classes)
            truth = truth + (1 - own[:, None]) * functional.one_hot(their_labels, self.classes)
            labels = torch.where(own >= 0.5, labels, their_labels)
        return images, labels, truth


class Batches:
    """Batches of the data's own images, with a share of extra ones mixed into each.

    Args:
        split: the own images; they live on the device.
        batch_size: over all processes.
        classes: how many the data has.
        extra: other images, which stay where they are.
        share: of each batch that is extra.
        weights: of each class, (K,), mean 1 over the images; None where all count alike.
        form: the memory layout of images.
        rank, world: which process this is, of how many; each gets its share of every batch.

    Raises:
        InputError: fewer images than a batch needs, or a share that leaves none of either kind.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        augment: Augment,
        seed: int,
        device: torch.device,
        classes: int,
        *,
        extra: ExtraImages | None = None,
        share: float = 0.0,
        weights: Tensor | None = None,
        form: torch.memory_format = FORMAT,
        rank: int = 0,
        world: int = 1,
    ):
        if len(split) < batch_size:
            raise InputError(
                f"batch_size {batch_size} is more than the {len(split)} images to train on"
            )
        # An epoch is as many images as the data has, whatever share of them is extra.
        self.steps_per_epoch = len(split) // batch_size
        self.share = slice(rank, None, world)
        images = torch.from_numpy(np.asarray(split.images)).to(device)
        labels = torch.from_numpy(split.labels).to(device)

        def own(rows: Tensor) -> tuple[Tensor, Tensor]:
            rows = rows.to(device)
            return images[rows], labels[rows]

        others = 0 if extra is None else round(share * batch_size)
        if extra is not None and not 0 < others < batch_size:
            raise InputError(
                f"extra.share {share:g} of a batch of {batch_size} leaves none of one kind"
            )
        weights = None if weights is None else weights.to(device)
        alike = (classes, weights, form)
        self.sources = [Source(own, len(split), batch_size - others, augment, seed, *alike)]
        if extra is not None:
            if len(extra) < others:
                raise InputError(f"there are {len(extra)} extra images, {others} go into a batch")
            held = extra
            extra_labels = torch.from_numpy(held.labels)

            def more(rows: Tensor) -> tuple[Tensor, Tensor]:
                found = torch.from_numpy(held.take(rows.numpy()))
                return found.to(device), extra_labels[rows].to(device)

            other_seed = int(draws.item_seeds(seed, "extra"))
            self.sources.append(Source(more, len(extra), others, augment, other_seed, *alike))

    @classmethod
    def of(
        cls,
        job: TrainingJob,
        weights: Tensor | None = None,
        form: torch.memory_format = FORMAT,
    ) -> Batches:
        """The batches of a run, with the weights of its classes, in this memory layout."""
        recipe, fabric = job.recipe, job.fabric
        return cls(
            job.split,
            recipe.batch_size,
            recipe.augment.operations(),
            job.seed,
            fabric.device,
            len(job.data.classes),
            extra=job.extra,
            share=recipe.extra.share,
            weights=weights,
            form=form,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )

    def batch(self, step: int, whole: bool = False, strength: float = 1.0) -> Batch:
        """This process's share of the batch that belongs to a step, or all of it.

        Args:
            strength: of the augmentation, 0 to 1; see `Augment`.
        """
        share = slice(None) if whole else self.share
        parts = [source.batch(step, share, strength) for source in self.sources]
        if len(parts) == 1:
            return parts[0]
        truths = [part.truth for part in parts if part.truth is not None]
        weights = [part.weights for part in parts if part.weights is not None]
        return Batch(
            torch.cat([part.images for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.seeds for part in parts]),
            torch.cat(truths) if truths else None,
            torch.cat(weights) if weights else None,
        )
