"""`holdfast evaluate`: a model's standard and robust accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..terminal import tell
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
    JunitOption,
    LabelsOption,
    LimitOption,
    MeanOption,
    ModelArgument,
    NormOption,
    PixelsOption,
    QuietOption,
    RequireOption,
    RunOption,
    SeedOption,
    SizeOption,
    SplitOption,
    StdOption,
    TargetsOption,
    command_began,
    model_options,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..attacks.base import Model
    from ..data import DataSet
    from ..evaluation import Evaluation

USUAL_SUITE = "autoattack"


@dataclass(frozen=True)
class Options:
    """Attack a model and write down its standard and robust accuracy.

    Under `torchrun --nproc-per-node N -m holdfast evaluate …` or `srun` N processes share the
    images, on one machine or several.
    """

    model: ModelArgument
    out: RunOption
    data: DataOption = "datasets"
    defence: DefenceOption = None
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            help="Which attacks: a name from `holdfast list suites`, or one attack of another "
            "library, such as torchattacks:APGD:steps=10. By default autoattack, adaptive "
            "where a defence needs it, or black-box for a black box.",
        ),
    ] = None
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            help="With the suite adaptive: how many draws of a random model each gradient "
            "averages over.",
        ),
    ] = 20
    norm: NormOption = None
    eps: EpsOption = None
    goal: GoalOption = "untargeted"
    targets: TargetsOption = None
    limit: LimitOption = None
    indices: IndicesOption = None
    balanced: BalancedOption = False
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="Time that it may take, such as 30m or 2h: as many images as fit, drawn at "
            "random. A larger budget with the same --out goes on from there.",
        ),
    ] = None
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            help="Draw images until the robust accuracy is known to so much up or down, such as "
            "2%. With --budget, whichever comes first.",
        ),
    ] = None
    split: SplitOption = None
    pieces: Annotated[
        bool,
        typer.Option(
            "--pieces",
            help="Each process, or machine, has other images behind --data: together they are the "
            "data. So it is, too, where {rank}, {local_rank} or {node} stands in --data.",
        ),
    ] = False
    pixels: PixelsOption = None
    curve: Annotated[bool, typer.Option(help="Also measure the security curve.")] = True
    repair: Annotated[
        bool,
        typer.Option(
            help="Where the model hides its gradients, also attack it through repaired ones."
        ),
    ] = True
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            help="Images searched at once. By default measured; it changes no verdict.",
        ),
    ] = None
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="Number format of the search: auto, bf16, float32 or original. Verdicts always "
            "come from the original.",
        ),
    ] = "auto"
    queries: Annotated[
        int | None,
        typer.Option(
            "--queries",
            help="A hard budget: about no image is the model asked more often than N times, its "
            "clean prediction aside.",
        ),
    ] = None
    outputs: Annotated[
        str | None,
        typer.Option(
            "--outputs",
            help="What the model's numbers are: logits (as by default), or probabilities, of "
            "which the logarithm is taken. Or what the attacker sees of a black box: scores or "
            "labels, by default all that the model shows. Or both: probabilities,labels.",
        ),
    ] = None
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Requests a second, at most, to a model behind http://…"),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", help="Seconds until a request to http://… is repeated."),
    ] = None
    http: Annotated[
        str,
        typer.Option(
            "--http",
            help="How http://… is asked, such as format=png,batch=32,retries=5,"
            "token=VARIABLE; see docs/black-boxes.md.",
        ),
    ] = ""
    size: SizeOption = None
    grey: GreyOption = False
    labels: LabelsOption = None
    class_order: ClassOrderOption = None
    architecture: ArchitectureOption = None
    mean: MeanOption = None
    std: StdOption = None
    input_size: InputSizeOption = None
    classes: ClassesOption = None
    dtype: DtypeOption = None
    seed: SeedOption = 0
    device: DeviceOption = None
    require: RequireOption = None
    junit: JunitOption = None
    quiet: QuietOption = False


def suite_or_usual(
    suite: str | None, model: Model, usual: str = USUAL_SUITE, outputs: str | None = None
) -> str:
    """The suite asked for; else `black-box` for a black box, or `adaptive`, saying why, for a
    defence that needs it."""
    from ..attacks.adaptive import NAME as ADAPTIVE
    from ..attacks.black_box import NAME as BLACK_BOX
    from ..distributed import leads
    from ..evaluation.inspection import reason
    from ..evaluation.request import is_far

    if suite is not None:
        return suite
    if outputs is not None or is_far(model):
        return BLACK_BOX
    why = reason(model)
    if why and leads():
        tell(f"suite {ADAPTIVE}, because {why}")
    return ADAPTIVE if why else usual


def targets_of(targets: str | None, count: int, dataset: DataSet) -> Tensor | str | None:
    """What `--targets` means: a kind of targets, or the classes that a file holds."""
    from ..attacks.goal import KINDS
    from ..data.given import read_targets

    if targets is None or targets in KINDS:
        return targets
    return read_targets(targets, count, dataset.classes)


def run(options: Options) -> Evaluation:
    """Load the model and the images, evaluate, write the run folder.

    Raises:
        InputError: options out of range; a model of other classes than the data; as
            `holdfast.evaluate`.
    """
    from ..distributed import joined
    from .requirements import check_required

    check_required(options.require, options.junit)
    with joined():  # what one worker fails at, the others leave too
        return _run(options)


def _run(options: Options) -> Evaluation:
    import torch

    from .. import data as datasets
    from ..attacks.goal import RANDOM, UNTARGETED, checked_goal
    from ..data.shards import in_pieces, own_piece, together
    from ..defences import chain, steps, undefended
    from ..evaluation import evaluate
    from ..evaluation.cards import remark, threat_of, what_was_measured
    from ..evaluation.limits import Limits
    from ..models.black_box import read_outputs
    from ..report.requirements import checked_for_evaluation
    from .images import check_limit, chosen, fitted

    limits = Limits.of(options.budget, options.until, command_began())
    pieces, source = options.pieces or in_pieces(options.data), options.data
    options = replace(options, data=own_piece(source)) if pieces else options
    _, seen = read_outputs(options.outputs)
    network, data = fitted(options, _loaded(options))
    network = chain(network, options.defence or ())
    bare = undefended(network)
    card = getattr(bare, "card", {})
    defences = [step.spec for step in steps(network)]
    threat = threat_of(options.norm, options.eps, card)
    check_limit(options.limit)
    if pieces:
        _check_whole(options)
        data = together(data, data.usual(options.split), source)
    dataset, name, split = chosen(options, data)
    n = len(split)
    goal = checked_goal(options.goal, options.targets and RANDOM)
    targets = targets_of(options.targets, n, dataset)
    if options.require:
        checked_for_evaluation(options.require, aimed=goal != UNTARGETED, defended=bool(defences))
    remark(dataset, name, n, str(card.get("trained_on", "")))
    return evaluate(
        network,
        datasets.model_images(split.images[:n]),
        torch.from_numpy(split.labels[:n].copy()),
        threat,
        suite_or_usual(options.suite, network, outputs=seen),
        options.batch_size,
        options.device or ("cuda" if torch.cuda.is_available() else None),
        options.precision,
        options.seed,
        options.out,
        progress=not options.quiet,
        budget=limits,
        curve=options.curve,
        samples=options.samples,
        goal=goal,
        targets=targets,
        repair=options.repair,
        described={
            **what_was_measured(options.model, bare, dataset, name, n, options.pixels, defences),
            "classes": list(dataset.classes),
        },
        queries=options.queries,
        outputs=seen,
    )


def _check_whole(options: Options) -> None:
    """InputError where a file counts images that stand in no known order."""
    from ..attacks.goal import KINDS

    own = options.targets if options.targets not in KINDS else None
    for option, file in (("--indices", options.indices), ("--targets", own)):
        if file is not None:
            raise InputError(
                f"{option} {file} counts the images of one folder, and --data is in pieces; give "
                "pieces of the images that you want"
            )


def show_accuracies(result: Evaluation) -> None:
    """Print the accuracies with their intervals; of a random model, over fresh draws too."""
    _show_accuracy("standard accuracy", result, "standard_accuracy")
    if result.target_reached is not None and result.target_reached_interval is not None:
        _show_accuracy("target not reached", result, "robust_accuracy")
        low, high = result.target_reached_interval
        tell(
            f"target reached on  {result.target_reached:7.2%}  (95 %: {low:.2%} to {high:.2%}; "
            f"targets: {result.targets})"
        )
    else:
        _show_accuracy("robust accuracy", result, "robust_accuracy")
    if result.stopped:
        tell(f"stopped: {result.stopped}, n = {result.n} of {result.population}{_limits(result)}")
    if result.is_sample:
        tell("the intervals first named are valid whenever one stops, on all of these images")
    for figure in result.draws:
        tell(
            f"over {figure.draws} fresh draws, {figure.kind + ':':9} "
            f"standard {figure.standard_accuracy:7.2%}, robust {figure.robust_accuracy:7.2%}"
        )


def _show_accuracy(title: str, result: Evaluation, name: str) -> None:
    """One of them; of a sample as large as one saw fit, with both intervals."""
    value, (low, high) = getattr(result, name), result.interval_shown(name) or (0.0, 1.0)
    words = f"{title:18} {value:7.2%}  (95 %: {low:.2%} to {high:.2%}"
    if result.is_sample:
        low, high = getattr(result, f"{name}_interval")
        words += f"; at fixed n, Clopper-Pearson: {low:.2%} to {high:.2%}"
    tell(f"{words})")


def _limits(result: Evaluation) -> str:
    """What was allowed and asked for, to follow the size of the sample."""
    from ..runs.progress import clock

    said = ""
    if result.budget is not None:
        said += f", budget {clock(result.budget)}, took {clock(result.seconds)}"
    if result.until is not None:
        said += f", until ± {result.until:.2%}"
    return said


def _loaded(options: Options) -> Any:
    """The model; one behind an address as `--http` says."""
    from ..loading import adapted_as, load
    from ..models.black_box import read_outputs
    from ..models.http import HttpModel, is_address, settings

    asked = model_options(options, read_outputs(options.outputs)[0])
    limits = {"rate": options.rate, "timeout": options.timeout}
    given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    if is_address(options.model):
        model = HttpModel(options.model, **{**settings(options.http, "--http"), **given})
        return adapted_as(model, **asked)
    if given or options.http:
        which = "--http" if options.http else f"--{next(iter(given))}"
        raise InputError(f"{which} is for a model behind an address, http://…")
    return load(options.model, **asked)


def other_costs_line(result: Evaluation) -> str:
    """What took time besides the attacks, the longest first."""
    costs = sorted(result.other_costs, key=lambda cost: -cost.seconds)
    told = [f"{cost.name} {cost.seconds:.1f} s" for cost in costs if cost.seconds >= 0.05]
    took = f"besides the attacks {sum(cost.seconds for cost in costs):.1f} s"
    return f"{took}: {', '.join(told)}" if told else took


def query_lines(result: Evaluation) -> list[str]:
    """What the queries of a black box bought, in lines."""
    queries = result.queries
    if queries is None:
        return []
    curve = [point for point in queries.curve if _is_power(point.queries)]
    if queries.curve and queries.curve[-1] not in curve:
        curve.append(queries.curve[-1])
    after = ", ".join(f"{p.queries:,}: {p.robust_accuracy:.2%}" for p in curve if p.queries)
    budget = "no budget" if queries.budget is None else f"budget {queries.budget:,} an image"
    seen = f", of {result.outputs}" if result.outputs else ""
    return [
        f"queries            {queries.asked:,}{seen}; at most {queries.most:,} about one image "
        f"({budget}); {queries.outside:,} more for clean predictions and checks",
        f"standing after     {after}",
    ]


def _is_power(number: int) -> bool:
    """Whether it is 1, 10, 100, …"""
    return number > 0 and set(str(number)) <= {"1", "0"} and str(number).count("1") == 1


def show(result: Evaluation, options: Options) -> None:
    """Print the accuracies, what each attack did, and the flags that fired."""
    from ..distributed import leads
    from ..runs.folder import on_date
    from .requirements import show_required

    if not leads():  # one of several workers; the first one tells
        return
    show_accuracies(result)
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
    if result.other_costs:
        tell(other_costs_line(result))
    for line in query_lines(result):
        tell(line)
    for repair in result.repairs:
        tell(f"gradient repaired: {repair}")
    for flag in result.flags:
        if flag.fired:
            tell(f"flag: {flag.name}: {flag.detail}")
    tell(f"run folder         {options.out}, finished on {on_date(result.finished)}")
    if options.require:
        show_required(options.out, options.require, options.junit)
