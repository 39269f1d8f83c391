"""`holdfast train`: a model by a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..terminal import tell
from .options import (
    ClassOrderOption,
    DataOption,
    DeviceOption,
    GreyOption,
    LabelsOption,
    QuietOption,
    RunOption,
    SeedOption,
    SizeOption,
)

if TYPE_CHECKING:
    from ..training import TrainingResult


@dataclass(frozen=True)
class Options:
    """Train a model by a recipe; the same command goes on where it was interrupted."""

    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe: a YAML file, or a name from `holdfast list recipes`, such as "
            "cifar10-cpu."
        ),
    ]
    out: RunOption
    data: DataOption = "datasets"
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Wall-clock time that training may take, such as 60m or 2h."),
    ] = None
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a key of the recipe, such as optimiser.learning_rate=0.1. "
            "May be repeated.",
        ),
    ] = None
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            help="The network, in place of the recipe's: NAME or NAME:key=value,… of Holdfast's, "
            "such as preact-resnet:depth=18, or path/file.py:function of your own.",
        ),
    ] = None
    size: SizeOption = None
    grey: GreyOption = False
    labels: LabelsOption = None
    class_order: ClassOrderOption = None
    seed: SeedOption = 0
    device: DeviceOption = None
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log", help="Also write to tensorboard or mlflow, if installed. May be repeated."
        ),
    ] = None
    quiet: QuietOption = False


def run(options: Options) -> TrainingResult:
    """Train, or go on; a run that is finished is read."""
    from ..evaluation.cards import remark
    from ..training import load_recipe, train
    from ..training.recipe import architecture_changes
    from .images import data_of

    changes = list(options.change or [])
    if options.architecture is not None:
        changes = [*architecture_changes(options.architecture), *changes]
    if options.budget is not None:
        changes.append(f"budget={options.budget}")
    recipe = load_recipe(options.recipe, changes)
    dataset = data_of(options)
    remark(dataset, "validation", min(recipe.validation.images, len(dataset.validation)))
    return train(
        recipe,
        dataset,
        options.out,
        seed=options.seed,
        device=options.device,
        progress=not options.quiet,
        log=options.log or (),
    )


def show(result: TrainingResult, options: Options) -> None:
    """Print where the model is and its validation figures."""
    from ..data.base import holds_out
    from ..runs.folder import on_date
    from ..training.validation import in_words

    tell(f"model        {result.run / 'model'}")
    tell(f"epochs       {result.epochs:.2f}")
    trained_on = str(result.model.card["trained_on"])  # type: ignore[index]
    known = "" if holds_out(trained_on) else "; these images were trained on"
    tell(f"validation   {in_words(result.validation)} (n = {result.validation['n']}{known})")
    for event in result.events:
        tell(f"event        epoch {event['epoch']:.1f}: {event['detail']}")
    tell(f"run folder   {options.out}, finished on {on_date(result.finished)}")
