"""`try_image`: one image before one model, clean and attacked."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attacks import PGD, Attack, Suite, Swift
from ..attacks.registry import attack_classes
from ..attacks.suites import SUITES, suite_named
from ..canvas import check_picture
from ..defences import steps as defences_of
from ..defences import undefended
from ..errors import InputError
from ..evaluation.cards import threat_of
from ..figures.subject import Subject, Told, answer_at, naming, ready
from ..inputs import check_images, checked_threat, whole_number
from ..models.adapted import Adapted
from ..parsing import nearest
from ..runs.progress import ProgressLine
from ..search import Predictions
from ..threat import SPATIAL, Threat
from ..types import Images, Model
from .card import write_card
from .closest import STEPS as CLOSEST_STEPS
from .closest import closest as closest_point
from .found import Look, Trial
from .picture import Picture, Shape, brought, picture_of, shape_of
from .sets import ALPHA, Calibration

STEPS = 20  # of PGD
SEARCH = 0.5  # share of the work that is the attack, where the smallest ε is looked for too


def try_image(
    model: Model,
    image: Any,
    threat: Threat | tuple[str, float] | None = None,
    *,
    label: int | str | None = None,
    target: int | str | None = None,
    attack: str | Attack[Any] | Suite | None = None,
    steps: int | None = None,
    classes: Sequence[str] | None = None,
    calibration: Calibration | tuple[Images, Tensor] | None = None,
    alpha: float = ALPHA,
    size: int | None = None,
    closest: bool = True,
    name: str | None = None,
    source: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Told = False,
) -> Trial:
    """Show one image to a model, attack it, and say what changed.

    Args:
        model: images → logits, defences included; `holdfast.load` loads one by its name.
        image: a picture file, a picture of Pillow's, or pixels (C, H, W) with C of 1 or 3, as
            uint8 or as floats in [0, 1]. Files and pictures are brought to the model's size: the
            middle is cut out and resized. Tensors are taken as they are.
        threat: what the attacker may do; a pair `("linf", 8 / 255)` is taken too. By default what
            the model was trained for, else L∞ 8/255.
        label: the true class, by number or by name. By default the model's own clean answer counts
            as right.
        target: the class that the attack must reach, by number or by name; by default any other
            class than the label is a success.
        attack: a name from `holdfast list attacks` or `holdfast list suites`, an attack or a
            suite. By default PGD on the margin, through every backward pass that a defence offers,
            averaged over draws where the model is random; Square where it shows no gradients; or
            `swift` where it hides them.
        steps: of the attack, or its queries; PGD takes 20.
        classes: their names; by default those that the model knows.
        calibration: images and labels on which the conformal set is calibrated, or a
            `Calibration`; by default the one that came with the model.
        alpha: share of sets that may miss the true class.
        size: height and width to which a picture is brought, in place of the model's own.
        closest: also look for the smallest ε that breaks the image.
        name: the model's, for the card.
        source: what the image is, for the card.
        out: a file for the card, ending in `.png`, `.svg` or `.pdf`; over nothing but a figure.
        seed: of all random draws.
        device: where to work; by default where the model is.
        progress: show a progress line; or what is called with the share that is done (None where
            nobody knows) and a word. What that raises ends the search.

    Raises:
        InputError: no picture; a class that the model does not know; an attack that does not fit
            the norm or the model; a file that cannot be written.

    Example:
        >>> import torch, holdfast as hf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> found = hf.try_image(model, torch.rand(1, 8, 8), ("linf", 0.3))
        >>> found.broken, found.smallest <= 0.3
        (True, True)
    """
    if out is not None:
        check_picture(out)
    bare = undefended(model)
    card: Mapping[str, Any] = getattr(bare, "card", None) or {}
    threat = threat_of(None, None, dict(card)) if threat is None else checked_threat(threat)
    if threat.norm == SPATIAL:
        raise InputError("a turned image is no sum: take linf, l2, l1 or l0")
    names = class_names(model) if classes is None else tuple(map(str, classes))
    pixels, source, fitting = _pixels(model, image, size, source, len(names))
    threat.check_reach(pixels)
    alone, suite = chosen_attack(attack, steps)
    if alone is not None:
        alone.check_norm(threat)
    subject = Subject(model, threat, seed, suite, device, 0, len(names) or 2, alone)
    rows = torch.zeros(1, dtype=torch.int64)
    began = time.monotonic()
    title = f"attacking, {threat}"
    with ready([subject]), ProgressLine(title, progress is True) as line:
        told = _told(line, progress)
        clean = subject.answers(pixels, rows)
        many = clean.logits.shape[1]
        right = number_of(label, names, many, "class")
        truth = int(clean.prediction[0]) if right is None else right
        if truth < 0:
            raise InputError("the model gives no answer to this image (its logits are NaN)")
        wanted = number_of(target, names, many, "target")
        if wanted == truth:
            raise InputError(f"the target {naming(names)(truth)} is the image's own class")
        y = torch.tensor([truth])
        goals = None if wanted is None else torch.tensor([wanted])
        budget = steps or STEPS
        first = told.part(0.0, SEARCH if closest else 1.0)
        point = subject.attacked(pixels, y, rows, budget, goals=goals, told=first)
        if not bool(threat.contains(point, pixels)[0]):  # the search ended outside
            point = pixels
        attacked = subject.answers(point, rows, "attacked")
        said = int(attacked.prediction[0])
        broken = said != truth if wanted is None else said == wanted
        taken = time.monotonic() - began
        near = None
        if closest:
            near = closest_point(
                subject,
                pixels,
                y,
                [point] if broken else [],
                goals=goals,
                steps=CLOSEST_STEPS,
                told=told.part(SEARCH, 1.0),
            )
        sets = _calibration(subject, model, calibration, alpha)
    found = Trial(
        name=name or _called(bare),
        defences=tuple(step.spec for step in defences_of(model)),
        names=names,
        threat=threat,
        label=truth,
        label_given=right is not None,
        target=wanted,
        image=pixels[0],
        adversarial=point[0],
        clean=_look(clean, sets),
        attacked=_look(attacked, sets),
        distance=float(threat.distance(point, pixels)[0]),
        broken=broken,
        smallest=None if near is None else near.distance,
        nearest=None if near is None else near.point,
        searched=closest,
        attack=subject.in_words(budget),
        calibration=sets,
        source=source,
        fitting=fitting,
        seconds=taken,
        seed=seed,
    )
    if out is not None:
        write_card([found], out)
    return found


class _Telling:
    """Tells of one part of the work as a part of the whole."""

    def __init__(self, told: Told, low: float = 0.0, high: float = 1.0):
        self.told, self.low, self.high = told, low, high

    def part(self, low: float, high: float) -> _Telling:
        return _Telling(self.told, low, high)

    def __call__(self, share: float | None, word: str) -> None:
        whole = None if share is None else self.low + (self.high - self.low) * share
        self.told(whole, word)


def _told(line: ProgressLine, progress: bool | Told) -> _Telling:
    if not isinstance(progress, bool):
        return _Telling(progress)

    def told(share: float | None, word: str) -> None:
        if share is None:
            line.show(0.0, word)
        else:
            line.update(share, word)

    return _Telling(told)


def chosen_attack(
    attack: str | Attack[Any] | Suite | None, steps: int | None
) -> tuple[Attack[Any] | None, Suite | None]:
    """An attack that runs alone, or a suite; neither where the model decides.

    Args:
        attack, steps: as `try_image` takes them.

    Raises:
        InputError: none of that name; steps for what has none.
    """
    if steps is not None:
        whole_number("steps", steps)
    if attack is None:
        return None, None
    if isinstance(attack, Attack):
        return attack, None
    if isinstance(attack, Suite):
        return None, attack
    if attack == PGD.name:
        return PGD(steps=steps or STEPS, loss="margin"), None
    classes = attack_classes()
    if attack in classes and attack != Swift.name:  # which is known as the suite
        known = inspect.signature(classes[attack]).parameters
        given = {key: steps for key in ("steps", "queries") if steps is not None and key in known}
        if steps is not None and not given:
            raise InputError(f"{attack} takes no number of steps")
        if "stop_inside" in known:  # or the closest point would be the first one inside
            given["stop_inside"] = False
        return classes[attack](**given), None
    if attack not in SUITES and ":" not in attack:
        known_names = sorted({*SUITES, *classes})
        raise InputError(f"attack {attack!r} is unknown{nearest(attack, known_names)}")
    if steps is not None:
        raise InputError(f"{attack} is a suite of attacks, each with steps of its own")
    return None, suite_named(attack)


def class_names(model: Model) -> tuple[str, ...]:
    """The names of a model's classes, as its card or its library has them; () for none."""
    bare = undefended(model)
    card = getattr(bare, "card", None) or {}
    if card.get("classes"):
        return tuple(map(str, card["classes"]))
    return tuple(bare.names) if isinstance(bare, Adapted) else ()


