"""torchattacks' attacks (an independent implementation, from PyPI), as the benchmarks run them.

Each runs on what the ones before it left standing, in float32 eager mode as shipped; a success
counts once the model misclassifies the very point, and the point lies in the ball and the box.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import holdfast as hf

SIZES = {"cpu": (16, 32, 64, 128, 256, 512), "cuda": (128, 256, 512, 1024, 2048)}
BUDGETS = {  # the published standard AutoAttack
    "apgd": "APGD on the cross-entropy, 100 steps",
    "apgdt": "APGDT, 100 steps × all wrong classes",
    "fab": "FAB, 100 steps × all wrong classes",
    "square": "Square, 5,000 queries",
}
GRADIENT_FREE = {"square"}


@dataclass(frozen=True)
class Peer:
    """What one attack broke of what stood before it, in how many seconds (by the clock, and of the
    processor's time), at what batch size."""

    name: str
    broken: int
    seconds: float
    cpu_seconds: float
    batch_size: int


def attack_named(
    name: str, model: nn.Module, eps: float, classes: int, seed: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """One of `BUDGETS` in L∞: (images, labels) → adversarial images."""
    import torchattacks

    make = {
        "apgd": lambda: torchattacks.APGD(
            model, norm="Linf", eps=eps, steps=100, n_restarts=1, loss="ce", seed=seed
        ),
        "apgdt": lambda: torchattacks.APGDT(
            model, norm="Linf", eps=eps, steps=100, n_restarts=1, n_classes=classes, seed=seed
        ),
        "fab": lambda: torchattacks.FAB(
            model,
            norm="Linf",
            eps=eps,
            steps=100,
            multi_targeted=True,
            n_classes=classes,
            seed=seed,
        ),
        "square": lambda: torchattacks.Square(
            model, norm="Linf", eps=eps, n_queries=5000, n_restarts=1, seed=seed
        ),
    }
    return make[name]()


def best_batch_size(model: nn.Module, images: Tensor, differentiable: bool) -> int:
    """The size at which plain float32 passes are soonest done, per image."""
    seconds = {}
    for size in SIZES.get(images.device.type, SIZES["cpu"]):
        if size > len(images) and seconds:
            break
        x = images[:size]
        seconds[len(x)] = min(_seconds(model, x, differentiable) for _ in range(3)) / len(x)
    return min(seconds, key=lambda size: seconds[size])


def _seconds(model: nn.Module, x: Tensor, differentiable: bool) -> float:
    began = _now(x)
    with torch.set_grad_enabled(differentiable):
        x = x.clone().requires_grad_(differentiable)
        logits = model(x)
        if differentiable:
            torch.autograd.grad(logits.sum(), x)
    return _now(x) - began


def _now(x: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def answers(model: nn.Module, images: Tensor, batch: int = 256) -> Tensor:
    """The classes that the model says, (N,)."""
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) for x in images.split(batch)])


def peers_standing(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: hf.Threat,
    names: Sequence[str],
    *,
    batch_size: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, list[Peer]]:
    """bool (N,): images that the attacks leave standing, and what each did.

    Args:
        images, labels: on the model's device.
        threat: L∞.
        names: which, in order; keys of `BUDGETS`.
        batch_size: measured for each attack if None.
    """
    standing = answers(model, images) == labels
    classes = model(images[:2]).shape[1]
    done = []
    for name in names:
        size = batch_size or best_batch_size(model, images, name not in GRADIENT_FREE)
        attack = attack_named(name, model, threat.eps, classes, seed)
        before, began, cpu = int(standing.sum()), _now(images), time.process_time()
        for rows in standing.nonzero().squeeze(1).split(size):
            x, y = images[rows], labels[rows]
            x_adv = attack(x, y).detach()
            standing[rows[(answers(model, x_adv) != y) & threat.contains(x_adv, x)]] = False
        took, cpu = _now(images) - began, time.process_time() - cpu
        done.append(Peer(name, before - int(standing.sum()), took, cpu, size))
        print(f"torchattacks {done[-1]}", file=sys.stderr, flush=True)
    return standing, done
