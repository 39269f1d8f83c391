"""Modules with several backward passes for one forward pass, of which an attacker may choose."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

BACKWARDS = ("exact", "identity", "surrogate")


class _ReplaceBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def replace_backward(value: Tensor, stand_in: Tensor) -> Tensor:
    """`value`, bit for bit, with the gradient of `stand_in`, which has the same shape.

    This is backward pass differentiable approximation, BPDA (Athalye, Carlini & Wagner, "Obfuscated
    gradients give a false sense of security", ICML 2018).

    Example:
        >>> x = torch.tensor([0.4, 0.7], requires_grad=True)
        >>> rounded = replace_backward(x.round(), x)
        >>> rounded.sum().backward()
        >>> rounded.detach(), x.grad
        (tensor([0., 1.]), tensor([1., 1.]))
    """
    return _ReplaceBackward.apply(value, stand_in)


class OffersBackwards(nn.Module):
    """A module whose backward pass may be that of another function.

    Attributes:
        backwards: the backward passes that an attacker may choose, the default first. `exact` is
            the module's own gradient. `identity` passes the gradient straight through, as if the
            module did nothing. `surrogate` is the gradient of a smooth or learned stand-in.
        backward: the one in use.
    """

    backwards: ClassVar[tuple[str, ...]] = ("exact",)

    def __init__(self) -> None:
        super().__init__()
        self.backward = self.backwards[0]


def offering(model: Any) -> list[OffersBackwards]:
    """Every `OffersBackwards` inside a model, the model itself among them."""
    if not isinstance(model, nn.Module):
        return []
    return [module for module in model.modules() if isinstance(module, OffersBackwards)]


M = TypeVar("M", bound=nn.Module)


def with_backward(module: M, backward: str) -> M:
    """The same module, weights shared; every part that offers this backward pass now uses it."""
    if not any(backward in inner.backwards for inner in offering(module)):
        return module
    # Only modules on the way to such a part are copied; all others are shared.
    shallow = copy.copy(module)
    shallow._modules = {
        name: child if child is None else with_backward(child, backward)
        for name, child in module._modules.items()
    }
    if isinstance(shallow, OffersBackwards) and backward in shallow.backwards:
        shallow.backward = backward
    return shallow
