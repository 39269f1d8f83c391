"""The command line: one verb a function, each thin over the Python API."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import HoldfastError

app = typer.Typer(
    help="Train image classifiers that stay right under attack, attack them as hard as anyone "
    "can, and say honestly how sure it all is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataOption = Annotated[
    str, typer.Option("--data", help="CIFAR-10 files, a folder of images per class, or 'digits'.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, …; the best there is by default.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of every random draw.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options of every command."""


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/cifar10-cpu.yaml.")],
    out: Annotated[Path, typer.Option("--out", help="The run folder.")],
    data: DataOption = "datasets",
    budget: Annotated[
        str | None, typer.Option("--budget", help="Wall-clock time, such as 60m or 2h.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key of the recipe: optimiser.learning_rate=0.1"),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a model by a recipe; the same command goes on where it was interrupted."""
    from .training import train as run

    changes = list(change or [])
    if budget is not None:
        changes.append(f"budget={budget}")
    result = run(recipe, data, out, changes=changes, seed=seed, device=device, progress=not quiet)
    held_out = result.validation
    print(f"model        {result.run / 'model'}")
    print(f"epochs       {result.epochs:.2f}")
    print(f"validation   standard {held_out['standard_accuracy']:.1%}, ", end="")
    print(f"PGD {held_out['pgd_accuracy']:.1%} (n = {held_out['n']})")
    for event in result.events:
        print(f"event        epoch {event['epoch']:.1f}: {event['detail']}")


def main() -> None:
    """Run the command line; errors are one line on standard error and an exit status."""
    if "--debug" in sys.argv:
        app()
        return
    try:
        app()
    except HoldfastError as error:
        print(f"holdfast: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("holdfast: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
