"""Reading what people write: names of code, options after a name, numbers, lengths of time, and
misspelt names."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import re
import sys
import zlib
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .errors import InputError


def import_named(text: str, what: str) -> object:
    """The object that `package.module:name` or `path/file.py:name` names; modules of the working
    folder are found too.

    Args:
        text: `package.module:name`, or `path/file.py:name`.
        what: what it should be ("model"), for the error.

    Raises:
        InputError: the module cannot be imported, or holds nothing of that name.
    """
    module_name, _, name = text.rpartition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = (
            _module_of(module_name)
            if module_name.endswith(".py")
            else importlib.import_module(module_name)
        )
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's module raises while it is read
        raise InputError(
            f"{what} {text!r}: cannot import {module_name!r}: {one_line(error)}"
        ) from error
    if not hasattr(module, name):
        own = getattr(module, "__name__", "")
        there = [key for key, value in vars(module).items() if _is_built_there(value, key, own)]
        has = nearest(name, there) if there else ""
        raise InputError(f"{what} {text!r}: {module_name!r} has no {name!r}{has}")
    return getattr(module, name)


def _is_built_there(value: object, name: str, module: str) -> bool:
    """Whether something is a function or class of a module's own, not one that it imported."""
    return (
        callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == module
    )


def defined_in(source: bytes) -> list[str]:
    """The functions and classes that Python code defines, but for those that begin with `_`.

    Raises:
        SyntaxError, ValueError: it is no Python.

    Example:
        >>> defined_in(b"def build(): ...")
        ['build']
    """
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.parse(source).body if isinstance(node, kinds)]
    return [node.name for node in nodes if not node.name.startswith("_")]


def _module_of(file: str) -> ModuleType:
    """A Python file as a module, which finds the files beside it.

    One that says `from .other import …`, and an `__init__.py`, is a part of its package.
    """
    path = os.path.abspath(file)
    if os.path.basename(path) == "__init__.py" or _imports_relatively(path):
        return _of_package(path)
    name = f"holdfast_file_{zlib.crc32(path.encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    return _executed(spec, os.path.dirname(path))


def _imports_relatively(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return False  # what imports it will say what is wrong
    return any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def _of_package(path: str) -> ModuleType:
    """A file as a module of the outermost package that holds it, else of its folder, under a name
    that no other package has."""
    top = os.path.dirname(path)
    while os.path.isfile(os.path.join(os.path.dirname(top), "__init__.py")):
        top = os.path.dirname(top)
    package = f"holdfast_package_{zlib.crc32(top.encode()):08x}"
    if package not in sys.modules:
        spec: ModuleSpec | None = ModuleSpec(package, None, is_package=True)
        if os.path.isfile(own := os.path.join(top, "__init__.py")):
            spec = importlib.util.spec_from_file_location(package, own)
        assert spec is not None
        spec.submodule_search_locations = [top]
        _executed(spec, os.path.dirname(top))
    parts = os.path.relpath(path, top)[: -len(".py")].split(os.sep)
    return importlib.import_module(".".join([package, *parts]).removesuffix(".__init__"))


def _executed(spec: ModuleSpec, finds: str) -> ModuleType:
    """A module that was read, and finds those in a folder."""
    module = importlib.util.module_from_spec(spec)
    if finds not in sys.path:
        sys.path.append(finds)
    sys.modules[spec.name] = module
    try:
        if spec.loader is not None:  # a folder without `__init__.py` has none
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def one_line(error: BaseException) -> str:
    """The type and message of an exception of the user's own code, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def split_options(what: str, text: str, known: Sequence[str]) -> dict[str, str]:
    """The options in `key=value,key=value`, their values as text.

    Commas in [brackets] are part of a value.

    Args:
        what: whose options they are, such as `defence jpeg`; every message begins with it.
        known: the keys that are allowed.

    Example:
        >>> split_options("defence jpeg", "quality=75", ["quality"])
        {'quality': '75'}
        >>> split_options("architecture", "mean=[0,1],width=8", ["mean", "width"])
        {'mean': '[0,1]', 'width': '8'}

    Raises:
        InputError: an item that is not key=value, an unknown key, or one given twice.
    """
    options: dict[str, str] = {}
    for item in re.split(r",(?![^\[]*\])", text) if text else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise InputError(f"{what}: {item!r} is not written key=value")
        check_known(what, key, known)
        if key in options:
            raise InputError(f"{what}: option {key!r} is given twice")
        options[key] = value
    return options


def check_known(what: str, key: str, known: Sequence[str]) -> None:
    """Check that an option is known.

    Raises:
        InputError: it is not; the message names the nearest one that is.
    """
    if key not in known:
        hint = nearest(key, known) if known else "; it has none"
        raise InputError(f"{what} has no option {key!r}{hint}")


def typed(what: str, key: str, text: str, kind: Any) -> Any:
    """The value that a text stands for.

    Args:
        what: whose option it is, such as `defence jpeg`.
        key: the option's name.
        kind: bool, int or float; the text itself is returned for any other type.

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
    """The end of a message about an unknown name: `; did you mean 'x'?` where a known one is
    close, else `; known: ` and all of them.

    Example:
        >>> nearest("apgdd", ["apgd", "swift"])
        "; did you mean 'apgd'?"
        >>> nearest("x", ["apgd", "swift"])
        '; known: apgd, swift'
    """
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}"


def parse_number(text: str | float) -> float:
    """A number from its text, which may be a fraction.

    Example:
        >>> parse_number("1/4"), parse_number("0.5")
        (0.25, 0.5)

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


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"(\d+(?:\.\d*)?|\.\d+)\s*([smhd])"  # such as 1.5h


def parse_seconds(text: str | float) -> float:
    """Seconds from `90s`, `60m`, `1.5h` or `1h30m`.

    Raises:
        InputError: anything else, or nothing above 0.

    Example:
        >>> parse_seconds("1h30m")
        5400.0
    """
    said = str(text).strip()
    if re.fullmatch(r"\d+(?:\.\d*)?|\.\d+", said):
        raise InputError(f"budget {str(text)!r} has no unit: {said}s, {said}m or {said}h?")
    seconds = 0.0
    if re.fullmatch(rf"(?:{_PART}\s*)+", said):
        seconds = sum(float(n) * _UNITS[unit] for n, unit in re.findall(_PART, said))
    if not 0 < seconds < float("inf"):
        raise InputError(f"budget {str(text)!r} is no length of time (write it like 60m or 1h30m)")
    return seconds


def parse_percentage(text: str | float) -> float:
    """A fraction from its text, which may be in per cent.

    Example:
        >>> parse_percentage("2%"), parse_percentage("0.02")
        (0.02, 0.02)

    Raises:
        InputError: if it is not one.
    """
    said = text.strip() if isinstance(text, str) else text
    per_cent = isinstance(said, str) and said.endswith("%")
    try:
        return parse_number(said[:-1]) / 100 if per_cent else parse_number(said)  # type: ignore[index]
    except InputError:
        told = " ".join(repr(text)[:60].split())
        raise InputError(f"{told} is no fraction (write it like 2% or 0.02)") from None
