"""What a preprocessing defence does: clean, attacked, defended, with the answers under each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from .. import draws
from ..attacks import Suite
from ..canvas import INK, MARGIN, SOFT, WIDTH, Canvas, Tile, check_picture, wrapped
from ..defences import chain, declared, shown, steps, undefended
from ..errors import InputError
from ..evaluation.unaware import STEPS, unaware_points, unaware_seeds
from ..inputs import checked_data, checked_threat, whole_number
from ..report.pictures import magnification, magnified
from ..runs.progress import ProgressLine
from ..threat import SPATIAL, Threat
from ..types import Images, Model
from .subject import Answer, Subject, answer_at, naming, percent, ready
from .under import ANSWER, beneath, under

MOST = 128  # images that are attacked until one is chosen
AT_ONCE = 16
SIDE = 160.0  # of an image on the page
COLUMNS = ("clean", "attacked", "attacked − clean", "defended", "defended − clean")
HEAD, ROW_HEAD, ROW_GAP, FOOT, SIZE = 44.0, 34.0, 20.0, 17.0, 13.0
UNAWARE = "the attacker does not know of the defence"
ADAPTIVE = "the attacker knows the defence"


@dataclass(frozen=True)
class Strip:
    """An image on its way through attack and defence.

    Attributes:
        attacker: what he knows.
        attacked, defended: float32 (C, H, W), the adversarial image, and what the network behind
            the defence gets of it.
        answers: the network's to the clean image and to the attacked one, and the defended model's
            to the attacked one.
    """

    attacker: str
    attacked: Tensor
    defended: Tensor
    answers: tuple[Answer, Answer, Answer]


@dataclass(frozen=True)
class Strips:
    """What the figure shows.

    Attributes:
        file: where it was written.
        index: of the image, from `first` on.
        label: its true class.
        strips: one an attacker: first the one who does not know of the defence.
        said: the caption.
    """

    file: Path
    index: int
    label: int
    strips: tuple[Strip, ...]
    said: str


def defence(
    model: Model,
    images: Images,
    labels: Int64[Tensor, " n"],
    out: str | Path,
    defences: Sequence[str] = (),
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
) -> Strips:
    """Draw what a defence that changes images does to an attacked one: clean, attacked, defended.

    Two strips: PGD by an attacker who does not know of the defence, and an attack through it, by
    one who does. Under each image stands what the network says of it, and how sure it is. By
    default the image is the first that is right with and without the defence, that the first
    attacker breaks while there is no defence, and does not break behind it; where none of the first
    128 is that, the first that he breaks.

    Args:
        model: images → logits; defences may stand in front of it already.
        images: float32 (N, C, H, W) in [0, 1], C of 1 or 3; what `holdfast.evaluate` takes.
        labels: int64 (N,) true classes.
        out: the file, ending in `.svg`, `.png` or `.pdf`; over nothing but a figure.
        defences: further ones in front of it, as on the command line: `["jpeg:quality=75"]`.
        threat: what the attackers may do, in L∞, L2 or L1.
        index: of the image to show, in place of a search for one.
        suite: the attacks of the one who knows the defence, as `holdfast.evaluate` takes them. By
            default PGD on the margin through every backward pass that the defence offers, averaged
            over draws where it is random.
        classes: their names, for the answers.
        source: what an image is, for the caption.
        first: the number that the first of the images has in its data set.
        seed: of all random draws.
        device: where to work; by default where the model is.
        progress: show a progress line.

    Raises:
        InputError: bad images, labels or model; a model without a defence; an index that there is
            not; no image that the attack breaks; a file that cannot be written, or is no figure.

    Example:
        >>> import holdfast as hf, tempfile, torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> images = torch.rand(4, 1, 8, 8)
        >>> labels = model(images).argmax(1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shown = hf.figures.defence(
        ...         model, images, labels, f"{folder}/d.svg", ["median"], ("linf", 0.3), index=0
        ...     )
        >>> [strip.attacker for strip in shown.strips]
        ['the attacker does not know of the defence', 'the attacker knows the defence']
    """
    check_picture(out)
    defended = chain(model, defences)
    names = [step.spec for step in steps(defended)]
    if not names:
        raise InputError("there is no defence in front of the model: name one, such as jpeg")
    threat = checked_threat(threat)
    if threat.norm == SPATIAL or threat.norm == "l0":
        raise InputError(f"PGD knows no {threat.norm}: for this figure, take linf, l2 or l1")
    images, labels = checked_data(images, labels)
    images, labels = images.cpu(), labels.cpu()
    threat.check_reach(images)
    Tile(images[0].numpy(), SIDE)  # or it cannot be shown
    if index is not None:
        whole_number("index", index, 0, len(images) - 1)
    whole = Subject(defended, threat, seed, suite, device, first)
    network = Subject(undefended(whole.model), threat, seed, device=device, first=first)
    with ready([whole, network]), ProgressLine("looking for an image", progress) as line:
        if network.means(images[:8].to(network.device), labels[:8].to(network.device)) == "square":
            raise InputError("the model shows no gradients, which the attacks of this figure need")
        why = ""
        if index is None:
            index, why = _chosen(network, whole, images, labels, line)
        strips = tuple(_strips(network, whole, images, labels, index))
        rows = torch.tensor([index])
        kept = answer_at(whole.answers(images[rows], rows), 0)
    name = naming(classes)
    said = (
        f"{source} {first + index}, true class {name(int(labels[index]))}{why}. {threat}. "
        f"Without knowing of it: PGD on the cross-entropy, {STEPS} steps; knowing it: "
        f"{whole.in_words()}{_through(whole)}. Under each image: the network's "
        f"answer{_voted(whole)}; to the clean one behind the defence: {_told(kept, name)}. "
        f"Seed {seed}."
    )
    label = int(labels[index])
    page = _drawn(images[index], label, strips, names, name, said)
    return Strips(page.save(out), first + index, label, strips, said)


def _through(whole: Subject) -> str:
    passes = declared(whole.model).backwards
    return f", through {' and '.join(passes)} gradients" if whole.suite is None and passes else ""


def _voted(whole: Subject) -> str:
    draws_ = whole.verifier.draws
    return f", of the random defence by a vote of {draws_} draws" if draws_ > 1 else ""


def _unaware(network: Subject, images: Images, labels: Tensor, rows: Tensor) -> Images:
    x, y = images[rows].to(network.device), labels[rows].to(network.device)
    seeds = unaware_seeds(network.seed, network.first + rows)
    return unaware_points(network.model, x, y, network.threat, seeds).cpu()


def _chosen(
    network: Subject, whole: Subject, images: Images, labels: Tensor, line: ProgressLine
) -> tuple[int, str]:
    """The index of the image to show, and why it is this one."""
    attacked, broken = 0, -1
    said = ", the first that is right with and without the defence"
    for rows in torch.arange(len(images)).split(AT_ONCE):
        for subject in (network, whole):
            if len(rows):
                rows = rows[subject.answers(images[rows], rows).prediction == labels[rows]]
        if not len(rows):
            continue
        points = _unaware(network, images, labels, rows)
        breaks = network.answers(points, rows).prediction != labels[rows]
        mended = breaks & (whole.answers(points, rows, "attacked").prediction == labels[rows])
        if bool(mended.any()):
            why = f"{said}, broken without it, and mended by it if the attacker does not know of it"
            return int(rows[mended][0]), why
        if broken < 0 and bool(breaks.any()):
            broken = int(rows[breaks][0])
        attacked += len(rows)
        line.update(min(attacked / MOST, 1.0), f"{attacked} images attacked")
        if attacked >= MOST:
            break
    if broken >= 0:
        return broken, f"{said} and broken without it (of {attacked}, the defence mended none)"
    if not attacked:
        raise InputError(
            f"none of the {len(images)} images is right with and without the defence: choose one "
            "by its index"
        )
    raise InputError(
        f"none of {attacked} images that are right is broken within {network.threat}, even without "
        "the defence: take a larger eps, or choose an image by its index"
    )


def _strips(
    network: Subject, whole: Subject, images: Images, labels: Tensor, index: int
) -> Iterator[Strip]:
    rows = torch.tensor([index])
    image, label = images[rows], labels[rows]
    clean = answer_at(network.answers(image, rows), 0)
    for attacker, point in (
        (UNAWARE, _unaware(network, images, labels, rows)),
        (ADAPTIVE, whole.attacked(image, label, rows)),
    ):
        if not bool(network.threat.contains(point, image)[0]):  # the search ended outside
            point = image
        with (
            torch.no_grad(),
            draws.fixed_draws(draws.item_seeds(whole.seed, "strip", whole.first + rows)),
        ):
            seen = shown(whole.model, point.to(whole.device)).cpu()
        answers = (
            clean,
            answer_at(network.answers(point, rows), 0),
            answer_at(whole.answers(point, rows, "attacked"), 0),
        )
        yield Strip(attacker, point[0], seen[0], answers)


def _drawn(
    image: Tensor,
    label: int,
    strips: Sequence[Strip],
    names: Sequence[str],
    name: Callable[[int], str],
    said: str,
) -> Canvas:
    clean = image.numpy()
    tile = Tile(clean, SIDE)
    room = WIDTH - 2 * MARGIN
    lines = wrapped(said, room, 11.5)
    row_height = ROW_HEAD + tile.height + ANSWER
    height = HEAD + 26 + len(strips) * (row_height + ROW_GAP) + len(lines) * FOOT + 14
    step = (room - tile.width) / (len(COLUMNS) - 1)
    columns = [MARGIN + step * i for i in range(len(COLUMNS))]
    told = "; ".join(
        f"{strip.attacker}: clean {_told(strip.answers[0], name)}, attacked "
        f"{_told(strip.answers[1], name)}, defended {_told(strip.answers[2], name)}"
        for strip in strips
    )
    page = Canvas(WIDTH, height, "What a defence does", f"{told}. {said}")
    page.words(" → ".join(names), MARGIN, 34, 15, INK, bold=True, room=room)
    for column, title in zip(columns, COLUMNS, strict=True):
        page.words(title, column + tile.width / 2, HEAD + 20, 12, SOFT, align="center")
    # The same for both attackers, so that they can be compared.
    factors = [
        magnification(np.stack([getattr(strip, part).numpy() - clean for strip in strips]))
        for part in ("attacked", "defended")
    ]
    for number, strip in enumerate(strips):
        top = HEAD + 26 + number * (row_height + ROW_GAP)
        page.words(f"If {strip.attacker}", MARGIN, top + 21, 13.5, INK, room=room)
        top += ROW_HEAD
        attacked, defended = strip.attacked.numpy(), strip.defended.numpy()
        pictures = [
            clean,
            attacked,
            magnified(attacked - clean, factors[0]),
            defended,
            magnified(defended - clean, factors[1]),
        ]
        for column, picture in zip(columns, pictures, strict=True):
            page.image(Tile(picture, SIDE), column, top)
        bottom = top + tile.height
        for column, answer in zip((columns[0], columns[1], columns[3]), strip.answers, strict=True):
            under(page, column, bottom, tile.width, answer, label, name(answer.label), SIZE)
        for column, what, factor in zip(columns[2::2], (attacked, defended), factors, strict=True):
            largest = 255 * float(np.abs(what - clean).max())
            times = f"magnified {factor} times" if factor > 1 else "as it is, around grey"
            beneath(page, column, bottom, tile.width, f"up to {largest:.0f}/255", times, SIZE)
    for number, text in enumerate(reversed(lines)):
        page.words(text, MARGIN, height - 20 - number * FOOT, 11.5, SOFT)
    return page


def _told(answer: Answer, name: Callable[[int], str]) -> str:
    return f"{name(answer.label)} ({percent(answer.confidence)})"
