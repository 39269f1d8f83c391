"""What a data set is: three splits of uint8 images with labels and file names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from ..errors import InputError
from .images import ImageArray, digests, joined, part

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a data set.

    Attributes:
        images: uint8 (N, C, H, W); 0 is 0.0 and 255 is 1.0. An array; or what is indexed like one
            and decodes images when they are asked for (`holdfast.data.images.LazyImages`).
        filenames: str (N,); where each image came from.
        labels: int64 (N,), from 0 to the number of classes - 1.
        pixels: what the pixels are, in words, for every figure made from them.

    Raises:
        InputError: images of another shape or type, or not as many labels and names as images.
    """

    images: ImageArray
    filenames: Shaped[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    pixels: str

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
        return Split(self.images[rows], self.filenames[rows], self.labels[rows], self.pixels)

    def rows(self, rows: Int64[np.ndarray, " m"]) -> Split:
        """Some of the images, in this order; lazy if the split's are."""
        images = part(self.images, rows)
        return Split(images, self.filenames[rows], self.labels[rows], self.pixels)


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
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    overlaps: tuple[Overlap, ...] = ()

    def split(self, name: str) -> Split:
        """The split called `train`, `validation`, `test`, `train+validation`, or
        `train+validation-N`, which leaves out the first N validation images.

        Raises:
            InputError: another name, or N of not as many validation images.
        """
        if TRAINED_ON.fullmatch(name) and name != "train":
            held = held_back(name)
            if held is None or held >= len(self.validation):
                raise InputError(f"{name}: there are only {len(self.validation)} validation images")
            return _joined(self.train, self.validation.after(held))
        if name not in SPLITS:
            known = ", ".join([*SPLITS, "train+validation"])
            raise InputError(f"split {name!r} is unknown; the splits are {known}")
        split: Split = getattr(self, name)
        return split

    def absent(self, labels: Int64[np.ndarray, " n"]) -> list[str]:
        """The classes of which none of these labels is, by name."""
        counts = np.bincount(labels, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=False) if not count]

    def remarks(self, split: str, first: int) -> list[str]:
        """What has to be said, on one line each, beside a figure from the first images of a split:
        classes that are not among them, and images that are in several splits."""
        absent = self.absent(self.split(split).labels[:first])
        said = [f"{overlap}" for overlap in self.overlaps]
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
        return {
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


def _joined(first: Split, second: Split) -> Split:
    pixels = first.pixels
    if second.pixels != pixels:
        pixels = f"train: {first.pixels}; validation: {second.pixels}"
    return Split(
        joined([first.images, second.images]),
        np.concatenate([first.filenames, second.filenames]),
        np.concatenate([first.labels, second.labels]),
        pixels,
    )
