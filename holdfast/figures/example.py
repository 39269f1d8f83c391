"""An adversarial example as an equation: image + ε × perturbation = adversarial image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ..attacks import Suite
from ..canvas import INK, MARGIN, SOFT, WIDTH, Canvas, Tile, check_picture, wrapped
from ..errors import InputError
from ..inputs import checked_data, checked_threat, whole_number
from ..report.pictures import magnification, magnified
from ..runs.progress import ProgressLine
from ..threat import SPATIAL, Threat
from ..types import Images, Model
from .subject import FEW_STEPS, Answer, Subject, answer_at, naming, percent, radius, ready
from .under import ANSWER, beneath, under

CONFIDENT = 0.9  # of a mistake that is shown without looking further
MOST = 256  # images that are attacked until one is chosen
AT_ONCE = 16
SIDE = 224.0  # of an image on the page
HEAD, ROW_HEAD, ROW_GAP, FOOT = 44.0, 34.0, 20.0, 17.0


@dataclass(frozen=True)
class Row:
    """One model of the figure.

    Attributes:
        name: as it stands above the row.
        clean, attacked: what the model says of the image, and of the adversarial one.
        adversarial: float32 (C, H, W).
        distance: from the image, in the threat model's norm.
    """

    name: str
    clean: Answer
    attacked: Answer
    adversarial: Tensor
    distance: float


@dataclass(frozen=True)
class Example:
    """What the figure shows.

    Attributes:
        file: where it was written.
        index: of the image, from `first` on.
        label: its true class.
        rows: one a model, in their order.
        said: the caption.
    """

    file: Path
    index: int
    label: int
    rows: tuple[Row, ...]
    said: str


def example(
    models: Model | Mapping[str, Model],
    images: Images,
    labels: Int64[Tensor, " n"],
    out: str | Path,
    threat: Threat | None = None,
    *,
    index: int | None = None,
    suite: str | Suite | None = None,
    classes: Sequence[str] | None = None,
    source: str = "image",
    first: int = 0,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Example:
    """Draw an adversarial example as an equation: image + ε × perturbation = adversarial image.

    Under each image stand the model's answer and its confidence. By default the image is the first
    that every model gets right and of which the attack makes the first model say something else
    with a confidence of at least 90 %; where none of the first 256 is that, the most confident
    mistake among them.

    Args:
        models: images → logits, defences included; several by name, each a row with a perturbation
            of its own.
        images: float32 (N, C, H, W) in [0, 1], C of 1 or 3; what `holdfast.evaluate` takes.
        labels: int64 (N,) true classes.
        out: the file, ending in `.svg`, `.png` or `.pdf`; over nothing but a figure.
        threat: what the attacker may do, in L∞, L2, L1 or L0; a pair `("linf", 8 / 255)` is taken
            too.
        index: of the image to show, in place of a search for one.
        suite: the attacks, as `holdfast.evaluate` takes them. By default PGD on the margin, 100
            steps, not stopped at its first success, so that mistakes are as confident as can be.
        classes: their names, for the answers.
        source: what an image is, for the caption, such as `cifar10, test image`.
        first: the number that the first of the images has in its data set.
        seed: of all random draws.
        device: where to work; by default where the models are.
        progress: show a progress line.

    Raises:
        InputError: bad images, labels or models; an index that there is not; no image that the
            attack breaks; a file that cannot be written, or is no figure.

    Example:
        >>> import holdfast as hf, tempfile, torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> labels = model(images).argmax(1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shown = hf.figures.example(
        ...         model, images, labels, f"{folder}/example.svg", ("linf", 0.3)
        ...     )
        >>> shown.rows[0].attacked.label != shown.label
        True
    """
    check_picture(out)
    named = dict(models) if isinstance(models, Mapping) else {"": models}
    if not named:
        raise InputError("give at least one model")
    threat = checked_threat(threat)
    if threat.norm == SPATIAL:
        raise InputError("a turned image is no sum: for this figure, take linf, l2, l1 or l0")
    images, labels = checked_data(images, labels)
    images, labels = images.cpu(), labels.cpu()
    threat.check_reach(images)
    Tile(images[0].numpy(), SIDE)  # or it cannot be shown
    if index is not None:
        whole_number("index", index, 0, len(images) - 1)
    count = max(len(classes or ()), int(labels.max()) + 1)
    subjects = [
        Subject(model, threat, seed, suite, device, first, count) for model in named.values()
    ]
    with ready(subjects), ProgressLine("looking for an image", progress) as line:
        why = ""
        if index is None:
            index, why = _chosen(subjects, images, labels, line)
        rows = torch.tensor([index])
        shown = [
            _row(name, subject, images[rows], labels[rows], rows)
            for name, subject in zip(named, subjects, strict=True)
        ]
    name = naming(classes)
    attack = "; ".join(dict.fromkeys(each.in_words() for each in subjects))
    said = (
        f"{source} {first + index}, true class {name(int(labels[index]))}{why}. "
        f"{threat}; {attack}; seed {seed}."
    )
    label = int(labels[index])
    page = _drawn(images[index], label, shown, threat, name, said)
    return Example(page.save(out), first + index, label, tuple(shown), said)


def _chosen(
    subjects: Sequence[Subject], images: Images, labels: Tensor, line: ProgressLine
) -> tuple[int, str]:
    """The index of the image to show, and why it is this one."""
    attacked = 0
    best: tuple[float, int] = (0.0, -1)
    first = subjects[0]
    for rows in _right(subjects, images, labels):
        points = first.attacked(images[rows], labels[rows], rows, FEW_STEPS)
        said = first.answers(points, rows, "attacked")
        for place, row in enumerate(rows.tolist()):
            answer = answer_at(said, place)
            sure = 1.0 if math.isnan(answer.confidence) else answer.confidence
            if answer.label == int(labels[row]) or sure <= best[0]:
                continue
            best = (sure, row)
            if sure >= CONFIDENT:
                return row, f", the first that is right and confidently broken{_of(subjects)}"
        attacked += len(rows)
        line.update(min(attacked / MOST, 1.0), f"{attacked} images attacked")
        if attacked >= MOST:
            break
    if not attacked:
        raise InputError(
            f"none of the {len(images)} images is right{_of(subjects)} without an attack: "
            "choose one by its index"
        )
    if best[1] < 0:
        raise InputError(
            f"none of {attacked} images that are right is broken within {first.threat}: take a "
            "larger eps, or choose an image by its index"
        )
    return best[1], f", of {attacked} that are right the one broken most confidently"


def _of(subjects: Sequence[Subject]) -> str:
    return " (right for every model, broken for the first)" if len(subjects) > 1 else ""


def _right(
    subjects: Sequence[Subject], images: Images, labels: Tensor
) -> Iterator[Int64[Tensor, " m"]]:
    """The rows that every model gets right, a few at once."""
    waiting = torch.empty(0, dtype=torch.int64)
    for rows in torch.arange(len(images)).split(2 * AT_ONCE):
        for subject in subjects:
            if len(rows):
                said = subject.answers(images[rows], rows)
                rows = rows[said.prediction == labels[rows]]
        waiting = torch.cat([waiting, rows])
        while len(waiting) >= AT_ONCE:
            yield waiting[:AT_ONCE]
            waiting = waiting[AT_ONCE:]
    if len(waiting):
        yield waiting


def _row(name: str, subject: Subject, image: Images, label: Tensor, rows: Tensor) -> Row:
    point = subject.attacked(image, label, rows)
    if not bool(subject.threat.contains(point, image)[0]):  # the search ended outside
        point = image
    return Row(
        name,
        answer_at(subject.answers(image, rows), 0),
        answer_at(subject.answers(point, rows, "attacked"), 0),
        point[0],
        float(subject.threat.distance(point, image)[0]),
    )


def perturbation(delta: np.ndarray, threat: Threat) -> tuple[np.ndarray, str]:
    """How a perturbation, (C, H, W), is shown around mid-grey, and the words for that."""
    if threat.norm == "linf":  # from −ε, black, to ε, white
        return 0.5 + delta / (2 * threat.eps), "black −ε, grey 0, white +ε"
    factor = magnification(delta[None])
    return magnified(delta, factor), f"magnified {factor} times" if factor > 1 else "as it is"


def _drawn(
    image: Tensor, label: int, rows: Sequence[Row], threat: Threat, name: Any, said: str
) -> Canvas:
    clean = image.numpy()
    tile = Tile(clean, SIDE)
    room = WIDTH - 2 * MARGIN
    lines = wrapped(said, room, 11.5)
    several = any(row.name for row in rows)
    head = ROW_HEAD if several else 0.0
    row_height = head + tile.height + ANSWER
    height = HEAD + len(rows) * (row_height + ROW_GAP) + len(lines) * FOOT + 14
    columns = [MARGIN, (WIDTH - tile.width) / 2, WIDTH - MARGIN - tile.width]
    told = "; ".join(
        (f"{row.name}: " if row.name else "")
        + f"image, {name(row.clean.label)} ({percent(row.clean.confidence)}), plus perturbation "
        f"gives {name(row.attacked.label)} ({percent(row.attacked.confidence)})"
        for row in rows
    )
    page = Canvas(WIDTH, height, "An adversarial example", f"{told}. {said}")
    for column, title in zip(columns, ("image", "perturbation", "adversarial image"), strict=True):
        page.words(title, column + tile.width / 2, HEAD - 14, 13, SOFT, align="center")
    gap = (columns[1] - columns[0] - tile.width) / 2
    sign = "+" if threat.norm == "l0" else "+ ε ×"
    for number, row in enumerate(rows):
        top = HEAD + number * (row_height + ROW_GAP)
        if several:
            page.words(row.name, MARGIN, top + 20, 15, INK, bold=True, room=room)
            top += head
        delta = row.adversarial.numpy() - clean
        shown, how = perturbation(delta, threat)
        middle = top + tile.height / 2 + 8
        page.image(tile, columns[0], top)
        page.words(sign, columns[1] - gap, middle, 23, INK, align="center")
        page.image(Tile(shown, SIDE), columns[1], top)
        page.words("=", columns[2] - gap, middle, 23, INK, align="center")
        page.image(Tile(row.adversarial.numpy(), SIDE), columns[2], top)
        bottom = top + tile.height
        under(page, columns[0], bottom, tile.width, row.clean, label, name(row.clean.label))
        changed = f"ε = {radius(threat)} in {str(threat).partition(' ')[0]}"
        if threat.norm == "l0":
            changed = f"{row.distance:g} of {clean.size} values changed"
        beneath(page, columns[1], bottom, tile.width, changed, how)
        attacked = row.attacked
        under(page, columns[2], bottom, tile.width, attacked, label, name(attacked.label))
    for number, text in enumerate(reversed(lines)):
        page.words(text, MARGIN, height - 20 - number * FOOT, 11.5, SOFT)
    return page
