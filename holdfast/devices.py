"""Devices by what a caller calls them, or one line that says that they are not there."""

from __future__ import annotations

import torch

from .errors import InputError


def usable(device: str | int | torch.device | None) -> torch.device:
    """A device that tensors can be made on; None: the GPU where there is one, else the CPU.

    Raises:
        InputError: no device of that name, or this machine has none.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # torch has many words for what is not there, some 7,000 long
        reason = " ".join(str(error).split())
        known = f"this machine has {', '.join(present())}"
        if "Expected one of" in reason or "Invalid device string" in reason:
            reason = "torch knows no such device"
        elif isinstance(error, NotImplementedError | ImportError) or len(reason) > 80:
            reason = "it is not there"
        raise InputError(f"device {str(device)!r} cannot be used: {reason}; {known}") from None


def present() -> list[str]:
    """The devices of this machine, by torch's names."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found.append("xpu")
    return found
