"""Any folder of images with one folder a class, or with a file of labels.

`holdfast.data.arrangement` says which files are of which class and split, `holdfast.data.pictures`
decodes them, and here they become a data set.

Images stand in an order that depends on each file's own name and contents and on nothing else, so
the first N of a split are a sample of it, the same on every machine. What is held out is chosen
alike. Where classes are numbered, they are in the order of the numbers.

Torchvision's `ImageFolder` reads such folders too. It keeps the order of the file system's names,
class after class, holds nothing out, cuts 16 bits to 8 without a word, and fails on a damaged file
in the middle of the work. Decoding itself is Pillow's, there and here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .arrangement import Arrangement, Files, arrange, folders, holds_pictures
from .base import SPLITS, DataSet, Split, overlaps
from .brought import Remembered, check_size
from .images import IN_MEMORY, ImageArray, LazyImages, fingerprint
from .names import shown
from .pictures import Digests, Pictures, hw, lengths, read_image

HELD_OUT = 0.1  # the share of a class that goes to validation, and again to test
READ_WHOLE = 4 * 2**30  # bytes of files whose order goes by their contents

Members = list[tuple[Path, int]]  # files and their labels


def load(
    folder: str | Path,
    size: int | None = None,
    like: Remembered | None = None,
    labels: str | Path | None = None,
) -> DataSet:
    """The images of a folder, as RGB.

    The arrangements are those of `holdfast.data.arrangement`; hidden files are ignored. Without a
    validation folder, a tenth of each class in train becomes validation. Without any split, a tenth
    of each class becomes validation, and another test.

    What is held out, and the order of the images, depend on each file's own name and contents
    alone (not on its class, nor on the place or the file system of the folder); of more than 4 GiB
    of files, on their names and lengths. Up to 512 MiB of pixels are decoded into memory at once;
    more than that, when they are asked for.

    Args:
        folder: `DIR`.
        size: height and width, in pixels, to which images are brought: the centre is cut to a
            square and resized. None takes them as they are, all of one size.
        like: what a model was trained on; without `size`, images are brought to its size, if its
            own were, or the first is of another.
        labels: a file that says which class each image of a flat folder belongs to
            (`holdfast.data.label_tables`).

    Returns:
        Images uint8 (N, 3, H, W), sorted by the SHA-256 of file name and contents, so that the
        first N of a split are a sample of it; file names relative to the folder; classes sorted by
        name, numbers in names as numbers (1, 2, 10). `overlaps` says which images are in more than
        one split, by their pixels; by their files where they are decoded when they are asked for.
        A split that is not there is empty, and asking for it says why.

    Raises:
        InputError: no such folder; fewer than two classes; a class without images, or one that
            `train` lacks, in a split; a file that is no image, is larger than 50 million pixels,
            has more than 8 bits a channel, or has another size than the rest. Where images are
            decoded when they are asked for, that is when this is said.
    """
    folder = Path(folder)
    check_size(size)
    found = arrange(folder, labels)
    if len(found.classes) < 2:
        raise InputError(
            f"{folder}: {len(found.classes)} class folders ({', '.join(found.classes) or 'none'}),"
            " where a classifier needs at least 2; put the images of each class in a folder of its"
            " own"
        )
    every = [path for files in found.splits.values() for held in files.values() for path in held]
    digests = Digests(whole=lengths(every, READ_WHOLE) <= READ_WHOLE)
    members = _members(found, folder, digests)
    first = next(held[0][0] for held in members.values() if held)
    shape = read_image(first, size).shape
    told = found.told
    if size is None and like is not None and (size := like.wanted(shape)) is not None:
        shape = read_image(first, size).shape
        told.append(like.line(size))
    if not digests.whole:
        told.append(
            f"{folder}: more than {READ_WHOLE // 2**30} GiB of files: their order goes by names and"
            " lengths, and none are compared between splits"
        )
    made = _Made(folder, shape, size, digests, len(every) * math.prod(shape) <= IN_MEMORY)
    splits = {name: made.split(members.get(name, [])) for name in SPLITS}
    whole = made.whole(splits, members)
    return DataSet(
        shown(folder.resolve().name),
        tuple(found.classes),
        splits["train"],
        splits["validation"],
        splits["test"],
        overlaps=overlaps(splits) if digests.whole else (),
        told=tuple(told),
        lacking=found.lacking,
        everything=whole,
        named=found.named,
        also=found.also,
        brought={} if size is None else {"size": size},
    )


def is_here(folder: Path) -> bool:
    """Whether the folder holds sub-folders, or images, as every arrangement does."""
    return folder.is_dir() and (bool(folders(folder)) or holds_pictures(folder))


# --- which files ----------------------------------------------------------------------------------


def _members(found: Arrangement, folder: Path, digests: Digests) -> dict[str, Members]:
    """The files of each split with their labels, in the order in which they stand."""
    splits = dict(found.splits)
    if "all" in splits:
        parts = _held_out(found, folder, splits["all"], digests, ("validation", "test"), "train")
        splits |= parts
        if parts:
            found.told.append(
                f"{folder}: no split folders: a tenth of each class is test, another validation;"
                " --split all takes every image"
            )
    elif "train" in splits and "validation" not in splits:
        splits |= _held_out(found, folder, splits["train"], digests, ("validation",), "train")
    for split in SPLITS:
        if split not in splits:
            found.lacking.setdefault(split, _why_not(found, folder, split))
    label = {name: number for number, name in enumerate(found.classes)}
    made: dict[str, Members] = {}
    for split, files in splits.items():
        members = [(path, label[name]) for name in found.classes for path in files[name]]
        # The class decides only between files of one name and the same contents.
        members.sort(key=lambda member: digests.place(member[0], "order"))
        made[split] = members
    return made


def _why_not(found: Arrangement, folder: Path, split: str) -> str:
    held = " and ".join(name for name in SPLITS if name in found.splits)
    if split == "test" and held:
        return f"{folder}: has {held} but no test folder; put the test images in test/"
    return f"{folder}: has {held or 'images'} but no {split} folder"


def _held_out(
    found: Arrangement,
    folder: Path,
    classes: Files,
    digests: Digests,
    names: Sequence[str],
    rest: str,
) -> dict[str, Files]:
    """For each name a tenth of each class (at least one image), and what is left as `rest`; nothing
    where a class has too few images."""
    parts = len(names)
    held_out: dict[str, Files] = {name: {} for name in (*names, rest)}
    for name, files in classes.items():
        size = max(1, round(HELD_OUT * len(files)))
        if len(files) <= parts * size:
            why = (
                f"{folder}: class {name!r} has {len(files)} images, too few to hold some out; it"
                f" needs at least {parts + 1}"
            )
            lacking = (*names, rest) if parts > 1 else names
            found.lacking |= dict.fromkeys(lacking, why)
            return {}
        shuffled = sorted(files, key=lambda path: digests.place(path, "held out"))
        for part, other in enumerate(names):
            held_out[other][name] = shuffled[part * size : (part + 1) * size]
        held_out[rest][name] = shuffled[parts * size :]
    return held_out


# --- images ---------------------------------------------------------------------------------------


class _Made:
    """Splits from files.

    Args:
        shape: (C, H, W).
        size: to which images are brought; None: none.
        in_memory: decode them at once.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, int, int],
        size: int | None,
        digests: Digests,
        in_memory: bool,
    ):
        self.folder, self.shape, self.size = folder, shape, size
        self.digests, self.in_memory = digests, in_memory
        self.how = "as in the files" if size is None else "centre cut and resized"

    def split(self, members: Members) -> Split:
        """Images of some files, in their order."""
        paths = [path for path, _ in members]
        pictures = Pictures(paths, self.size, self.shape)
        images: ImageArray
        if self.in_memory:
            images = pictures.decoded(self.folder)
        else:
            images = pictures.lazy([self.digests.contents[path] for path in paths])
        return self._of(members, images, fingerprint(images))

    def whole(self, splits: dict[str, Split], members: dict[str, Members]) -> Split:
        """All images, in one order; those of the splits where they are decoded already."""
        held = {name: each for name, each in splits.items() if len(each)}
        if not held:
            return self.split(members["all"])
        every = [member for name in held for member in members[name]]
        places = [(name, row) for name in held for row in range(len(held[name]))]
        order = sorted(range(len(every)), key=lambda i: self.digests.place(every[i][0], "order"))

        def image(row: int) -> np.ndarray:
            name, place = places[order[row]]
            found: np.ndarray = held[name].images[place]
            return found

        contents = [self.digests.contents[every[i][0]] for i in order]
        # The splits keep what they decode: nothing is kept twice.
        images = LazyImages(image, len(every), self.shape, digests=contents, cache=0)
        told = hashlib.sha256(b"".join(contents)).hexdigest()[:12]
        return self._of([every[i] for i in order], images, told, "files")

    def _of(self, members: Members, images: ImageArray, told: str, of: str = "") -> Split:
        of = of or ("images" if self.in_memory else "files")
        return Split(
            images,
            np.array([shown(path.relative_to(self.folder)) for path, _ in members], dtype=str),
            np.array([label for _, label in members], np.int64),
            f"own images, {hw(self.shape)}, {self.how} (sha256 of the {of}: {told})",
        )
