"""Fast twins: copies of a model that answer the same, sooner.

A twin is only ever used to *search*; every verdict is checked on the original model.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from ..attacks.base import Model
from ..attacks.losses import margin


@dataclass(frozen=True)
class Twin:
    """A callable that answers as the original does, up to rounding.

    Attributes:
        model: images (N, C, H, W) → float32 logits.
        name: `original`, `float32` or `bf16`.
        error: the largest difference of margins (in logits) from the original on the probe.
    """

    model: Model
    name: str
    error: float


def original(model: Model) -> Twin:
    """The model itself as its own twin."""
    return Twin(model, "original", 0.0)


class _Folded(nn.Module):
    """A folded copy in channels-last layout and one number format."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.body = model
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        if self.dtype == torch.float32:
            return self.body(x)
        # Autocast rather than a cast model: sums, softmax and norms stay in float32.
        with torch.autocast(images.device.type, self.dtype):
            return self.body(x).float()


def fast_twin(model: Model, probe: Tensor, labels: Tensor, precision: str) -> Twin | None:
    """A folded, channels-last copy of a module, or None where it cannot serve.

    Batch norms are folded into the convolutions before them where the module can be traced; the
    copy is used only if it answers finite logits whose margins stay close to the original's.

    Args:
        model: in eval mode. Only an `nn.Module` has a twin.
        probe: images (N, C, H, W) on the model's device to compare on.
        labels: int64 (N,).
        precision: `float32` or `bf16`.
    """
    if not isinstance(model, nn.Module):
        return None
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            copied = fuse(model.eval())  # copies
        except Exception:  # tracing runs the user's code: anything may be raised
            try:
                copied = copy.deepcopy(model)
            except Exception:  # a module that cannot be copied has no twin
                return None
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    twin = _Folded(copied.eval().to(memory_format=torch.channels_last), dtype)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            reference, answer = model(probe).float(), twin(probe)
        if answer.shape != reference.shape or not bool(torch.isfinite(answer).all()):
            return None
        error = float((margin(answer, labels) - margin(reference, labels)).abs().max())
        spread = float(reference.double().std())  # squares of large logits overflow float32
    except (RuntimeError, TypeError, ValueError):
        return None
    # A model that draws random numbers, or a folding gone wrong, does not answer the same.
    allowed = 0.25 if precision == "bf16" else 1e-3
    return Twin(twin, precision, error) if error <= allowed * max(spread, 1e-6) else None


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, p, lambda: False)() for p in probes)
