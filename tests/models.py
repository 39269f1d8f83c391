"""Tiny models with known properties, shared by the tests.

Those that compute inside in float64 answer an image the same, to the last bit, whatever batch it
comes in, so that the engine's promises can be tested exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SHAPE = (3, 6, 6)


def images(n: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Tensor:
    """(n, *shape) uniform in [0, 1], with some pixels right on the walls of the box."""
    made = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    return ((made - 0.5) * 1.2 + 0.5).clamp(0, 1)


def answers(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The classes that the model says, int64 (N,)."""
    with torch.no_grad():
        return model(x).argmax(1)


class Linear(nn.Module):
    """Logits W·x + b, in float64 inside."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight.double())  # (K, C, H, W)
        self.register_buffer("bias", bias.double())  # (K,)

    def forward(self, x: Tensor) -> Tensor:
        logits = x.double().flatten(1) @ self.weight.flatten(1).T + self.bias
        return logits.float()


def linear(classes: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Linear:
    """A random linear classifier that is undecided in the middle of the box."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, *shape, generator=generator, dtype=torch.float64)
    return Linear(weight, -0.5 * weight.flatten(1).sum(1))


class Net(nn.Module):
    """A small smooth network with random weights, in float64 inside."""

    def __init__(
        self,
        classes: int = 4,
        shape: tuple[int, int, int] = SHAPE,
        seed: int = 0,
        hidden: int = 12,
        scale: float = 4.0,
    ):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        size = shape[0] * shape[1] * shape[2]
        first = torch.randn(size, hidden, generator=g, dtype=torch.float64) * scale / size**0.5
        second = torch.randn(hidden, classes, generator=g, dtype=torch.float64)
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)

    def forward(self, x: Tensor) -> Tensor:
        return (torch.tanh((x.double().flatten(1) - 0.5) @ self.first) @ self.second).float()


def digits(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A float32 convolutional net that reads digits, with n test images and labels.

    Random features with a least-squares read-out: about 95 % right, without training.
    """
    from holdfast.data import digits as data
    from holdfast.models.small_cnn import SmallCNN

    held = data.load()
    torch.manual_seed(0)
    model = SmallCNN(width=8).eval()
    train = torch.from_numpy(held.train.images).float() / 255
    aims = torch.nn.functional.one_hot(torch.from_numpy(held.train.labels), 10).double()
    with torch.no_grad():
        seen = model.features(train).double()
        seen = torch.cat([seen, torch.ones(len(seen), 1, dtype=torch.float64)], 1)
        ridge = seen.T @ seen + 0.1 * torch.eye(seen.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(ridge, seen.T @ (aims - 0.1)).float()
        model.linear.weight.copy_(10 * solved[:-1].T)
        model.linear.bias.copy_(10 * solved[-1])
    test = torch.from_numpy(held.test.images[:n]).float() / 255
    return model, test, torch.from_numpy(held.test.labels[:n])


class Counted(nn.Module):
    """Counts the images that pass forwards and backwards."""

    def __init__(self, body: Callable[[Tensor], Tensor]):
        super().__init__()
        self.body, self.forwards, self.backwards = body, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits = self.body(x)
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Wrapped(nn.Module):
    """A function of the images around a model: `before` on images, `after` on logits."""

    def __init__(
        self,
        body: Callable[[Tensor], Tensor],
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ):
        super().__init__()
        self.body, self.before, self.after = body, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.body(self.before(x)))


def without_torch(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same answers through NumPy: PyTorch cannot differentiate it."""

    def answer(x: Tensor) -> Tensor:
        array: Any = np.asarray(x.numpy())
        with torch.no_grad():
            return model(torch.from_numpy(array.copy()))

    return answer
