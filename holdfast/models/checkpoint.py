"""Checkpoints: a folder with `model.safetensors` and `card.json`. No pickle is ever loaded."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy

from ..errors import InputError
from ..runs.files import make_folder, write_atomically, write_json
from ..runs.records import CARD, Card, read_file
from ..runs.tensors import apart, opened, read_tensors
from .own_networks import Builder, give_classes, is_code
from .registry import build

WEIGHTS = "model.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16")  # what floating-point weights may be stored as
SPARE = 1000  # a network with so many more tensors than its file (times 4) is not built


def save_checkpoint(
    folder: Path | str,
    model: nn.Module,
    card: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model and its card. Each file is written completely or not at all.

    Args:
        folder: created if need be.
        model: built by `build(card["architecture"], card["arguments"])`, or by the code that
            `architecture` names.
        card: at least `architecture` (a registered name, or `file.py:build`), `arguments` (a dict)
            and `classes` (label names). Usually also `threat`, `recipe`, `data` and `figures`.
        dtype: what floating-point weights are stored as; they are loaded as float32.

    Raises:
        InputError: weights that are not finite (in that type); a folder that cannot be written.

    Example:
        >>> card = {"architecture": "small-cnn", "arguments": {"width": 8}}
        >>> card["classes"] = [str(digit) for digit in range(10)]
        >>> folder = save_checkpoint("reads-digits", build("small-cnn", {"width": 8}), card)
        >>> load_checkpoint(folder).card["architecture"]
        'small-cnn'
    """
    folder = make_folder(Path(folder))
    weights = apart(
        {
            name: value.detach().cpu().contiguous().to(dtype if value.is_floating_point() else None)
            for name, value in model.state_dict().items()
        }
    )
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise InputError(f"{folder} is not written: {name!r} is not finite in {dtype}")
    payload = save(weights)
    said = {**card, "weights_sha256": hashlib.sha256(payload).hexdigest()}
    checked = Card.checked(said, str(folder / CARD))
    write_atomically(folder / WEIGHTS, payload)
    write_json(folder / CARD, checked.to_dict())
    return folder


def load_weights(file: Path, model: nn.Module) -> None:
    """Load a safetensors file into a model of exactly its shapes; InputError naming the file.

    Names, shapes and types are compared before any weight is read.
    """
    _check_fit(file, _described(file), model)
    weights = read_tensors(file)
    for name, value in weights.items():
        if value.is_floating_point():
            weights[name] = value.float()
            if not bool(torch.isfinite(weights[name]).all()):
                raise InputError(f"{file} is damaged: {name!r} holds numbers that are not finite")
    model.load_state_dict(weights)


def read_card(folder: Path, classifier: bool = True) -> Card:
    """The card of a checkpoint folder.

    Args:
        classifier: whether label names must be there.

    Raises:
        InputError: it is missing, damaged, or of a version that is not known.
    """
    file = folder / CARD
    card = read_file(file)
    if not isinstance(card, Card):
        raise InputError(f"{file} has schema {card.SCHEMA!r}; {Card.SCHEMA} is read here")
    if classifier and "classes" not in card.model_fields_set:
        raise InputError(f"{file} has no 'classes', the label names")
    return card


def checkpoint_in(folder: Path) -> Path | None:
    """The folder with the card: a checkpoint itself, or `model` in a training run; else None."""
    for place in (folder, folder / "model"):
        try:
            if (place / CARD).is_file():
                return place
        except (OSError, ValueError):  # a name that no file can have
            return None
    return None


