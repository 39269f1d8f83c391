"""Detours: where a model leaves PyTorch's graph and comes back, and what stands in for the way.

A tensor that enters a layer without a history, although the model's input has one, went through
NumPy, PIL or another library. The stand-in is whatever of the graph resembles it most: the input
or a tensor that left the graph, resized, turned or with its channels moved as needed, and rescaled
by a regression. All of it is done for each image by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RESEMBLES = 0.3  # mean correlation, at least, of large images; of d values 1/√d more, for chance
CLEARLY = 0.9  # and from here on nothing better is looked for

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Splice:
    """How a stand-in is made: from which source, by which change of its shape."""

    source: str
    change: Change


def sources(images: Tensor, left: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What may stand in, by name: the tensors that left the graph, the last ones first, alone and
    (where images go one by one) stacked; then the model's input."""
    n = len(images)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, tensor in enumerate(left):
        by_shape.setdefault(tuple(tensor.shape), []).append(number)
    for shape, numbers in reversed(by_shape.items()):
        if shape and shape[0] == n and not (n == 1 and len(numbers) > 1):
            # By its place from the end of those of its rank: sizes change with the batch.
            yield f"left {len(shape)}", left[numbers[-1]]
        if shape and len(numbers) % n == 0 and (n > 1 or len(shape) < images.ndim):
            each = len(numbers) // n
            rows = torch.stack([left[k] for k in numbers[each - 1 :: each]])
            yield f"stacked {len(shape)}", rows.flatten(0, 1) if shape[0] == 1 else rows
    yield "input", images


def changes(source: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[Change]:
    """Ways to bring a tensor (N, …) into a shape (kN, …), the plainest first."""
    copies = wanted[0] // source[0]
    repeats: list[Change] = [lambda x: x]
    if copies > 1:
        repeats = [lambda x: x.repeat_interleave(copies, 0), lambda x: torch.cat([x] * copies)]
    for shaped in _shapes(source[1:], wanted[1:]):
        for repeated in repeats:
            yield lambda x, shaped=shaped, repeated=repeated: repeated(shaped(x))  # type: ignore[misc]


def _shapes(source: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[Change]:
    if source == wanted:
        yield lambda x: x
    if len(source) == 3:
        for turned, move in (
            (source, lambda x: x),
            ((source[2], source[0], source[1]), lambda x: x.permute(0, 3, 1, 2)),
            ((source[1], source[2], source[0]), lambda x: x.permute(0, 2, 3, 1)),
        ):
            if len(wanted) == 1 and turned[0] * turned[1] * turned[2] == wanted[0]:
                yield lambda x, move=move: move(x).flatten(1)  # type: ignore[misc]
            if len(wanted) == 2 and turned[0] == 1 and turned[1:] == wanted:
                yield lambda x, move=move: move(x).squeeze(1)  # type: ignore[misc]
            if len(wanted) == 3:
                if turned == wanted and turned != source:
                    yield move
                yield from _pictures(turned, wanted, move)
    elif source != wanted and _size(source) == _size(wanted):
        yield lambda x: x.reshape(len(x), *wanted)


def _pictures(source: tuple[int, ...], wanted: tuple[int, ...], move: Change) -> Iterator[Change]:
    """Channels repeated, averaged or reversed; resized; mirrored and turned."""
    channels, size = wanted[0], wanted[1:]

    def resized(x: Tensor) -> Tensor:
        x = move(x)
        if x.shape[2:] != torch.Size(size):
            x = F.interpolate(x, size, mode="bilinear", antialias=x.shape[2] > size[0])
        return x

    ways: list[Change] = []
    if source[0] == channels:
        ways = [lambda x: x, lambda x: x.flip(1)] if channels > 1 else [lambda x: x]
    elif channels == 1 or source[0] == 1:
        ways = [lambda x: x.mean(1, keepdim=True).expand(-1, channels, -1, -1)]
    elif channels % source[0] == 0:
        times = channels // source[0]
        ways = [lambda x: x.repeat_interleave(times, 1), lambda x: x.repeat(1, times, 1, 1)]
    for way in ways:
        yield lambda x, way=way: way(resized(x))  # type: ignore[misc]
    for way in ways[:1]:
        for dims in ((3,), (2,), (2, 3)):
            yield lambda x, way=way, dims=dims: way(resized(x.flip(dims)))  # type: ignore[misc]
        for turns in (1, 3):
            yield lambda x, way=way, turns=turns: way(resized(x.rot90(turns, (2, 3))))  # type: ignore[misc]


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def resemblance(candidate: Tensor, wanted: Tensor) -> float:
    """The mean over images of the absolute correlation of two tensors of one shape."""
    a, b = candidate.detach().flatten(1).double(), wanted.detach().flatten(1).double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = a.norm(dim=1) * b.norm(dim=1)
    return float(((a * b).sum(1).abs() / norms.clamp_min(1e-30)).mean())


def found(
    images: Tensor, left: list[Tensor], wanted: Tensor, at_least: float = RESEMBLES
) -> Splice | None:
    """The splice whose stand-in resembles a tensor most; None if nothing does."""
    if not wanted.ndim or not len(wanted) or len(wanted) % len(images):
        return None
    best, chosen = at_least + wanted[0].numel() ** -0.5, None
    for name, source in sources(images, left):
        if len(source) != len(images):
            continue
        for change in changes(tuple(source.shape), tuple(wanted.shape)):
            with torch.no_grad():
                alike = resemblance(change(source), wanted)
            # A little better is chance; what left the graph last comes first.
            if alike > best + 0.02:
                best, chosen = alike, Splice(name, change)
            if best > CLEARLY:
                return chosen
    return chosen


def stand_in(splice: Splice, images: Tensor, left: list[Tensor], wanted: Tensor) -> Tensor | None:
    """What stands in for a tensor, with the slope of a regression for each image and channel; None
    if its source is not there this time."""
    for name, source in sources(images, left):
        if name == splice.source and len(source) == len(images):
            try:
                changed = splice.change(source)
            except (RuntimeError, ValueError):  # another shape than when it was found
                return None
            return slopes(changed, wanted) * changed if changed.shape == wanted.shape else None
    return None


def slopes(source: Tensor, wanted: Tensor) -> Tensor:
    """The least-squares slope of `wanted` on `source` for each image, and where there are pictures
    for each channel; 1 where the source is constant."""
    first = 2 if source.ndim == 4 else 1
    a, b = source.detach().flatten(first), wanted.detach().flatten(first)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    square = (a * a).sum(-1)
    slope = torch.where(square > 1e-12, (a * b).sum(-1) / square.clamp_min(1e-12), 1.0)
    return slope.view(*slope.shape, *[1] * (source.ndim - slope.ndim)).to(wanted.dtype)
