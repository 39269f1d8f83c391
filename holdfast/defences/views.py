"""The backward passes by which a defended model may be attacked."""

from __future__ import annotations

from torch import nn

from ..models.backward import offering, with_backward
from ..types import Images, Model
from .base import Defence, declared


def views(model: Model) -> dict[str, Model]:
    """The model with each further backward pass that some part of it offers, by its name.

    All views give the same logits; only their gradients differ. A view with the same gradients as
    the model, or as another view, is left out.

    Example:
        >>> from holdfast.defences import Jpeg
        >>> defended = Jpeg(nn.Flatten())
        >>> defended.backward, list(views(defended))
        ('surrogate', ['identity'])
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
    """The images (N, C, H, W) that the network behind a chain of defences gets, in [0, 1].

    Example:
        >>> import torch
        >>> from holdfast.defences import BitDepth
        >>> shown(BitDepth(nn.Flatten(), bits=1), torch.full((1, 1, 1, 2), 0.7))
        tensor([[[[1., 1.]]]])
    """
    while isinstance(model, Defence):
        images, model = model.defended(images), model.model
    return images
