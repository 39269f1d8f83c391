"""Files of weights, as people save them: read without running code, and fitted to a network."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import InputError
from ..parsing import one_line
from ..placeholders import placeholder_at
from ..runs.files import read_json
from .naming import (
    NORMALISE,
    State,
    Translated,
    fitting,
    resembling,
    translations,
    without_leftovers,
)
from .pickled import Foreign, is_module, module_state, read_pickled
from .programs import is_program
from .published import name_of_normalisation

ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".th", ".tar", ".npz", ".index.json")
INDEX = ".index.json"
UNSAID = ("torch", "numpy", "_codecs", "builtins", "collections")  # no objects of somebody's own
SHOWN = 3  # names of each kind in a message


class Held(NamedTuple):
    """What a file of weights holds.

    Attributes:
        states: every set of weights, by where it is in the file ("" for the file itself).
        said: what was left out on the way, as a line; empty if nothing.
    """

    states: dict[str, State]
    said: str = ""


def read_states(file: Path) -> Held:
    """Every set of weights that a file holds. No code is run, whatever the file says.

    Files of `torch.save` may hold other objects beside the weights, or be a whole pickled model:
    `pickled.py`. `.safetensors` and `.npz` are read too, and an index of files that hold parts
    (`model.safetensors.index.json`).

    Raises:
        InputError: it cannot be read, would run code, or holds no weights.
    """
    foreign: set[str] = set()
    try:
        if file.name.endswith(INDEX):
            content: Any = _in_parts(file)
        elif file.suffix == ".safetensors":
            content = load_file(file)
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                content = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            content, foreign = _saved(file)
        found = dict(_states(content, ""))
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        if instead := placeholder_at(file):
            raise InputError(f"weights {file}: cannot be read: {instead}") from None
        if "GLOBAL" in str(error) or "unrecognized function" in str(error):
            raise InputError(
                f"weights {file}: the file holds more than weights, and would run code when it is "
                "read: save model.state_dict() alone"
            ) from None
        raise InputError(
            f"weights {file}: cannot be read: not what torch.save writes of weights; save "
            "model.state_dict() alone"
        ) from None
    except Exception as error:  # of any reader, on a file that somebody else wrote
        said = placeholder_at(file) or _damaged(file) or one_line(error).split(". ")[0][:150]
        raise InputError(f"weights {file}: cannot be read: {said}") from None
    if not found:
        kind = type(content).__name__
        if isinstance(content, Foreign):
            kind = f"pickled {content.called}, whose code is not run"
        raise InputError(f"weights {file}: no weights are in it, only a {kind}")
    if is_module(content):
        return Held(found, f"a pickled {content.called}, whose weights are read and code is not")
    others = sorted(name for name in foreign if name.split(".")[0] not in UNSAID)
    return Held(found, f"not read: objects of {_few(others)}" if others else "")


def _damaged(file: Path) -> str:
    """What is wrong with a file that neither is what its beginning or its ending says, nor whole;
    empty where nothing is known."""
    with file.open("rb") as opened:
        start = opened.read(4)
    if start == b"PK\x03\x04":
        return "damaged or cut off; copy it again"
    if file.suffix == ".npz":
        return "no .npz file"
    if file.suffix != ".safetensors" and not file.name.endswith(INDEX) and start[:1] != b"\x80":
        return "not what torch.save writes; save model.state_dict() alone"
    return ""


def _saved(file: Path) -> tuple[Any, set[str]]:
    """The content of a file of `torch.save`, and the names of foreign classes in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other pickle protocols
        try:
            return torch.load(file, map_location="cpu", weights_only=True), set()
        except pickle.UnpicklingError:
            if not zipfile.is_zipfile(file):  # of before torch 1.6
                raise
            return read_pickled(file)


def _in_parts(index: Path) -> State:
    """The weights that an index finds in the files beside it."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"weights {index}: no 'weight_map' says which file holds what")
    state: State = {}
    for name in sorted({str(value) for value in listed.values()}):
        if Path(name).name != name or name in ("", ".", ".."):
            raise InputError(f"weights {index}: {name!r} is not a file beside it")
        part = index.parent / name
        if not part.is_file():
            raise InputError(f"weights {index}: {name} is missing beside it")
        if name.endswith(INDEX):
            raise InputError(f"weights {index}: {name} is an index too")
        state |= read_states(part).states.get("", {})
    lost = sorted(set(map(str, listed)) - state.keys())
    if lost:
        raise InputError(f"weights {index}: no file holds {_few(lost)}")
    return {name: value for name, value in state.items() if name in listed}


def weights_in(folder: Path) -> Path | None:
    """The one file of weights in a folder, as libraries name it; None if there is none."""
    for name in (f"model.safetensors{INDEX}", "model.safetensors", f"pytorch_model.bin{INDEX}",
                 "pytorch_model.bin"):  # fmt: skip
        if (folder / name).is_file():
            return folder / name
    return None


def takes_architecture(source: str) -> bool:
    """Whether a model is a file of weights alone, or a folder that holds one."""
    file = Path(source)
    if os.path.isdir(file):
        return not os.path.isfile(file / "card.json") and weights_in(file) is not None
    return os.path.isfile(file) and not is_program(file)


def _states(content: Any, where: str) -> Iterator[tuple[str, State]]:
    if is_module(content):
        yield where, dict(module_state(content))
        return
    if isinstance(content, Foreign):
        content = {**content.attributes, **content.items}
    elif isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping):
        return
    tensors = {str(k): v for k, each in content.items() if (v := _tensor(each)) is not None}
    if tensors and len(tensors) >= len(content) / 2:
        yield where, tensors
    for key, inner in content.items():
        if isinstance(inner, Mapping | Foreign | list | tuple):
            yield from _states(inner, f"{where}.{key}".lstrip("."))


def _tensor(value: Any) -> Tensor | None:
    """A tensor, or an array of numbers as one; None of anything else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    return None


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
    held = read_states(file)
    sets = sorted(held.states.items(), key=lambda item: "ema" not in item[0].lower())
    for where, state in sets:
        for said, named in readings(state, model, architecture.partition(":")[0]):
            missing, unexpected, shapes = _misfits(named, model)
            if not (missing or unexpected or shapes):
                plain = _in_full(file, named, model)
                _check_numbers(file, plain)
                model.load_state_dict(plain, strict=False)
                taken = [f"{where!r} taken"] if where else []
                taken += [said] if said else []
                taken += [*_precision(named), *([held.said] if held.said else [])]
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
    hint = hint_of(held)
    raise InputError(
        f"weights {file} do not fit {architecture}: {closest[1]}{'; ' if hint else ''}{hint}"
    )


