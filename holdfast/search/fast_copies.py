"""Fast copies: copies of a model with the same logits up to rounding, in less time.

A fast copy is only ever used to *search*; every verdict is checked on the original model.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.optimization import fuse
from torch.nn.functional import cosine_similarity

from ..attacks import Suite
from ..attacks.base import Model
from ..attacks.losses import margin
from ..distributed import Workers
from ..models.wrapper import WrappedModel, spread_of, unwrapped
from ..threat import Threat
from .batch_size import seconds_per_image

SLOPES = 16  # probe images whose gradients are compared

Say = Callable[[str], None]  # takes one line: why something faster is not used


class _Refused(Exception):
    """A copy's logits or gradients differ from the original's; the message says how."""


def unsaid(reason: str) -> None:
    """Drop the line."""


def _reason(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, _Refused):
        return lines[0]
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


@dataclass(frozen=True)
class FastCopy:
    """A callable that answers as the original does, up to rounding.

    Attributes:
        model: images (N, C, H, W) → float32 logits.
        name: `original`, `float32` or `bf16`.
        error: the largest difference of margins (in logits) from the original on the probe.
        slopes: (P, C, H, W) gradients of the original's margin on some of the probe; None where
            nobody looked.
        batch_size: what it was compiled for; None where it was not.
    """

    model: Model
    name: str
    error: float
    slopes: Tensor | None = None
    batch_size: int | None = None


def original(model: Model) -> FastCopy:
    """The model itself as its own fast copy."""
    return FastCopy(model, "original", 0.0)


class _Folded(nn.Module):
    """A folded copy in channels-last layout and one number format."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.body = model
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        # A traced module that is called prints a traceback of whatever it raises.
        body = self.body.forward if isinstance(self.body, GraphModule) else self.body
        if self.dtype == torch.float32:
            return body(x)
        # Autocast rather than a cast model: sums, softmax and norms stay in float32.
        with torch.autocast(images.device.type, self.dtype):
            return body(x).float()


@dataclass(frozen=True)
class Asked:
    """What a model answers to a probe: what its copies are compared with.

    Attributes:
        logits: float32 (P, K).
        slopes: (S, C, H, W), gradients of the margin on the first `SLOPES` of it; None where there
            are none.
    """

    logits: Tensor
    slopes: Tensor | None

    @classmethod
    def of(cls, model: Model, probe: Tensor, labels: Tensor) -> Asked:
        """Ask it."""
        with torch.no_grad():
            logits = model(probe).float()
        with torch.enable_grad():
            x = probe[:SLOPES].detach().requires_grad_()
            margins = margin(model(x).float(), labels[:SLOPES])
            if not margins.requires_grad:
                return cls(logits, None)
            (slopes,) = torch.autograd.grad(margins.sum(), x)
        return cls(logits, slopes)


def fast_copy_of(
    model: Model,
    probe: Tensor,
    labels: Tensor,
    precision: str,
    say: Say = unsaid,
    asked: Asked | None = None,
) -> FastCopy | None:
    """A folded, channels-last copy of a module, or None where it cannot serve.

    Batch norms are folded into the convolutions before them where the module can be traced. The
    copy is used only if its logits are finite, its margins stay close to the original's, and its
    gradients point the same way.

    Args:
        model: in eval mode. Only an `nn.Module` has a fast copy.
        probe: images (N, C, H, W) on the model's device to compare on.
        labels: int64 (N,).
        precision: `float32` or `bf16`.
        say: takes why a copy is refused.
        asked: what the model answers to the probe; by default it is asked.
    """
    if not isinstance(model, nn.Module) or not isinstance(unwrapped(model), nn.Module):
        say(f"no {precision} copy: the model is no torch.nn.Module")
        return None
    for how, make in (("folded", fuse), ("plain", copy.deepcopy)):  # fuse copies too
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                copied = make(model.eval())
            asked = asked or Asked.of(model, probe, labels)
            return _like(model, copied, probe, labels, precision, asked)
        except Exception as error:  # all of it runs the user's code: anything may be raised
            say(f"no {how} {precision} copy: {_reason(error)}")
    return None