def number_of(given: int | str | None, names: Sequence[str], classes: int, what: str) -> int | None:
    """A class by its number or its name.

    Raises:
        InputError: the model knows none of that name or number.

    Example:
        >>> number_of("Cat", ["dog", "cat"], 2, "class"), number_of("1", ["dog", "cat"], 2, "class")
        (1, 1)
    """
    if given is None or given == "":
        return None
    short = {name.casefold(): number for number, name in reversed(list(enumerate(names)))}
    text = str(given).strip()
    if isinstance(given, str) and text.casefold() in short:
        return short[text.casefold()]
    try:
        number = int(text)
    except ValueError:
        known = f": {', '.join(names[:10])}{', …' * (len(names) > 10)}" if names else ""
        raise InputError(
            f"{what} {text!r} is none of the model's {classes} classes{nearest(text, names)}{known}"
        ) from None
    if not 0 <= number < classes:
        raise InputError(f"{what} {number} is none of the model's classes, 0 to {classes - 1}")
    return number


def _pixels(
    model: Model, image: Any, size: int | None, source: str | None, classes: int
) -> tuple[Images, str, str]:
    """(1, C, H, W), what it is, and what was done to it."""
    picture = picture_of(image, source or "image")
    if isinstance(picture, Picture):
        shape: Shape = shape_of(model, size, classes=classes)
        pixels, fitting = brought(picture, shape)
        return pixels[None], source or picture.source, fitting
    if size is not None:
        raise InputError("a tensor is taken as it is: size is for files and pictures")
    pixels = picture[None].float()
    check_images(pixels, "image")
    return pixels, source or "image", ""


def _calibration(
    subject: Subject, model: Model, given: Calibration | tuple[Images, Tensor] | None, alpha: float
) -> Calibration:
    if isinstance(given, Calibration):
        return given
    if given is not None:
        return Calibration.fit(subject, *given, alpha=alpha)
    declared = (getattr(undefended(model), "card", None) or {}).get("defences") or ()
    return Calibration.of(model, defences=len(defences_of(model)) > len(declared))


def _look(said: Predictions, sets: Calibration) -> Look:
    probabilities = said.logits[0].float().softmax(0)
    if bool(said.confidence.isnan().any()):  # labels, which have no confidence
        probabilities = torch.full_like(probabilities, torch.nan)
    return Look(answer_at(said, 0), probabilities, sets.classes(probabilities))


def _called(model: Any) -> str:
    card = getattr(model, "card", None) or {}
    return str(card.get("architecture") or type(model).__name__)
