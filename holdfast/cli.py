"""The command line: one verb a function, each thin over the Python API."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import HoldfastError, InputError

app = typer.Typer(
    help="Train image classifiers that stay right under attack, attack them as hard as anyone "
    "can, and say honestly how sure it all is.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataOption = Annotated[
    str, typer.Option("--data", help="CIFAR-10's files, a folder of images per class, or 'digits'.")
]
SizeOption = Annotated[
    int | None,
    typer.Option("--image-size", help="For images of one's own: crop and resize to this."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, …; by default the best there is.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of every random draw.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def data(
    data: DataOption = "datasets",
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Draw 10 random images of each class here.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch CIFAR-10 into the folder if it is missing.")
    ] = False,
    size: SizeOption = None,
) -> None:
    """What is there: splits, shapes and label names."""
    from . import data as datasets

    dataset = datasets.load(data, download=download, size=size)
    print(datasets.describe(dataset))
    if figure is not None:
        datasets.figure(dataset, figure)


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
    size: SizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a model by a recipe; the same command goes on where it was interrupted."""
    from . import data as datasets
    from .training import load_recipe, train

    changes = list(change or [])
    if budget is not None:
        changes.append(f"budget={budget}")
    spec = load_recipe(recipe, changes)
    dataset = datasets.load(data, size=size)
    result = train(spec, dataset, out, seed=seed, device=device, progress=not quiet)
    held_out = result.validation
    print(f"model        {result.run / 'model'}")
    print(f"epochs       {result.epochs:.2f}")
    print(
        f"validation   standard {held_out['standard_accuracy']:.1%}, "
        f"PGD {held_out['pgd_accuracy']:.1%} (n = {held_out['n']})"
    )
    for event in result.events:
        print(f"event        epoch {event['epoch']:.1f}: {event['detail']}")


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="A checkpoint or run folder, a zoo name, or package.module:function."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The run folder.")],
    data: DataOption = "datasets",
    suite: Annotated[str, typer.Option("--suite", help="Which attacks; see the docs.")] = (
        "autoattack"
    ),
    norm: Annotated[str | None, typer.Option("--norm", help="linf, l2 or l1.")] = None,
    eps: Annotated[
        str | None, typer.Option("--eps", help="Radius in image units, such as 8/255.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N images.")] = None,
    split: Annotated[str, typer.Option("--split", help="test, validation or train.")] = "test",
    pixels: Annotated[
        str | None, typer.Option("--pixels", help="What the pixels are, in words, for the result.")
    ] = None,
    curve: Annotated[bool, typer.Option(help="Also measure the security curve.")] = True,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Measured by default; changes no verdict.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="Of the search: auto, bf16, float32 or original.")
    ] = "auto",
    size: SizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Attack a model and write down its standard and robust accuracy."""
    from .evaluation.command import evaluate_command

    result = evaluate_command(
        model,
        data,
        out,
        suite=suite,
        norm=norm,
        eps=eps,
        limit=limit,
        split=split,
        pixels=pixels,
        curve=curve,
        batch_size=batch_size,
        precision=precision,
        size=size,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    low, high = result.standard_accuracy_interval
    print(f"standard accuracy  {result.standard_accuracy:7.2%}  (95 %: {low:.2%} to {high:.2%})")
    low, high = result.robust_accuracy_interval
    print(f"robust accuracy    {result.robust_accuracy:7.2%}  (95 %: {low:.2%} to {high:.2%})")
    print(f"n = {result.n}, {result.described_threat}, suite {result.suite}, seed {result.seed}")
    for cost in result.attacks:
        print(
            f"{cost.name:24} broke {cost.broken:5}  forwards {cost.forwards:9}  "
            f"backwards {cost.backwards:9}  {cost.seconds:8.1f} s"
        )
    for flag in result.flags:
        if flag.fired:
            print(f"flag: {flag.name}: {flag.detail}")
    print(f"run folder         {out}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("report.html"),
) -> None:
    """Write one self-contained page about runs."""
    from .report import write_report

    print(write_report(runs, out))


@app.command()
def leaderboard(
    folder: Annotated[Path, typer.Argument(help="A folder that holds run folders.")],
) -> None:
    """All evaluations below a folder, one table a suite and threat model."""
    from .evaluation.tables import print_leaderboard

    print_leaderboard(folder)


@app.command()
def models() -> None:
    """The zoo, with its figures."""
    from .evaluation.tables import print_zoo

    print_zoo()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where the runs and the page go.")] = Path(
        "runs/demo"
    ),
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """The whole way on embedded data: train, defend, attack, report."""
    from .demo import run_demo

    run_demo(out, seed=seed, progress=not quiet)


def main() -> None:
    """Run the command line: errors are one line on standard error and an exit status.

    2 is bad input, 1 a failure, 130 an interruption. `--debug` shows tracebacks instead.
    """
    if "--debug" in sys.argv:
        app()
        return
    try:
        status = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except typer.TyperException as error:  # an unknown option, a missing argument
        print(f"holdfast: {' '.join(error.format_message().split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except HoldfastError as error:
        print(f"holdfast: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        # What no part of Holdfast named more closely: a full disk, a folder that went away.
        where = f"{error.filename}: " if error.filename else ""
        print(f"holdfast: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(InputError.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        print("holdfast: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
