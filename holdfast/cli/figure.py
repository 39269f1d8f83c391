"""`holdfast figure`: pictures for papers, slides and README files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..terminal import tell
from .options import (
    ArchitectureOption,
    ClassOrderOption,
    DataOption,
    DefenceOption,
    DeviceOption,
    EpsOption,
    GreyOption,
    LabelsOption,
    LimitOption,
    ModelArgument,
    NormOption,
    QuietOption,
    SeedOption,
    SizeOption,
    SplitOption,
)

if TYPE_CHECKING:
    from ..data import DataSet
    from ..threat import Threat

MOST = 512  # images that are looked through, unless --limit says otherwise

FileOption = Annotated[
    Path,
    typer.Option("--out", help="The file to write; it ends in .svg, .png or .pdf."),
]
IndexOption = Annotated[
    int | None,
    typer.Option("--index", help="Show image number N of the split, from 0."),
]
SuiteOption = Annotated[
    str | None,
    typer.Option(
        "--suite",
        help="Which attacks: a name from `holdfast list suites`. By default PGD on the margin "
        "that goes on after its first success.",
    ),
]


@dataclass(frozen=True)
class Options:
    """Draw a figure as SVG, PNG or PDF: an adversarial example, a defence, classes, augmentation.

    What there is in the file's place is overwritten only if it is a figure too.
    """


@dataclass(frozen=True)
class Example(Options):
    """An adversarial example as an equation: image + ε × perturbation = adversarial image.

    By default the first image that is right, and then wrong with a confidence of 90 % or more.
    Several models become a row each: the image is right for all, and broken for the first.
    """

    models: Annotated[
        list[str],
        typer.Argument(help="One or more models, as for `evaluate`; each becomes a row."),
    ]
    out: FileOption
    data: DataOption = "datasets"
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            help="What a row is called, in the order of the models. May be repeated.",
        ),
    ] = None
    defence: DefenceOption = None
    norm: NormOption = None
    eps: EpsOption = None
    suite: SuiteOption = None
    index: IndexOption = None
    split: SplitOption = None
    limit: LimitOption = None
    size: SizeOption = None
    grey: GreyOption = False
    labels: LabelsOption = None
    class_order: ClassOrderOption = None
    architecture: ArchitectureOption = None
    seed: SeedOption = 0
    device: DeviceOption = None
    quiet: QuietOption = False


@dataclass(frozen=True)
class Defence(Options):
    """A defence as a strip: clean, attacked, defended, and the model's answer under each.

    Once with an attacker who does not know of the defence, and once with one who does.
    """

    model: ModelArgument
    out: FileOption
    data: DataOption = "datasets"
    defence: DefenceOption = None
    norm: NormOption = None
    eps: EpsOption = None
    suite: SuiteOption = None
    index: IndexOption = None
    split: SplitOption = None
    limit: LimitOption = None
    size: SizeOption = None
    grey: GreyOption = False
    labels: LabelsOption = None
    class_order: ClassOrderOption = None
    architecture: ArchitectureOption = None
    seed: SeedOption = 0
    device: DeviceOption = None
    quiet: QuietOption = False


@dataclass(frozen=True)
class Classes(Options):
    """The classes of a data set, ten random training images each."""

    out: FileOption
    data: DataOption = "datasets"
    size: SizeOption = None
    grey: GreyOption = False
    labels: LabelsOption = None
    class_order: ClassOrderOption = None
    seed: SeedOption = 0


@dataclass(frozen=True)
class Augment(Options):
    """What a recipe trains on: 8 images, each as 8 epochs show it."""

    recipe: Annotated[
        str,
        typer.Argument(
            help="A YAML file that says how to train, or the name of one that comes with "
            "Holdfast, such as cifar10-cpu."
        ),
    ]
    out: FileOption
    data: DataOption = "datasets"
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a value of the recipe, such as augment.erase=0.5. May be repeated.",
        ),
    ] = None
    size: SizeOption = None
    grey: GreyOption = False
    labels: LabelsOption = None
    class_order: ClassOrderOption = None
    seed: SeedOption = 0


KINDS: dict[str, type[Options]] = {
    "example": Example,
    "defence": Defence,
    "classes": Classes,
    "augment": Augment,
}


def run(options: Options) -> str:
    """Draw the figure.

    Returns:
        its caption; empty where there is none.

    Raises:
        InputError: as `holdfast.figures`.
    """
    from .. import figures

    if isinstance(options, Example):
        return _example(options)
    if isinstance(options, Defence):
        return _defence(options)
    if isinstance(options, Classes):
        figures.classes(_data(options), options.out, seed=options.seed)
    if isinstance(options, Augment):
        figures.augment(
            options.recipe,
            _data(options),
            options.out,
            changes=options.change or (),
            seed=options.seed,
        )
    return ""


def show(said: str, options: Options) -> None:
    """Print the caption and where the figure is."""
    if said:
        tell(said)
    tell(f"figure: {options.out}")  # type: ignore[attr-defined]  # every kind has one


def _data(options: Classes | Augment) -> DataSet:
    from ..canvas import check_picture
    from .images import data_of

    check_picture(options.out)
    return data_of(options)


def _example(options: Example) -> str:
    from .. import figures
    from ..canvas import check_picture
    from ..defences import chain
    from ..loading import load

    check_picture(options.out)
    names = options.names or [Path(model).name for model in options.models]
    if len(names) != len(options.models):
        raise InputError(f"there are {len(options.models)} models and {len(names)} --name")
    if len(set(names)) < len(names):
        raise InputError("two rows have the same name: tell them apart by --name")
    files = [model for model in options.models if os.path.isfile(model)] or options.models
    loaded = []
    for model in options.models:  # an architecture is of those that are files
        architecture = options.architecture if model in files else None
        loaded.append(chain(load(model, architecture=architecture), options.defence or ()))
    threat, given = _given(options, dict(zip(options.models, loaded, strict=True)))
    if len(names) == 1 and not options.names:  # one equation needs no heading
        given["source"] = f"{names[0]}; {given['source']}"
        names = [""]
    found = figures.example(
        dict(zip(names, loaded, strict=True)),
        out=options.out,
        threat=threat,
        **given,
    )
    return found.said


def _defence(options: Defence) -> str:
    from .. import figures
    from ..canvas import check_picture
    from ..loading import load

    check_picture(options.out)
    model = load(options.model, architecture=options.architecture)
    threat, given = _given(options, {options.model: model})
    given["source"] = f"{Path(options.model).name}; {given['source']}"
    found = figures.defence(
        model, out=options.out, defences=options.defence or (), threat=threat, **given
    )
    return found.said


def _given(options: Example | Defence, models: dict[str, Any]) -> tuple[Threat, dict[str, Any]]:
    """The threat model, and what else both figures are given."""
    import numpy as np
    import torch

    from .. import data as datasets
    from ..defences import undefended
    from ..evaluation.cards import check_classes, threat_of
    from .images import check_limit, data_of

    check_limit(options.limit)
    cards = {name: getattr(undefended(model), "card", {}) for name, model in models.items()}
    trained = [card for card in cards.values() if card.get("threat")]
    threat = threat_of(options.norm, options.eps, trained[0] if trained else {})
    first = next((name for name, card in cards.items() if card.get("classes")), next(iter(cards)))
    dataset = data_of(options, first, cards[first])
    for name, card in cards.items():
        check_classes(name, card, dataset)
    kind = dataset.usual(options.split)
    split = dataset.split(kind)
    part = split.first(min(options.limit or MOST, len(split)))
    if options.index is not None:
        if not 0 <= options.index < len(split):
            raise InputError(
                f"--index must be from 0 to {len(split) - 1}, not {options.index}: so many images "
                f"has {kind}"
            )
        part = split.first(options.index + 1).after(options.index)
    return threat, {
        "images": datasets.to_tensor(np.asarray(part.images)),
        "labels": torch.from_numpy(part.labels.copy()),
        "index": None if options.index is None else 0,
        "first": options.index or 0,
        "suite": options.suite,
        "classes": dataset.classes,
        "source": f"{dataset.name}, {kind} image",
        "seed": options.seed,
        "device": options.device or ("cuda" if torch.cuda.is_available() else None),
        "progress": not options.quiet,
    }