def _like(
    model: Model,
    copied: nn.Module,
    probe: Tensor,
    labels: Tensor,
    precision: str,
    asked: Asked,
) -> FastCopy:
    """The copy as a fast copy; refused unless it answers as the model does."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    folded = _Folded(copied.eval().to(memory_format=torch.channels_last), dtype)  # type: ignore[call-overload]
    fast_copy = WrappedModel(folded)
    reference = asked.logits
    with torch.no_grad():
        answer = fast_copy(probe)
    if answer.shape != reference.shape or not bool(torch.isfinite(answer).all()):
        raise _Refused("its logits are not finite, or of another shape")
    error = float((margin(answer, labels) - margin(reference, labels)).abs().max())
    spread = spread_of(model, reference)
    if not _climbs_alike(asked.slopes, fast_copy, probe[:SLOPES], labels[:SLOPES], precision):
        raise _Refused("its gradients point elsewhere")
    # The logits of a model that draws random numbers differ, and so do those of a wrong folding.
    allowed = (0.25 if precision == "bf16" else 1e-3) * max(spread, 1e-6)
    if not error <= allowed:
        raise _Refused(f"its margins are off by {error:.2g}, more than {allowed:.2g}")
    slopes = asked.slopes if _tell(asked.slopes) else None
    return FastCopy(fast_copy, precision, error, slopes)


def _tell(slopes: Tensor | None) -> bool:
    """Whether gradients say where to go."""
    return slopes is not None and bool(slopes.isfinite().all()) and bool(slopes.any())


def _climbs_alike(
    reference: Tensor | None, fast_copy: Model, probe: Tensor, labels: Tensor, precision: str
) -> bool:
    """Whether gradients point the same way as the model's own, if it has any: tracing drops the
    backward passes that a module defines itself, and the answers do not show it."""
    if reference is None:
        return True  # nothing to lose
    with torch.enable_grad():
        x = probe.detach().requires_grad_()
        ours = margin(fast_copy(x), labels)
        if not ours.requires_grad:
            return False
        (found,) = torch.autograd.grad(ours.sum(), x)
    if not _tell(reference):
        return bool((reference != 0).any()) == bool((found != 0).any())
    cosine = cosine_similarity(reference.flatten(), found.flatten(), dim=0)
    return float(cosine) > (0.5 if precision == "bf16" else 0.99)


class _Compiled:
    """A fast copy compiled for one batch size; only batches of half of it or more are filled up."""

    def __init__(self, plain: Model, size: int):
        self.plain, self.size = plain, size
        self.whole = torch.compile(plain, dynamic=False)

    def __call__(self, images: Tensor) -> Tensor:
        count = len(images)
        # Half a batch costs less as it is than a whole one compiled.
        if count > self.size or 2 * count < self.size:
            return self.plain(images)
        if count < self.size:
            filling = images.new_zeros(self.size - count, *images.shape[1:])
            images = torch.cat([images, filling])
        return self.whole(images)[:count]


def compiled(
    fast_copy: FastCopy, model: Model, images: Tensor, labels: Tensor, say: Say = unsaid
) -> FastCopy | None:
    """The fast copy, compiled for batches of this size; None where it cannot be.

    Minutes on a CPU, once: worth it for long searches only.

    Args:
        fast copy: a `fast_copy_of`.
        model: the original, to compare with.
        images: (N, C, H, W) on the model's device: batches will have N rows.
        labels: int64 (N,).
        say: takes why it cannot be.
    """
    try:
        fast = WrappedModel(_Compiled(unwrapped(fast_copy.model), len(images)))
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            x = images.detach().requires_grad_()
            answer = fast(x)
            answer.sum().backward()
            with torch.no_grad():
                answer = fast(images)  # a graph of its own
                reference = model(images).float()
    except Exception as problem:  # no compiler, or a module it cannot take: whatever it raises
        say(f"not compiled: {_reason(problem)}")
        return None
    error = float((margin(answer, labels) - margin(reference, labels)).abs().max())
    allowed = 2 * fast_copy.error + 1e-3
    if not math.isfinite(error) or error > allowed:
        say(f"not compiled: its margins are off by {error:.2g}, more than {allowed:.2g}")
        return None
    return FastCopy(
        fast,
        f"{fast_copy.name}, compiled",
        max(error, fast_copy.error),
        fast_copy.slopes,
        len(images),
    )


def compiling_pays(device: torch.device) -> bool:
    """Whether compiling pays: it saves the time between convolutions.

    On a CPU without matrix units (AMX) nearly all time is in the convolutions themselves, and
    compiling would gain less than it takes.
    """
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return device.type != "cpu" or bool(amx())


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, p, lambda: False)() for p in probes)


DUAL = {"linf": 1.0, "l2": 2.0, "l1": inf}  # the order of the norm of gradients


@dataclass(frozen=True)
class Level:
    """A pass over a stage's items on one fast copy.

    Attributes:
        fast copy: what the search looks at.
        near: only items whose margin in the level before ended below this are tried again here;
            None tries all.
        slopes: (P, C, H, W) gradients of margins, by which a margin becomes a distance. Without
            them, searches for the closest point run on the last level alone.
    """

    fast_copy: FastCopy
    near: float | None = None
    slopes: Tensor | None = None

    def near_in(self, threat: Threat) -> float | None:
        """The distance over which a typical margin changes by `near`, by its linearisation."""
        if self.near is None or self.slopes is None or threat.norm not in DUAL:
            return None
        steepness = torch.linalg.vector_norm(self.slopes.flatten(1), DUAL[threat.norm], dim=1)
        return self.near / max(float(steepness.median()), 1e-12)


COMPILING_SECONDS = 900.0  # a search that would take longer at most is worth a compiled fast copy


def levels_of(
    model: Model,
    probe: Tensor,
    labels: Tensor,
    precision: str,
    say: Say = unsaid,
    asked: Asked | None = None,
) -> list[Level]:
    """What the search looks at, the coarsest first; `say` is told why something faster is not.

    Args:
        asked: what the model answers to the probe, where it was asked already.
    """
    if precision == "original":
        return [Level(original(model))]
    exact = fast_copy_of(model, probe, labels, "float32", say, asked) or original(model)
    if precision == "float32" or (precision == "auto" and not has_fast_bf16(probe.device)):
        return [Level(exact)]
    coarse = fast_copy_of(model, probe, labels, "bf16", say, asked)
    if coarse is None:
        return [Level(exact)]
    return coarse_then_exact(coarse, exact)


def coarse_then_exact(coarse: FastCopy, exact: FastCopy) -> list[Level]:
    """What ends closer to the boundary than the coarse fast copy can tell is searched again."""
    return [Level(coarse), Level(exact, near=3 * coarse.error, slopes=coarse.slopes)]


def compiled_where_it_pays(
    levels: list[Level],
    model: Model,
    suite: Suite,
    images: Tensor,
    labels: Tensor,
    workers: Workers,
    *,
    batch_size: int,
    of: int,
    classes: int,
    budget: float | None = None,
    say: Say = unsaid,
) -> list[Level]:
    """The levels with the coarse one compiled, where a long search makes that worth its minutes.

    Args:
        images, labels: one batch, on the model's device.
        batch_size: of the search. With fewer images than that, its batches of several items an
            image would not be those that were compiled for.
        of: how many images there are in all.
        budget: seconds that the search may take; None for any.
        say: takes why it is not compiled, where compiling would have paid.
    """
    coarse = levels[0].fast_copy
    if len(levels) == 1 or of < batch_size or not compiling_pays(images.device):
        return levels
    long = _looks(suite, of, classes) * seconds_per_image(coarse.model, images)
    long = long if budget is None else min(long, budget)
    if not workers.share(long / workers.size > COMPILING_SECONDS):
        return levels
    faster = compiled(coarse, model, images, labels, say)
    return levels if faster is None else coarse_then_exact(faster, levels[-1].fast_copy)


def _looks(suite: Suite, images: int, classes: int) -> float:
    """How many looks the suite takes at most."""
    return images * sum(
        stage.share_of(images)
        * stage.items_per_image(classes)
        * stage.attack.iterations
        * stage.samples
        for stage in suite.stages
        if stage.after is None
    )
