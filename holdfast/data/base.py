"""What a data set is: three splits of uint8 images with labels and file names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from ..errors import InputError
from .images import ImageArray, digests, joined, part

SPLITS = ("train", "validation", "test")
ALL = "all"  # the split that holds every image
# What people call splits: in names of folders, files and columns, and where one is asked for.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a data set.

    Attributes:
        images: uint8 (N, C, H, W); 0 is 0.0 and 255 is 1.0. An array; or what is indexed like one
            and decodes images when they are asked for (`holdfast.data.images.LazyImages`).
        filenames: str (N,); where each image came from.
        labels: int64 (N,), from 0 to the number of classes - 1.
        pixels: what the pixels are, in words, for every figure made from them.
        indices: int64 (N,), which images of the whole split these are; None: its first N.
        grouped: the labels stand class after class, so that the first images are no sample.

    Raises:
        InputError: images of another shape or type, or not as many labels and names as images.
    """

    images: ImageArray
    filenames: Shaped[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    pixels: str
    indices: Int64[np.ndarray, " n"] | None = None
    grouped: bool = False

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise InputError(
                f"images must be uint8 (N, C, H, W), not {self.images.dtype} {self.images.shape}"
            )
        n = (len(self.images),)
        if self.labels.shape != n or self.labels.dtype != np.int64:
            raise InputError(
                f"labels must be int64 {n}, not {self.labels.dtype} {self.labels.shape}"
            )
        if self.filenames.shape != n:
            raise InputError(f"filenames must have the shape {n}, not {self.filenames.shape}")

    def __len__(self) -> int:
        return len(self.images)

    def in_memory(self) -> Split:
        """The same with all images decoded, as an array."""
        images = np.asarray(self.images)
        return self if images is self.images else replace(self, images=images)

    def first(self, count: int) -> Split:
        """The first `count` images, or all where there are fewer."""
        return self._slice(slice(count))

    def after(self, count: int) -> Split:
        """All images but the first `count`."""
        return self._slice(slice(count, None))

    def _slice(self, rows: slice) -> Split:
        images = self.images[rows]
        indices = self.indices if rows.start is None else self._known
        if indices is not None:
            indices = indices[rows]
        return replace(
            self,
            images=images,
            filenames=self.filenames[rows],
            labels=self.labels[rows],
            indices=indices,
        )

    def rows(self, rows: Int64[np.ndarray, " m"]) -> Split:
        """Some of the images, in this order; lazy if the split's are."""
        return replace(
            self,
            images=part(self.images, rows),
            filenames=self.filenames[rows],
            labels=self.labels[rows],
            indices=self._known[rows],
        )

    @property
    def _known(self) -> Int64[np.ndarray, " n"]:
        return np.arange(len(self)) if self.indices is None else self.indices

    @property
    def reach(self) -> int:
        """How many of the first images of the whole split hold all of these."""
        return len(self) if self.indices is None else int(self.indices.max(initial=-1)) + 1


@dataclass(frozen=True)
class Overlap:
    """Images of one split that are in another too, pixel for pixel.

    Attributes:
        split, other: the names of the two.
        images: how many images of `split` are in `other`.
        example: the file names of the first pair.
    """

    split: str
    other: str
    images: int
    example: tuple[str, str]

    def __str__(self) -> str:
        one, other = self.example
        many = "1 image" if self.images == 1 else f"{self.images} images"
        return (
            f"{many} of {self.split} can be found in {self.other} too, pixel for pixel ({one} is"
            f" {other}): figures on {self.split} flatter a model that has seen {self.other}"
        )


def overlaps(splits: Mapping[str, Split]) -> tuple[Overlap, ...]:
    """Which splits share images, found by their pixels, or by their files where they are lazy; each
    against those before it."""
    found: list[Overlap] = []
    seen: dict[str, dict[bytes, int]] = {}
    for name, split in splits.items():
        told = digests(split.images)
        for other, places in seen.items():
            rows = [row for row, digest in enumerate(told) if digest in places]
            if rows:
                pair = split.filenames[rows[0]], splits[other].filenames[places[told[rows[0]]]]
                found.append(Overlap(name, other, len(rows), (str(pair[0]), str(pair[1]))))
        seen[name] = {digest: row for row, digest in enumerate(told)}
    return tuple(found)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A name, the names of the classes, and the three splits.

    Models are chosen on `validation`; `test` is looked at once, at the end. Whoever takes part of a
    split takes its first images: the splits stand in an order of which that is a sample.

    Attributes:
        overlaps: which splits share images, as far as that was looked for.
        told: what was recognised, and what of it was not understood, one line each.
        lacking: why a split holds no images, by its name; such a split has the length 0.
        everything: all images, where they are more than the three splits, or in an order of which
            the first are a sample; None: the three splits, one after another.
        named: whether classes have names; else they are called by their numbers.
        also: what else a class is called, by its name.
        brought: how images of one's own were brought to one shape: `size`, height and width in
            pixels, and `grey`; empty where they are as in the files.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    overlaps: tuple[Overlap, ...] = ()
    told: tuple[str, ...] = ()
    lacking: Mapping[str, str] = field(default_factory=dict)
    everything: Split | None = None
    named: bool = True
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    brought: Mapping[str, int | bool] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @property
    def shown(self) -> dict[str, Any]:
        """What its images are like, for the card of a model that is trained on them."""
        channels, height, width = self.shape
        brought = {"brought": dict(self.brought)} if self.brought else {}
        return {"height": height, "width": width, "channels": channels, **brought}

    @property
    def held(self) -> list[str]:
        """The splits that hold images."""
        return [name for name in SPLITS if len(getattr(self, name))]

    def usual(self, name: str | None) -> str:
        """The split asked for, by our name (`val` and `Dev` are `validation`); of None `test`, or
        what there is where that holds no images."""
        if name is not None:
            word = name.strip().lower()
            return SPLIT_WORDS.get(word, word if word == ALL else name)
        return next((each for each in ("test", "validation") if each in self.held), ALL)

    def split(self, name: str) -> Split:
        """The split called `train`, `validation`, `test`, `all`, `train+validation`, or
        `train+validation-N`, which leaves out the first N validation images.

        Raises:
            InputError: another name, a split without images, or N of not as many validation
                images.
        """
        if TRAINED_ON.fullmatch(name) and name != "train":
            held = held_back(name)
            if held is None or held >= len(self.validation):
                raise InputError(f"{name}: there are only {len(self.validation)} validation images")
            rest = self.validation.after(held)
            return _joined({"train": self.split("train"), "validation": rest})
        if name == ALL:
            return self.everything or _joined({each: getattr(self, each) for each in self.held})
        if name not in SPLITS:
            known = ", ".join([*SPLITS, ALL, "train+validation"])
            raise InputError(f"split {name!r} is unknown; the splits are {known}")
        split: Split = getattr(self, name)
        if not len(split):
            why = self.lacking.get(name) or f"{self.name} has no {name} images"
            raise InputError(f"{why}{self._instead(name)}")
        return split

    def _instead(self, name: str) -> str:
        """Which splits there are, to end a line about one that there is not."""
        others = ", ".join(self.held)
        return f"; --split {others}{' or ' if others else ''}{ALL} has images"

    def absent(self, labels: Int64[np.ndarray, " n"]) -> list[str]:
        """The classes of which none of these labels is, by name."""
        counts = np.bincount(labels, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=False) if not count]

    def remarks(self, split: str, first: int) -> list[str]:
        """What has to be said, on one line each, beside a figure from the first images of a split:
        classes that are not among them, and images that are in several splits."""
        absent = self.absent(self.split(split).labels[:first])
        said = [*(f"{overlap}" for overlap in self.overlaps), *self.told]
        if absent:
            names = ", ".join(absent[:10]) + (", …" if len(absent) > 10 else "")
            said.insert(
                0,
                f"{len(absent)} of {len(self.classes)} classes have no image among the {first} of"
                f" {split}, so nothing here is about them: {names}",
            )
        return said

    def result_fields(self, split: str, first: int) -> dict[str, Any]:
        """The same for programs: fields of a result's `data`."""
        chosen = self.split(split).indices
        return {
            **({} if chosen is None else {"indices": chosen[:first].tolist()}),
            **({"told": list(self.told)} if self.told else {}),
            **({"brought": dict(self.brought)} if self.brought else {}),
            "classes_without_images": self.absent(self.split(split).labels[:first]),
            "overlaps": [
                {"split": each.split, "other": each.other, "images": each.images}
                for each in self.overlaps
            ],
        }


