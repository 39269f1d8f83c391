"""The card: what was found of one image, as a picture that one can show to others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..canvas import EDGE, FAINT, INK, MARGIN, RIGHT, SOFT, WIDTH, WRONG, Canvas, Tile, wrapped
from ..errors import InputError
from ..figures.example import perturbation
from ..figures.subject import percent, radius
from ..figures.under import ANSWER, beneath, under
from .found import SHOWN, Look, Trial

SIDE = 224.0  # of an image on the page
HEAD, ROW_HEAD, ROW_GAP, FOOT = 44.0, 34.0, 22.0, 17.0
LINE = 21.0  # of a further class under an image
NOTES = 12.0
MOST_ROWS = 4


def card(trials: Sequence[Trial]) -> Canvas:
    """The card of one image before one or more models, each a row.

    Raises:
        InputError: no trial, or more than four.
    """
    if not 1 <= len(trials) <= MOST_ROWS:
        raise InputError(f"a card shows 1 to {MOST_ROWS} models, not {len(trials)}")
    first = trials[0]
    tile = Tile(first.image.numpy(), SIDE)
    room = WIDTH - 2 * MARGIN
    notes = [line for text in _notes(trials) for line in wrapped(text, room, NOTES)]
    further = max(len(look.likeliest()) - 1 for t in trials for look in (t.clean, t.attacked))
    row = ROW_HEAD + tile.height + ANSWER + further * LINE + 2 * LINE
    height = HEAD + len(trials) * row + (len(trials) - 1) * ROW_GAP + len(notes) * FOOT + 30
    told = "; ".join(
        f"{_title(t)}: clean {t.said(t.clean)}; attacked {t.said(t.attacked)}" for t in trials
    )
    page = Canvas(WIDTH, height, "One image, clean and attacked", f"{told}. {' '.join(notes)}")
    columns = [MARGIN, (WIDTH - tile.width) / 2, WIDTH - MARGIN - tile.width]
    titles = ("clean image", "perturbation", "adversarial image")
    for column, title in zip(columns, titles, strict=True):
        page.words(title, column + tile.width / 2, HEAD - 14, 13, SOFT, align="center")
    for number, trial in enumerate(trials):
        _row(page, trial, HEAD + number * (row + ROW_GAP), columns)
    for number, text in enumerate(reversed(notes)):
        page.words(text, MARGIN, height - 20 - number * FOOT, NOTES, SOFT)
    return page


def write_card(trials: Sequence[Trial], out: str | Path) -> Path:
    """Write the card of one image before one or more models.

    Args:
        out: the file, ending in `.png`, `.svg` or `.pdf`; over nothing but a figure.

    Returns:
        the file.

    Raises:
        InputError: no trial, or more than four; a file that cannot be written, or is no figure.
    """
    return card(trials).save(out)


def _title(trial: Trial) -> str:
    return " → ".join([*trial.defences, trial.name])


def _row(page: Canvas, trial: Trial, top: float, columns: Sequence[float]) -> None:
    tile = Tile(trial.image.numpy(), SIDE)
    colour = WRONG if trial.broken else RIGHT
    page.words(trial.outcome, WIDTH - MARGIN, top + 20, 15, colour, bold=True, align="right")
    page.words(_title(trial), MARGIN, top + 20, 15, INK, bold=True, room=WIDTH - 2 * MARGIN - 230)
    top += ROW_HEAD
    delta = (trial.adversarial - trial.image).numpy()
    shown, how = perturbation(delta, trial.threat)
    pictures = (trial.image.numpy(), shown, trial.adversarial.numpy())
    for column, picture in zip(columns, pictures, strict=True):
        page.image(Tile(picture, SIDE), column, top)
    bottom = top + tile.height
    for column, look in ((columns[0], trial.clean), (columns[2], trial.attacked)):
        _answers(page, trial, look, column, bottom, tile.width)
    norm = str(trial.threat).partition(" ")[0]
    changed = f"ε = {radius(trial.threat)} in {norm}"
    if trial.threat.norm == "l0":
        changed = f"{trial.distance:g} of {delta.size} values changed"
    beneath(page, columns[1], bottom, tile.width, changed, how)
    if trial.searched:
        level = bottom + ANSWER + LINE
        page.words("smallest ε found to break it", columns[1], level, 12.5, SOFT)
        value = trial.smallest_said
        page.words(value, columns[1], level + LINE, 14, INK, bold=True, room=tile.width)


def _answers(page: Canvas, trial: Trial, look: Look, left: float, top: float, width: float) -> None:
    """The predicted class with its bar, the next likeliest with theirs, and the set."""
    under(page, left, top, width, look.answer, trial.label, trial.class_name(look.answer.label))
    level = top + ANSWER + 16
    others = [each for each in look.likeliest(SHOWN) if each.label != look.answer.label]
    for each in others[: SHOWN - 1]:
        page.words(trial.class_name(each.label), left, level, 12, SOFT, room=width * 0.45)
        page.words(percent(each.confidence), left + width, level, 12, SOFT, align="right")
        bar, begins = width * 0.28, left + width * 0.48
        if not math.isnan(each.confidence):
            page.box(begins, level - 7, bar, 4, fill=EDGE)
            page.box(begins, level - 7, max(bar * each.confidence, 1), 4, fill=SOFT)
        level += LINE
    if look.classes is not None:
        text = f"set: {trial.set_said(look)}"
        page.words(text, left, level + 4, 12.5, INK, room=width)
    else:
        page.words("no conformal set", left, level + 4, 12.5, FAINT, room=width)


def _notes(trials: Sequence[Trial]) -> list[str]:
    """What stands under the rows."""
    first = trials[0]
    label = f"True class: {first.class_name(first.label)}."
    if not first.label_given:
        label = "No true class was given: each model's clean answer counts as right."
    image = f"{first.source}: {first.fitting}." if first.fitting else f"{first.source}."
    attacks = "; ".join(dict.fromkeys(trial.attack for trial in trials))
    sets = " ".join(dict.fromkeys(trial.calibration.promise for trial in trials))
    return [
        f"{image} {label} {first.threat}; {attacks}; seed {first.seed}. A smaller ε than the one "
        "that was found may break it too.",
        sets,
    ]
