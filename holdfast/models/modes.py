"""Training mode and eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(*models: Any) -> Iterator[None]:
    """Inside, models are in eval mode; afterwards every part is in the mode it was in before.

    Args:
        models: modules, or bare functions, which have no mode.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    training = [
        part
        for model in models
        if isinstance(model, nn.Module)
        for part in model.modules()
        if getattr(part, "training", False)  # a frozen TorchScript module has no mode
    ]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
