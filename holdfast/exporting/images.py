"""All adversarial images of a run: as 8-bit PNGs that still fool the model, or as exact arrays."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import draws
from ..errors import InputError
from ..models.modes import evaluating
from ..models.wrapper import standard_defaults
from ..runs.files import csv_text, write_atomically
from ..search import MAJORITY_OF, Verifier, succeeded
from ..stored import in_memory
from ..terminal import printable
from ..types import Report
from .found import Found, class_names
from .rounding import LOST, MENDED, PLAIN, Rounded, as_images, rounded

INDEX = "index.csv"
BATCH = 64
MOST_CHANNELS = 4  # of a PNG: grey or colours, each with or without transparency
MOST_MISSES = 0.05  # of the exact points; where more do not fool the model, it is another one
COLUMNS = (
    "index", "label", "class", "clean_prediction", "outcome", "prediction", "distance",
    "distance_of_png", "file",
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """What became of a run's images as 8-bit PNGs.

    Attributes:
        broken: images that an attack broke.
        plain: of these, how many fool the model when rounded to the nearest level.
        mended: how many another rounding, or a few steps on the grid, kept.
        lost: how many no 8-bit image inside the ball was found for; they are left out.
        wrong, standing: images that are wrong without an attack, or stand: no PNG.
    """

    broken: int
    plain: int
    mended: int
    lost: int
    wrong: int
    standing: int

    def __str__(self) -> str:
        n = self.broken + self.wrong + self.standing
        return (
            f"broken by an attack: {self.broken} of {n} images; as 8-bit PNGs, "
            f"{self.plain + self.mended} still fool the model ({self.plain} rounded as they are, "
            f"{self.mended} mended), and {self.lost} do not, which are left out; {self.standing} "
            f"stand, and {self.wrong} are wrong without an attack"
        )


def write_arrays(found: Found) -> bytes:
    """All points exactly, as `.npz`: `adversarial` and `images` (float32, N × C × H × W), `index`
    and `labels` (int64, N), and of a spatial threat model `witness`."""
    held = {
        "adversarial": in_memory(found.adversarial).numpy(),
        "index": found.verdicts.index,
        "labels": found.labels.numpy(),
        "images": in_memory(found.images).numpy(),
    }
    if found.witness.shape[1]:
        held["witness"] = found.witness.numpy()
    stream = io.BytesIO()
    np.savez(stream, **held)  # type: ignore[arg-type]
    return stream.getvalue()


def write_images(
    found: Found, model: nn.Module, folder: Path, device: torch.device, report: Report
) -> Counts:
    """A PNG of every image that an attack broke and that still fools the model in 8 bits, in a
    folder a class (of the true label), and `index.csv`, with a row for every image of the run.

    Raises:
        InputError: images of more than 4 channels; a model that is not fooled by the exact points.
    """
    verdicts = found.verdicts
    if found.images.shape[1] > MOST_CHANNELS:
        raise InputError(
            f"a PNG has 1 to 4 channels, not {found.images.shape[1]}; export to FILE.npz"
        )
    rows = found.attacked.nonzero().squeeze(1)
    random = bool(found.run.record.draws)
    verifier = Verifier(model, MAJORITY_OF if random else 1)
    with standard_defaults(), evaluating(model):
        pngs = _all_rounded(found, verifier, rows, device, report)
    how = torch.full((len(found.labels),), -1)
    levels, prediction = torch.zeros(0), how.clone()
    if pngs is not None:
        how[rows], prediction[rows] = pngs.how, pngs.prediction
        levels = pngs.levels
    names = class_names(found.run, verdicts.label)
    folders = _folders(found, names)
    width = len(str(int(verdicts.index.max(initial=0))))
    of_row = {int(row): place for place, row in enumerate(rows.tolist())}
    table = []
    for row, index in enumerate(verdicts.index.tolist()):
        file, distance = "", ""
        if int(how[row]) in (PLAIN, MENDED):
            image = levels[of_row[row]]
            file = f"{folders[int(verdicts.label[row])]}/{index:0{width}d}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(_png(image))  # the folder is put in place when it is whole
            if not found.witness.shape[1]:
                reached = found.run.threat.distance(
                    as_images(image)[None], found.images[row : row + 1]
                )
                distance = f"{float(reached):.6g}"
        table.append(
            [
                index,
                int(verdicts.label[row]),
                names[row],
                int(verdicts.clean_prediction[row]),
                _outcome(int(how[row]), bool(verdicts.broken[row])),
                int(prediction[row]) if int(how[row]) >= 0 else "",
                f"{verdicts.distance[row]:.6g}",
                distance,
                file,
            ]
        )
    write_atomically(folder / INDEX, csv_text(COLUMNS, table))
    broken = int(verdicts.broken.sum())
    return Counts(
        broken=len(rows),
        plain=int((how == PLAIN).sum()),
        mended=int((how == MENDED).sum()),
        lost=int((how == LOST).sum()),
        wrong=broken - len(rows),
        standing=len(verdicts.broken) - broken,
    )


def _outcome(how: int, broken: bool) -> str:
    if how == PLAIN:
        return "fools the model"
    if how == MENDED:
        return "fools the model, mended"
    if how == LOST:
        return "does not fool the model in 8 bits"
    return "wrong without an attack" if broken else "stands"


def _all_rounded(
    found: Found, verifier: Verifier, rows: Tensor, device: torch.device, report: Report
) -> Rounded | None:
    """The 8-bit images of these rows, in batches; None where there is no row."""
    threat, seed = found.run.threat, found.run.record.seed or 0
    index = torch.from_numpy(found.verdicts.index)
    parts, misses = [], 0
    for batch in rows.split(BATCH) if len(rows) else ():
        seeds = draws.item_seeds(seed, "last word", index[batch])
        x, exact = found.images[batch].to(device), found.adversarial[batch].to(device)
        labels, witness = found.labels[batch].to(device), found.witness[batch].to(device)
        goals = found.goals[batch].to(device)
        exact_prediction = verifier.predict(exact, seeds).prediction
        misses += int((~succeeded(exact_prediction, labels, goals)).sum())
        part = rounded(verifier, threat, x, exact, witness, labels, seeds, goals)
        parts.append(Rounded(part.levels.cpu(), part.how.cpu(), part.prediction.cpu()))
        report(sum(len(p.how) for p in parts) / len(rows))
    if not parts:
        return None
    if misses > max(1, MOST_MISSES * len(rows)):
        raise InputError(
            f"{misses} of {len(rows)} exact adversarial points of {found.run.path} do not fool "
            "this model, so it is another than the one judged; give that one, with its defences "
            "(--model, --defence)"
        )
    return Rounded(*(torch.cat([getattr(p, name) for p in parts]) for name in _fields()))


def _fields() -> Iterator[str]:
    yield from ("levels", "how", "prediction")


def _folders(found: Found, names: list[str]) -> dict[int, str]:
    """A folder's name for each label: the class's, where no two would share one."""
    by_label = dict(zip(found.verdicts.label.tolist(), names, strict=True))
    safe: Callable[[str], str] = lambda name: re.sub(r"[^\w.-]+", "_", printable(name)).strip("-.")  # noqa: E731
    made = {label: safe(name)[:80] for label, name in by_label.items()}
    unlike = {name.casefold() for name in made.values()}
    if len(unlike) < len(made) or "" in unlike:
        return {label: str(label) for label in by_label}
    return made


def _png(levels: Tensor) -> bytes:
    """A PNG of one image (C, H, W), uint8."""
    array = levels.permute(1, 2, 0).squeeze(2).contiguous().numpy()  # grey has no third axis
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()
