"""`holdfast try`: one image before one model, clean and attacked, and a card to show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..terminal import tell
from .options import (
    ArchitectureOption,
    ClassesOption,
    ClassOrderOption,
    DefenceOption,
    DeviceOption,
    DtypeOption,
    EpsOption,
    GreyOption,
    InputSizeOption,
    JsonOption,
    LabelsOption,
    MeanOption,
    ModelArgument,
    NormOption,
    NumbersOption,
    QuietOption,
    SeedOption,
    SizeOption,
    StdOption,
    model_options,
)

if TYPE_CHECKING:
    from ..one_image import Picture, Trial

TITLE = 17  # width of the first column


@dataclass(frozen=True)
class Options:
    """Show one image to a model, attack it, and write a card of what was found.

    The picture is brought to the model's size: its middle is cut out and resized.
    """

    model: ModelArgument
    image: Annotated[
        str,
        typer.Argument(
            help="A picture (PNG, JPEG, WebP, …); or with --data the number of one of its test "
            "images, from 0."
        ),
    ]
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The card to write; it ends in .png, .svg or .pdf. By default NAME-card.png in "
            "the working folder, after the image's name.",
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A data set, as for evaluate: its validation images calibrate the conformal set, "
            "and its classes name the model's.",
        ),
    ] = None
    label: Annotated[
        str | None,
        typer.Option(
            "--class",
            help="The true class, by name or number. By default the model's own answer to the "
            "clean image counts as right.",
        ),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="The class that the attack must reach, by name or number. By default any other "
            "class than the true one is a success.",
        ),
    ] = None
    defence: DefenceOption = None
    norm: NormOption = None
    eps: EpsOption = None
    attack: Annotated[
        str | None,
        typer.Option(
            "--attack",
            help="A name from `holdfast list attacks` or `holdfast list suites`. By default PGD on "
            "the margin, or what else the model needs.",
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Steps of the attack, or its queries; PGD takes 20."),
    ] = None
    closest: Annotated[
        bool, typer.Option(help="Also look for the smallest ε that breaks the image.")
    ] = True
    alpha: Annotated[
        float,
        typer.Option("--alpha", help="The share of conformal sets that may miss the true class."),
    ] = 0.1
    size: SizeOption = None
    grey: GreyOption = False
    labels: LabelsOption = None
    class_order: ClassOrderOption = None
    architecture: ArchitectureOption = None
    mean: MeanOption = None
    std: StdOption = None
    input_size: InputSizeOption = None
    outputs: NumbersOption = None
    classes: ClassesOption = None
    dtype: DtypeOption = None
    seed: SeedOption = 0
    device: DeviceOption = None
    as_json: JsonOption = False
    quiet: QuietOption = False


def run(options: Options) -> Trial:
    """Load the model and the image, attack it, write the card.

    Raises:
        InputError: as `holdfast.load` and `holdfast.try_image`.
    """
    import torch

    from ..canvas import check_picture
    from ..defences import chain, undefended
    from ..evaluation.cards import threat_of
    from ..loading import in_classes, load
    from ..one_image import read_picture, try_image

    out = card_file(options)
    check_picture(out)
    # First the picture: what is none is said before a model is loaded.
    picture = None if _is_number(options) else read_picture(options.image)
    network: Any = load(options.model, **model_options(options, options.outputs))
    given: dict[str, Any] = {}
    if options.data is not None:
        network, given = _of_data(options, network, picture)
    elif options.classes is not None:
        network = in_classes(network, options.classes, None)
    card = getattr(undefended(network), "card", None) or {}
    network = chain(network, options.defence or ())
    return try_image(
        network,
        given.pop("image", None) if picture is None else _in_colours(options, picture),
        threat_of(options.norm, options.eps, card),
        label=given.pop("label", None) if options.label is None else options.label,
        target=options.target,
        attack=options.attack,
        steps=options.steps,
        alpha=options.alpha,
        closest=options.closest,
        name=Path(options.model).name,
        out=out,
        seed=options.seed,
        device=options.device or ("cuda" if torch.cuda.is_available() else None),
        progress=not options.quiet,
        size=options.size if picture is not None else None,
        **given,
    )


def show(found: Trial, options: Options) -> None:
    """Print what was found, and where the card is."""
    import json

    if options.as_json:
        print(json.dumps({**found.to_dict(), "card": str(card_file(options))}, indent=2))
        return
    for title, said in [*found.lines(), ("card", str(card_file(options)))]:
        tell(f"{title:{TITLE}} {said}")


def card_file(options: Options) -> Path:
    """Where the card goes."""
    if options.out is not None:
        return options.out
    name = f"image-{options.image}" if _is_number(options) else Path(options.image).stem
    return Path(f"{name or 'image'}-card.png")


def _is_number(options: Options) -> bool:
    return options.data is not None and options.image.isdecimal()


def _in_colours(options: Options, picture: Picture) -> Picture:
    from dataclasses import replace

    from ..data.brought import grey

    return replace(picture, pixels=grey(picture.pixels)) if options.grey else picture


def _of_data(options: Options, network: Any, picture: Picture | None) -> tuple[Any, dict[str, Any]]:
    """The model in the data's classes, and what `try_image` gets of the data."""
    import numpy as np
    import torch

    from ..data import to_tensor
    from ..errors import HoldfastError
    from ..evaluation.cards import unseen_validation
    from ..models.chain import undefended
    from ..one_image import Calibration
    from ..one_image.sets import IMAGES
    from .images import fitted

    network, dataset = fitted(_Fitting(options), network)
    given: dict[str, Any] = {"classes": dataset.classes}
    card = getattr(undefended(network), "card", None) or {}
    try:
        held = unseen_validation(dataset, {options.model: card}).first(IMAGES)
        if len(held):
            images = to_tensor(np.asarray(held.images))
            given["calibration"] = images, torch.from_numpy(held.labels.copy())
    except HoldfastError as error:
        given["calibration"] = Calibration(unavailable=str(error))
    if picture is None:
        kind = dataset.usual(None)
        split, index = dataset.split(kind), int(options.image)
        if index >= len(split):
            raise InputError(
                f"{dataset.name} has {len(split)} {kind} images: give a number from 0 to "
                f"{len(split) - 1}, not {index}"
            )
        part = split.first(index + 1).after(index)
        given["image"] = to_tensor(np.asarray(part.images))[0]
        given["label"] = int(part.labels[0])
        given["source"] = f"{dataset.name}, {kind} image {index}"
    return network, given


class _Fitting:
    """The options as `fitted` takes them."""

    def __init__(self, options: Options):
        self.options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self.options, name)
