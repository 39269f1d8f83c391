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
from .naming import NORMALISE, Fitting, State, bare, fitting, translations, without_leftovers

ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".th")
SHOWN = 3  # names of each kind in a message


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
    averaged one (`ema`), else the first. Names are tried as they are, without the prefixes of
    wrappers and the leftovers of publications, and as publications write them.

    Args:
        architecture: what the network is called: one of ours with its options, or any other.

    Returns:
        what was taken, as a line; empty if that goes without saying.

    Raises:
        InputError: no set fits; the message says what is missing, unexpected or of another shape,
            and which network of ours would fit.
    """
    closest: tuple[int, str] | None = None
    states = read_states(file)
    sets = sorted(states.items(), key=lambda item: "ema" not in item[0].lower())
    for where, state in sets:
        for said, named in _readings(state, model, architecture.partition(":")[0]):
            missing, unexpected, shapes = _misfits(named, model)
            if not (missing or unexpected or shapes):
                _check_numbers(file, named)
                model.load_state_dict(named, strict=False)
                taken = [f"{where!r} taken"] if where else []
                taken += [said] if said else []
                taken += _precision(named)
                return f"{file.name}: {', '.join(taken)}" if taken else ""
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
    hint = hint_of(states)
    raise InputError(
        f"weights {file} do not fit {architecture}: {closest[1]}{'; ' if hint else ''}{hint}"
    )


def _readings(state: State, model: nn.Module, name: str) -> Iterator[tuple[str, State]]:
    """What to say of each way to read the names of a file's weights, and the weights so named."""
    yield "", state
    yield "prefixes taken off", bare(state)
    kept, left_out = without_leftovers(state)
    if left_out:
        yield f"left out: {_few(list(left_out))}", kept
    own = model.state_dict()
    for translated in translations(state):
        if translated.architecture == name:
            normalised = "by the file" if translated.normalised else "as the architecture says"
            said = f"published names, normalised {normalised}"
            if translated.left_out:
                said += f", left out: {_few(list(translated.left_out))}"
            yield (
                said,
                translated.state | {key: _mean(key, translated.state, own) for key in NORMALISE},
            )


def _mean(key: str, state: State, own: State) -> Tensor:
    """A normalisation's entry, for each channel: the file's, else the network's own."""
    value = state.get(key, own[key])
    return value.expand_as(own[key]) if value.numel() == 1 else value


def _check_numbers(file: Path, state: State) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"weights {file}: {name!r} holds numbers that are not finite")


def _precision(state: State) -> list[str]:
    """That weights are of a low precision, where they are."""
    kinds = {str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point()}
    low = sorted(kinds - {"float32", "float64"})
    return [f"{' and '.join(low)} weights used in float32"] if low else []


def hint_of(states: Mapping[str, State]) -> str:
    """Which network of ours would fit one of a file's sets of weights, as a line; empty if none."""
    for state in states.values():
        found: Fitting | None = fitting(state)
        if found is not None:
            unsaid = f" (shapes do not tell {'; '.join(found.open)})" if found.open else ""
            return f"they fit --architecture {found.architecture}{unsaid}"
    return ""


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
