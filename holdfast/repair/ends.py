"""Both ends of a network: what enters its first layer, and the logits that it makes on the way.

Whatever a model does before the one or behind the other, by whatever means: where what enters looks
like the image, it may stand in for it, and where what is made predicts what the model predicts, it
may be climbed. Whether the gradient on these ways tells what happens there is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..attacks.losses import margin_loss
from ..types import Images, Labels, Logits
from . import detours

AGREES = 0.9  # share of images on which logits on the way predict what the model predicts
TELLS = 0.8  # cosine, in the logits, from which the gradient behind them is theirs
FAR = 8 / 255  # how far images are moved to see what becomes of them
FOLLOWS = 0.5  # what a gradient foretells of a change, at least, and at most its inverse
POINTS = 0.2  # cosine of a step, and of what the gradient makes of its effect


@dataclass(frozen=True)
class Doubt:
    """What the gradient of a model leaves doubtful.

    Attributes:
        entry: what may stand in for the way to the first layer; None where its gradient is right.
        logits: the numbers of those that may be climbed; empty where the gradient behind them is.
    """

    entry: detours.Splice | None = None
    logits: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.entry is not None or bool(self.logits)


def logits_of(made: list[Tensor], n: int) -> list[Tensor]:
    """Logits (n, K) from what has K columns: for all images at once, for several copies of them
    (their mean), or for a few images at a time."""
    found = []
    pieces: dict[int, list[Tensor]] = {}
    for tensor in made:
        rows = len(tensor)
        if rows and rows % n == 0:
            found.append(tensor.view(rows // n, n, -1).mean(0) if rows > n else tensor)
        elif rows and n % rows == 0:
            pieces.setdefault(rows, []).append(tensor)
    for rows, parts in pieces.items():
        times, rest = divmod(len(parts) * rows, n)
        if times and not rest:
            found += [torch.cat(parts[k::times]) for k in range(times)]
    return found


def doubtful(made: list[Tensor], logits: Logits, answers: Logits, y: Labels) -> tuple[int, ...]:
    """The numbers of the first and the last logits on the way that predict what the model answers
    although the gradient from its answers back to them is not theirs."""
    found = []
    for number, each in enumerate(logits_of(made, len(answers))):
        z = each.float()
        if z is logits or not bool(z.isfinite().all()) or float(z.detach().std()) == 0:
            continue
        top = answers.gather(1, z.argmax(1, keepdim=True)).squeeze(1)
        largest = answers.amax(1)
        agrees = (top >= largest) & (largest > answers.amin(1))
        if float(agrees.float().mean()) >= AGREES and not _tells(z, each, logits, y):
            found.append(number)
    return tuple(dict.fromkeys(found[:1] + found[-1:]))


def _tells(z: Tensor, made: Tensor, logits: Logits, y: Labels) -> bool:
    """Whether the gradient of the margin, back to logits on the way, is that of their margin."""
    if not logits.requires_grad:
        return False
    none = torch.full_like(y, -1)
    try:
        (slope,) = torch.autograd.grad(
            margin_loss(logits.float(), y, none).sum(), made, retain_graph=True, allow_unused=True
        )
    except Exception:  # somebody's backward pass
        return False
    if slope is None:
        return False
    rivals = logits.detach().float().scatter(1, y[:, None], -torch.inf).argmax(1)
    wanted = torch.zeros_like(z).scatter(1, rivals[:, None], 1.0).scatter(1, y[:, None], -1.0)
    cosine = cosine_similarity(slope.float(), wanted, dim=1)
    return float(cosine.nan_to_num(0.0).mean()) > TELLS


def entry_of(
    x: Images, entering: Tensor, moved: Callable[[Images], Tensor | None]
) -> detours.Splice | None:
    """What may stand in for what enters the first layer, where the gradient back to the images
    does not tell what becomes of them.

    Args:
        x: the images, which require gradients.
        entering: what enters for them.
        moved: what enters for other images; None where nothing does.
    """
    if entering is x or not entering.is_floating_point() or not entering.ndim:
        return None
    # Of a model that takes them in turns, the first images.
    splice = detours.found(x[: len(entering)], [], entering, at_least=detours.CLEARLY)
    return None if splice is None or _follows(x, entering, moved) else splice


def _follows(x: Images, entering: Tensor, moved: Callable[[Images], Tensor | None]) -> bool:
    """Whether the gradient foretells what becomes of the images when they are moved."""
    generator = torch.Generator().manual_seed(20)
    signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
    ahead, back = ((x.detach() + way * FAR * signs).clamp(0, 1) for way in (1, -1))
    ends = [moved(ahead), moved(back)]
    if any(end is None or end.shape != entering.shape for end in ends):
        return True  # not to be told
    step, effect = ahead - back, (ends[0] - ends[1]).detach().to(entering)  # type: ignore[operator]
    try:
        (slope,) = torch.autograd.grad(entering, x, effect, retain_graph=True, allow_unused=True)
    except Exception:  # it has no history, or somebody's backward pass fails
        return False
    if slope is None or not bool(slope.isfinite().all()):
        return False
    slope, step = slope[: len(entering)], step[: len(entering)]
    foretold = float((slope * step).sum() / effect.square().sum().clamp_min(1e-30))
    cosine = float(cosine_similarity(slope.flatten(1), step.flatten(1), dim=1).mean())
    return FOLLOWS <= foretold <= 1 / FOLLOWS and cosine > POINTS
