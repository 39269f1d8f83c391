"""What stands behind the page: models, images and attacks, one job at a time."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HoldfastError, InputError

if TYPE_CHECKING:
    from torch import nn

    from ..data import DataSet
    from ..one_image import Calibration, Picture, Trial

USUAL = ("cifar10-standard-cpu", "cifar10-linf-slim")  # undefended and defended, in the package
BARE = "no defence"
MOST_SECONDS = 90.0  # of one job; then others' turn
CARDS = 50  # that are kept to be downloaded
DIGITS, OF_DATA = 6, 12  # examples
EXAMPLE_SIDE = 96  # pixels of a thumbnail


class Stopped(HoldfastError):
    """A job that was stopped, or took too long."""


@dataclass(frozen=True)
class Example:
    """An image that is offered.

    Attributes:
        picture: its pixels.
        name: of its class; None where it has none that a model could know.
    """

    picture: Picture
    name: str | None


@dataclass
class Workshop:
    """Models, images and attacks. Heavy imports wait until `start` was called.

    Args:
        models: as on the command line; the page offers them by these names.
        load: a model by its name.
        data: a data set, whose test images are offered and whose validation images calibrate; None
            for none.
        size: height and width to which pictures are brought; None: each model's own.
        defences: further ones that are offered, as on the command line.
        device: where to work; None for the best there is.
        seed: of all random draws.
    """

    models: Sequence[str]
    load: Callable[[str], Any]
    data: str | None = None
    size: int | None = None
    defences: Sequence[str] = ()
    device: str | None = None
    seed: int = 0
    failed: Callable[[], None] = lambda: None  # called where something cannot be loaded

    examples: list[Example] = field(default_factory=list)
    fault: str | None = None
    _began: threading.Event = field(default_factory=threading.Event)
    _ready: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _loaded: dict[tuple[str, str], Any] = field(default_factory=dict)
    _sets: dict[tuple[str, str], Calibration] = field(default_factory=dict)
    _cards: OrderedDict[str, list[Trial]] = field(default_factory=OrderedDict)
    _dataset: DataSet | None = None

    def start(self) -> None:
        """Begin to load, beside the page; once."""
        if not self._began.is_set():
            self._began.set()
            threading.Thread(target=self._prepare, name="holdfast-play", daemon=True).start()

    def wait(self) -> None:
        """Until what was begun is there.

        Raises:
            HoldfastError: a model or the data cannot be loaded.
        """
        self.start()
        self._ready.wait()
        if self.fault is not None:
            raise HoldfastError(self.fault)

    def _prepare(self) -> None:
        from ..data.pictures import silence_threads

        try:
            silence_threads()
            if self.data is not None:
                from ..data import load

                self._dataset = load(self.data)
            self.examples = list(self._examples())
            for name in self.models[:2]:
                self.model(name, BARE)
        except HoldfastError as error:
            self.fault = str(error)
        except Exception as error:  # somebody's model: the page says what it said
            self.fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        finally:
            self._ready.set()
            if self.fault is not None:
                self.failed()

    # --- images ----------------------------------------------------------------------------------

    def _examples(self) -> list[Example]:
        import numpy as np

        from ..data import digits
        from ..one_image import Picture

        found = []
        if self._dataset is not None:
            kind = self._dataset.usual(None)
            split = self._dataset.split(kind).first(OF_DATA)
            for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
                source = f"{self._dataset.name}, {kind} image {number}"
                name = self._dataset.classes[label]
                found.append(Example(Picture(np.asarray(image), source), name))
        if self._dataset is None or self._dataset.name != "digits":
            split = digits.load().test
            rows = [int(np.flatnonzero(split.labels == label)[0]) for label in range(DIGITS)]
            found += [
                Example(Picture(split.images[row], f"digits, test image {row}"), str(number))
                for number, row in enumerate(rows)
            ]
            found += _photographs()
        return found

    # --- models ----------------------------------------------------------------------------------

    def model(self, name: str, defence: str) -> nn.Module:
        """A model behind a defence, loaded once.

        Raises:
            HoldfastError: no such model or defence.
        """
        from ..defences import chain

        if name not in self.models:
            raise InputError(f"model {name!r} is none of those on this page")
        if defence not in self.offered():
            raise InputError(f"defence {defence!r} is none of those on this page")
        with self._lock:
            if (name, BARE) not in self._loaded:
                self._loaded[name, BARE] = self.load(name)
            if (name, defence) not in self._loaded:
                self._loaded[name, defence] = chain(self._loaded[name, BARE], [defence])
            return self._loaded[name, defence]

    def offered(self) -> list[str]:
        """The defences that the page offers: those that need no weights, and those given."""
        import inspect

        from ..defences import DEFENCES

        def ready(kind: type) -> bool:
            options = list(inspect.signature(kind).parameters.values())[1:]
            return all(option.default is not option.empty for option in options)

        plain = [name for name, kind in DEFENCES.items() if ready(kind)]
        return [BARE, *self.defences, *(name for name in plain if name not in self.defences)]

    def card(self, name: str) -> Mapping[str, Any]:
        """What is known of a model."""
        from ..models.chain import undefended

        return getattr(undefended(self.model(name, BARE)), "card", None) or {}

    def classes(self, name: str) -> tuple[str, ...]:
        """The names of a model's classes."""
        from ..one_image.trial import class_names

        return class_names(self.model(name, BARE))

    def calibration(self, name: str, defence: str) -> Calibration:
        """Of a model behind a defence, made once: on the data's validation images, else the one
        that came with the model."""
        if (name, defence) not in self._sets:
            self._sets[name, defence] = self._calibrated(name, defence)
        return self._sets[name, defence]

    def _calibrated(self, name: str, defence: str) -> Calibration:
        import numpy as np
        import torch

        from ..data import to_tensor
        from ..evaluation.cards import in_classes_of, unseen_validation
        from ..figures.subject import Subject, ready
        from ..one_image import Calibration
        from ..one_image.sets import IMAGES
        from ..threat import Threat

        model, card = self.model(name, defence), dict(self.card(name))
        if self._dataset is None:
            return Calibration.of(model, defences=defence != BARE)
        try:
            dataset = in_classes_of(name, card, self._dataset)
            held = unseen_validation(dataset, {name: card}).first(IMAGES)
            images = to_tensor(np.asarray(held.images))
            labels = torch.from_numpy(held.labels.copy())
            subject = Subject(model, Threat("linf", 8 / 255), self.seed, device=self.device)
            with ready([subject]):
                on = f"validation images of {dataset.name}"
                return Calibration.fit(subject, images, labels, on=on)
        except HoldfastError as error:
            return Calibration(unavailable=str(error))

    # --- a job -----------------------------------------------------------------------------------

    def run(
        self,
        picture: Picture,
        label: str | None,
        norm: str,
        eps: float,
        attack: str | None,
        steps: int | None,
        sides: Sequence[tuple[str, str]],
        *,
        closest: bool,
        told: Callable[[float | None, str], None],
        stop: threading.Event,
    ) -> tuple[list[Trial], str]:
        """One image before each model, attacked.

        Args:
            label: the true class by name; it counts for models that know a class of that name.
            sides: each a model and a defence.
            told: called as the job goes on.
            stop: set by whoever wants it to end.

        Returns:
            what was found, and the name under which `drawn` has its card.

        Raises:
            Stopped: by `stop`, or after `MOST_SECONDS`.
            HoldfastError: whatever is wrong with what was asked.
        """
        from ..one_image import try_image

        began = time.monotonic()
        trials = []
        for number, (name, defence) in enumerate(sides):

            def tell(
                share: float | None, word: str, number: int = number, name: str = name
            ) -> None:
                if stop.is_set():
                    raise Stopped("stopped, as you asked")
                if time.monotonic() - began > MOST_SECONDS:
                    raise Stopped(
                        f"stopped after {MOST_SECONDS:.0f} s, so that others get their turn: take "
                        "fewer steps or a shorter attack"
                    )
                whole = None if share is None else (number + share) / len(sides)
                told(whole, f"{name}: {word}")

            tell(0.0, "loading")
            model = self.model(name, defence)
            tell(0.0, "calibrating")
            sets = self.calibration(name, defence)
            names = self.classes(name)
            trials.append(
                try_image(
                    model,
                    picture,
                    (norm, eps),
                    label=label if label in names else None,
                    attack=attack,
                    steps=steps,
                    calibration=sets,
                    size=self.size,
                    closest=closest,
                    name=Path(name).name,
                    seed=self.seed,
                    device=self.device,
                    progress=tell,
                )
            )
        return trials, self._keep(trials)

    def _keep(self, trials: list[Trial]) -> str:
        name = secrets.token_urlsafe(16)
        self._cards[name] = trials
        while len(self._cards) > CARDS:
            self._cards.popitem(last=False)
        return name

    def drawn(self, name: str) -> bytes | None:
        """The card of a job, a PNG; None where there is none any more."""
        from ..one_image.card import card

        trials = self._cards.get(name)
        if trials is None:
            return None
        with self._lock:  # Matplotlib is for one thread at a time
            return card(trials).encoded("png")


def _photographs() -> list[Example]:
    """The two photographs that come with scikit-learn."""
    from importlib.resources import files

    from ..data.pictures import decoded
    from ..one_image import Picture

    found = []
    for name in ("flower.jpg", "china.jpg"):
        try:
            raw = (files("sklearn.datasets") / "images" / name).read_bytes()
        except OSError:
            continue
        found.append(Example(Picture(decoded(raw, name, None), name), None))
    return found
