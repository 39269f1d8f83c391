"""A second model of a command, with its own options: `FILE.pth --architecture NAME` in quotes.

What stands in quotes is what would stand on the command line if it were the command's MODEL.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..parsing import nearest

OPTIONS = {  # as they are written → as `holdfast.load` takes them
    "--architecture": "architecture",
    "--mean": "mean",
    "--std": "std",
    "--input-size": "input_size",
    "--outputs": "outputs",
    "--classes": "classes",
    "--dtype": "dtype",
}


def with_options(text: str) -> tuple[str, dict[str, str]]:
    """The model in such a text, and its options.

    Raises:
        InputError: an option that no model has, without a value, or twice.

    Example:
        >>> with_options("mine.pth --architecture resnet:depth=18 --mean=0.5")
        ('mine.pth', {'architecture': 'resnet:depth=18', 'mean': '0.5'})
        >>> with_options("timm:resnet18,weights=a.pth")
        ('timm:resnet18,weights=a.pth', {})
    """
    found = re.search(r"\s--(?=[a-z])", text)
    if found is None or os.path.exists(text):
        return text, {}
    name = text[: found.start()].strip()
    try:
        words = shlex.split(text[found.start() :])
    except ValueError as error:
        raise InputError(f"model {text!r}: its options cannot be read: {error}") from None
    options: dict[str, str] = {}
    while words:
        option, equals, value = words.pop(0).partition("=")
        if option not in OPTIONS:
            raise InputError(
                f"model {name!r}: {option!r} is no option of a model{nearest(option, OPTIONS)}"
            )
        if not equals:
            if not words:
                raise InputError(f"model {name!r}: {option} has no value")
            value = words.pop(0)
        if OPTIONS[option] in options:
            raise InputError(f"model {name!r}: {option} is given twice")
        options[OPTIONS[option]] = value
    return name, options


def load_another(
    text: str, data_classes: Sequence[str] | None = None, **besides: Any
) -> tuple[str, Any]:
    """The name of such a model, and the model itself, in the data's classes.

    Args:
        besides: options that stand elsewhere; what is in the text goes before them.
    """
    from ..loading import load

    name, options = with_options(text)
    given = {key: value for key, value in besides.items() if value is not None}
    return name, load(name, **{**given, **options}, data_classes=data_classes)
