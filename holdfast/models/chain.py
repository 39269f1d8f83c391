"""Modules in front of a network that change its images: what a chain of defences consists of."""

from __future__ import annotations

import copy

from torch import nn

from ..types import Model


class Preprocessor(nn.Module):
    """A module that changes the images and hands them on to another model.

    Attributes:
        model: which gets the changed images: the network, or the next preprocessor of a chain.
    """

    model: Model


def undefended(model: Model) -> Model:
    """The network behind a chain of defences; the model itself where there is none.

    Example:
        >>> from holdfast.defences import Jpeg, Median
        >>> network = nn.Flatten()
        >>> undefended(Jpeg(Median(network))) is network
        True
    """
    while isinstance(model, Preprocessor):
        model = model.model
    return model


def with_network(model: Model, network: Model) -> Model:
    """The same chain of defences, weights shared, in front of another network.

    Example:
        >>> from holdfast.defences import Jpeg, Median
        >>> other = nn.Flatten()
        >>> chain = with_network(Jpeg(Median(nn.Flatten())), other)
        >>> type(chain).__name__, type(chain.model).__name__, undefended(chain) is other
        ('Jpeg', 'Median', True)
    """
    if not isinstance(model, Preprocessor):
        return network
    shallow = copy.copy(model)
    shallow._modules = dict(model._modules)
    # `setattr` keeps a module in `_modules`, a bare function in `__dict__`: make room in both.
    shallow._modules.pop("model", None)
    shallow.__dict__.pop("model", None)
    shallow.model = with_network(model.model, network)
    return shallow
