"""What a recipe trains on: some images, and how several epochs show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from .. import draws
from ..canvas import INK, MARGIN, SOFT, Canvas, Tile, check_picture, fitted, wrapped
from ..data import DataSet, load
from ..data.augment import Augment
from ..errors import InputError
from ..training import Recipe, load_recipe
from ..training.batches import Source

IMAGES, VIEWS = 8, 8
SIDE, GAP = 64.0, 6.0
HEAD = 70.0
PANEL = 176.0  # of the operations' list
AFTER = 12.0  # between an image and its views
LINE = 19.0


def augment(
    recipe: str | Path | Recipe,
    data: str | Path | DataSet,
    out: str | Path,
    *,
    changes: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Draw 8 training images, and how 8 epochs of a recipe show each of them.

    The views are those of a training run with this seed: its own code makes them, CutMix and mixup
    included, at full strength where the recipe lets it rise. The list beside them names each
    operation with its probability.

    Args:
        recipe: a YAML file, the name of a recipe that comes with Holdfast, or a `Recipe`.
        data: as `holdfast.data.load` takes it: `digits`, a folder, or a data set.
        out: the file, ending in `.svg`, `.png` or `.pdf`; over nothing but a figure.
        changes: `key=value` in place of the recipe's own, such as `augment.erase=0.5`.
        seed: of the run; it also chooses the images.

    Returns:
        the file.

    Raises:
        InputError: no such recipe, key or data; an augmentation that the images are too small for;
            a file that cannot be written, or is no figure.

    Example:
        >>> import holdfast as hf, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     hf.figures.augment("digits-gaussian", "digits", f"{folder}/views.svg").name
        'views.svg'
    """
    check_picture(out)
    name = "" if isinstance(recipe, Recipe) else Path(recipe).stem
    asked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, changes)
    if isinstance(recipe, Recipe) and changes:
        raise InputError("changes are of a recipe in a file; change a Recipe by its fields")
    held = load(data)
    operations = asked.augment.operations()
    split = held.split(asked.train_on)

    def take(rows: Int64[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        places = rows.numpy()
        return torch.from_numpy(split.images[places]), torch.from_numpy(split.labels[places])

    source = Source(take, len(split), 1, operations, seed, len(held.classes))
    rows = _chosen(split.labels, seed)
    shown = [source.seen(rows, epoch, strength=1.0)[0].numpy() for epoch in range(VIEWS)]
    views = np.stack(shown, 1)
    images = split.images[rows.numpy()]
    names = [held.classes[label] for label in split.labels[rows.numpy()]]
    warmup = asked.augment.warmup
    said = f"Strength rises over the first {100 * warmup:g}\u00a0% of a run." if warmup else ""
    title = f"Augmentation of {name}" if name else "Augmentation"
    page = _drawn(images, views, names, operations, title, said, f"{held.name}, seed {seed}")
    return page.save(out)


def _chosen(labels: np.ndarray, seed: int) -> Int64[Tensor, " m"]:
    """Rows of up to 8 images, in a random order, one of each class before the second of any."""
    numbers = torch.arange(len(labels))
    keys = draws.uniform(draws.item_seeds(seed, "figure augment", numbers), 0)
    seen: dict[int, int] = {}
    turns: list[tuple[int, int, int]] = []
    for row in keys.argsort(stable=True).tolist():
        label = int(labels[row])
        turn = seen[label] = seen.get(label, -1) + 1
        turns.append((turn, len(turns), row))
        if turn == 0 and len(seen) >= IMAGES:
            break
    return torch.tensor(sorted(row for _, _, row in sorted(turns)[:IMAGES]))


def _drawn(
    images: np.ndarray,
    views: np.ndarray,
    names: Sequence[str],
    operations: Augment,
    title: str,
    said: str,
    source: str,
) -> Canvas:
    tile = Tile(images[0], SIDE)
    step = tile.width + GAP
    first = MARGIN + tile.width + AFTER
    panel = first + views.shape[1] * step - GAP + 24
    listed = operations.in_words() or [("none", "images as they are")]
    lines: list[tuple[str, float, bool, float]] = []  # words, indent, bold, level
    level = HEAD + 12.0
    for name, how in [*listed, ("", said)]:
        if not name.startswith(" "):
            level += 8 if lines else 0
        if name and not name.startswith(" "):
            lines.append((name, 0.0, True, level))
            level += LINE
        indent = 12.0 if name.startswith(" ") else 0.0
        how = f"{name.strip()}  {how}" if indent else how
        for text in wrapped(how, PANEL - indent, 12):
            lines.append((text, indent, False, level))
            level += LINE
    grid = len(images) * (tile.height + GAP) - GAP
    height = max(HEAD + grid, level - LINE) + MARGIN
    width = panel + PANEL + MARGIN
    shown = ", ".join(f"{name.strip()} {how}" for name, how in listed)
    page = Canvas(
        round(width),
        round(height),
        title,
        f"{len(images)} training images ({', '.join(names)}), and how {views.shape[1]} epochs show "
        f"each: {shown}. {source}.",
    )
    page.words(title, MARGIN, 30, 15, INK, bold=True, room=width - 2 * MARGIN - 180)
    page.words(fitted(source, 170, 11.5), width - MARGIN, 30, 11.5, SOFT, align="right")
    page.words("image", MARGIN + tile.width / 2, HEAD - 11, 12, SOFT, align="center")
    for number in range(views.shape[1]):
        middle = first + number * step + tile.width / 2
        head = f"epoch {number + 1}" if number == 0 else str(number + 1)
        page.words(head, middle, HEAD - 11, 12, SOFT, align="center")
    for i, image in enumerate(images):
        top = HEAD + i * (tile.height + GAP)
        page.image(Tile(image, SIDE), MARGIN, top, edge=None)
        for j, view in enumerate(views[i]):
            page.image(Tile(view, SIDE), first + j * step, top, edge=None)
    for text, indent, bold, level in lines:
        colour = INK if bold else SOFT
        page.words(text, panel + indent, level, 12, colour, bold=bold, room=PANEL - indent)
    return page
