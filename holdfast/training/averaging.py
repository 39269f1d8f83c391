"""Averages of weights, and batch-norm statistics that fit them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Every batch norm of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, training-mode passes leave the running batch-norm statistics as they are.

    The passes of an inner attack see points that the model is never evaluated on; their
    statistics must not leak into the running averages.
    """
    saved = [(norm, norm.track_running_stats) for norm in batch_norms(model)]
    for norm, _ in saved:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracks in saved:
            norm.track_running_stats = tracks


class WeightAverage:
    """Exponential moving average of a model's weights.

    The decay warms up as min(decay, (1 + t) / (10 + t)), so that the random start is forgotten
    within the first steps. Batch-norm statistics are not averaged: statistics of averaged
    weights are not averages of statistics. Call `estimate_statistics` before using the average.
    Other buffers are those of the live model.
    Izmailov et al., "Averaging weights leads to wider optima", UAI 2018.

    Args:
        model: whose weights are averaged.
        decay: per step, in [0, 1); 0 makes the average a copy.
        share: if above 0, in place of `decay`: the memory grows with the run and is about this
            share of the steps so far. Step t is then weighted by t^(1/share − 1): decay
            (1 − 1/t)^(1/share) (Karras et al., "Analyzing and improving the training dynamics of
            diffusion models", CVPR 2024).
    """

    # `torch.optim.swa_utils.AveragedModel` is another average: its first update copies the live
    # weights whole, and every update copies their batch-norm statistics, which belong to others.

    def __init__(self, model: nn.Module, decay: float, share: float = 0.0):
        self.decay, self.share = decay, share
        self.steps = 0
        self.model = copy.deepcopy(model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model` after one more step."""
        self.steps += 1
        if self.share:
            decay = (1 - 1 / self.steps) ** (1 / self.share)
        else:
            decay = min(self.decay, self.steps / (self.steps + 9))
        average: list[Tensor] = [*self.model.parameters()]
        live: list[Tensor] = [*model.parameters()]
        torch._foreach_lerp_(average, live, 1 - decay)
        norms = {id(buffer) for norm in batch_norms(model) for buffer in norm.buffers()}
        for held, now in zip(self.model.buffers(), model.buffers(), strict=True):
            if id(now) not in norms:  # such as the vectors of a spectral norm
                held.copy_(now)


def estimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running batch-norm statistics to the mean over `batches` of images.

    The model is left in eval mode, also after an error. Without batch norms nothing is computed.
    """
    momenta = [(norm, norm.momentum) for norm in batch_norms(model)]
    try:
        update_bn(batches, model)
    finally:
        for norm, momentum in momenta:  # which `update_bn` leaves changed where a batch fails
            norm.momentum = momentum
        model.eval()
