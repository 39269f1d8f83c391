"""Tensors in safetensors files, which may come from anybody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from torch import Tensor

from ..errors import InputError
from .files import check_regular

T = TypeVar("T")


def opened(file: Path, read: Callable[[Any], T]) -> T:
    """What `read` makes of an open safetensors file.

    Raises:
        InputError: there is no such file, it is no regular one, or it is damaged.
    """
    check_regular(file)
    try:
        with safe_open(file, "pt") as content:
            return read(content)
    except Exception as error:  # of the library's own and of torch's, of many kinds
        raise InputError(f"{file} is damaged: {' '.join(str(error).split())}") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file by name; as `opened`."""
    return opened(file, lambda content: {k: content.get_tensor(k) for k in content.keys()})  # noqa: SIM118


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with memory of its own: a file holds twice what two names share."""
    seen: set[int] = set()
    held: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        held[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return held
