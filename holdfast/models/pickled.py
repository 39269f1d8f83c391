"""Files of `torch.save` that hold more than tensors, read without running any of their code.

Checkpoints often carry objects of somebody's classes beside the weights: arguments, numpy's
scalars, a scheduler, or the whole pickled model. Reading them the usual way imports these classes
and calls whatever the file says. Here each of them becomes a `Foreign`, which only keeps the values
that it was given: nothing is imported, and the only functions ever called put tensors and arrays
together.
"""

from __future__ import annotations

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from ..errors import InputError


def _array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """An array that is filled next, as numpy's own pickles begin."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _encoded(text: str, encoding: str = "") -> bytes:
    """Bytes, as Python 2's protocols write them."""
    return text.encode("latin-1")


# What a file may build: containers, arrays of numbers, and tensors out of its own storages.
BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    **{
        (core, "_reconstruct"): _array
        for core in ("numpy.core.multiarray", "numpy._core.multiarray")
    },
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encoded,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
# Functions and modules whose values are data: a call of them is kept, not made.
DATA = (
    "numpy", "_codecs", "copyreg", "collections", "datetime", "pathlib", "torch", "functools",
)  # fmt: skip
# A call into one of these is no data, whatever its name looks like.
PROGRAMS = (
    "builtins", "os", "posix", "nt", "sys", "subprocess", "shutil", "importlib",
    "runpy", "socket", "ctypes", "operator", "code", "pty", "webbrowser",
)  # fmt: skip


class WouldRun(pickle.UnpicklingError):
    """The file calls a function that makes no data."""


class _Kind(type):
    """What stands for a foreign class or function, by its name."""

    called: str

    def __call__(cls, *values: Any, **named: Any) -> Foreign:
        module, _, name = cls.called.rpartition(".")
        root = module.split(".")[0]
        is_class = name[:1].isupper() and root not in PROGRAMS
        if not (is_class or root in DATA):
            raise WouldRun(cls.called)
        return cls.__new__(cls, *values, **named)  # type: ignore[arg-type]


class Foreign(metaclass=_Kind):
    """An object of a class that is not imported.

    Attributes:
        values: what it was made of.
        attributes: by name, where it has any.
        items: of one that is a dictionary or a list too.
    """

    called = "?"

    def __new__(cls, *values: Any, **named: Any) -> Foreign:
        self = object.__new__(cls)
        self.values = values
        self.attributes = dict(named)
        self.items = {}
        return self

    values: tuple[Any, ...]
    attributes: dict[str, Any]
    items: dict[Any, Any]

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.attributes.update({str(key): value for key, value in part.items()})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.items[len(self.items)] = value

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)

    add = append


def _attribute(of: Any, name: str) -> _Kind:
    """What `getattr` would give, by its name alone; calling it is no data."""
    return _kind(f"builtins.getattr({getattr(of, 'called', '?')}, {name!r})")


def _kind(called: str) -> _Kind:
    return _Kind("Foreign", (Foreign,), {"called": called})


class _Unpickler(pickle.Unpickler):
    found: set[str]

    def find_class(self, module: str, name: str) -> Any:
        module, name = NAME_MAPPING.get((module, name), (module, name))  # Python 2's names
        module = IMPORT_MAPPING.get(module, module)
        if (module, name) == ("builtins", "getattr"):
            return lambda of, name, *_: _attribute(of, name)
        builder = BUILDERS.get((module, name))
        if builder is not None:
            # A function of its own each time: a file can change nothing of the real one.
            return builder if isinstance(builder, type) else lambda *values: builder(*values)
        called = f"{module}.{name}"
        self.found.add(called)
        return _kind(called)


class _Reader:
    """What `torch.load` takes as its pickle module."""

    __name__ = "pickle"

    def __init__(self) -> None:
        found: set[str] = set()
        self.found = found

        class Unpickler(_Unpickler):
            pass

        Unpickler.found = found
        self.Unpickler = Unpickler

    def load(self, *values: Any, **named: Any) -> NoReturn:
        raise pickle.UnpicklingError("a file of before torch 1.6")  # only those call this


def read_pickled(file: Path) -> tuple[Any, set[str]]:
    """The content of a file of `torch.save`, and the names of the foreign classes in it.

    Raises:
        InputError: it calls functions that make no data: it would run code if it could.
        Exception: as `torch.load`, for damaged files.
    """
    reader = _Reader()
    try:
        # Not weights_only, which knows tensors alone; this reader can build nothing else either.
        content = torch.load(file, map_location="cpu", pickle_module=reader, weights_only=False)
    except WouldRun as error:
        raise InputError(
            f"weights {file}: the file would run code when it is read: it calls {error}; "
            "save model.state_dict() alone"
        ) from None
    return content, reader.found


def is_module(value: Any) -> bool:
    """Whether a foreign object is a pickled `torch.nn.Module`."""
    return isinstance(value, Foreign) and "_parameters" in value.attributes


def module_state(module: Foreign, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The state dict of a pickled `torch.nn.Module`, whose class is not imported."""
    transient = module.attributes.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in _pairs(module.attributes.get(kind)):
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in transient):
                yield prefix + name, value.detach()
    for name, inner in _pairs(module.attributes.get("_modules")):
        if is_module(inner):
            yield from module_state(inner, f"{prefix}{name}.")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(key), inner) for key, inner in value.items())
