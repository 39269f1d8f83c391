"""Architectures by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..errors import InputError
from ..parsing import nearest
from .autoencoder import DenoisingAutoencoder
from .interval_cnn import IntervalCNN
from .mixture import Mixture
from .published import (
    DeepMindPreActResNet,
    DeepMindWideResNet,
    KuangliuPreActResNet,
    ResNet,
    TradesWideResNet,
)
from .resnet import PreActResNet, WideResNet
from .small_cnn import SmallCNN
from .unet import DenoisingUNet

# Classifiers: images → logits.
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "preact-resnet": PreActResNet,
    "wide-resnet": WideResNet,
    "small-cnn": SmallCNN,
    "interval-cnn": IntervalCNN,
    "resnet": ResNet,
    # Published networks, which compute what their publications do.
    "wide-resnet-trades": TradesWideResNet,
    "wide-resnet-deepmind": DeepMindWideResNet,
    "preact-resnet-deepmind": DeepMindPreActResNet,
    "preact-resnet-kuangliu": KuangliuPreActResNet,
}
# Images, and for the U-Net the strength of their noise, → images.
DENOISERS: dict[str, Callable[..., nn.Module]] = {
    "denoising-unet": DenoisingUNet,
    "denoising-autoencoder": DenoisingAutoencoder,
}


def _mixture(
    *,
    robust: Mapping[str, Any] | nn.Module,
    accurate: Mapping[str, Any] | nn.Module,
    weight: float,
    scale: float | None = None,
    power: float = 1.0,
    shift: float = 0.0,
) -> Mixture:
    """A mixture whose parts are given by their own `architecture` and `arguments`, or are there."""
    parts = []
    for name, part in (("robust", robust), ("accurate", accurate)):
        if isinstance(part, nn.Module):
            parts.append(part)
            continue
        whole = isinstance(part, Mapping) and part.keys() == {"architecture", "arguments"}
        if not whole or not isinstance(part["architecture"], str):
            raise InputError(f"mixture: {name} must have 'architecture' and 'arguments', no more")
        parts.append(build(part["architecture"], part["arguments"]))
    return Mixture(*parts, weight=weight, scale=scale, power=power, shift=shift)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **ARCHITECTURES,
    **DENOISERS,
    "mixture": _mixture,
}


def arguments_of(name: str) -> Mapping[str, inspect.Parameter]:
    """The keyword arguments of an architecture.

    Raises:
        InputError: an unknown name; the message holds the nearest known one.

    Example:
        >>> list(arguments_of("small-cnn"))
        ['width', 'classes', 'mean', 'std']
    """
    if name not in NETWORKS:
        raise InputError(f"architecture {name!r} is unknown{nearest(name, NETWORKS)}")
    return inspect.signature(NETWORKS[name]).parameters


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: a key of `NETWORKS`.
        arguments: its keyword arguments.

    Raises:
        InputError: unknown name or argument (with the nearest known one), or a bad value.

    Example:
        >>> type(build("small-cnn", {"width": 8})).__name__
        'SmallCNN'
    """
    known = arguments_of(name)
    for key in arguments:
        if key not in known:
            raise InputError(f"{name} has no argument {key!r}{nearest(key, known)}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise InputError(f"{name} needs its argument {key!r}")
    try:
        return NETWORKS[name](**arguments)
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        # A value of a kind or size that no layer takes.
        said = " ".join(str(error).split("\n")[0].split())
        raise InputError(f"{name} cannot be built with these arguments: {said}") from None
