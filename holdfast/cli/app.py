"""The command line: one verb a function, each thin over the Python API."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import HoldfastError, InputError
from ..parsing import nearest
from ..terminal import forgive_encodings, tell

INTERRUPTED = 130  # the exit status after Ctrl-C

app = typer.Typer(
    help="Train image classifiers that stay right under attack, attack them as hard as anyone "
    "can, and say honestly how sure it all is.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelArgument = Annotated[
    str, typer.Argument(help="A checkpoint or run folder, a zoo name, or package.module:function.")
]
RunOption = Annotated[Path, typer.Option("--out", help="The run folder.")]
NormOption = Annotated[
    str | None, typer.Option("--norm", help="linf, l2 or l1; evaluate also knows l0 and spatial.")
]
EpsOption = Annotated[
    str | None, typer.Option("--eps", help="Radius of attacks in image units, such as 8/255.")
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", help="Only N images: CIFAR's first ones, a sample of a folder's."),
]
SplitOption = Annotated[str, typer.Option("--split", help="test, validation or train.")]
PixelsOption = Annotated[
    str | None, typer.Option("--pixels", help="What the pixels are, in words, for the result.")
]
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
SeedOption = Annotated[
    int,
    typer.Option("--seed", min=-(2**63), max=2**63 - 1, help="Of every random draw."),
]
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
    """What is there: splits, shapes, label names, and how many images each class has."""
    from .. import data as datasets

    dataset = datasets.load(data, download=download, size=size)
    for text in (datasets.describe(dataset), datasets.describe_classes(dataset)):
        for line in text.splitlines():
            tell(line)
    if figure is not None:
        datasets.figure(dataset, figure)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/cifar10-cpu.yaml.")],
    out: RunOption,
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
    log: Annotated[
        list[str] | None,
        typer.Option("--log", help="Also track with tensorboard or mlflow, if installed."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Train a model by a recipe; the same command goes on where it was interrupted."""
    from .. import data as datasets
    from ..data.base import holds_out
    from ..runs.folder import on_date
    from ..training import load_recipe, train
    from ..training.validation import in_words
    from .evaluate import remark

    changes = list(change or [])
    if budget is not None:
        changes.append(f"budget={budget}")
    spec = load_recipe(recipe, changes)
    dataset = datasets.load(data, size=size)
    remark(dataset, "validation", min(spec.validation.images, len(dataset.validation)))
    result = train(spec, dataset, out, seed=seed, device=device, progress=not quiet, log=log or ())
    held_out = result.validation
    tell(f"model        {result.run / 'model'}")
    tell(f"epochs       {result.epochs:.2f}")
    known = "" if holds_out(spec.train_on) else "; these images were trained on"
    tell(f"validation   {in_words(held_out)} (n = {held_out['n']}{known})")
    for event in result.events:
        tell(f"event        epoch {event['epoch']:.1f}: {event['detail']}")
    tell(f"run folder   {out}, finished on {on_date(result.finished)}")


