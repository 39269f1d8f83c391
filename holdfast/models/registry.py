"""Architectures by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..errors import InputError
from ..files import nearest
from .resnet import PreActResNet, WideResNet
from .small_cnn import SmallCNN

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "preact-resnet": PreActResNet,
    "wide-resnet": WideResNet,
    "small-cnn": SmallCNN,
}


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: a key of `ARCHITECTURES`.
        arguments: its keyword arguments.

    Raises:
        InputError: unknown name or argument (with the nearest known one), or a bad value.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"architecture {name!r} is unknown{nearest(name, ARCHITECTURES)}")
    known = inspect.signature(ARCHITECTURES[name]).parameters
    for key in arguments:
        if key not in known:
            raise InputError(f"{name} has no argument {key!r}{nearest(key, known)}")
    return ARCHITECTURES[name](**arguments)
