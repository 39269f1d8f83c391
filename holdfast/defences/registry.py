"""Defences by name, and the command line's way of writing them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, get_type_hints

from torch import nn

from ..errors import InputError
from ..files import nearest
from ..imports import import_named
from ..options import split_options, typed
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


def parse(text: str) -> partial[Defence]:
    """What turns a model into a defended one: `parse("jpeg:quality=75")(model)`.

    Args:
        text: `name`, or `name:key=value,key=value`. The name is a key of `DEFENCES`, or
            `package.module:Class` for a `Defence` of the user's own.

    Raises:
        InputError: unknown name or option (with the nearest known one), or a value of another
            type than the option's. Values out of range are reported when it meets the model.
    """
    name, _, rest = text.partition(":")
    if name in DEFENCES:
        defence = DEFENCES[name]
    else:
        class_name, _, rest = rest.partition(":")
        if not class_name.isidentifier():
            raise InputError(
                f"defence {name!r} is unknown{nearest(name, DEFENCES)} "
                "(your own is written package.module:Class)"
            )
        name = f"{name}:{class_name}"
        defence = _own(name)
    return partial(defence, **_options(name, defence, rest))


def chain(model: Model, texts: Sequence[str]) -> nn.Module | Model:
    """The model behind all these defences; the first one sees the image first."""
    for wrap in reversed([parse(text) for text in texts]):
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
