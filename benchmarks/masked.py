"""Models whose gradients mislead: examples on which an attack has to prove that it sees through."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.errors import InputError
from holdfast.parsing import parse_number


class WinnersTakeAll(nn.Module):
    """k-winners-take-all (Xiao, Zhong & Zheng, ICLR 2020) in place of an activation.

    Of each image's activations in a layer, the largest share stays; the others become 0. The loss
    surface is discontinuous nearly everywhere, so that gradients point nowhere useful.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        kept = max(1, round(self.share * flat.shape[1]))
        least = flat.topk(kept, dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, torch.zeros_like(flat)).view_as(x)


class Quantised(nn.Module):
    """Images rounded to a few levels in front of a model: the gradient is zero."""

    def __init__(self, model: nn.Module, levels: int):
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * (self.levels - 1)).round() / (self.levels - 1))


def masked(model: nn.Module, mask: str) -> nn.Module:
    """`kwta:SHARE` (such as kwta:0.2) or `quantised:LEVELS` around a copy of a model.

    Raises:
        InputError: another mask; a model without ReLUs.
    """
    kind, _, amount = mask.partition(":")
    value = parse_number(amount or "0")
    if kind == "quantised" and value >= 2:
        return Quantised(copy.deepcopy(model), int(value)).eval()
    if kind == "kwta" and 0 < value < 1:
        changed = copy.deepcopy(model)
        count = 0
        for part in list(changed.modules()):
            for name, child in list(vars(part).items()) + list(part.named_children()):
                if isinstance(child, nn.ReLU) or child is F.relu:
                    vars(part).pop(name, None)
                    setattr(part, name, WinnersTakeAll(value))
                    count += 1
        if not count:
            raise InputError("the model has no ReLU that winners could take")
        return changed.eval()
    raise InputError(f"mask {mask!r} is unknown; write kwta:0.2 or quantised:8")
