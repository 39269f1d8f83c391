"""Further ways to hide a gradient, by the kind of what hides it: (network, images) → logits."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from holdfast.types import Model

Way = Callable[[Any, Tensor], Tensor]


def rounded(x: Tensor) -> Tensor:
    return (x * 63).round() / 63


# --- functions and operators of one's own -------------------------------------------------------


class OwnSeed(torch.autograd.Function):
    """Its backward pass draws, always the same."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(gradient.shape, generator=generator)


class Drawing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.randn_like(gradient)


@torch.library.custom_op("hiding::rounded", mutates_args=())
def rounded_by_operator(x: Tensor) -> Tensor:
    return rounded(x)


@torch.library.custom_op("hiding::zero", mutates_args=())
def zero_by_operator(x: Tensor) -> Tensor:
    return x.clone()


zero_by_operator.register_autograd(lambda ctx, gradient: gradient * 0)


# --- where no mode follows ----------------------------------------------------------------------


def in_a_thread(network: Model, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(network(rounded(x))))
    thread.start()
    thread.join()
    return found[0]


POOL = ThreadPoolExecutor(1)


def in_a_pool(network: Model, x: Tensor) -> Tensor:
    def without_gradient() -> Tensor:
        with torch.no_grad():
            return network(x)

    return POOL.submit(without_gradient).result()


scripted = torch.jit.script(rounded)


@torch.jit.script
def detached(x: Tensor) -> Tensor:
    return x.detach()


@torch.jit.script
def one_hot_by_script(z: Tensor) -> Tensor:
    return F.one_hot(z.argmax(1), z.size(1)).float()


