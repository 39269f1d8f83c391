"""`holdfast list`: what there is by name, each in a line."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from ..terminal import tell_table
from .options import JsonOption


class Kind(StrEnum):
    """What can be listed."""

    SUITES = "suites"
    ATTACKS = "attacks"
    DEFENCES = "defences"
    OBJECTIVES = "objectives"
    RECIPES = "recipes"
    ARCHITECTURES = "architectures"
    MODELS = "models"


@dataclass(frozen=True)
class Options:
    """List suites, attacks, defences, objectives, recipes, architectures or models by name."""

    kind: Annotated[Kind, typer.Argument(help="What to list.", show_choices=True)]
    as_json: JsonOption = False


def run(options: Options) -> dict[str, str]:
    """What each thing of a kind is, in a line, by its name."""
    return LISTS[options.kind]()


def show(listed: dict[str, str], options: Options) -> None:
    """Print a name and what it is in each line."""
    if options.as_json:
        print(json.dumps([{"name": n, "summary": s} for n, s in listed.items()], indent=2))
        return
    tell_table(str(options.kind), ("name", "what it is"), list(listed.items()))


def summary(thing: Any) -> str:
    """The first sentence of what a class or function says of itself."""
    paragraph = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0]
    return re.split(r"(?<=[^.][a-z\d)`])\.(?=\s|$)", " ".join(paragraph.split()))[0]


def _suites() -> dict[str, str]:
    from ..attacks import SUITES

    return {name: described for name, (described, _) in SUITES.items()}


def _summaries(registry: Mapping[str, Any]) -> dict[str, str]:
    return {name: summary(thing) for name, thing in registry.items()}


def _attacks() -> dict[str, str]:
    from ..attacks import attack_classes

    return _summaries(attack_classes())


def _defences() -> dict[str, str]:
    from ..defences import DEFENCES

    return _summaries(DEFENCES)


def _objectives() -> dict[str, str]:
    from ..training.objectives import OBJECTIVES

    return _summaries(OBJECTIVES)


def _architectures() -> dict[str, str]:
    from ..models.registry import NETWORKS

    return _summaries(NETWORKS)


def _recipes() -> dict[str, str]:
    from ..shipped import recipe_file, recipe_names, recipe_summary

    return {name: recipe_summary(recipe_file(name)) for name in recipe_names()}


def _models() -> dict[str, str]:
    from ..runs.records import threat_in
    from . import models

    return {
        model["name"]: f"{model['architecture']}, "
        + (f"trained for {threat_in(model['threat'])}" if model["threat"] else "no threat model")
        + ("" if model["folder"] else ", to be fetched")
        for model in models.run(models.Options())
    }


LISTS: dict[Kind, Callable[[], dict[str, str]]] = {
    Kind.SUITES: _suites,
    Kind.ATTACKS: _attacks,
    Kind.DEFENCES: _defences,
    Kind.OBJECTIVES: _objectives,
    Kind.RECIPES: _recipes,
    Kind.ARCHITECTURES: _architectures,
    Kind.MODELS: _models,
}
