"""`holdfast judge`: ready-made adversarial images, or another model's, shown to a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..terminal import tell
from .evaluate import suite_or_usual, targets_of
from .options import (
    ArchitectureOption,
    BalancedOption,
    ClassesOption,
    ClassOrderOption,
    DataOption,
    DefenceOption,
    DeviceOption,
    DtypeOption,
    EpsOption,
    GoalOption,
    GreyOption,
    IndicesOption,
    InputSizeOption,
    LabelsOption,
    LimitOption,
    MeanOption,
    ModelArgument,
    NormOption,
    NumbersOption,
    PixelsOption,
    QuietOption,
    SeedOption,
    SizeOption,
    SplitOption,
    StdOption,
    TargetsOption,
    model_options,
)

if TYPE_CHECKING:
    from ..evaluation import Evaluation

USUAL_SUITE = "swift"


@dataclass(frozen=True)
class Options:
    """Check ready-made adversarial images and show them to a model.

    They are somebody's, or found on another model (--from), which tells how far attacks transfer.
    Nothing is searched on MODEL itself: its robust accuracy is an upper bound here.
    """

    model: ModelArgument
    adversarial: Annotated[
        Path | None,
        typer.Option(
            "--adversarial",
            help="The images: an .npz, .npy or .safetensors file, a folder of PNG files, or an "
            "evaluation's run folder, whose examples are taken.",
        ),
    ] = None
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="In their place: a model that is attacked to find them. Its own options stand "
            "behind it in quotes, as in --from 'FILE.pth --architecture NAME --mean 0.5'.",
        ),
    ] = None
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", help="With --from: which attacks. By default swift, or adaptive if needed."
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run folder to write; without it, nothing is written."),
    ] = None
    data: DataOption = "datasets"
    defence: DefenceOption = None
    clip: Annotated[
        bool,
        typer.Option(
            "--clip", help="Project images outside ball or box into them, or they do not count."
        ),
    ] = False
    norm: NormOption = None
    eps: EpsOption = None
    goal: GoalOption = "untargeted"
    targets: TargetsOption = None
    limit: LimitOption = None
    indices: IndicesOption = None
    balanced: BalancedOption = False
    split: SplitOption = None
    pixels: PixelsOption = None
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Images shown to the model at once.")
    ] = None
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
    quiet: QuietOption = False


def run(options: Options) -> Evaluation:
    """Load models, images and adversarial images, judge, write the run folder.

    Raises:
        InputError: options out of range; as `holdfast.judge`.
    """
    import torch

    from .. import data as datasets
    from ..attacks.goal import RANDOM, checked_goal
    from ..data.given import read_given
    from ..defences import chain, steps, undefended
    from ..evaluation.cards import check_classes, remark, threat_of, what_was_measured
    from ..evaluation.given import judge
    from ..loading import load
    from .another import load_another
    from .images import check_limit, chosen, fitted

    if (options.adversarial is None) == (options.source is None):
        raise InputError("give either --adversarial FILE or --from MODEL")
    if options.suite is not None and options.source is None:
        raise InputError("--suite is of the attack on another model: give --from MODEL as well")
    check_limit(options.limit)
    network, data = fitted(options, load(options.model, **model_options(options, options.outputs)))
    network = chain(network, options.defence or ())
    bare = undefended(network)
    card = getattr(bare, "card", {})
    threat = threat_of(options.norm, options.eps, card)
    # Adversarial images are numbered by the whole split: the limit is theirs.
    whole = options if options.balanced else replace(options, limit=None)
    dataset, name, split = chosen(whole, data)
    n = len(split) if options.limit is None else min(options.limit, len(split))
    goal = checked_goal(options.goal, options.targets and RANDOM)
    targets = targets_of(options.targets, n, dataset)
    given = source = source_described = None
    if options.adversarial is not None:
        shape = tuple(split.images.shape[1:])
        given = read_given(options.adversarial, shape, len(split)).first(n, options.limit)
        if given.index is None:  # the first images, then, and no others
            n = len(given.images)
            targets = targets if targets is None or isinstance(targets, str) else targets[:n]
    else:
        assert options.source is not None
        called, source = load_another(options.source, dataset.classes)
        check_classes(called, getattr(undefended(source), "card", {}), dataset)
        source_described = {
            **what_was_measured(
                called, undefended(source), dataset, name, n, options.pixels,
                [step.spec for step in steps(source)],
            ),
            "classes": list(dataset.classes),
        }  # fmt: skip
    remark(dataset, name, n, str(card.get("trained_on", "")))
    return judge(
        network,
        datasets.model_images(split.images[:n]),
        torch.from_numpy(split.labels[:n].copy()),
        given,
        threat,
        source=source,
        suite=USUAL_SUITE if source is None else suite_or_usual(options.suite, source, USUAL_SUITE),
        clip=options.clip,
        goal=goal,
        targets=targets,
        batch_size=options.batch_size,
        device=options.device or ("cuda" if torch.cuda.is_available() else None),
        seed=options.seed,
        run=options.out,
        progress=not options.quiet,
        described={
            **what_was_measured(
                options.model, bare, dataset, name, n, options.pixels,
                [step.spec for step in steps(network)],
            ),
            "classes": list(dataset.classes),
        },
        source_described=source_described,
    )  # fmt: skip


def show(result: Evaluation, options: Options) -> None:
    """Print the checks, the accuracies, and with --from how much came over."""
    from ..distributed import leads
    from ..runs.folder import on_date
    from .evaluate import show_accuracies

    if not leads():  # one of several processes; the first one tells
        return

    for flag in result.flags:
        if flag.name.startswith("given-"):
            name = flag.name.removeprefix("given-").replace("-", " ")
            tell(f"{'!' if flag.fired else ' '} {name + ':':13} {flag.detail}")
    show_accuracies(result)
    searched = "the attack on the other model" if result.transfer else "whoever made the images"
    tell(
        f"an upper bound on robust accuracy: {searched} did not search on this model; "
        "`holdfast evaluate` does"
    )
    if result.transfer is not None:
        transfer = result.transfer
        tell(f"attacked on {transfer.source} by {transfer.suite}, where:")
        _tell_share("standard", transfer.standard_accuracy, transfer.standard_accuracy_interval)
        _tell_share("robust", transfer.robust_accuracy, transfer.robust_accuracy_interval)
        tell(
            f"transfer rate: {transfer.broke_both} of {transfer.broke_source} that broke it "
            "break this model too" + ("" if transfer.rate is None else f", {transfer.rate:.2%}")
        )
    tell(f"n = {result.n}, {result.described_threat}, suite {result.suite}, seed {result.seed}")
    for flag in result.flags:
        if flag.fired and not flag.name.startswith("given-"):
            tell(f"flag: {flag.name}: {flag.detail}")
    if options.out is None:
        tell("nothing was written: --out RUN keeps the result, its verdicts and examples")
    else:
        tell(f"run folder         {options.out}, finished on {on_date(result.finished)}")


def _tell_share(name: str, value: float | None, interval: tuple[float, float] | None) -> None:
    low, high = interval or (float("nan"), float("nan"))
    tell(f"  {name + ' accuracy':17} {value or 0.0:7.2%}  (95 %: {low:.2%} to {high:.2%})")
