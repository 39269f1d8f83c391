"""Packages whose parts are imported when they are first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(
    package: str, parts: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names are imported on first use (PEP 562).

    A package that offers everything at once makes every program wait for all of it. Type checkers
    do not see these names: the package imports them once more under `if TYPE_CHECKING`.

    Args:
        package: the package's own name, `__name__`.
        parts: from each public name to where it is: `"MODULE"` for a module below the package
            (`"metrics"`), `"MODULE:NAME"` for a name in one (`"smoothing:Smoothed"`).

    Example:
        >>> find, names = lazily("holdfast.uncertainty", {"metrics": "metrics"})
        >>> find("metrics").__name__
        'holdfast.uncertainty.metrics'
        >>> find("metrcis")
        Traceback (most recent call last):
        AttributeError: module 'holdfast.uncertainty' has no attribute 'metrcis'
    """

    def find(name: str) -> Any:
        if name not in parts:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, inside = parts[name].partition(":")
        part = importlib.import_module(f"{package}.{module}")
        return getattr(part, inside) if inside else part

    return find, lambda: sorted(parts)