def readings(state: State, model: nn.Module, name: str) -> Iterator[tuple[str, State]]:
    """What to say of each way to read the names of a file's weights, and the weights so named."""
    own = model.state_dict()
    for which, part in _parts(state):
        kept, left_out = without_leftovers(part)
        without = f"left out: {_few(list(left_out))}" if left_out else ""
        yield which, part
        yield _joined(which, without or "prefixes taken off"), kept
        for found in translations(part):
            if found.architecture == name:
                normalise = {key: _mean(key, found.state, own) for key in NORMALISE}
                said = f"published names, {_normalised(found, normalise)}"
                yield _joined(which, said, without), found.state | normalise


def _normalised(found: Translated, normalise: State) -> str:
    """By what images are normalised, in words."""
    if found.normalised:
        return "normalised by the file"
    name = name_of_normalisation(*(normalise[key].flatten() for key in NORMALISE))
    return f"normalise={name}, since the file says nothing" if name else "normalised as built"


def _parts(state: State) -> Iterator[tuple[str, State]]:
    """The weights; then those of each network in it, such as `model` beside `teacher`."""
    yield "", state
    groups = dict.fromkeys(name.partition(".")[0] for name in state if "." in name)
    if len(groups) > 1:
        for group in groups:
            start = f"{group}."
            part = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            others = [other for other in groups if other != group]
            yield f"{group!r} taken, left out: {_few(others)}", part


def _joined(*said: str) -> str:
    return ", ".join(part for part in said if part)


def _mean(key: str, state: State, own: State) -> Tensor:
    """A normalisation's entry, for each channel: the file's, else the network's own."""
    value = state.get(key, own[key])
    return value.expand_as(own[key]) if value.numel() == 1 else value


def _in_full(file: Path, state: State, model: nn.Module) -> State:
    """Weights that fit a network by name and shape, dense and of its kinds of numbers.

    Raises:
        InputError: integers where the network has fractions, which say nothing without the scales
            that they were quantised by; complex numbers where it has none; tensors without numbers.
    """
    plain: State = {}
    wanted = model.state_dict()
    for name, value in state.items():
        if value.is_meta:
            raise InputError(f"weights {file}: {name!r} has a shape and no numbers")
        if value.is_quantized:
            value = value.dequantize()
        if value.layout != torch.strided:
            value = value.to_dense()
        own, numbers = wanted.get(name), str(value.dtype).removeprefix("torch.")
        if own is None:
            continue  # a counter, which is not used
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        if own.is_floating_point() and whole and value.numel() > 1:
            raise InputError(
                f"weights {file}: {name!r} holds {numbers} numbers, and the network's are "
                "fractions: quantised weights without their scales, it seems; save them as float32"
            )
        if value.is_complex() and not own.is_complex():
            raise InputError(
                f"weights {file}: {name!r} holds {numbers} numbers, the network's are real"
            )
        plain[name] = value
    return plain


def _check_numbers(file: Path, state: State) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(
            torch.isfinite(value.float() if value.itemsize == 1 else value).all()
        ):
            raise InputError(f"weights {file}: {name!r} holds numbers that are not finite")


def _precision(state: State) -> list[str]:
    """That weights are sparse, quantised or of a low precision, where they are."""
    said = [
        word
        for word, found in (
            ("sparse weights filled up with zeros", lambda v: v.layout != torch.strided),
            ("quantised weights multiplied by their scales", lambda v: v.is_quantized),
        )
        if any(map(found, state.values()))
    ]
    kinds = {str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point()}
    low = sorted(kinds - {"float32", "float64"})
    return said + ([f"{' and '.join(low)} weights used in float32"] if low else [])


def hint_of(held: Held) -> str:
    """Which network of ours one of a file's sets of weights fits, or looks like; empty if none."""
    for state in held.states.values():
        found = next((fit for _, part in _parts(state) if (fit := fitting(part))), None)
        if found is not None:
            unsaid = f" (shapes do not tell {'; '.join(found.open)})" if found.open else ""
            return f"they fit --architecture {found.architecture}{unsaid}"
    return next((line for state in held.states.values() if (line := resembling(state))), "")


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
