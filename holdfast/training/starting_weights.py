"""Weights that a run starts from: found by name, read, and put into a network that they fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from ..loading import load
from ..models import ARCHITECTURES
from ..models.checkpoint import WEIGHTS, checkpoint_in, read_card
from ..models.naming import State, fitting
from ..models.own_networks import is_code
from ..models.programs import is_program
from ..models.weights import (
    SHOWN,
    Held,
    hint_of,
    read_states,
    readings,
    takes_architecture,
    weights_in,
)
from ..models.zoo import zoo_folders
from ..runs.files import file_digest, read_json
from ..runs.identity import digest
from ..runs.records import RESULT, Card, check_files
from .recipe import ModelSpec, Recipe, parse_architecture


@dataclass(frozen=True)
class StartingWeights:
    """Weights by name, as they were found.

    Attributes:
        source: what they were asked for as.
        held: every set of weights that the file holds.
        card: of the checkpoint; None for a file of weights alone.
        sha256: of their contents.
    """

    source: str
    held: Held
    card: Card | None
    sha256: str


def _place(source: str) -> Path | None:
    """The checkpoint folder of a folder, a run or a name from the zoo; None if it is none."""
    for folder in (Path(source), *(shelf / source for shelf in zoo_folders())):
        found = checkpoint_in(folder)
        if found is not None:
            return found
    return None


def starting_weights(source: str) -> StartingWeights:
    """The weights of a file, a checkpoint or run folder, or a model of the zoo. No code is run.

    Raises:
        InputError: nothing has that name, or it is damaged, or holds no weights.
    """
    what = f"model.weights {source!r}"
    place, file = _place(source), Path(source)
    if place is not None:
        run = Path(source)
        if (run / RESULT).is_file():  # a run knows what its model is
            check_files(run, read_json(run / RESULT).get("files"))
        card, file = read_card(place, classifier=False), place / WEIGHTS
        if card.weights_sha256 not in (None, file_digest(file)):
            raise InputError(f"{file} is damaged, or not the one that its card speaks of")
    elif takes_architecture(source) or os.path.isfile(file):
        card, file = None, file if os.path.isfile(file) else weights_in(file) or file
        if is_program(file):
            raise InputError(
                f"{what} is a program (TorchScript or torch.export); give weights alone, as "
                "torch.save(model.state_dict(), FILE) writes them"
            )
    else:
        try:
            load(source, code=False)  # says what is wrong with the name
        except InputError as error:
            raise InputError(f"model.weights: {error}") from None
        raise InputError(f"{what} is no file of weights, checkpoint folder or name from the zoo")
    held = read_states(file)
    sets = held.states
    named = (part for where in sorted(sets) for part in (where, *_parts(sets[where])))
    return StartingWeights(source, held, card, digest(*named))


def _parts(state: State) -> list[str | Tensor]:
    return [part for name in sorted(state) for part in (name, state[name])]


def with_architecture(recipe: Recipe) -> Recipe:
    """The recipe; where it names weights, and neither an architecture nor arguments, with those of
    their card, or with what their names and shapes tell.

    Raises:
        InputError: a damaged card; one that names code; weights whose network cannot be told.
    """
    spec = recipe.model
    if spec.weights is None or spec.model_fields_set & {"architecture", "arguments"}:
        return recipe
    place = _place(spec.weights)
    if place is None:
        name, held = _told_by_shapes(starting_weights(spec.weights))
        return _with(recipe, name, held)
    card = read_card(place, classifier=False)
    if is_code(card.architecture):
        raise InputError(
            f"model.weights {spec.weights!r}: the network is built by code, {card.architecture}, "
            "and a card may run none; if you know that code, name it: --architecture "
            "path/file.py:name"
        )
    return _with(recipe, card.architecture, card.arguments)


def _with(recipe: Recipe, architecture: str, arguments: dict[str, Any]) -> Recipe:
    decided = ("classes", "num_classes", "channels")  # by the data
    held = {key: value for key, value in arguments.items() if key not in decided}
    model = recipe.model.model_copy(update={"architecture": architecture, "arguments": held})
    return recipe.model_copy(update={"model": model})


def _told_by_shapes(weights: StartingWeights) -> tuple[str, dict[str, Any]]:
    """The architecture, and its arguments, that names and shapes of a file's weights tell."""
    for state in weights.held.states.values():
        found = fitting(state)
        if found is None:
            continue
        if found.open:
            raise InputError(
                f"model.weights {weights.source!r}: shapes do not tell {'; '.join(found.open)}: "
                f"say which network it is, --architecture {found.architecture}"
            )
        return parse_architecture(found.architecture)
    raise InputError(
        f"model.weights {weights.source!r} fits no network of Holdfast's: say what network it "
        f"belongs to, --architecture NAME (one of {', '.join(ARCHITECTURES)}) or --architecture "
        "file.py:build"
    )


