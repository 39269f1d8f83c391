"""`holdfast mix`: one model of a robust and an accurate one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
            help="The robust model: a folder, a name from the zoo, a file of weights with "
            "--architecture, timm:NAME, torchvision:NAME, transformers:FOLDER or onnx:FILE. Its "
            "own options may stand behind it in quotes: 'FILE.pth --architecture NAME --mean 0.5'."
        ),
    ]
    accurate: Annotated[
        str, typer.Argument(help="The accurate model, likewise, which knows the same classes.")
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
    mean: Annotated[
        list[str] | None,
        typer.Option(
            "--mean",
            help="The mean by which a model's images are normalised, as in evaluate. This and the "
            "options below: given once, of the models that are no folders; given twice, the robust "
            "model's, then the accurate one's.",
        ),
    ] = None
    std: Annotated[list[str] | None, typer.Option("--std", help="Likewise.")] = None
    input_size: Annotated[
        list[str] | None,
        typer.Option("--input-size", help="The size to which a model's images are resized."),
    ] = None
    outputs: Annotated[
        list[str] | None,
        typer.Option("--outputs", help="What a model's numbers are: logits or probabilities."),
    ] = None
    classes: Annotated[
        list[str] | None,
        typer.Option("--classes", help="A file that says which outputs stand for which class."),
    ] = None
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", help="The number format a model is run in.")
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
    from ..loading import in_classes, load
    from ..mixing.run import mix, part_card
    from .images import data_of

    alone("mix")
    if options.limit < 1:
        raise InputError(f"--limit must be at least 1, not {options.limit}")
    asked = _asked(options)
    models = {name: load(text, **more) for name, (text, more) in asked.items()}
    named = {name: _named(*asked[name]) for name in models}
    cards = {name: part_card(name, model, named[name]) for name, model in models.items()}
    sources = {name: text for name, (text, _) in asked.items()}
    dataset = data_of(options, sources["robust"], _card_of_data(cards, named))
    for name, part in named.items():
        if part is not None:  # what the outputs stand for, and the data's classes
            models[name] = in_classes(models[name], asked[name][1].get("classes"), dataset.classes)
            part["arguments"]["data_classes"] = list(dataset.classes)
            cards[name] = part_card(name, models[name], part)
    split = unseen_validation(dataset, {sources[name]: card for name, card in cards.items()})
    threat = threat_of(options.norm, options.eps, cards["robust"])
    n = min(options.limit, len(split))
    remark(dataset, "validation", n)
    return mix(
        models["robust"],
        models["accurate"],
        datasets.model_images(split.images[:n]),
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
        sources={name: part for name, part in named.items() if part is not None},
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


Asked = tuple[str, dict[str, Any]]  # a model, and its options as `holdfast.load` takes them
FOR_TWO = ("mean", "std", "input_size", "outputs", "classes", "dtype")


def _asked(options: Options) -> dict[str, Asked]:
    """Both models with their options, from what stands behind them in quotes and elsewhere."""
    from ..models.checkpoint import checkpoint_in
    from ..models.weights import takes_architecture
    from ..models.zoo import zoo_names
    from .another import with_options

    models = {name: with_options(getattr(options, name)) for name in ("robust", "accurate")}
    files = [name for name, (text, _) in models.items() if takes_architecture(text)]
    given = options.architecture or []
    if 0 < len(given) <= 2 and not files:
        raise InputError("--architecture is for a file of weights, and neither model is one")
    _share("architecture", given, files, models)
    zoo = zoo_names()
    others = [n for n, (t, _) in models.items() if t not in zoo and checkpoint_in(Path(t)) is None]
    for field in FOR_TWO:
        _share(field, getattr(options, field) or [], others or [*models], models)
    return models


def _share(field: str, given: list[str], takers: list[str], models: dict[str, Asked]) -> None:
    """Give an option to the models that it is for: to both in order, or to all takers."""
    if len(given) > 2:
        option = f"--{field.replace('_', '-')}"
        raise InputError(f"{option} is given more than twice, and there are two models")
    pairs = zip(models, given, strict=True) if len(given) == 2 else (
        (name, value) for value in given for name in takers
    )  # fmt: skip
    for name, value in pairs:
        models[name][1].setdefault(field, value)


def _named(text: str, more: dict[str, Any]) -> dict[str, Any] | None:
    """What a mixture's card says of a model that is named there; None of one that it holds."""
    from ..models.sources import source_of

    if source_of(text) is None and not more.keys() - {"architecture"}:
        return None
    return {"architecture": text, "arguments": dict(more)}


def _card_of_data(
    cards: dict[str, dict[str, Any]], named: dict[str, dict[str, Any] | None]
) -> dict[str, Any]:
    """The card whose classes and images the data have: of a model that the folder holds."""
    held = [cards[name] for name in ("robust", "accurate") if named[name] is None]
    return held[0] if held else {}


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
