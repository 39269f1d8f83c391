"""What a run is: hashes of all that can change its result."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..types import Stored
from ..version import VERSION

TOGETHER = 64  # images that are read at once
PACKAGE = Path(__file__).resolve().parents[1]


def digest(*parts: bytes | np.ndarray | Tensor | str | Stored) -> str:
    """SHA-256 over the parts, their lengths, shapes and types included.

    Images that are not in memory are read a few at a time, and give what they give in memory.
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Stored):
            sha.update(f"{str(part.dtype).removeprefix('torch.')}{tuple(part.shape)}".encode())
            for begin in range(0, len(part), TOGETHER):
                read = part[begin : begin + TOGETHER]
                read = read.cpu() if isinstance(read, Tensor) else read
                sha.update(np.ascontiguousarray(read).data.cast("B"))
            continue
        if isinstance(part, Tensor):
            part = part.detach().cpu()
            if part.dtype == torch.bfloat16:  # NumPy has no such type
                sha.update(b"bfloat16")
                part = part.view(torch.int16)
            part = part.numpy()
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype}{part.shape}".encode())
            if part.size:  # an empty array's memory cannot be cast
                sha.update(np.ascontiguousarray(part).data.cast("B"))
        else:
            content = part.encode() if isinstance(part, str) else part
            sha.update(f"{len(content)}:".encode())
            sha.update(content)
    return sha.hexdigest()


def fingerprint(image: Tensor) -> int:
    """The first 52 bits of an image's `digest`: a number that any table holds exactly.

    That two different images of 10,000 share one has a chance of 1 in 90 million.
    """
    return int(digest(image)[:13], 16)


def weights_digest(model: Any) -> str | None:
    """SHA-256 of a module's weights and buffers by name; None for a bare function."""
    if not isinstance(model, nn.Module):
        return None
    state = sorted(model.state_dict().items())
    structure = f"{type(model).__qualname__}\n{model}"
    parts: list[Any] = [structure]
    for name, value in state:
        parts += [name, value] if isinstance(value, Tensor) else [name, repr(value)]
    return digest(*parts)


def settings_digest(model: Any) -> str:
    """SHA-256 of what a module computes with besides its weights.

    Buffers that its state leaves out, and plain attributes of every part: two models with the
    same weights and another temperature are two models.
    """
    if not isinstance(model, nn.Module):
        return digest(getattr(model, "__qualname__", type(model).__qualname__))
    parts: list[Any] = []
    for name, buffer in sorted(model.named_buffers()):
        parts += [name, buffer]
    plain = int | float | str | bytes | bool | None
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            values = value if isinstance(value, tuple | list) else (value,)
            if key == "training" or not all(isinstance(v, plain) for v in values):
                continue
            parts.append(f"{name}.{key}={value!r}")
    return digest(*parts)


def identity(**parts: Any) -> str:
    """The hash of everything that can change a run's result, from JSON-able parts."""
    try:
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except ValueError:
        name = next(name for name, value in _numbers("", parts) if not math.isfinite(value))
        raise InputError(f"{name} is no finite number") from None
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The floats in a JSON value, each with the key that it stands under."""
    if isinstance(value, dict | list | tuple):
        inner = value.items() if isinstance(value, dict) else ((name, part) for part in value)
        for key, part in inner:
            yield from _numbers(str(key), part)
    elif isinstance(value, float):
        yield name, value


@functools.cache
def code_version(*packages: str) -> str:
    """Holdfast's version, and a hash of the given modules' source: a run goes on with that only."""
    sources = sorted(
        file
        for package in packages
        for file in (
            [PACKAGE / package] if package.endswith(".py") else (PACKAGE / package).rglob("*.py")
        )
    )
    sha = hashlib.sha256(b"".join(file.read_bytes() for file in sources))
    return f"{VERSION}+{sha.hexdigest()[:12]}"
