"""Defences by name, and the command line's way of writing them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from torch import nn

from ..errors import InputError
from ..parsing import import_named, nearest, split_options, typed
from ..runs.files import inside
from .autoencoder import Autoencoder
from .base import Defence, Model
from .bit_depth import BitDepth
from .gaussian_blur import GaussianBlur
from .jpeg import Jpeg
from .median import Median
from .noise import Noise
from .palette import Palette
from .purification import Purification
from .random_views import CropEnsemble, ResizePad
from .thermometer import Thermometer
from .total_variation import TotalVariation

DEFENCES: dict[str, type[Defence]] = {
    defence.name: defence
    for defence in (
        Jpeg,
        BitDepth,
        Median,
        GaussianBlur,
        TotalVariation,
        ResizePad,
        CropEnsemble,
        Noise,
        Thermometer,
        Palette,
        Autoencoder,
        Purification,
    )
}


def parse(text: str, card_of: Path | None = None) -> partial[Defence]:
    """What turns a model into a defended one: `parse("jpeg:quality=75")(model)`.

    Args:
        text: `name`, or `name:key=value,key=value`. The name is a key of `DEFENCES`, or
            `package.module:Class` for a `Defence` of the user's own.
        card_of: the model folder whose card says so, where no person does. A file runs no code and
            names nothing outside: then only `DEFENCES` are taken, and `weights` lie in the folder.

    Raises:
        InputError: unknown name or option (with the nearest known one), or a value of another
            type than the option's. Values out of range are reported when it meets the model.
    """
    name, _, rest = text.partition(":")
    if name in DEFENCES:
        defence = DEFENCES[name]
    elif card_of is not None:
        hint = "; no code is taken from a file: who trusts it gives it by --defence"
        hint = hint if rest else nearest(name, DEFENCES)
        raise InputError(f"defence {text!r} is none of Holdfast's own{hint}")
    else:
        class_name, _, rest = rest.partition(":")
        if not class_name.isidentifier():
            raise InputError(
                f"defence {name!r} is unknown{nearest(name, DEFENCES)} "
                "(your own is written package.module:Class)"
            )
        name = f"{name}:{class_name}"
        defence = _own(name)
    options = _options(name, defence, rest)
    if card_of is not None and "weights" in options:
        options["weights"] = inside(card_of, options["weights"])
    return partial(defence, **options)


def chain(model: Model, texts: Sequence[str], card_of: Path | None = None) -> nn.Module | Model:
    """The model behind all these defences; the first one sees the image first. `card_of` as in
    `parse`."""
    for wrap in reversed([parse(text, card_of) for text in texts]):
        model = wrap(model)
    return model


def _own(name: str) -> type[Defence]:
    defence = import_named(name, "defence")
    if not (isinstance(defence, type) and issubclass(defence, Defence)):
        raise InputError(f"defence {name}: it must be a subclass of holdfast.defences.Defence")
    return defence


def _options(name: str, defence: type[Defence], text: str) -> dict[str, Any]:
    after_model = list(inspect.signature(defence).parameters.values())[1:]
    parameters = [p for p in after_model if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    known = [parameter.name for parameter in parameters]
    types = get_type_hints(defence.__init__)
    written = split_options(f"defence {name}", text, known)
    options = {
        key: typed(f"defence {name}", key, value, types.get(key, str))
        for key, value in written.items()
    }
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise InputError(f"defence {name} needs its option {parameter.name!r}")
    return options