@app.command()
def evaluate(
    model: ModelArgument,
    out: RunOption,
    data: DataOption = "datasets",
    defence: Annotated[
        list[str] | None,
        typer.Option(
            "--defence",
            help="In front of the model, such as jpeg:quality=75 or package.module:Class; "
            "several see the image in the order given.",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            help="Which attacks; autoattack unless a defence needs adaptive. Or one attack of "
            "another library: torchattacks:APGD:steps=10. See the docs.",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option("--samples", help="Suite adaptive: draws a look, where the model is random."),
    ] = 20,
    norm: NormOption = None,
    eps: EpsOption = None,
    limit: LimitOption = None,
    split: SplitOption = "test",
    pixels: PixelsOption = None,
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
    """Attack a model and write down its standard and robust accuracy.

    Under `torchrun --nproc-per-node N -m holdfast evaluate …` N processes share the images.
    """
    from ..distributed import leads
    from ..runs.folder import on_date
    from .evaluate import evaluate_command

    result = evaluate_command(
        model,
        data,
        out,
        defences=defence or (),
        suite=suite,
        samples=samples,
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
    if not leads():  # one of several workers; the first one tells
        return
    low, high = result.standard_accuracy_interval
    tell(f"standard accuracy  {result.standard_accuracy:7.2%}  (95 %: {low:.2%} to {high:.2%})")
    low, high = result.robust_accuracy_interval
    tell(f"robust accuracy    {result.robust_accuracy:7.2%}  (95 %: {low:.2%} to {high:.2%})")
    for figure in result.draws:
        tell(
            f"over {figure.draws} fresh draws, {figure.kind + ':':9} "
            f"standard {figure.standard_accuracy:7.2%}, robust {figure.robust_accuracy:7.2%}"
        )
    if result.unaware is not None:
        low, high = result.unaware.robust_accuracy_interval
        tell(
            f"had the attacker not known of the defence: {result.unaware.robust_accuracy:.2%}  "
            f"(95 %: {low:.2%} to {high:.2%}, n = {result.unaware.n})"
        )
    tell(f"n = {result.n}, {result.described_threat}, suite {result.suite}, seed {result.seed}")
    for cost in result.attacks:
        tell(
            f"{cost.name:24} broke {cost.broken:5}  forwards {cost.forwards:9}  "
            f"backwards {cost.backwards:9}  {cost.seconds:8.1f} s"
            if cost.ran
            else f"{cost.name:24} {cost.outcome}"
        )
    for flag in result.flags:
        if flag.fired:
            tell(f"flag: {flag.name}: {flag.detail}")
    tell(f"run folder         {out}, finished on {on_date(result.finished)}")


@app.command()
def uncertainty(
    model: ModelArgument,
    out: RunOption,
    data: DataOption = "datasets",
    attack: Annotated[
        str | None, typer.Option("--attack", help="The suite that breaks labels, such as swift.")
    ] = None,
    norm: NormOption = None,
    eps: EpsOption = None,
    limit: LimitOption = None,
    calibration: Annotated[
        int, typer.Option("--calibration", help="Validation images to fit and calibrate on.")
    ] = 2000,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Share of conformal sets that may miss.")
    ] = 0.1,
    risk: Annotated[
        float, typer.Option("--risk", help="Share of wrong answers that abstaining promises.")
    ] = 0.05,
    radius: Annotated[
        float, typer.Option("--radius", help="L2 radius of the robust sets, in image units.")
    ] = 0.125,
    sigma: Annotated[float, typer.Option("--sigma", help="Their noise, in image units.")] = 0.125,
    ood: Annotated[
        list[str] | None,
        typer.Option(
            "--ood",
            help="Foreign images: a folder of images, of CIFAR-100's, SVHN's or CIFAR-10's files; "
            "noise, textures and digits are always there. May be repeated.",
        ),
    ] = None,
    human: Annotated[
        str | None,
        typer.Option("--human", help="Human labels of the test split: .npy, or .npz with probs."),
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option("--ensemble", help="Another model of a deep ensemble. May be repeated."),
    ] = None,
    pixels: PixelsOption = None,
    size: SizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """How sure a model is, and whether that can be believed: clean, foreign, attacked."""
    from ..distributed import alone
    from ..runs.folder import on_date
    from ..uncertainty.run.output import summary_lines
    from .uncertainty import uncertainty_command

    alone("uncertainty")
    result = uncertainty_command(
        model,
        data,
        out,
        attack=attack,
        norm=norm,
        eps=eps,
        limit=limit,
        calibration=calibration,
        alpha=alpha,
        risk=risk,
        radius=radius,
        sigma=sigma,
        ood=ood or (),
        human=human,
        ensemble=ensemble or (),
        pixels=pixels,
        size=size,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    for line in summary_lines(result):
        tell(line)
    tell(f"run folder         {out}, finished on {on_date(result['finished'])}")


@app.command()
def mix(
    robust: Annotated[str, typer.Argument(help="A robust model: a folder or a zoo name.")],
    accurate: Annotated[str, typer.Argument(help="An accurate one, of the same classes.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the mixed model.")],
    data: DataOption = "datasets",
    norm: NormOption = None,
    eps: EpsOption = None,
    limit: Annotated[int, typer.Option("--limit", help="Validation images to choose by.")] = 1000,
    cost: Annotated[
        float, typer.Option("--cost", help="Share of robust accuracy that may be lost.")
    ] = 0.01,
    steps: Annotated[int, typer.Option("--steps", help="Of each attack on the way.")] = 40,
    rounds: Annotated[int, typer.Option("--rounds", help="Mixtures to attack at most.")] = 4,
    size: SizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Blend a robust and an accurate model into one that has both accuracies."""
    from ..distributed import alone
    from ..mixing.run import mix_command
    from ..runs.folder import finished, on_date

    alone("mix")
    folder, choice = mix_command(
        robust,
        accurate,
        data,
        out,
        norm=norm,
        eps=eps,
        limit=limit,
        cost=cost,
        steps=steps,
        rounds=rounds,
        size=size,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    for name, figures in (
        ("robust alone", choice.robust_alone),
        ("mixed", choice.chosen),
    ):
        tell(f"{name:13}standard {figures.standard:.1%}, attacked {figures.standing:.1%}")
    tell(f"accurate     standard {choice.accurate_alone.standard:.1%}")
    tell(f"on {choice.n} validation images, which chose {choice.parameters}")
    if choice.gains_nothing:
        tell(
            f"no mixture that was attacked kept its cost below {cost:.1%}, so this is the robust "
            "model alone; allow more with --cost, or more of them with --rounds"
        )
    done = finished(folder) or {}
    tell(f"model        {folder}, finished on {on_date(done.get('finished', ''))}")


@app.command()
def certify(
    model: ModelArgument,
    out: RunOption,
    data: DataOption = "datasets",
    sigma: Annotated[
        float | None,
        typer.Option("--sigma", help="Randomised smoothing, L2; interval bounds, L∞, without."),
    ] = None,
    n0: Annotated[int, typer.Option("--n0", help="Samples that choose the answer.")] = 100,
    n: Annotated[int, typer.Option("-n", "--n", help="Samples that certify it.")] = 10_000,
    alpha: Annotated[float, typer.Option("--alpha", help="Chance that one is wrong.")] = 0.001,
    radius: Annotated[
        list[str] | None,
        typer.Option("--radius", help="Where to report certified accuracy. May be repeated."),
    ] = None,
    eps: EpsOption = None,
    limit: LimitOption = None,
    split: SplitOption = "test",
    pixels: PixelsOption = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Of a pass of the model; changes no certificate.")
    ] = 512,
    size: SizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Certify answers that no attack inside a radius can change, and attack them all the same."""
    from ..distributed import alone
    from ..parsing import parse_number
    from ..runs.folder import on_date
    from .certify import certify_command

    alone("certify")
    result = certify_command(
        model,
        data,
        out,
        sigma=sigma,
        n0=n0,
        n=n,
        alpha=alpha,
        radii=[parse_number(text) for text in radius] if radius else None,
        eps=eps,
        limit=limit,
        split=split,
        pixels=pixels,
        batch_size=batch_size,
        size=size,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    for point in result.certified:
        low, high = point.interval
        tell(
            f"certified accuracy at {point.radius:<8.4g}{point.certified_accuracy:7.2%}  "
            f"(95 %: {low:.2%} to {high:.2%})"
        )
    low, high = result.attacked_accuracy_interval
    tell(
        f"attacked accuracy at {result.threat['eps']:<9.4g}{result.attacked_accuracy:7.2%}  "
        f"(95 %: {low:.2%} to {high:.2%})"
    )
    settings = ", ".join(f"{key} {value}" for key, value in result.settings.items())
    tell(f"{result.method}, {settings}, n = {result.n}, abstained {result.abstained:.1%}")
    if result.note:
        tell(f"mind: {result.note}")
    for flag in result.flags:
        if flag.fired:
            tell(f"flag: {flag.name}: {flag.detail}")
    tell(f"run folder         {out}, finished on {on_date(result.finished)}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("report.html"),
) -> None:
    """Write one self-contained page about runs."""
    from ..report import write_report

    tell(str(write_report(runs, out)))


@app.command()
def leaderboard(
    folder: Annotated[Path, typer.Argument(help="A folder that holds run folders.")],
) -> None:
    """All evaluations below a folder, one table a suite and threat model."""
    from .tables import print_leaderboard

    print_leaderboard(folder)


@app.command()
def models() -> None:
    """The zoo, with its figures."""
    from .tables import print_zoo

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


def _meant(said: str) -> str:
    """The command that is closest to one that there is not."""
    unknown = re.search(r"No such command '([^']*)'\.?$", said)
    names = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    return nearest(unknown[1], names).replace("; d", " D") if unknown else ""


def main() -> None:
    """Run the command line: errors are one line on standard error and an exit status.

    2 is bad input, 1 a failure, 130 an interruption. `--debug` shows tracebacks instead.
    """
    forgive_encodings()
    if "--debug" in sys.argv:
        app()
        return
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except typer.TyperException as error:  # an unknown option, a missing argument
        if os.environ.get("RANK", "0") == "0":  # of several workers, all were asked the same
            said = " ".join(error.format_message().split())
            tell(f"holdfast: {InputError(said + _meant(said))}", error=True)
        sys.exit(error.exit_code)
    except HoldfastError as error:
        if not error.said:
            tell(f"holdfast: {error}", error=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        # What no part of Holdfast named more closely: a full disk, a folder that went away.
        where = f"{error.filename}: " if error.filename else ""
        tell(f"holdfast: {InputError(f'{where}{error.strerror or error}')}", error=True)
        sys.exit(InputError.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        tell("holdfast: interrupted; the same command goes on from here", error=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
