"""`holdfast data`: what a data set holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..terminal import tell
from .options import (
    ClassOrderOption,
    DataOption,
    GreyOption,
    LabelsOption,
    SizeOption,
)

if TYPE_CHECKING:
    from ..data import DataSet


@dataclass(frozen=True)
class Options:
    """Show what a data set holds: its splits, shapes, label names, and images per class."""

    data: DataOption = "datasets"
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="Draw 10 random images of each class into this file."),
    ] = None
    download: Annotated[
        bool, typer.Option("--download", help="Fetch CIFAR-10 into the folder if it is missing.")
    ] = False
    size: SizeOption = None
    grey: GreyOption = False
    labels: LabelsOption = None
    class_order: ClassOrderOption = None


def run(options: Options) -> DataSet:
    """Load the data set, and draw its figure."""
    from .. import data as datasets

    dataset = datasets.load(
        options.data,
        download=options.download,
        size=options.size,
        grey=options.grey,
        labels=options.labels,
        class_order=options.class_order,
    )
    if options.figure is not None:
        datasets.figure(dataset, options.figure)
    return dataset


def show(dataset: DataSet, options: Options) -> None:
    """Print the listing."""
    from .. import data as datasets

    for text in (datasets.describe(dataset), datasets.describe_classes(dataset)):
        for line in text.splitlines():
            tell(line)