# What a model can be trained on.
TRAINED_ON = re.compile(r"train(\+validation(-[1-9][0-9]{0,8})?)?")


def held_back(trained_on: str) -> int | None:
    """How many of the first validation images a model trained on this split has not seen.

    Args:
        trained_on: as recipes and cards have it, such as `train+validation-1000`.

    Returns:
        None for all of them; 0 also where `trained_on` names validation images in a way that
        nobody here writes.
    """
    if "validation" not in trained_on:
        return None
    known = TRAINED_ON.fullmatch(trained_on)
    return int(known[2][1:]) if known and known[2] else 0


def holds_out(trained_on: str) -> bool:
    """Whether a training run had validation images to measure that it was not trained on."""
    return held_back(trained_on) != 0


def seen_in_training(trained_on: str, split: str, first: int) -> bool:
    """Whether some of the first images of a split are among those that a model was trained on.

    Args:
        trained_on: what its card says; empty where it says nothing.
        split: of the same data set: `train`, `validation`, `test` or `train+validation`.
        first: how many images.
    """
    if not trained_on or split == "test":
        return False
    held = held_back(trained_on)
    return split != "validation" or (held is not None and first > held)


def _joined(splits: Mapping[str, Split]) -> Split:
    """Several splits, one after another, by their names."""
    parts = list(splits.values())
    pixels = dict.fromkeys(split.pixels for split in parts)
    told = [f"{name}: {split.pixels}" for name, split in splits.items()]
    return Split(
        joined([split.images for split in parts]),
        np.concatenate([split.filenames for split in parts]),
        np.concatenate([split.labels for split in parts]),
        "; ".join(told) if len(pixels) > 1 else parts[0].pixels,
    )
