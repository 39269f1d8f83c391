"""What people write: names of code, options behind a name, numbers, and what they meant."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from .errors import InputError


def import_named(text: str, what: str) -> object:
    """What `package.module:name` names. The current folder is searched too, however Holdfast was
    started.

    Args:
        text: `package.module:name`.
        what: what it should be ("model"), for the error.

    Raises:
        InputError: the module cannot be imported, or holds nothing of that name.
    """
    module_name, _, name = text.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except InputError:
        raise
    except Exception as error:  # whatever the user's module raises while it is read
        raise InputError(
            f"{what} {text!r}: cannot import {module_name!r}: {said(error)}"
        ) from error
    if not hasattr(module, name):
        raise InputError(f"{what} {text!r}: {module_name!r} has no {name!r}")
    return getattr(module, name)


def said(error: Exception) -> str:
    """What the user's own code raised, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def split_options(what: str, text: str, known: Sequence[str]) -> dict[str, str]:
    """The values of `key=value,key=value`, as they are written.

    Args:
        what: whose options they are, such as `defence jpeg`; it begins every message.
        known: the keys that there are.

    Raises:
        InputError: an item that is not key=value, an unknown key, or one given twice.
    """
    options: dict[str, str] = {}
    for item in text.split(",") if text else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise InputError(f"{what}: {item!r} is not written key=value")
        check_known(what, key, known)
        if key in options:
            raise InputError(f"{what}: option {key!r} is given twice")
        options[key] = value
    return options


def check_known(what: str, key: str, known: Sequence[str]) -> None:
    """InputError, with the nearest key that there is, where `key` is not known."""
    if key not in known:
        hint = nearest(key, known) if known else "; it has none"
        raise InputError(f"{what} has no option {key!r}{hint}")


def typed(what: str, key: str, text: str, kind: Any) -> Any:
    """A value of type `kind` (bool, int, float; else the text itself) from its text.

    Raises:
        InputError: the text is no such value.
    """
    given = f"{what}: {key}={text}"
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise InputError(f"{given} is neither true nor false")
        return BOOLEANS[text.lower()]
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise InputError(f"{given} is not a whole number") from None
    if kind is float:
        try:
            return parse_number(text)
        except InputError:
            raise InputError(f"{given} is not a number") from None
    return text


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" where a known name is close, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}"


def parse_number(text: str | float) -> float:
    """A number written as `8/255`, `0.5` or `0.5/3`.

    Raises:
        InputError: if it is not one.
    """
    if isinstance(text, bool | bytes):
        raise InputError(f"{text!r} is not a number (write it like 8/255 or 0.5)")
    try:
        if isinstance(text, str) and "/" in text:
            numerator, denominator = map(float, text.split("/"))
            return numerator / denominator
        return float(text)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError, RuntimeError):
        told = " ".join(repr(text)[:60].split())
        raise InputError(f"{told} is not a number (write it like 8/255 or 0.5)") from None
