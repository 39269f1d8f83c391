"""Checkpoints: a folder with `model.safetensors` and `card.json`. No pickle is ever loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ..errors import InputError
from ..files import make_folder, read_json, write_atomically, write_json
from .registry import build

CARD_SCHEMA = "holdfast/card/1"


def save_checkpoint(
    folder: Path | str,
    model: nn.Module,
    card: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model and its card; each file appears whole or not at all.

    Args:
        folder: created if need be.
        model: built by `build(card["architecture"], card["arguments"])`.
        card: at least `architecture` (a registered name), `arguments` (a dict) and `classes`
            (label names). Usually also `threat`, `recipe`, `data` and `figures`.
        dtype: what floating-point weights are stored as; they are loaded as float32.

    Raises:
        InputError: weights that are not finite (in that type); a folder that cannot be written.
    """
    folder = make_folder(Path(folder))
    weights = {
        name: value.detach().cpu().contiguous().to(dtype if value.is_floating_point() else None)
        for name, value in model.state_dict().items()
    }
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise InputError(f"{folder} is not written: {name!r} is not finite in {dtype}")
    payload = save(weights)
    card = {
        "schema": CARD_SCHEMA,
        **card,
        "weights_sha256": hashlib.sha256(payload).hexdigest(),
    }
    write_atomically(folder / "model.safetensors", payload)
    write_json(folder / "card.json", card, sealed=True)
    return folder


def load_weights(file: Path, model: nn.Module) -> None:
    """Load a safetensors file into a model of exactly its shapes; InputError naming the file."""
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise InputError(f"{file} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file} is damaged: {' '.join(str(error).split())}") from None
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    misshapen = [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    if missing or unknown or misshapen:
        what = (
            f"lacks {missing[0]!r}"
            if missing
            else f"has {unknown[0]!r} too many"
            if unknown
            else f"has {sorted(misshapen)[0]!r} in another shape"
        )
        raise InputError(f"{file} holds the weights of another architecture: it {what}")
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"{file} is damaged: {name!r} holds numbers that are not finite")
    model.load_state_dict(weights)


def load_checkpoint(folder: Path | str) -> nn.Module:
    """The model of a checkpoint folder, in eval mode, float32, with its card as `model.card`.

    Raises:
        InputError: a file is missing, damaged, or does not fit the architecture on the card.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"model folder {folder} does not exist")
    card, file = read_json(folder / "card.json", with_seal=True), folder / "model.safetensors"
    for key, kind in (("architecture", str), ("arguments", dict), ("classes", list)):
        if not isinstance(card.get(key), kind):
            raise InputError(f"{folder / 'card.json'} lacks {key!r} (a {kind.__name__})")
    try:
        model = build(card["architecture"], card["arguments"])
    except InputError as error:
        raise InputError(f"{folder / 'card.json'}: {error}") from None
    load_weights(file, model)
    if card.get("weights_sha256") not in (None, hashlib.sha256(file.read_bytes()).hexdigest()):
        raise InputError(f"{file} is damaged, or not the one that {folder / 'card.json'} speaks of")
    model.card = card  # type: ignore[assignment]
    return model.eval()
