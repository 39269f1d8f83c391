"""Checks at the public door: what a caller hands over is right, or one line says what is wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import InputError


def check_images(images: Tensor, name: str = "images") -> None:
    """Float32 (N, C, H, W), N ≥ 1, finite, in [0, 1]; InputError saying which image is not."""
    if not isinstance(images, Tensor):
        raise InputError(f"{name} must be a torch.Tensor, not {type(images).__name__}")
    if images.dtype != torch.float32:
        raise InputError(f"{name} must be float32 in [0, 1], not {images.dtype}")
    if images.ndim != 4:
        raise InputError(f"{name} must have shape (N, C, H, W), not {tuple(images.shape)}")
    if not images.numel():
        raise InputError(f"{name} is empty: {tuple(images.shape)}")
    flat = images.flatten(1)
    for fault, bad in (
        ("holds NaN or infinite values", _not_finite(flat)),
        ("has values outside [0, 1]", (flat.amin(1) < 0) | (flat.amax(1) > 1)),
    ):
        if bool(bad.any()):
            first, hint = int(bad.nonzero()[0]), ""
            if "outside" in fault:
                low, high = float(flat.amin()), float(flat.amax())
                if low >= 0 and 2 < high <= 255:
                    hint = ": divide by 255"
                elif low < 0:
                    hint = ": normalisation belongs inside the model"
            raise InputError(
                f"{name}[{first}] {fault} ({int(bad.sum())} of {len(images)} do){hint}"
            )


def check_count(name: str, value: Any) -> None:
    """InputError where it is no whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise InputError(f"{name} must be at least 1, not {value}")


def _not_finite(flat: Tensor) -> Tensor:
    """Which rows hold NaN or infinities, without copies of all of them at once."""
    return ~torch.cat([torch.isfinite(part).all(1) for part in flat.split(128)])


def _place(first: int | Tensor, row: int) -> int:
    return int(first[row]) if isinstance(first, Tensor) else first + row


def check_labels(
    labels: Tensor,
    count: int,
    classes: int | None = None,
    first: int | Tensor = 0,
    name: str = "labels",
) -> None:
    """Int64 (count,), in [0, classes); InputError saying which label is not.

    Args:
        first: where these labels begin among all, or the place of each, for the message.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"{name} must be an int64 torch.Tensor, not {kind}")
    if labels.shape != (count,):
        raise InputError(f"{name} must have shape ({count},), not {tuple(labels.shape)}")
    bad = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if bool(bad.any()):
        place = int(bad.nonzero()[0])
        top = "" if classes is None else f"; the model has {classes} classes"
        raise InputError(
            f"{name}[{_place(first, place)}] is {int(labels[place])}, out of range{top}"
        )


def check_logits(logits: Tensor, count: int, labels: Tensor, first: int | Tensor = 0) -> Tensor:
    """The model's answer as float32 (count, K) with K above every label, finite.

    Args:
        first: where these images begin among all, or the place of each, for the message.

    Raises:
        InputError: another shape, NaN or infinities, or fewer classes than the labels need.
    """
    if not isinstance(logits, Tensor):
        raise InputError(f"the model returned a {type(logits).__name__}, not a tensor of logits")
    if logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] < 2:
        raise InputError(
            f"the model returned shape {tuple(logits.shape)} for {count} images; "
            "logits must be (N, K) with K ≥ 2"
        )
    check_labels(labels, count, logits.shape[1], first)
    bad = ~torch.isfinite(logits).all(1)
    if bool(bad.any()):
        raise InputError(
            "the model returned NaN or infinite logits for image "
            f"{_place(first, int(bad.nonzero()[0]))}"
        )
    return logits.float()
