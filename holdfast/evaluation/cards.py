"""What a model's card and a data set say of each other, and of an evaluation of the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .. import data as datasets
from ..data.base import held_back, seen_in_training
from ..data.class_order import among, renamed
from ..distributed import leads
from ..errors import InputError
from ..models.black_box import innermost
from ..models.wrapper import unwrapped
from ..parsing import parse_number
from ..runs.identity import weights_digest
from ..terminal import tell
from ..threat import USUAL_EPS, Threat, norm_named
from ..types import Model


def threat_of(norm: str | None, eps: str | float | None, card: dict[str, Any]) -> Threat:
    """The threat model of the options; what they leave out is taken from the model's card.

    Without either it is L∞ 8/255, or the usual radius of the norm (L2 0.5, L1 12).
    """
    trained = card.get("threat") or {}
    if norm is None:
        norm = str(trained.get("norm", "linf"))
    norm = norm_named(norm)
    if eps is None:
        eps = trained["eps"] if trained.get("norm") == norm else USUAL_EPS.get(norm)
        if eps is None:
            raise InputError(f"norm {norm} has no usual radius: say --eps")
    return Threat(norm, parse_number(eps))


def check_classes(model: str, card: dict[str, Any], dataset: datasets.DataSet) -> None:
    """InputError if the model's card names other classes than the data."""
    if card.get("classes") and list(card["classes"]) != list(dataset.classes):
        raise InputError(
            f"model {model} knows the classes {', '.join(card['classes'][:3])}, …; "
            f"{dataset.name} has {', '.join(dataset.classes[:3])}, …"
        )


def in_classes_of(model: str, card: dict[str, Any], dataset: datasets.DataSet) -> datasets.DataSet:
    """The data set with its classes in the order of the model's card, where that has any.

    Classes that are only numbers are the model's classes of those numbers; classes with names are
    found among the model's.

    Raises:
        InputError: the data have a class that the model does not know.
    """
    names = list(card.get("classes") or ())
    if not names or names == list(dataset.classes):
        return dataset
    if not dataset.named and len(names) >= len(dataset.classes):
        return renamed(dataset, names, f"model {model}")
    if set(dataset.classes) <= set(names):
        return among(dataset, [(name,) for name in names], f"model {model}")
    check_classes(model, card, dataset)
    return dataset


def unseen_validation(
    dataset: datasets.DataSet, models: Mapping[str, dict[str, Any]]
) -> datasets.Split:
    """The validation images that no model was trained on.

    Whatever is fitted on images that a model knows by heart promises too much.

    Args:
        models: the cards, by the names that the user gave.

    Raises:
        InputError: a model was trained on all of them.
    """
    kept = dataset.split("validation")
    for name, card in models.items():
        held = held_back(str(card.get("trained_on", "")))
        if held == 0:
            raise InputError(
                f"model {name} was trained on the validation images too, so nothing can be fitted "
                "on them; train it with train_on=train, or keep some of them back with "
                "train_on=train+validation-1000"
            )
        kept = kept if held is None or held >= len(kept) else kept.first(held)
    return kept


def what_was_measured(
    source: str,
    network: Model,
    dataset: datasets.DataSet,
    split: str,
    first: int,
    pixels: str | None,
    specs: Sequence[str] = (),
) -> dict[str, Any]:
    """`model` and `data` of a `result.json`.

    Args:
        source: the model's name as the user gave it.
        network: without its defences.
        first: how many images of the split.
        pixels: what they are, such as `JPEG test images`; by default the data set's description.
        specs: the defences, as on the command line.
    """
    card, known = getattr(network, "card", {}), innermost(network)
    reach = dataset.split(split).first(first).reach
    return {
        "model": {
            "name": Path(source).name if card else source,
            "source": source,
            "sha256": weights_digest(unwrapped(network)) if isinstance(known, nn.Module) else None,
            "architecture": card.get("architecture", type(known).__name__),
            **({"trained_on": str(card["trained_on"])} if card.get("trained_on") else {}),
            **({"defences": specs} if specs else {}),
        },
        "data": {
            "name": dataset.name,
            "split": split,
            "first": first,
            "pixels": pixels or dataset.split(split).pixels,
            "seen_in_training": seen_in_training(str(card.get("trained_on", "")), split, reach),
            **dataset.result_fields(split, first),
        },
    }


def remark(dataset: datasets.DataSet, split: str, first: int, trained_on: str = "") -> None:
    """Print what a reader must know of the images: missing classes, overlaps, training on them.

    Args:
        first: how many images of the split.
        trained_on: `trained_on` of the model's card; empty if unknown.
    """
    if not leads():
        return
    for line in dataset.remarks(split, first):
        tell(f"note: {line}")
    if seen_in_training(trained_on, split, dataset.split(split).first(first).reach):
        tell(
            f"note: the model was trained on {trained_on}: if that was of these data, figures on "
            f"{split} flatter it; judge it on --split test"
        )
