"""Networks built by somebody's own code, which a person has named; a file may name none."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from ..errors import InputError
from ..parsing import import_named, nearest, one_line
from .sources import source_of as source_of_library

Builder = Callable[[Mapping[str, Any]], nn.Module]  # arguments → a network of its own


def is_code(architecture: str) -> bool:
    """Whether an architecture's name is `path/file.py:build` or `package.module:build`, not one of
    Holdfast's own.

    Example:
        >>> is_code("net.py:build"), is_code("preact-resnet")
        (True, False)
    """
    return ":" in architecture


def parameters_of(architecture: str) -> Mapping[str, inspect.Parameter]:
    """The parameters by name of the function or class that is named; none of a ready module.

    Raises:
        InputError: the code cannot be imported, or nothing of that name is callable.
    """
    return _parameters(_named(architecture))


def built_by_code(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network built by the code that a person has named.

    Args:
        architecture: `path/file.py:name` or `package.module:name`: a function or a class, which is
            called with `arguments`; or a ready module, which is copied.

    Raises:
        InputError: the code cannot be imported, fails, or builds no `torch.nn.Module`.
    """
    what = f"architecture {architecture!r}"
    if not is_code(architecture):
        raise InputError(f"{what} is no code: write path/file.py:name")
    build = _named(architecture)
    known = _parameters(build)
    if not any(each.kind is each.VAR_KEYWORD for each in known.values()):
        for key in arguments:
            if key not in known:
                takes = nearest(key, known) if known else "; it has none"
                raise InputError(f"{what} has no argument {key!r}{takes}")
    try:
        model = copy.deepcopy(build) if isinstance(build, nn.Module) else build(**arguments)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code: say what it said
        raise InputError(f"{what} cannot be built: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{what} built a {type(model).__name__}, where a torch.nn.Module is needed"
        )
    return model


def source_of(architecture: str) -> bytes:
    """The source file that is named; empty where there is none."""
    module_name, _, _ = architecture.rpartition(":")
    _named(architecture)  # it is imported now
    file = module_name
    if not module_name.endswith(".py"):
        file = getattr(sys.modules.get(module_name), "__file__", None) or ""
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError):
        return b""


def give_classes(model: nn.Module, classifier: str, classes: int) -> None:
    """Put a fresh layer with so many outputs in the place of a network's classifier.

    Args:
        classifier: the name of a linear layer, or of a 1×1 convolution.

    Raises:
        InputError: there is no such layer.
    """
    place, _, name = classifier.rpartition(".")
    try:
        parent = model.get_submodule(place)
        old = model.get_submodule(classifier)
    except AttributeError:
        raise InputError(f"the network has no layer {classifier!r}") from None
    bias = getattr(old, "bias", None) is not None
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, classes, bias)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1) and old.groups == 1:
        new = nn.Conv2d(old.in_channels, classes, 1, bias=bias)
    else:
        raise InputError(
            f"layer {classifier!r} is a {type(old).__name__}: only linear layers and 1×1 "
            "convolutions are replaced"
        )
    # A Sequential and the like keep their order.
    parent._modules[name] = new


def _named(architecture: str) -> Callable[..., Any]:
    if source_of_library(architecture) is not None:
        raise InputError(
            f"architecture {architecture!r}: a library's network is trained through code of your "
            "own: name a function that builds it, path/file.py:name"
        )
    build = import_named(architecture, "architecture")
    if not callable(build):  # a module is callable
        kind = type(build).__name__
        raise InputError(f"architecture {architecture!r} is a {kind}, which is not callable")
    return cast(Callable[..., Any], build)


def _parameters(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    if isinstance(build, nn.Module):
        return {}
    try:
        return inspect.signature(build).parameters
    except (TypeError, ValueError):  # of C
        return {}
