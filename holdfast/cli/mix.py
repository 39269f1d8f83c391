"""`holdfast mix`: one model of a robust and an accurate one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..terminal import tell
from .options import (
    ClassOrderOption,
    DataOption,
    DeviceOption,
    EpsOption,
    GreyOption,
    LabelsOption,
    NormOption,
    QuietOption,
    SeedOption,
    SizeOption,
)

if TYPE_CHECKING:
    from ..mixing.run import Mixed


@dataclass(frozen=True)
class Options:
    """Blend a robust and an accurate model into one that has both accuracies.

    Validation images choose the mixture; test images are not looked at.
    """

    robust: Annotated[
        str,
        typer.Argument(
            help="The robust model: a folder, a name from the zoo, or a file of weights with "
            "--architecture."
        ),
    ]
    accurate: Annotated[
        str, typer.Argument(help="The accurate model, which knows the same classes.")
    ]
    out: Annotated[Path, typer.Option("--out", help="The folder to write the mixed model into.")]
    data: DataOption = "datasets"
    architecture: Annotated[
        list[str] | None,
        typer.Option(
            "--architecture",
            help="What network a file of weights belongs to, NAME or NAME:key=value,… of "
            "Holdfast's. Given twice: the robust model's, then the accurate one's.",
        ),
    ] = None
    norm: NormOption = None
    eps: EpsOption = None
    limit: Annotated[
        int, typer.Option("--limit", help="How many validation images choose the mixture.")
    ] = 1000
    cost: Annotated[
        float,
        typer.Option(
            "--cost",
            help="How much of the robust model's robust accuracy may be lost, as a fraction.",
        ),
    ] = 0.01
    steps: Annotated[int, typer.Option("--steps", help="Iterations of each attack.")] = 40
    rounds: Annotated[
        int, typer.Option("--rounds", help="How many mixtures are attacked at most.")
    ] = 4
    size: SizeOption = None
    grey: GreyOption = False
    labels: LabelsOption = None
    class_order: ClassOrderOption = None
    seed: SeedOption = 0
    device: DeviceOption = None
    quiet: QuietOption = False


def run(options: Options) -> Mixed:
    """Load both models and the validation images, choose the mixture, write it as a model.

    Raises:
        InputError: models that a mixture's folder could not hold; of different classes or image
            channels, or of other classes than the data; one that was trained on the validation
            images; a folder that holds something already; options out of range.
    """
    import torch

    from .. import data as datasets
    from ..distributed import alone
    from ..evaluation.cards import remark, threat_of, unseen_validation
    from ..loading import load
    from ..mixing.run import card_of, mix
    from .images import data_of

    alone("mix")
    if options.limit < 1:
        raise InputError(f"--limit must be at least 1, not {options.limit}")
    sources = {"robust": options.robust, "accurate": options.accurate}
    architectures = _architectures(options.architecture or [], sources)
    models = {
        name: load(source, architecture=architectures.get(name)) for name, source in sources.items()
    }
    cards = {name: card_of(name, model) for name, model in models.items()}
    dataset = data_of(options, options.robust, cards["robust"])
    split = unseen_validation(dataset, {sources[name]: card for name, card in cards.items()})
    threat = threat_of(options.norm, options.eps, cards["robust"])
    n = min(options.limit, len(split))
    remark(dataset, "validation", n)
    return mix(
        models["robust"],
        models["accurate"],
        datasets.to_tensor(split.images[:n]),
        torch.from_numpy(split.labels[:n].copy()),
        threat,
        cost=options.cost,
        steps=options.steps,
        rounds=options.rounds,
        seed=options.seed,
        device=options.device,
        run=options.out,
        progress=not options.quiet,
        classes=dataset.classes,
        described={
            **sources,
            "data": {
                "name": dataset.name,
                "split": "validation",
                "pixels": split.pixels,
                **dataset.result_fields("validation", n),
            },
        },
    )


def _architectures(given: list[str], sources: dict[str, str]) -> dict[str, str]:
    """Which model's file of weights has which architecture."""
    from ..models.weights import takes_architecture

    files = [name for name, source in sources.items() if takes_architecture(source)]
    if len(given) > 2:
        raise InputError("--architecture is given more than twice, and there are two models")
    if given and not files:
        raise InputError("--architecture is for a file of weights, and neither model is one")
    if len(given) == 2:
        return dict(zip(sources, given, strict=True))
    return {name: architecture for name in files for architecture in given}


def show(result: Mixed, options: Options) -> None:
    """Print what the mixture costs and what it gains."""
    from ..runs.folder import on_date

    choice = result.choice
    for name, figures in (("robust alone", choice.robust_alone), ("mixed", choice.chosen)):
        tell(f"{name:13}standard {figures.standard:.1%}, attacked {figures.standing:.1%}")
    tell(f"accurate     standard {choice.accurate_alone.standard:.1%}")
    tell(f"on {choice.n} validation images, which chose {choice.parameters}")
    if choice.gains_nothing:
        tell(
            f"no mixture that was attacked kept its cost below {options.cost:.1%}, so this is the "
            "robust model alone; allow more with --cost, or more of them with --rounds"
        )
    tell(f"model        {options.out}, finished on {on_date(result.finished)}")
