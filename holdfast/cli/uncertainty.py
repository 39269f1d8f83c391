"""`holdfast uncertainty`: how sure a model is, and whether that can be believed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..terminal import tell
from .options import (
    ArchitectureOption,
    BalancedOption,
    ClassesOption,
    ClassOrderOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    EpsOption,
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
    RunOption,
    SeedOption,
    SizeOption,
    StdOption,
    model_options,
)

if TYPE_CHECKING:
    from ..data import DataSet, Split
    from ..data.out_of_distribution import OutOfDistribution
    from ..runs.records import UncertaintyRecord
    from ..uncertainty.run.request import LabelledImages

USUAL_SUITE = "swift"
TRAINING = 2000  # training images whose features detectors know
OUT_OF_DISTRIBUTION = 300  # images of each out-of-distribution kind
MORE = 10  # images that are only looked at, for each that is attacked
COVERAGE = 0.8  # the share of images that abstaining promises to answer


@dataclass(frozen=True)
class Options:
    """Measure how sure a model is, and whether that can be believed, on clean, corrupted,
    out-of-distribution and attacked images.

    Everything is fitted and calibrated on the validation split, and measured on the test split.
    """

    model: ModelArgument
    out: RunOption
    data: DataOption = "datasets"
    attack: Annotated[
        str | None,
        typer.Option(
            "--attack",
            help="The suite that attacks predictions: a name from `holdfast list suites`. "
            "By default swift.",
        ),
    ] = None
    norm: NormOption = None
    eps: EpsOption = None
    limit: LimitOption = None
    indices: IndicesOption = None
    balanced: BalancedOption = False
    calibration: Annotated[
        int,
        typer.Option(
            "--calibration",
            help="How many validation images are used: one half fits temperatures, the other "
            "calibrates thresholds and conformal sets.",
        ),
    ] = 2000
    alpha: Annotated[
        float,
        typer.Option("--alpha", help="The share of conformal sets that may miss the true class."),
    ] = 0.1
    risk: Annotated[
        float,
        typer.Option(
            "--risk", help="The share of wrong answers that abstaining promises to stay below."
        ),
    ] = 0.05
    radius: Annotated[
        float,
        typer.Option(
            "--radius",
            help="The L2 radius within which robust conformal sets keep their promise, in image "
            "units.",
        ),
    ] = 0.125
    sigma: Annotated[
        float,
        typer.Option(
            "--sigma",
            help="The standard deviation of the noise that robust conformal sets are smoothed "
            "with, in image units.",
        ),
    ] = 0.125
    ood: Annotated[
        list[str] | None,
        typer.Option(
            "--ood",
            help="Out-of-distribution images: a folder of images, of CIFAR-100's, SVHN's or "
            "CIFAR-10's files. Noise, textures and digits are always there. May be repeated.",
        ),
    ] = None
    human: Annotated[
        str | None,
        typer.Option(
            "--human",
            help="How people labelled the test split: a .npy file, or a .npz file with probs.",
        ),
    ] = None
    corruptions: Annotated[
        str | None,
        typer.Option(
            "--corruptions",
            help="A folder with the published CIFAR-10-C or CIFAR-100-C, in place of corruptions "
            "made from the test images.",
        ),
    ] = None
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            "--ensemble",
            help="Another model of a deep ensemble with this one; its own options stand behind it "
            "in quotes, as in --ensemble 'FILE.pth --architecture NAME'. May be repeated.",
        ),
    ] = None
    pixels: PixelsOption = None
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


def _drawn(split: Split, count: int, seed: int, name: str) -> LabelledImages:
    """Images of a split at random, in random order."""
    import torch

    from .. import draws
    from ..uncertainty.run.request import LabelledImages

    keys = draws.uniform(draws.item_seeds(seed, "split", name, torch.arange(len(split))), 0)
    rows = keys.argsort(stable=True)[:count]
    return LabelledImages.of(split, rows.numpy(), rows)


def _halves(
    options: Options, dataset: DataSet, validation: Split, enough: int
) -> tuple[LabelledImages, LabelledImages, LabelledImages]:
    """The fitting split, the calibration split, and the latter with further images behind it, all
    drawn from the validation images.

    Args:
        enough: how many images the last one is to have, where there are as many.

    Raises:
        InputError: too few images, or a class without any.
    """
    shuffled = _drawn(validation, len(validation), options.seed, "validation")
    n = min(options.calibration, len(shuffled))
    fitting, calibrating = shuffled[: n // 2].held(), shuffled[n // 2 : n].held()
    for half in (fitting, calibrating):
        _check_every_class(dataset, half, whole=n == len(shuffled))
    if len(calibrating) * options.alpha < 1:
        raise InputError(
            f"{len(calibrating)} calibration images are too few for alpha = {options.alpha}: "
            f"--calibration at least {2 * math.ceil(1 / options.alpha)}"
        )
    return fitting, calibrating, shuffled[n // 2 : max(n, enough)]


def _other_images(options: Options, dataset: DataSet) -> list[OutOfDistribution]:
    """Images of other kinds: generated ones, digits, and those asked for."""
    from ..data import out_of_distribution

    always = [*out_of_distribution.GENERATED, *(["digits"] if dataset.name != "digits" else [])]
    shape = dataset.shape
    return [
        out_of_distribution.load(source, shape, OUT_OF_DISTRIBUTION, seed=options.seed)
        for source in dict.fromkeys([*always, *(options.ood or [])])
    ]


def _check_every_class(dataset: DataSet, part: LabelledImages, *, whole: bool) -> None:
    """InputError if a class is missing from a half of the calibration images."""
    absent = dataset.absent(part.labels.numpy())
    if absent:
        n = len(dataset.validation)
        do = (
            f"all {n} validation images are used already: give the validation split more of it"
            if whole
            else f"raise --calibration (the validation split has {n} images)"
        )
        raise InputError(
            f"one half of --calibration, {len(part)} validation images, has no image of class"
            f" {', '.join(absent[:5])}{', …' if len(absent) > 5 else ''}; {do}"
        )


def _check(options: Options) -> None:
    """InputError naming an option that is out of range."""
    from ..uncertainty.conformal import robust_alpha
    from ..uncertainty.inputs import checked_share

    checked_share("alpha", options.alpha)
    checked_share("risk", options.risk)
    robust_alpha(options.alpha, options.radius, options.sigma)
    if options.radius <= 0:
        raise InputError(f"--radius must be above 0, not {options.radius}")
    if options.calibration < 2:
        raise InputError(f"--calibration must be at least 2, not {options.calibration}")


def run(options: Options) -> UncertaintyRecord:
    """Load the models and the images, measure, write the run folder.

    Returns:
        what `result.json` holds.

    Raises:
        InputError: options out of range; a model of other classes than the data, or trained on
            all validation images; as `holdfast.measure_uncertainty`.
    """
    import numpy as np
    import torch

    from .. import data as datasets
    from ..attacks.suites import suite_named
    from ..data.labelled import mixed
    from ..data.published_corruptions import open_published
    from ..defences import undefended
    from ..distributed import leads, own_device
    from ..evaluation.cards import (
        check_classes,
        remark,
        threat_of,
        unseen_validation,
        what_was_measured,
    )
    from ..inputs import checked_device
    from ..loading import load
    from ..uncertainty.human import read_human
    from ..uncertainty.run.measure import measure
    from ..uncertainty.run.request import LabelledImages, Request
    from .another import load_another
    from .images import check_limit, fitted

    _check(options)
    check_limit(options.limit)
    suite = suite_named(options.attack or USUAL_SUITE)
    network, dataset = fitted(
        options, load(options.model, **model_options(options, options.outputs))
    )
    ensemble, members = [], []
    for text in options.ensemble or ():
        called, member = load_another(text, dataset.classes)
        check_classes(called, getattr(undefended(member), "card", {}), dataset)
        ensemble.append(called)
        members.append(member)
    card = getattr(network, "card", {})
    threat = threat_of(options.norm, options.eps, card)
    suite = suite.tuned(threat)
    for stage in suite.stages:
        stage.attack.check_norm(threat)
    asked = zip((options.model, *ensemble), (network, *members), strict=True)
    validation = unseen_validation(
        dataset, {name: getattr(each, "card", {}) for name, each in asked}
    )
    whole = dataset.split("test")
    if options.indices is not None or options.balanced:
        dataset = datasets.choose(
            dataset, "test", indices=options.indices, limit=options.limit, balanced=options.balanced
        )
    elif whole.grouped:  # its first images are no sample, and the others are measured too
        dataset = replace(dataset, test=mixed(dataset.test))
    test = dataset.split("test")
    first = len(test) if options.limit is None else min(options.limit, len(test))
    remark(dataset, "test", first)
    corruptions = None
    if options.corruptions is not None:
        rows = np.arange(first) if test.indices is None else test.indices[:first]
        corruptions = open_published(
            options.corruptions, whole.labels, dataset.shape, rows, len(dataset.classes)
        )
        for line in corruptions.told if leads() else ():
            tell(f"note: {line}")
    fitting, calibrating, more_calibration = _halves(options, dataset, validation, MORE * first)
    more = min(len(test), MORE * first)
    more_test = LabelledImages.of(test, np.arange(more), torch.arange(more))
    people = None
    if options.human is not None:
        read = read_human(options.human, test.labels, classes=len(dataset.classes))
        people = torch.from_numpy(read[:first])
    where = checked_device(own_device(checked_device(options.device)))
    for each in (network, *members):
        if isinstance(each, torch.nn.Module):
            each.to(where)
    request = Request(
        model=network,
        members=members,
        threat=threat,
        suite=suite,
        test=more_test[:first].held(),
        fitting=fitting,
        calibration=calibrating,
        more_test=more_test,
        more_calibration=more_calibration,
        training=_drawn(dataset.split("train"), TRAINING, options.seed, "training").held(),
        classes=tuple(dataset.classes),
        out_of_distribution=_other_images(options, dataset),
        human=people,
        alpha=options.alpha,
        risk=options.risk,
        coverage=COVERAGE,
        radius=options.radius,
        sigma=options.sigma,
        seed=options.seed,
        device=where,
        corruptions=corruptions,
    )
    described = what_was_measured(options.model, network, dataset, "test", first, options.pixels)
    return measure(request, options.out, described=described, progress=not options.quiet)


def show(result: UncertaintyRecord, options: Options) -> None:
    """Print the figures that matter most."""
    from ..distributed import leads
    from ..runs.folder import on_date
    from ..uncertainty.run.output import summary_lines

    if not leads():  # one of several processes; the first one tells
        return
    for line in summary_lines(result):
        tell(line)
    tell(f"run folder         {options.out}, finished on {on_date(result.finished or '')}")
