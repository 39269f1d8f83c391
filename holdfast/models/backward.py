"""Modules that offer an attacker several backward passes for one and the same answer."""

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
    """`value`, bit for bit, with the gradient of `stand_in` (of the same shape).

    Backward-pass differentiable approximation (Athalye, Carlini & Wagner, "Obfuscated gradients
    give a false sense of security", ICML 2018).
    """
    return _ReplaceBackward.apply(value, stand_in)


class OffersBackwards(nn.Module):
    """A module whose gradient may be that of something else.

    Attributes:
        backwards: what an attacker may choose from, the default first: `exact`, the module's own
            gradient; `identity`, straight through, as if it did nothing; `surrogate`, the gradient
            of a smooth or learned stand-in.
        backward: the one in use.
    """

    backwards: ClassVar[tuple[str, ...]] = ("exact",)

    def __init__(self) -> None:
        super().__init__()
        self.backward = self.backwards[0]


def offering(model: Any) -> list[OffersBackwards]:
    """The modules inside a model that offer a choice of backward passes, itself among them."""
    if not isinstance(model, nn.Module):
        return []
    return [module for module in model.modules() if isinstance(module, OffersBackwards)]


M = TypeVar("M", bound=nn.Module)


def with_backward(module: M, backward: str) -> M:
    """The same module (weights shared), where whatever offers this backward pass takes it."""
    if not any(backward in inner.backwards for inner in offering(module)):
        return module
    # Shallow copies of the modules on the way there; everything else stays shared.
    fast_copy = copy.copy(module)
    fast_copy._modules = {
        name: child if child is None else with_backward(child, backward)
        for name, child in module._modules.items()
    }
    if isinstance(fast_copy, OffersBackwards) and backward in fast_copy.backwards:
        fast_copy.backward = backward
    return fast_copy
