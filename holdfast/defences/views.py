"""A defended model as its attackers may look at it."""

from __future__ import annotations

from torch import nn

from ..models.backward import offering, with_backward
from ..threat import Images
from .base import Defence, Model, declared


def views(model: Model) -> dict[str, Model]:
    """The model by each backward pass that is offered inside it besides the one in use.

    All answer the same and differ in their gradients alone. A view in which nothing would differ
    from the model itself is left out.
    """
    found: dict[str, Model] = {}
    if isinstance(model, nn.Module):
        known = [_in_use(model)]
        for backward in declared(model).backwards:
            view = with_backward(model, backward)
            if _in_use(view) not in known:
                known.append(_in_use(view))
                found[backward] = view
    return found


def _in_use(model: Model) -> list[str]:
    return [module.backward for module in offering(model)]


def shown(model: Model, images: Images) -> Images:
    """What the network behind a chain of defences sees of images, (N, C, H, W) in [0, 1]."""
    while isinstance(model, Defence):
        images, model = model.defended(images), model.model
    return images