def load_checkpoint(
    folder: Path | str,
    classifier: bool = True,
    *,
    network: Builder | None = None,
    part: Callable[[Mapping[str, Any]], nn.Module] | None = None,
) -> nn.Module:
    """The model of a checkpoint folder, in eval mode and float32, with its card as `model.card`.

    No code from the folder is run, and none that it names. The network is built only after its
    weights are known to fit, so memory is bounded by the size of the files.

    Args:
        classifier: whether the card must name classes.
        network: builds the network from the arguments on the card, where the card names code in
            place of an architecture of Holdfast's: code that a person has named.
        part: gives the model of a part of a mixture, of those that `named_parts` finds on the card.

    Raises:
        InputError: a file is missing, damaged, or does not fit the architecture on the card; the
            card names code, and no `network` is given.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # no error, whatever the name is
        raise InputError(f"model folder {folder} does not exist")
    card, file = read_card(folder, classifier), folder / WEIGHTS
    held = _described(file)
    if is_code(card.architecture):
        model = _of_own_code(folder, card, network)
        _check_fit(file, held, model)
        return _with_its_weights(model, folder, card)
    if network is not None:
        raise InputError(
            f"model {folder} brings its own network, {card.architecture}: --architecture is for a "
            "file of weights, or for a card that names code"
        )
    arguments = _with_named_parts(folder, card, part)
    try:
        with torch.device("meta"), _at_most(4 * len(held) + SPARE):  # shapes without memory
            outline = build(card.architecture, arguments)
    except InputError as error:
        raise InputError(f"{folder / CARD}: {error}") from None
    _check_fit(file, held, outline)
    return _with_its_weights(build(card.architecture, arguments), folder, card)


def named_parts(card: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of a mixture that are models of other libraries or files, by what they are called
    on the command line: their `architecture` is that MODEL, their `arguments` its options.

    Example:
        >>> part = {"architecture": "timm:resnet18", "arguments": {"mean": "0.5"}}
        >>> arguments = {"robust": part, "weight": 0.7}
        >>> list(named_parts({"architecture": "mixture", "arguments": arguments}))
        ['robust']
    """
    if card.get("architecture") != "mixture" or not isinstance(card.get("arguments"), Mapping):
        return {}
    parts = {name: card["arguments"].get(name) for name in ("robust", "accurate")}
    return {
        name: dict(part)
        for name, part in parts.items()
        if isinstance(part, Mapping)
        and part.keys() == {"architecture", "arguments"}
        and re.search("[:/.]", str(part["architecture"]))
        and isinstance(part["arguments"], Mapping)
    }


def _with_named_parts(
    folder: Path, card: Card, part: Callable[[Mapping[str, Any]], nn.Module] | None
) -> dict[str, Any]:
    """The arguments of a card, with the parts that a person has named in their place."""
    named = named_parts(card.to_dict())
    if named and part is None:
        texts = " + ".join(each["architecture"] for each in named.values())
        raise InputError(
            f"{folder / CARD}: parts of the mixture are other models, and a card may ask for none; "
            f"if you know them, name them: --architecture '{texts}'"
        )
    if part is None:
        return card.arguments
    return {**card.arguments, **{name: part(each) for name, each in named.items()}}


def _of_own_code(folder: Path, card: Card, network: Builder | None) -> nn.Module:
    """The network of a card that names code, built by code that a person has named."""
    if network is None:
        raise InputError(
            f"{folder / CARD}: the network is built by code, {card.architecture}, and a card may "
            "run none; if you know that code, name it: --architecture path/file.py:name"
        )
    model = network(card.arguments).float()
    if card.classifier is not None:
        give_classes(model, card.classifier, len(card.classes))
    return model


def _with_its_weights(model: nn.Module, folder: Path, card: Card) -> nn.Module:
    file = folder / WEIGHTS
    load_weights(file, model)
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if card.weights_sha256 not in (None, found):
        raise InputError(f"{file} is damaged, or not the one that {folder / CARD} speaks of")
    model.card = card.to_dict()  # type: ignore[assignment]
    return model.eval()


Described = dict[str, tuple[tuple[int, ...], str]]  # shape and type of each tensor by name


def _described(file: Path) -> Described:
    def read(content: Any) -> Described:
        slices = ((name, content.get_slice(name)) for name in content.keys())  # noqa: SIM118
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices}

    return opened(file, read)


def _check_fit(file: Path, held: Described, model: nn.Module) -> None:
    """InputError if names, shapes and kinds of a file's tensors are not exactly a model's."""
    own: dict[str, Tensor] = model.state_dict()
    missing, unknown = sorted(own.keys() - held.keys()), sorted(held.keys() - own.keys())
    common = sorted(own.keys() & held.keys())
    # Lazy layers take the shapes that they are given.
    misshapen = [k for k in common if not is_lazy(own[k]) and tuple(own[k].shape) != held[k][0]]
    other = [k for k in common if own[k].is_floating_point() != (held[k][1] in FLOATS)]
    if missing or unknown or misshapen or other:
        what = (
            f"lacks {missing[0]!r}"
            if missing
            else f"has {unknown[0]!r} too many"
            if unknown
            else f"has {misshapen[0]!r} in another shape"
            if misshapen
            else f"has {other[0]!r} as {held[other[0]][1]}"
        )
        raise InputError(f"{file} holds the weights of another architecture: it {what}")


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Inside, building a network of more parameters and buffers than this raises InputError."""
    left = tensors

    def count(module: nn.Module, name: str, value: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise InputError("the network is far larger than its weights")

    handles = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
