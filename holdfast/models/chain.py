"""Modules in front of a model: what a chain of defences is made of."""

from __future__ import annotations

import copy

from torch import nn

from ..types import Model


class InFront(nn.Module):
    """A module that changes the images on their way to another model, `model`."""

    model: Model


def undefended(model: Model) -> Model:
    """The network behind a chain of defences; the model itself where there is none."""
    while isinstance(model, InFront):
        model = model.model
    return model


def onto(model: Model, network: Model) -> Model:
    """The same chain of defences (their weights shared) in front of another network."""
    if not isinstance(model, InFront):
        return network
    behind = copy.copy(model)
    behind._modules = dict(model._modules)
    # A module and a bare function live in different places of a module: make room in both.
    behind._modules.pop("model", None)
    behind.__dict__.pop("model", None)
    behind.model = onto(model.model, network)
    return behind
