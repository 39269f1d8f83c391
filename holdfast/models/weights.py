"""Files of weights, as people save them: read without running code, and fitted to a network."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import InputError
from ..parsing import one_line

ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".th")
# What wrappers put before the names of weights.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "encoder.", "backbone.")
SHOWN = 3  # names of each kind in a message

State = dict[str, Tensor]


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
        InputError: it cannot be read.
    """
    try:
        if file.suffix == ".pt2":
            return torch.export.load(file).module()  # already as it was exported
        return torch.jit.load(str(file), map_location="cpu").eval()
    except Exception as error:  # of either reader, on a damaged file
        said = one_line(error)[:150]
        raise InputError(f"model {file}: not a program that torch can read: {said}") from None


def read_states(file: Path) -> dict[str, State]:
    """Every set of weights that a file holds, by where it is in it ("" for the file itself).

    Read with `weights_only`: a file that would run code is refused.

    Raises:
        InputError: it cannot be read, or holds no weights.
    """
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"weights {file}: the file holds more than weights, and would run code when it is "
            "read: save model.state_dict() alone"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"weights {file}: cannot be read: {one_line(error)[:150]}") from None
    found = dict(_states(content, ""))
    if not found:
        kind = type(content).__name__
        raise InputError(f"weights {file}: no weights are in it, only a {kind}")
    return found


def _states(content: Any, where: str) -> Iterator[tuple[str, State]]:
    if not isinstance(content, Mapping):
        return
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if tensors and len(tensors) >= len(content) / 2:
        yield where, tensors
    for key, inner in content.items():
        if isinstance(inner, Mapping):
            yield from _states(inner, f"{where}.{key}".lstrip("."))


def bare(state: State) -> State:
    """Weights without what wrappers put before their names.

    Example:
        >>> list(bare({"module.fc.weight": torch.zeros(1), "module.fc.bias": torch.zeros(1)}))
        ['fc.weight', 'fc.bias']
    """
    while True:
        for prefix in PREFIXES:
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
                break
        else:
            return state


def _misfits(state: State, model: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """Names that are missing, unexpected, and of another shape."""
    wanted = model.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in state and name not in counters]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} ({_shape(state[name])}, not {_shape(wanted[name])})"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    return missing, unexpected, shapes


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "1"


def load_weights_file(file: Path, model: nn.Module, architecture: str) -> str:
    """Load a file's weights into a network.

    Of several sets in the file (`model`, `ema`, …) the one that fits is taken; if more do, an
    averaged one (`ema`), else the first. Names are tried as they are, then without the prefixes of
    wrappers.

    Args:
        architecture: what the network is called, for messages.

    Returns:
        what was taken, as a line; empty if that goes without saying.

    Raises:
        InputError: no set fits; the message says what is missing, unexpected or of another shape.
    """
    closest: tuple[int, str] | None = None
    sets = sorted(read_states(file).items(), key=lambda item: "ema" not in item[0].lower())
    for where, state in sets:
        for said, named in (("", state), (", without prefixes", bare(state))):
            missing, unexpected, shapes = _misfits(named, model)
            if not (missing or unexpected or shapes):
                model.load_state_dict(named, strict=False)
                taken = f"{where!r} taken" if where else ""
                return f"{file.name}: {taken or 'weights taken'}{said}" if taken or said else ""
            kinds = (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
            )
            told = "; ".join(f"{len(n)} {kind}: {_few(n)}" for kind, n in kinds if n)
            wrong = len(missing) + len(unexpected) + len(shapes)
            if closest is None or wrong < closest[0]:
                closest = wrong, told
    assert closest is not None
    raise InputError(f"weights {file} do not fit {architecture}: {closest[1]}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
