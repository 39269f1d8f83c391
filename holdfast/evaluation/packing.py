"""A result as bytes, for the other workers of a run: tensors and JSON, no pickle."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from .result import Evaluation

# Lengths of the JSON in front of the tensors.
_PREFIX = 8


def pack(result: Evaluation) -> bytes:
    """All of a result."""
    values = {f.name: getattr(result, f.name) for f in fields(result)}
    tensors = {name: v.contiguous() for name, v in values.items() if isinstance(v, Tensor)}
    plain = {name: _plain(v) for name, v in values.items() if name not in tensors}
    text = json.dumps(plain).encode()
    return len(text).to_bytes(_PREFIX, "little") + text + save(tensors)


def unpack(data: bytes) -> Evaluation:
    """The result that `pack` packed."""
    end = _PREFIX + int.from_bytes(data[:_PREFIX], "little")
    values = {**json.loads(data[_PREFIX:end]), **load(data[end:])}
    return _built(Evaluation, values)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _built(kind: Any, value: Any) -> Any:
    """`value`, of JSON, as the annotation `kind` has it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (kind,) = (k for k in arguments if k is not type(None))
        return _built(kind, value)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(_built(k, v) for k, v in zip(kinds, value, strict=True))
    if isinstance(kind, type) and is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _built(hints[name], v) for name, v in value.items()})
    return value
