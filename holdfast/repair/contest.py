"""Which of several gradients of one model leads an attack further: a short search by each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..attacks.losses import margin_loss
from ..draws import fixed_draws
from ..models.wrapper import is_out_of_memory
from ..types import Images, Labels, Model

SIZES = (8 / 255, 32 / 255)  # of the balls that are searched, until an image is broken
STEPS = 10
LEAST = 1e-12  # a gradient below this is none
CLEARLY = 2  # images more that a gradient breaks


@contextmanager
def same_draws() -> Iterator[None]:
    """Inside, a random model draws the same every time; afterwards torch's generators are as they
    were."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices), fixed_draws(0):
        torch.manual_seed(0)
        yield


def best(model: Model, first: Model, others: Sequence[Model], x: Images, y: Labels) -> Model:
    """The model among `first` and `others` whose gradient breaks the most images of `model`, whose
    answers all of them have. `first` is left only for what breaks clearly more."""
    for eps in SIZES:
        with same_draws():
            led = broken(model, first, x, y, eps)
        found = []
        for other in others:
            with same_draws():
                found.append(broken(model, other, x, y, eps))
        if max(found) >= led + CLEARLY:
            return others[found.index(max(found))]
        if led:
            break
    return first


def broken(model: Model, search: Model, x: Images, y: Labels, eps: float) -> int:
    """How many images a search in an L∞ ball breaks by a gradient."""
    points = x.detach()
    for _ in range(STEPS):
        slope = gradient(search, points, y)
        if slope is None:
            break
        slope = slope.nan_to_num(0.0)
        steep = slope.abs().flatten(1).amax(1) > LEAST
        moved = points + eps * 2 / STEPS * slope.sign() * steep.view(-1, 1, 1, 1)
        points = (x + (moved - x).clamp(-eps, eps)).clamp(0, 1).detach()
    with torch.no_grad():
        return int((model(points).argmax(1) != y).sum())


def gradient(model: Model, x: Images, y: Labels) -> Tensor | None:
    """The gradient of the margin; None where there is none."""
    try:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = margin_loss(model(x).float(), y, torch.full_like(y, -1))
            return torch.autograd.grad(loss.sum(), x)[0]
    except Exception as error:  # somebody's code
        if is_out_of_memory(error):
            raise
        return None
