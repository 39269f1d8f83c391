"""What a user names by `package.module:name`: their own models and defences."""

from __future__ import annotations

import importlib
import os
import sys

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
