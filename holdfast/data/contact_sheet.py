"""A picture of a data set: each class with some of its training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .. import draws
from ..canvas import INK, MARGIN, SOFT, Canvas, Tile, check_picture, fitted, width_of
from .base import ALL, DataSet

PER_CLASS = 10
MOST_CLASSES = 50  # a taller page than this helps nobody
TILE = 64.0  # of an image's longer side on the page
GAP = 6.0
SCALE = 1.5
NAME = 13.0  # size of a class's name
LONGEST = 150.0  # a name on the page
HEAD = 42.0


def figure(dataset: DataSet, path: str | Path, seed: int = 0) -> None:
    """Draws each class as a row of 10 random training images, and saves the page.

    Where there are no training images, they are those of the split that there is.

    Args:
        dataset: its first 50 classes are drawn.
        path: the file to write; its ending chooses the format (`.svg`, `.png`, `.pdf`, and what
            else matplotlib knows).
        seed: another seed draws other images.

    Raises:
        InputError: an ending that matplotlib does not know, a file that cannot be written, or one
            that is there and is no figure of Holdfast's; images that are neither grey nor coloured.
    """
    # matplotlib takes long to import, which only those who draw should wait for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kinds = sorted(FigureCanvasAgg.get_supported_filetypes())
    check_picture(path, kinds)
    _drawn(dataset, seed).save(path, kinds)


def _drawn(dataset: DataSet, seed: int) -> Canvas:
    classes = dataset.classes[:MOST_CLASSES]
    count = len(dataset.classes)
    names = [fitted(each, LONGEST, NAME) for each in classes]
    name = "train" if len(dataset.train) else dataset.usual(None)
    kind = {"train": "training", ALL: ""}.get(name, name)
    images = f"random {kind} images".replace("  ", " ")
    split = dataset.split(name)
    rows = [
        [Tile(image, TILE, SCALE) for image in split.images[_chosen(split.labels, label, seed)]]
        for label in range(len(classes))
    ]
    tile = Tile(np.zeros(dataset.shape, np.uint8), TILE, SCALE)
    left = MARGIN + max(width_of(each, NAME) for each in names) + 14
    page = Canvas(
        round(left + PER_CLASS * (tile.width + GAP) - GAP + MARGIN),
        round(HEAD + len(rows) * (tile.height + GAP) - GAP + MARGIN),
        f"{dataset.name}: {count} classes",
        f"{PER_CLASS} {images} of each class, a row a class: {', '.join(classes)}.",
        SCALE,
    )
    room = page.width - 2 * MARGIN
    page.words(dataset.name, MARGIN, 28, 15, INK, bold=True, room=room)
    after = min(width_of(dataset.name, 15, bold=True), room) + 10
    shown = "" if len(classes) == count else f"; the first {len(classes)} are shown"
    said = f"{count} classes, {images}{shown}"
    page.words(said, MARGIN + after, 28, 13, SOFT, room=room - after)
    for i, (called, row) in enumerate(zip(names, rows, strict=True)):
        top = HEAD + i * (tile.height + GAP)
        page.words(called, left - 14, top + tile.height / 2 + NAME / 3, NAME, align="right")
        for j, each in enumerate(row):
            page.image(each, left + j * (tile.width + GAP), top, edge=None)
    return page


def _chosen(labels: np.ndarray, label: int, seed: int) -> np.ndarray:
    """The indices of up to 10 random images of a class."""
    (members,) = np.nonzero(labels == label)
    keys = draws.uniform(draws.item_seeds(seed, "figure", torch.from_numpy(members)), 0).numpy()
    return members[keys.argsort(kind="stable")[:PER_CLASS]]
