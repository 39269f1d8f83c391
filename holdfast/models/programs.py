"""Programs as others hand them on: TorchScript, and what `torch.export.save` writes.

Both bring their own network. An exported program is only text and numbers, but torch's reader also
unpickles whatever lies in the file, loads compiled code, evaluates sizes as Python, and takes any
function of torch by its name. While a file is read here, these doors are watched.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import operator
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from ..errors import InputError
from ..parsing import one_line
from ..placeholders import placeholder_at

# `torch.ops.NAMESPACE.OPERATOR.OVERLOAD`, arithmetic on sizes, and their largest and smallest.
OPERATOR = re.compile(
    r"torch\.ops\.[a-z]\w*\.(?!__)\w+\.\w+|torch\.ops\.aten\.__(i?and|i?or|i?xor|[lr]shift)__\.\w+"
    r"|torch\.ops\.higher_order\.\w+|torch\.sym_\w+|torch\._sym_\w+"
    r"|_operator\.[a-z]+_?|math\.[a-z0-9]+"
)
CALLERS = {"call", "attrgetter", "methodcaller", "itemgetter"}  # of the module operator
# What an expression of sizes is made of: no attributes, no indices, no strings but names.
PARTS = (
    ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.Load, ast.BinOp, ast.UnaryOp,
    ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.Tuple,
)  # fmt: skip


def is_program(file: Path) -> bool:
    """Whether a file is TorchScript or an exported program, which brings its own network."""
    if file.suffix == ".pt2":
        return True
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return any("/code/" in name for name in names)


def load_program(file: Path) -> nn.Module:
    """The model of a file of TorchScript, or of an exported program (`torch.export.save`).

    Raises:
        InputError: it cannot be read; or it is an exported program that holds pickled objects,
            compiled code, sizes that are more than arithmetic, or functions that are no operators.
    """
    refused: list[str] = []
    try:
        if file.suffix == ".pt2":
            # torch logs a traceback, and then raises.
            with _watched(refused), _silent("torch.export"):
                return torch.export.load(file).module()  # already as it was exported
        return torch.jit.load(str(file), map_location="cpu").eval()
    except Exception as error:  # of either reader, on a damaged file
        why = placeholder_at(file) or one_line(error)[:150]
        said = f"not a program that torch can read: {why}"
        raise InputError(f"model {file}: {refused[0] if refused else said}") from None


@contextlib.contextmanager
def _watched(refused: list[str]) -> Iterator[None]:
    """Inside, torch's reader of exported programs unpickles, evaluates and names nothing else than
    what a program needs. `refused` takes why it was stopped: torch's own errors hide that.
    Whatever another thread reads by `torch.load` meanwhile is watched, too."""
    from torch._export.serde.serialize import GraphModuleDeserializer as Reader
    from torch.export.pt2_archive import _package

    read, parse, named = torch.load, Reader._parse_sym_expr, Reader.deserialize_operator

    def refuse(why: str) -> NoReturn:
        refused.append(why)
        raise ValueError(why)

    def load(*args: Any, **kwargs: Any) -> Any:
        try:
            return read(*args, **{**kwargs, "weights_only": True})
        except Exception:
            unpickle()

    def unpickle(*_: Any) -> NoReturn:
        refuse("it holds pickled objects, which are never loaded")

    def compiled(*_: Any, **__: Any) -> NoReturn:
        refuse("it holds compiled code, which is never run")

    def size(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(text, str) and not is_arithmetic(text):
            refuse(f"a size in it is no arithmetic: {text[:80]!r}")
        return parse(self, text, *args, **kwargs)

    def function(self: Any, name: str) -> Any:
        if not is_operator(name):
            refuse(f"a function in it is no operator of torch's: {name[:80]!r}")
        return named(self, name)

    class Pickle:
        loads = load = staticmethod(unpickle)

    with contextlib.ExitStack() as stack:
        for owner, name, instead in (
            (torch, "load", load),
            (torch._C, "_pickle_load_obj", unpickle),
            (_package, "pickle", Pickle),
            (_package, "_load_aoti", compiled),
            (Reader, "_parse_sym_expr", size),
            (Reader, "deserialize_operator", function),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, instead)
        yield


def is_operator(name: str) -> bool:
    """Whether a function's name in an exported program is an operator of torch's, or arithmetic on
    sizes."""
    module, _, function = name.rpartition(".")
    if module == "_operator" and (function in CALLERS or not hasattr(operator, function)):
        return False
    return OPERATOR.fullmatch(name) is not None


def is_arithmetic(text: str) -> bool:
    """Whether an expression of sizes, as sympy writes it, is nothing but symbols, numbers and
    functions of them. sympy would evaluate anything."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, PARTS) and _is_harmless(node) for node in nodes)


def _is_harmless(node: ast.AST) -> bool:
    import sympy
    from torch.utils._sympy import functions

    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        # Functions of sympy evaluate strings again.
        return isinstance(node.value, str) and re.fullmatch(r"[A-Za-z]\w*", node.value) is not None
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        found: Callable[..., Any] | None = getattr(functions, name, getattr(sympy, name, None))
        return isinstance(found, type) and issubclass(found, sympy.Basic)
    return not (isinstance(node, ast.Name) and node.id.startswith("_"))


@contextlib.contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Nothing of this logger is shown."""
    found = logging.getLogger(logger)
    before, found.disabled = found.disabled, True
    try:
        yield
    finally:
        found.disabled = before
