"""What the libraries that build models have in common."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import torch
import yaml
from torch import nn

from ...errors import InputError
from ...parsing import one_line
from ..adapted import NOTHING, Preprocessing
from ..weights import load_weights_file, read_states

CONNECTING_SECONDS = 3.0  # after which a hub counts as out of reach
PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@dataclass(frozen=True)
class Source:
    """A model as a library built it.

    Attributes:
        model: takes images that went through `steps`.
        steps: the library's own preprocessing.
        names: of the outputs; () where the library names none.
        said: what is worth knowing, one line each.
        card: as on a checkpoint's card; empty where nothing is known.
        outputs: what its numbers are, where that is known for certain: it then stands.
    """

    model: Any
    steps: Preprocessing = NOTHING
    names: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)
    outputs: str | None = None


def split(text: str, kind: str) -> tuple[str, dict[str, Any]]:
    """The name in `kind:NAME,key=value,…`, and the options, their values as YAML reads them.

    A comma in a name or a value is one where no `key=` follows.

    Example:
        >>> split("timm:resnet18,weights=a,b.pth,num_classes=10", "timm")
        ('resnet18', {'weights': 'a,b.pth', 'num_classes': 10})
    """
    text = text.removeprefix(f"{kind}:").strip()
    name, *items = re.split(r",\s*(?=[A-Za-z_]\w*\s*=)", text)
    if not name:
        raise InputError(f"model {kind}: says no name: write {kind}:NAME")
    if re.fullmatch(r"[A-Za-z_]\w*=.*", name) and not os.path.exists(name):
        raise InputError(f"model {kind}:{name} says no name: write {kind}:NAME,{name}")
    options: dict[str, Any] = {}
    for item in items:
        key, _, value = (part.strip() for part in item.partition("="))
        if key in options:
            raise InputError(f"model {kind}:{name}: option {key!r} is given twice")
        options[key] = value if key in FILES else _value(value)
    return name, options


FILES = ("weights", "dir", "model_dir", "dataset", "threat", "revision")  # values that stay text


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def imported(library: str, kind: str, pip: str | None = None) -> ModuleType:
    """A library, imported.

    Raises:
        InputError: it is not installed, or cannot be imported; with the command that installs it.
    """
    try:
        with quiet():
            return _import(library)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != library.split(".")[0]:
            raise InputError(
                f"model {kind}:…: {library} needs {error.name}, which is not installed"
            ) from None
        raise InputError(
            f"model {kind}:… needs {library}, which is not installed: pip install {pip or library}"
        ) from None
    except Exception as error:  # a library that does not fit the others
        raise InputError(
            f"model {kind}:…: {library} cannot be imported: {one_line(error)[:200]}"
        ) from None


# What a torchvision that was built for another torch lacks; no classifier calls it.
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # which live as long as they are held


def _import(library: str) -> ModuleType:
    """A library; one that needs a torchvision without its own operators gets them declared."""
    before = set(sys.modules)
    try:
        return importlib.import_module(library)
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _declared:
            raise
    for name in set(sys.modules) - before:  # what was imported by half
        if name.split(".")[0] in (library.split(".")[0], "torchvision"):
            del sys.modules[name]
    _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
    for schema in OPERATORS:
        _declared[0].define(schema)
    return importlib.import_module(library)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, libraries print nothing: no warnings, progress or logs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def reachable(address: str) -> bool:
    """Whether somebody listens at an address; behind a proxy it is assumed."""
    if any(os.environ.get(name) for name in PROXIES):
        return True
    parts = urlsplit(address)
    if not parts.hostname:
        return True
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname, port), CONNECTING_SECONDS).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def hub() -> Iterator[bool]:
    """Inside, the hub of Hugging Face is asked only if it can be reached: else, what is not in the
    cache fails at once, and not after a minute of trying again. Yields whether it can be."""
    hub = sys.modules.get("huggingface_hub.constants") or _hub_constants()
    if hub is None:
        yield True
        return
    before = bool(getattr(hub, "HF_HUB_OFFLINE", False))
    there = not before and reachable(str(getattr(hub, "ENDPOINT", "")))
    hub.HF_HUB_OFFLINE = not there  # type: ignore[attr-defined]
    try:
        yield there
    finally:
        hub.HF_HUB_OFFLINE = before  # type: ignore[attr-defined]


def _hub_constants() -> ModuleType | None:
    try:
        return importlib.import_module("huggingface_hub.constants")
    except ImportError:
        return None


def weights_file(options: dict[str, Any], what: str) -> Path | None:
    """The file of the option `weights`, taken out of the options; None where it is not given."""
    given = options.pop("weights", None)
    if given is None:
        return None
    file = Path(str(given)).expanduser()
    if not os.path.isfile(file):
        raise InputError(f"model {what}: weights={given}: there is no such file")
    return file


def load_weights(file: Path, model: nn.Module, what: str, key: str = "num_classes") -> str:
    """Load a file's weights into a library's network; as `load_weights_file`.

    Args:
        key: the option that says how many classes the network has.
    """
    try:
        return load_weights_file(file, model, what)
    except InputError:
        classes = _other_classes(file, model)
        if classes is None:
            raise
        theirs, ours = classes
        raise InputError(
            f"weights {file} are of {theirs} classes, and {what} is built for {ours}: "
            f"add {key}={theirs}"
        ) from None


def _other_classes(file: Path, model: nn.Module) -> tuple[int, int] | None:
    """The numbers of classes of the weights and of the network, where nothing else differs."""
    wanted = model.state_dict()
    first = next(iter(wanted))
    for state in read_states(file).states.values():
        for prefix in {key.removesuffix(first) for key in state if key.endswith(first)}:
            other = set()
            for name, value in wanted.items():
                found = state.get(prefix + name)
                if found is None or found.shape == value.shape:
                    if found is None and not name.endswith("num_batches_tracked"):
                        break
                elif not found.ndim or found.shape[1:] != value.shape[1:]:
                    break
                else:
                    other.add((found.shape[0], value.shape[0]))
            else:
                if len(other) == 1:
                    return other.pop()
    return None


def failed(what: str, error: BaseException) -> InputError:
    """A library's error, as one line."""
    text = one_line(error) if isinstance(error, Exception) else str(error)
    return InputError(f"model {what} cannot be built: {text[:300]}{'…' if len(text) > 300 else ''}")


def numbers(values: Any) -> tuple[float, ...]:
    """Numbers from one or from several; () where there are none."""
    if values is None:
        return ()
    if isinstance(values, int | float):
        return (float(values),)
    return tuple(float(value) for value in values) if isinstance(values, Sequence) else ()
