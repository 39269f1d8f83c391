"""`holdfast certify`: certified accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..parsing import parse_number
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
    NumbersOption,
    PixelsOption,
    QuietOption,
    RunOption,
    SeedOption,
    SizeOption,
    SplitOption,
    StdOption,
    model_options,
)

if TYPE_CHECKING:
    from ..certification.run import Certification


@dataclass(frozen=True)
class Options:
    """Certify predictions that no attack inside a radius can change, and attack them all the same.

    With --sigma by randomised smoothing (L2), without by interval bounds (L∞).
    """

    model: ModelArgument
    out: RunOption
    data: DataOption = "datasets"
    sigma: Annotated[
        float | None,
        typer.Option(
            "--sigma",
            help="Certify by randomised smoothing with Gaussian noise of this standard deviation, "
            "in image units. Without it, by interval bounds.",
        ),
    ] = None
    n0: Annotated[
        int,
        typer.Option("--n0", help="Smoothing: noisy samples that choose an image's prediction."),
    ] = 100
    n: Annotated[
        int, typer.Option("-n", "--n", help="Smoothing: noisy samples that certify the prediction.")
    ] = 10_000
    alpha: Annotated[
        float,
        typer.Option("--alpha", help="Smoothing: the chance that an image's certificate is wrong."),
    ] = 0.001
    radius: Annotated[
        list[str] | None,
        typer.Option(
            "--radius",
            help="A radius at which certified accuracy is reported, in image units. May be "
            "repeated.",
        ),
    ] = None
    eps: EpsOption = None
    limit: LimitOption = None
    indices: IndicesOption = None
    balanced: BalancedOption = False
    split: SplitOption = None
    pixels: PixelsOption = None
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", help="Images in a pass of the model; it changes no certificate."
        ),
    ] = 512
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


def run(options: Options) -> Certification:
    """Load the model and the images, certify, write the run folder.

    Raises:
        InputError: options out of range; a model of other classes than the data; as
            `holdfast.certify`.
    """
    import torch

    from .. import data as datasets
    from ..certification.certify import certify
    from ..evaluation.cards import remark, what_was_measured
    from ..loading import load
    from ..models.black_box import innermost
    from .images import check_limit, chosen, fitted

    network = load(options.model, **model_options(options, options.outputs))
    if not isinstance(network, torch.nn.Module) or not isinstance(
        innermost(network), torch.nn.Module
    ):
        raise InputError(
            f"model {options.model} is no torch.nn.Module, so nothing is known of its weights"
        )
    check_limit(options.limit)
    network, data = fitted(options, network)
    card = getattr(network, "card", {})
    dataset, name, split = chosen(options, data)
    n = len(split)
    remark(dataset, name, n, str(card.get("trained_on", "")))
    return certify(
        network,
        datasets.model_images(split.images[:n]),
        torch.from_numpy(split.labels[:n].copy()),
        sigma=options.sigma,
        n0=options.n0,
        n=options.n,
        alpha=options.alpha,
        radii=[parse_number(text) for text in options.radius] if options.radius else None,
        eps=options.eps,
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
        run=options.out,
        progress=not options.quiet,
        classes=dataset.classes,
        described=what_was_measured(options.model, network, dataset, name, n, options.pixels),
    )


def show(result: Certification, options: Options) -> None:
    """Print certified and attacked accuracy, and the flags that fired."""
    from ..distributed import leads
    from ..runs.folder import on_date

    if not leads():  # one of several processes; the first one tells
        return
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
    tell(f"run folder         {options.out}, finished on {on_date(result.finished)}")
