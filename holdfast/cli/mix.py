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
        str, typer.Argument(help="The robust model: a folder or a name from the zoo.")
    ]
    accurate: Annotated[
        str, typer.Argument(help="The accurate model, which knows the same classes.")
    ]
    out: Annotated[Path, typer.Option("--out", help="The folder to write the mixed model into.")]
    data: DataOption = "datasets"
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
        InputError: models without a card, of different classes or image channels, or of other
            classes than the data; one that was trained on the validation images; a folder that
            holds something already; options out of range.
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
    models = {name: load(source) for name, source in sources.items()}
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
