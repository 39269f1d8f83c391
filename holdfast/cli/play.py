"""`holdfast play`: a page in the browser on which an image and an attack can be played with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import typer

from ..errors import InputError
from .options import (
    ArchitectureOption,
    DeviceOption,
    DtypeOption,
    InputSizeOption,
    MeanOption,
    NumbersOption,
    SeedOption,
    SizeOption,
    StdOption,
    model_options,
)


@dataclass(frozen=True)
class Options:
    """Open a playground in the browser: two models, an image, an attack, and what it changes.

    Needs Gradio: pip install 'holdfast[play]'. Ctrl-C ends it.
    """

    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models, as for `evaluate`. By default an undefended and a defended one of the "
            "zoo."
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A data set, as for evaluate: its test images are offered, and its validation "
            "images calibrate the conformal sets.",
        ),
    ] = None
    defence: Annotated[
        list[str] | None,
        typer.Option(
            "--defence",
            help="A defence that the page offers first, such as jpeg:quality=50. May be repeated.",
        ),
    ] = None
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="The address of this machine to listen at. By default nobody else can reach the "
            "page; 0.0.0.0 lets everybody in.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option("--port", help="The port to listen at; 0 for any that is free.")
    ] = 7860
    open_browser: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = (
        False
    )
    size: SizeOption = None
    architecture: ArchitectureOption = None
    mean: MeanOption = None
    std: StdOption = None
    input_size: InputSizeOption = None
    outputs: NumbersOption = None
    dtype: DtypeOption = None
    seed: SeedOption = 0
    device: DeviceOption = None


def run(options: Options) -> None:
    """Serve the page until it is interrupted.

    Raises:
        InputError: Gradio is not installed; the port is taken.
    """
    from ..playground.serve import serve
    from ..playground.workshop import USUAL, Workshop

    models = list(dict.fromkeys(options.models or USUAL))
    if any(not name.strip() for name in models):
        raise InputError("the name of a model is empty")
    workshop = Workshop(
        models,
        partial(_load, options),
        options.data,
        options.size,
        tuple(options.defence or ()),
        options.device,
        options.seed,
    )
    serve(workshop, options.host, options.port, open_browser=options.open_browser)


def show(nothing: None, options: Options) -> None:
    """Nothing is left to say."""


def _load(options: Options, name: str) -> Any:
    from ..loading import load

    asked = model_options(options, options.outputs)
    if not os.path.isfile(name):  # an architecture is of those that are files
        asked["architecture"] = None
    return load(name, **asked)
