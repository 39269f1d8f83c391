"""A picture of a data set: each class with some of its training images.

Drawn by matplotlib and not as the SVG of `holdfast.charts`: it is a picture of pixels that people
want as PNG or PDF too, with class names in any script.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import draws
from ..errors import InputError
from ..runs.files import check_named, write_named
from ..terminal import printable
from .base import DataSet

PER_CLASS = 10
MOST_CLASSES = 50  # a taller page than this helps nobody
TILE = 96  # pixels of an image's longer side on the page
GAP = 8
DPI = 144
MADE_BY = "Holdfast figure"
# Formats in which a picture can say what made it, and under which name; what cannot say so is
# never overwritten.
_MARKS = {"png": "Software", "pdf": "Creator", "svg": "Creator", "ps": "Creator", "eps": "Creator"}


def figure(dataset: DataSet, path: str | Path, seed: int = 0) -> None:
    """Draws each class as a row of 10 random training images, and saves the page.

    Args:
        dataset: its first 50 classes are drawn.
        path: the file to write; its ending chooses the format (`.png`, `.pdf`, `.svg`, …).
        seed: another seed draws other images.

    Raises:
        InputError: an ending that matplotlib does not know, a file that cannot be written, or one
            that is there and is no figure of `figure`'s.
    """
    # matplotlib takes long to import, which only those who draw should wait for.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = Path(path)
    kind = path.suffix[1:].lower()
    known = FigureCanvasAgg.get_supported_filetypes()
    if kind not in known:
        raise InputError(f"{path}: name a picture file, ending in {', '.join(sorted(known))}")
    check_named(path, _is_figure)
    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in a name is a $
        write_named(path, _drawn(dataset, kind, seed), _is_figure)


def _drawn(dataset: DataSet, kind: str, seed: int) -> bytes:
    from matplotlib.figure import Figure

    classes = dataset.classes[:MOST_CLASSES]
    rows = [
        [_tile(image) for image in dataset.train.images[_chosen(dataset.train.labels, label, seed)]]
        for label in range(len(classes))
    ]
    tile_height, tile_width = _tile(dataset.train.images[0]).shape[:2]
    sheet = np.full(
        (len(rows) * (tile_height + GAP) - GAP, PER_CLASS * (tile_width + GAP) - GAP, 3),
        255,
        np.uint8,
    )
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            top, left = i * (tile_height + GAP), j * (tile_width + GAP)
            sheet[top : top + tile_height, left : left + tile_width] = tile

    # One pixel of the sheet is one pixel of the page, so nothing is blurred.
    height, width = (side / DPI for side in sheet.shape[:2])
    names = [printable(name if len(name) <= 30 else f"{name[:29]}…") for name in classes]
    left, right, top, bottom = 0.4 + 0.1 * max(map(len, names)), 0.2, 0.5, 0.2  # inches
    page = Figure(figsize=(left + width + right, top + height + bottom), dpi=DPI)
    across, up = page.get_size_inches()
    axes = page.add_axes((left / across, bottom / up, width / across, height / up))
    axes.imshow(sheet, interpolation="none")
    middles = [i * (tile_height + GAP) + tile_height / 2 for i in range(len(rows))]
    axes.set_yticks(middles, names, fontsize=11)
    axes.set_xticks([])
    axes.tick_params(length=0, pad=8)
    axes.spines[:].set_visible(False)
    shown = "" if len(classes) == len(dataset.classes) else f"; the first {len(classes)} are shown"
    title = f"{dataset.name}: random training images of {len(dataset.classes)} classes{shown}"
    axes.set_title(printable(title), loc="left", fontsize=12, color="0.25", pad=9)

    picture = io.BytesIO()
    mark = {_MARKS[kind]: MADE_BY} if kind in _MARKS else None
    page.savefig(picture, format=kind, metadata=mark)
    return picture.getvalue()


def _is_figure(content: bytes) -> bool:
    """Whether these bytes are a picture that `figure` made."""
    return MADE_BY.encode() in content


def _chosen(labels: np.ndarray, label: int, seed: int) -> np.ndarray:
    """The indices of up to 10 random images of a class."""
    (members,) = np.nonzero(labels == label)
    keys = draws.uniform(draws.item_seeds(seed, "figure", torch.from_numpy(members)), 0).numpy()
    return members[keys.argsort(kind="stable")[:PER_CLASS]]


def _tile(image: np.ndarray) -> np.ndarray:
    """An image as it stands on the page, uint8 (h, w, 3)."""
    height, width = image.shape[1:]
    scale = TILE / max(height, width)
    if scale > 1:
        scale = round(scale)  # whole pixels stay sharp
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.broadcast_to(image.transpose(1, 2, 0), (height, width, 3))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, method))
