"""Every defence by its name, and how command line and cards write it: `jpeg:quality=75`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from torch import nn

from ..errors import InputError
from ..parsing import import_named, nearest, split_options, typed
from ..runs.files import inside
from ..types import Model
from .base import Defence


def _defences() -> dict[str, type[Defence]]:
    """Every defence that a module of this package defines, by name."""
    package = sys.modules[__package__]
    modules = [module.name for module in pkgutil.iter_modules(package.__path__)]
    found: dict[str, type[Defence]] = {}
    for name in sorted(set(modules) - {"registry"}):
        module = importlib.import_module(f"{__package__}.{name}")
        for value in vars(module).values():
            if not (isinstance(value, type) and issubclass(value, Defence)):
                continue
            if value is not Defence and value.__module__ == module.__name__:
                found[value.name] = value
    return found


DEFENCES = _defences()


def parse(text: str, card_of: Path | None = None) -> partial[Defence]:
    """The defence that a text describes, as a function from a model to the defended model.

    Args:
        text: `name`, or `name:key=value,key=value`. The name is a key of `DEFENCES`, or
            `package.module:Class` for a `Defence` of the user's own.
        card_of: the model folder whose card holds the text; None if a person wrote it. A card may
            run no code and reach no other file: it may name `DEFENCES` only, and `weights` inside
            its folder.

    Raises:
        InputError: an unknown name or option (with the nearest known one), or a value of another
            type than the option's. Values out of range are reported once there is a model.

    Example:
        >>> defended = parse("bit-depth:bits=3")(nn.Flatten())
        >>> defended.spec
        'bit-depth:bits=3'
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
    """The model behind all these defences, of which the first gets the image first.

    Args:
        model: images → logits.
        texts: as `parse` takes them.
        card_of: as for `parse`.

    Example:
        >>> chained = chain(nn.Flatten(), ["jpeg:quality=50", "median"])
        >>> chained.name, chained.model.name
        ('jpeg', 'median')
    """
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
