"""Options as the command line writes them behind a name: `name:key=value,key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import InputError
from .files import nearest
from .threat import parse_number

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
