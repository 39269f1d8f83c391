"""Choosing the batch size by measuring."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..attacks.base import Model, Oracle
from ..models.wrapper import is_out_of_memory
from ..stored import ModelImages

SIZES = {"cpu": (32, 64, 128, 256), "cuda": (128, 256, 512, 1024, 2048)}
WORTHWHILE = 1.05  # a larger batch must be this much faster per image


def measure_batch_size(
    model: Model, images: ModelImages, device: torch.device, differentiable: bool = True
) -> int:
    """The batch size from which on larger ones bring little, within memory.

    Args:
        model: what the search queries.
        images: (N, C, H, W); no batch is larger than N.
        differentiable: whether gradients are timed, or forward passes alone.
    """
    oracle = Oracle(model)
    chosen, best = min(len(images), SIZES["cpu"][0]), 0.0
    for size in SIZES.get(device.type, SIZES["cpu"]):
        if size > len(images):
            break
        x = images[:size].to(device)
        try:
            seconds = _seconds(oracle, x, differentiable)
            if size / seconds < WORTHWHILE * best:  # the first call of a size also prepares it
                seconds = min(seconds, _seconds(oracle, x, differentiable))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        if size / seconds < WORTHWHILE * best:
            break
        chosen, best = size, size / seconds
    return chosen


def seconds_per_image(model: Model, images: Tensor, differentiable: bool = True) -> float:
    """Seconds that one iteration of one image takes in such a batch.

    Args:
        images: (N, C, H, W) on the model's device.
        differentiable: whether an iteration takes a gradient, or a forward pass alone.
    """
    oracle = Oracle(model)
    return min(_seconds(oracle, images, differentiable) for _ in range(2)) / len(images)


def _seconds(oracle: Oracle, x: Tensor, differentiable: bool) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    if differentiable:
        oracle.gradient(x, lambda z: z[:, 0] - z[:, 1])
    else:
        oracle.logits(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return max(time.perf_counter() - began, 1e-9)