def put_in(
    model: nn.Module,
    weights: StartingWeights,
    is_classifier: Callable[[str], bool],
    spec: ModelSpec,
    classes: Sequence[str],
) -> tuple[dict[str, Any], list[str]]:
    """Load weights into a network; its classifier stays as it is where the classes are others.

    Args:
        is_classifier: whether a name is one of the classifier's.
        classes: of the data.

    Returns:
        what a card says of it (`source`, `sha256`, `classifier`), and lines for the reader.

    Raises:
        InputError: something besides the classifier does not fit; the message says what.
    """
    own = model.state_dict()
    head = {name for name in own if is_classifier(name)}
    card = weights.card
    others = card is not None and bool(card.classes) and tuple(card.classes) != tuple(classes)
    closest: tuple[tuple[int, int], str] | None = None
    sets = sorted(weights.held.states.items(), key=lambda item: "ema" not in item[0].lower())
    for where, held in sets:
        for read, state in readings(held, model, spec.architecture):
            wrong = _misfits(state, own, head)
            count = sum(map(len, wrong.values()))
            if count == 0:
                found = (where and f"{where!r}", read, weights.held.said)
                inside = ", ".join(said for said in found if said)
                return _put(model, state, own, head, others, weights, inside, classes)
            told = "; ".join(f"{len(n)} {kind}: {_few(n)}" for kind, n in wrong.items() if n)
            # A part of a file's weights lacks little where it holds little.
            distance = (-len(state.keys() & own.keys()), count)
            if closest is None or distance < closest[0]:
                closest = distance, told
    assert closest is not None
    advice, asked = "", (spec.architecture, spec.arguments)
    if card is not None and (card.architecture, card.arguments) != asked:
        arguments = json.dumps(card.arguments)
        advice = (
            f"; they are of {card.architecture} with {arguments}: --set 'model={{weights: "
            f"{weights.source}}}' takes that network"
        )
    if card is None and (hint := hint_of(weights.held)):
        advice = f"; {hint}"
    raise InputError(
        f"model.weights {weights.source!r} does not fit {spec.architecture}: {closest[1]}{advice}"
    )


def _misfits(state: State, own: State, head: set[str]) -> dict[str, list[str]]:
    """Names of the weights that do not fit, the classifier's aside, by what is wrong with them."""
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    body = [name for name in own if name not in head]
    return {
        "missing": [name for name in body if name not in state and name not in counters],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} ({_shape(state[name])}, not {_shape(own[name])})"
            for name in body
            if name in state and state[name].shape != own[name].shape
        ],
    }


def _put(
    model: nn.Module,
    state: State,
    own: State,
    head: set[str],
    others: bool,
    weights: StartingWeights,
    how: str,
    classes: Sequence[str],
) -> tuple[dict[str, Any], list[str]]:
    fits = all(name in state and state[name].shape == own[name].shape for name in head)
    replaced = bool(head) and (others or not fits)
    taken = {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if not (replaced and name in head)
    }
    for name, value in taken.items():
        if not bool(value.isfinite().all()):
            raise InputError(
                f"model.weights {weights.source!r} is damaged: {name!r} holds numbers that are not "
                "finite"
            )
    model.load_state_dict(taken, strict=False)
    inside = f" ({how})" if how else ""
    if not head:
        became = "none"
        said = "all weights taken"
    elif replaced:
        became = "replaced"
        before = _classes_before(state, own, head, weights.card)
        said = (
            f"all weights taken but the classifier's, {', '.join(sorted(head))}: it starts anew "
            f"for {len(classes)} classes ({', '.join(classes[:3])}{', …' * (len(classes) > 3)})"
            f"{before}"
        )
    else:
        became = "kept"
        known = weights.card is not None and weights.card.classes
        said = "all weights taken, the classifier's too: " + (
            "the classes are the same"
            if known
            else "it has as many classes, and the file does not say which"
        )
    record = {"source": weights.source, "sha256": weights.sha256, "classifier": became}
    return record, [f"starting from {weights.source}{inside}: {said}"]


def _classes_before(state: State, own: State, head: set[str], card: Card | None) -> str:
    if card is not None and card.classes:
        return f", not {len(card.classes)} ({', '.join(card.classes[:3])}, …)"
    rows = {len(state[name]) for name in head if name in state and state[name].ndim}
    return f", not {rows.pop()}" if len(rows) == 1 else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "1"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
