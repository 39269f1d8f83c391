"""Random draws that belong to an item, not to a batch.

Every draw is a pure function of a 64-bit seed and a counter (Steele, Lea & Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014: the SplitMix64 finaliser). So an
attack on one image draws the same numbers whatever the batch size, the device, the sharding,
or the number of times the run was interrupted.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Int64
from torch import Tensor

from .errors import InputError

_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed 64-bit number
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch's >> on int64 is arithmetic; the mask makes it logical.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def item_seeds(seed: int, *parts: int | str | Tensor) -> Tensor:
    """One seed an item from the run's seed and what identifies the item.

    Args:
        seed: the run's seed.
        parts: integers, names, or int64 tensors of shape (N,), in a fixed order
            (image, attack, restart, target).

    Returns:
        int64 tensor of shape (N,), or (1,) when every part is a scalar.

    Example:
        >>> seeds = item_seeds(0, "pgd", torch.arange(1000))
        >>> torch.equal(seeds[7:8], item_seeds(0, "pgd", 7))  # alone or among others
        True
    """
    h = _mix(torch.tensor([seed], dtype=torch.int64) + _GOLDEN)
    for part in parts:
        if isinstance(part, str):
            part = zlib.crc32(part.encode())
        h = _mix((h ^ torch.as_tensor(part, dtype=torch.int64)) + _GOLDEN)
    return h


def uniform(seeds: Tensor, counter: int | Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Uniform draws in [0, 1), `shape` of them for each seed.

    Args:
        seeds: int64 (N,).
        counter: which draw of the item this is; an int, or int64 (N,). Two draws with the
            same seed and counter are the same numbers.
        shape: the shape of one item's draw.

    Returns:
        float32 (N, *shape), multiples of 2⁻²⁴.

    Example:
        >>> noise = uniform(item_seeds(0, torch.arange(4)), 0, (3, 32, 32))
        >>> noise.shape, bool((noise < 1).all())
        (torch.Size([4, 3, 32, 32]), True)
    """
    size = math.prod(shape)
    stream = _mix(seeds + (torch.as_tensor(counter, device=seeds.device) + 1) * _GOLDEN)
    place = torch.arange(1, size + 1, dtype=torch.int64, device=seeds.device) * _GOLDEN
    bits = _mix(stream[:, None] + place)
    return (_shift_right(bits, 40).to(torch.float32) * 2.0**-24).view(len(seeds), *shape)


def normal(seeds: Tensor, counter: int | Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Standard normal draws, float32 (N, *shape); arguments as in `uniform`."""
    # Half a step up, and never rounded up to 1: at 0 and 1 the inverse is infinite.
    u = (uniform(seeds, counter, shape) + 2.0**-25).clamp_max(1 - 2.0**-24)
    return torch.special.ndtri(u)


def integers(
    seeds: Tensor, counter: int | Tensor, high: Tensor | int, shape: Sequence[int] = ()
) -> Tensor:
    """Uniform integers in [0, high), int64 (N, *shape); `high` broadcasts against that shape."""
    return (uniform(seeds, counter, shape) * high).floor().to(torch.int64)


# --- the draws of models that are random themselves -------------------------------------------

_seeds: ContextVar[int | Tensor | None] = ContextVar("seeds", default=None)


def new_seeds(count: int) -> Int64[Tensor, " n"]:
    """Random seeds for `count` images, from torch's default generator."""
    return torch.randint(-(2**63), 2**63 - 1, (count,), dtype=torch.int64)


@contextmanager
def fixed_draws(seeds: int | Int64[Tensor, " n"]) -> Iterator[None]:
    """Every random defence inside draws from these seeds, so equal calls give equal logits.

    To record draws and replay them, make the seeds first: `seeds = new_seeds(len(images))`.
    Outside of this context, every forward pass draws afresh.

    Args:
        seeds: int64 (N,), one an image; an image's draws do not depend on its batch. Or one
            integer for batches of any size, whose images then get theirs by position.
    """
    token = _seeds.set(seeds)
    try:
        yield
    finally:
        _seeds.reset(token)


@contextmanager
def repeated_draws(copies: int) -> Iterator[None]:
    """For a batch of `images.repeat_interleave(copies, 0)`: every copy gets draws of its own.

    Needed inside `fixed_draws`, whose seeds belong to images; elsewhere it changes nothing.
    """
    seeds = _seeds.get()
    if not isinstance(seeds, Tensor):
        yield
        return
    number = torch.arange(copies).repeat(len(seeds))
    with fixed_draws(item_seeds(0, seeds.cpu().repeat_interleave(copies), number)):
        yield


def image_seeds(count: int) -> Int64[Tensor, " n"]:
    """The seeds of `count` images, on the CPU: those of `fixed_draws`, or else new ones.

    Raises:
        InputError: `fixed_draws` got seeds for another number of images.
    """
    seeds = _seeds.get()
    if seeds is None:
        return new_seeds(count)
    if isinstance(seeds, int):
        return item_seeds(seeds, torch.arange(count))
    if seeds.shape != (count,):
        raise InputError(
            f"fixed_draws got seeds of shape {tuple(seeds.shape)} for {count} images; "
            "give one an image, and wrap copies of images in repeated_draws"
        )
    return seeds.cpu()