def unseen(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return rounded(x)


# --- what is saved, and hooks -------------------------------------------------------------------


def checkpointed(reentrant: bool) -> Way:
    return lambda network, x: torch.utils.checkpoint.checkpoint(
        lambda y: network(rounded(y)), x, use_reentrant=reentrant
    )


def forgetting(network: Model, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.shape, torch.zeros):
        return network(x)


def hooked_node(network: Model, x: Tensor) -> Tensor:
    x = x * 1
    if x.grad_fn is not None:
        x.grad_fn.register_hook(lambda inner, outer: tuple(g if g is None else -g for g in inner))
    return network(x)


def _nothing(module: Any, inner: Any, outer: Any) -> Any:
    return tuple(None if g is None else g * 0 for g in inner)


def hooked_inside(network: Any, x: Tensor) -> Tensor:
    handle = network[0].register_full_backward_hook(_nothing)
    try:
        return network(x)
    finally:
        handle.remove()


def hooked_everywhere(network: Model, x: Tensor) -> Tensor:
    handle = torch.nn.modules.module.register_module_full_backward_hook(_nothing)
    try:
        return network(x)
    finally:
        handle.remove()


# --- before the first layer ---------------------------------------------------------------------


def staircase(x: Tensor) -> Tensor:
    levels = torch.zeros_like(x)
    for level in range(16):
        levels = torch.where(x > level / 16, torch.full_like(x, (level + 0.5) / 16), levels)
    return levels


def by_inverse(x: Tensor) -> Tensor:
    values, inverse = (x * 255).round().unique(return_inverse=True)
    return values[inverse] / 255


def renamed(x: Tensor) -> Tensor:
    """By a table of random names, and by the table that undoes it."""
    names = torch.randperm(256, generator=torch.Generator().manual_seed(1))
    return (names.argsort() / 255)[names[(x * 255).round().long()]]


def by_ratios(x: Tensor) -> Tensor:
    steps = (F.relu(x - (level + 0.5) / 32) for level in range(32))
    return sum(step / (step + 1e-30) for step in steps) / 32  # type: ignore[return-value]


# --- between layers -----------------------------------------------------------------------------


def past_a_detour(network: Any, x: Tensor) -> Tensor:
    """A residual block whose input came through NumPy: what goes past the layer, too."""
    features = torch.from_numpy(network[:3](x).detach().numpy())
    inside = F.conv2d(features, torch.eye(8)[:, :, None, None])
    return network[3:](features + 0 * inside)


# --- behind the logits --------------------------------------------------------------------------


def looped(z: Tensor) -> Tensor:
    answer = torch.zeros_like(z)
    for row, scores in zip(answer, z, strict=True):
        row[scores.argmax().item()] = 1.0
    return answer


def tournament(z: Tensor) -> Tensor:
    answer = torch.zeros_like(z)
    for row, scores in zip(answer, z, strict=True):
        leads = 0
        for rival in range(1, len(scores)):
            if scores[rival] > scores[leads]:
                leads = rival
        row[leads] = 1.0
    return answer


def voted(network: Model, x: Tensor) -> Tensor:
    """How often each class leads among three copies of the images."""
    chosen = torch.stack([network(x + shift).argmax(1) for shift in (-0.002, 0.0, 0.002)])
    return torch.stack([(chosen == k).sum(0) for k in range(5)], 1).float()


def voted_at_once(network: Model, x: Tensor) -> Tensor:
    chosen = network(torch.cat([x - 0.002, x, x + 0.002])).argmax(1).view(3, -1)
    return F.one_hot(chosen, 5).sum(0).float()


def before(change: Callable[[Tensor], Tensor]) -> Way:
    return lambda network, x: network(change(x))


def behind(change: Callable[[Tensor], Tensor]) -> Way:
    return lambda network, x: change(network(x))


KINDS: dict[str, dict[str, Way]] = {
    "functions of one's own": {
        "noise of a fixed seed": before(OwnSeed.apply),
        "noise": before(Drawing.apply),
        "noise behind the logits": behind(Drawing.apply),
        "an operator without a gradient": before(rounded_by_operator),
        "an operator with a zero gradient": before(zero_by_operator),
    },
    "other threads": {"a thread": in_a_thread, "a pool": in_a_pool},
    "what is not seen": {
        "a script": before(scripted),
        "a script that detaches": before(detached),
        "a script behind the logits": behind(one_hot_by_script),
        "functions that no mode sees": before(unseen),
        "vmap": lambda network, x: torch.vmap(lambda y: network(rounded(y)[None])[0])(x),
        "vmap of the rounding": before(lambda x: torch.vmap(rounded)(x)),
    },
    "what is saved": {
        "a reentrant checkpoint": checkpointed(True),
        "a checkpoint": checkpointed(False),
        "forgotten tensors": forgetting,
    },
    "hooks": {
        "of a node": hooked_node,
        "of a module, set in forward": hooked_inside,
        "of all modules": hooked_everywhere,
    },
    "before the first layer": {
        "pickle": before(lambda x: pickle.loads(pickle.dumps(x.detach()))),
        "set_": before(lambda x: torch.empty(0).set_(x.detach())),
        "sawtooth": before(lambda x: x - ((x * 255) % 1) / 255),
        "a chain of where": before(staircase),
        "unique": before(by_inverse),
        "tables that undo each other": before(renamed),
        "ratios": before(by_ratios),
        "ratios, one by one": lambda network, x: torch.cat(
            [network(by_ratios(image[None])) for image in x]
        ),
        "copysign": before(
            lambda x: (
                sum(  # type: ignore[arg-type,return-value]
                    torch.copysign(torch.tensor(0.5), x - (level + 0.5) / 32) + 0.5
                    for level in range(32)
                )
                / 32
            )
        ),
        "comparisons, stacked": before(
            lambda x: torch.stack([x > (k + 0.5) / 32 for k in range(32)]).sum(0).float() / 32
        ),
    },
    "between layers": {
        "a shortcut past a detour": past_a_detour,
        "a script that rounds": lambda network, x: network[1:](scripted(network[:1](x))),
    },
    "behind the logits": {
        "Gumbel": behind(lambda z: F.gumbel_softmax(z * 1e4, hard=True)),
        "a loop": behind(looped),
        "a tournament": behind(tournament),
        "NumPy": behind(
            lambda z: torch.from_numpy(np.eye(5, dtype="f4")[z.detach().numpy().argmax(1)])
        ),
        "a list": behind(lambda z: torch.eye(5)[z.argmax(1).tolist()]),
        "cummax": behind(lambda z: F.one_hot(z.cummax(1).indices[:, -1], 5).float()),
        "topk": behind(lambda z: torch.zeros_like(z).scatter_(1, z.topk(1).indices, 1.0)),
        "pairs": behind(lambda z: (z[:, :, None] > z[:, None, :]).sum(2)),
        "exponentials": behind(lambda z: torch.exp(-torch.exp(-300 * z))),
        "arctangent": behind(lambda z: torch.atan(1e5 * z)),
        "softmax of torch.special": behind(lambda z: torch.special.softmax(3000 * z, 1)),
        "logits below the smallest number": behind(lambda z: z * 1e-41),
        "a power": behind(lambda z: (2 * torch.sigmoid(z - z.amax(1, keepdim=True))).pow(1e6)),
        "votes": voted,
        "votes at once": voted_at_once,
    },
}
