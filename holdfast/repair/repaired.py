"""`repaired`: look for what hides a model's gradient, and repair it."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ..attacks.losses import margin_loss
from ..models.backward import replace_backward
from ..models.wrapper import is_out_of_memory, unwrapped, wrapped
from ..runs.records import Repair
from ..types import Images, Labels, Logits, Model
from . import contest, detours, ends, nodes
from .contest import same_draws
from .ends import Doubt
from .graph import Graph, Place, Plan, Reached
from .passes import repairing

LOOKED_AT = 16  # images on which gradients are compared
THE_SAME = 0.99  # cosine from which two gradients are one
SMALL, LARGE = 1e-6, 1e6  # spreads of logits between which gradients need no gain

BEFORE = Repair(what="what lies before the first layer", where="the model", times=1)
BEHIND = Repair(what="what lies behind the logits", where="the model", times=1)

# Under which plan something stays doubtful, and what was repaired by then.
Doubts = list[tuple[Plan, Doubt, tuple[Repair, ...]]]


class Repaired(nn.Module):
    """A model that answers as before, and whose gradients are repaired.

    Args:
        inner: images → logits.
        plan: what the first pass found.

        repairs: what was repaired.
    """

    def __init__(self, inner: Model, plan: Plan, repairs: tuple[Repair, ...] = ()):
        super().__init__()
        self.inner, self.plan, self.repairs = inner, plan, repairs

    def forward(self, images: Images) -> Logits:
        if not (torch.is_grad_enabled() and images.requires_grad):
            return self.inner(images)
        logits, graph = through(self.inner, images, self.plan)
        if self.plan.end is not None:
            made = ends.logits_of(graph.made_logits, len(images))
            logits = made[self.plan.end] if self.plan.end < len(made) else logits
        if not self.plan.climbs:
            return logits
        # What lies before a rounded or saturated end is climbed, but the prediction is the model's.
        with torch.no_grad():
            exact = self.inner(images).to(logits.dtype)
            same = exact.argmax(1, keepdim=True) == logits.argmax(1, keepdim=True)
            value = torch.where(same, logits, exact)
        return replace_backward(value, logits)

    def __deepcopy__(self, memo: dict[int, object]) -> Repaired:
        return Repaired(copy.deepcopy(self.inner, memo), self.plan, self.repairs)


def through(
    model: Model, images: Images, plan: Plan, finding: bool = False
) -> tuple[Logits, Graph]:
    """One forward pass through the repaired graph: the logits, and what it remembers."""
    x = images.view_as(images)  # no leaf, so that it may be written to
    graph = Graph(x, plan, finding)
    with repairing(graph, model):
        logits = model(x)
    if finding or plan.steps:
        for node, name in nodes.steps_in(logits):
            nodes.go_straight_through(node)
            graph.found[Place(name, "code that is not seen")] += 1
            plan.steps = True
    if not logits.requires_grad:
        splice = _splice_at_the_end(graph, logits, plan, finding)
        made = None if splice is None else detours.stand_in(splice, x, graph.left, logits)
        if made is not None:
            logits = replace_backward(logits, made)
    if logits.requires_grad and plan.gain != 1.0:
        logits = replace_backward(logits, logits * plan.gain)
    return logits, graph


def _splice_at_the_end(
    graph: Graph, logits: Logits, plan: Plan, finding: bool
) -> detours.Splice | None:
    """What stands in for logits that come from another library."""
    if finding:
        plan.splices[0] = detours.found(graph.images, graph.left, logits) if graph.left else None
        if plan.splices[0] is not None:
            graph.found[Place("detour outside PyTorch", "the logits")] += 1
    return plan.splices.get(0)


@dataclass(frozen=True)
class Diagnosis:
    """What `repaired` found.

    Attributes:
        model: with repaired gradients; None where there is nothing to gain by it.
        repairs: all places where the graph was repaired, harmless ones too.
        remark: why there is no repaired model although something was found; empty elsewhere.
        cosine: the mean cosine of its gradients and the model's own; None where the model has no
            own ones.
    """

    model: Repaired | None
    repairs: tuple[Repair, ...]
    remark: str = ""
    cosine: float | None = None


def repaired(model: Model, images: Images, labels: Labels) -> Diagnosis:
    """A model with repaired gradients, if its own are hidden.

    One forward pass on a few images finds what kills gradients: rounding and casts to whole
    numbers, comparisons, `argmax`, saturated functions, `detach` and `no_grad`, custom autograd
    functions with a backward pass that is not that of their forward pass, ways out of PyTorch and
    back. Each gets a useful backward pass (BPDA, Athalye, Carlini & Wagner, ICML 2018). Where the
    gradient then points elsewhere than the model's own, the model hides something.

    Args:
        model: images (N, C, H, W) in [0, 1] → logits (N, K), in eval mode.
        images: float32 (P, C, H, W), on the model's device; the first 16 are looked at.
        labels: int64 (P,).

    Returns:
        the repaired model, or None, and what was found.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> found = repaired(lambda x: network((x * 7).round() / 7), torch.rand(8, 1, 2, 2),
        ...                  torch.arange(8) % 3)
        >>> [repair.what for repair in found.repairs], found.model is not None
        (['round'], True)
    """
    x, y = images[:LOOKED_AT], labels[:LOOKED_AT]
    try:
        return _diagnosed(_readable(model, x), x, y)
    except Exception as error:  # somebody's code, run in an unusual way
        if is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:120]
        return Diagnosis(None, (), f"gradients cannot be repaired: {type(error).__name__}: {said}")


def _diagnosed(model: Model, x: Images, y: Labels) -> Diagnosis:
    with same_draws(), torch.no_grad():
        answers = model(x).float()
    if _hides_nothing(model, x, y, answers):
        return Diagnosis(None, ())
    best, doubts = _by_rules(model, x, y, answers)
    if doubts:
        best = _beyond_rules(model, best, doubts, x, answers)
    return best


def _by_rules(model: Model, x: Images, y: Labels, answers: Logits) -> tuple[Diagnosis, Doubts]:
    """What the rules repair, and what remains doubtful under the plans that were tried."""
    own, seen = _own(model, x, y)
    steady = _steady(model, x, answers)
    hidden = steady and seen is not None and not _alike(seen, answers)
    classes = answers.shape[1]
    plans = [Plan(classes, hidden=hidden), Plan(classes, hidden=hidden, flat_remainders=True)]
    if seen is None:  # it fails where it is differentiated: perhaps only where it sees that it is
        plans.append(Plan(classes, hidden=True))
    best, failed, doubts = Diagnosis(None, ()), None, []
    for plan in plans:
        try:
            _, graph, doubt = _planned(model, plan, x, y, answers)
        except Exception as error:  # somebody's code
            if is_out_of_memory(error):
                raise
            failed = error
            continue
        repairs = tuple(
            Repair(what=place.what, where=place.where, times=times)
            for place, times in graph.found.items()
        )
        if doubt:
            doubts.append((plan, doubt, repairs))
        made = Repaired(model, plan, repairs)
        gradient, logits = _own(made, x, y)
        if logits is not None and steady and not _alike(logits, answers):
            remark = "gradients cannot be repaired: the answers would change"
            return Diagnosis(None, repairs, remark), doubts
        if gradient is not None and bool(_useful(gradient).any()):
            best, failed = _worth(made, own, gradient), None
            break
        if repairs:
            best = Diagnosis(None, repairs, "gradients cannot be repaired: they stay zero")
    if failed is not None and not best.repairs and not doubts:
        raise failed
    if not best.repairs:
        return Diagnosis(None, ()), doubts
    if best.model is not None:
        _soften(best.model, x, answers)
    return best, doubts


def _beyond_rules(
    model: Model, best: Diagnosis, doubts: Doubts, x: Images, answers: Logits
) -> Diagnosis:
    """What stands in for the way before the network or behind it, by whatever means it hides, if
    that leads further than the rules do."""
    first = best.model or model
    others = []
    for plan, doubt, repairs in doubts:
        places = [BEFORE] if doubt.entry is not None else []
        if doubt.logits:
            places.append(BEHIND)
        for end in doubt.logits or (None,):
            made = replace(plan, entry=doubt.entry, end=end, gain=1.0)
            others.append(Repaired(model, made, (*repairs, *places)))
    found = contest.best(model, first, others, x, answers.argmax(1))
    if found is first or not isinstance(found, Repaired):
        return best
    return Diagnosis(found, found.repairs)


def _hides_nothing(model: Model, x: Images, y: Labels, answers: Logits) -> bool:
    """Whether one pass meets nothing to repair, answers as the model does, and has a gradient. For
    most models this is all that is ever asked of them."""
    x = x.detach().requires_grad_()
    try:
        logits, graph, doubt = _planned(model, Plan(answers.shape[1]), x, y, answers)
    except Exception as error:  # somebody's code: looked at more closely
        if is_out_of_memory(error):
            raise
        return False
    if graph.found or doubt or not logits.requires_grad or not _alike(logits.detach(), answers):
        return False
    gradient = _of_margin(logits, x, y)
    return gradient is not None and bool(_useful(gradient).any())


def _planned(
    model: Model, plan: Plan, x: Images, y: Labels, answers: Logits
) -> tuple[Logits, Graph, Doubt]:
    """Fill in a plan by a first pass; its logits, what it found, and what stays doubtful."""
    with same_draws(), torch.enable_grad():
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        logits, graph = through(model, x, plan, finding=True)
        doubt = _doubt(model, x, y, plan, graph, logits, answers)
    found = graph.found
    spread = float(answers.std())
    if 0 < spread < SMALL or spread > LARGE:
        plan.gain = 1 / spread
        found[Place(f"logits of a spread of {spread:.0e}", "the model")] += 1
    if plan.hidden:
        found[Place("answers that differ when differentiated", "the model")] += 1
    return logits, graph, doubt


def _doubt(
    model: Model, x: Images, y: Labels, plan: Plan, graph: Graph, logits: Logits, answers: Logits
) -> Doubt:
    """Whether the gradient at the network's ends tells what happens there."""

    def entering(images: Images) -> Tensor | None:
        moved = Graph(images.view_as(images), plan)
        moved.stops = True
        with same_draws(), suppress(Reached, Exception), repairing(moved, model):
            model(moved.images)
        return moved.entering[0] if moved.entering else None

    entry = ends.entry_of(x, graph.entering[0], entering) if graph.entering else None
    return Doubt(entry, ends.doubtful(graph.made_logits, logits, answers, y))


def _worth(made: Repaired, own: Tensor | None, gradient: Tensor) -> Diagnosis:
    """The repaired model, unless its gradients are the model's own."""
    if own is None:
        return Diagnosis(made, made.repairs)
    each = cosine_similarity(own.flatten(1), gradient.flatten(1), dim=1)
    cosine = float(torch.where(_useful(own), each, 0.0).mean())
    return Diagnosis(None if cosine > THE_SAME else made, made.repairs, cosine=cosine)


def _soften(made: Repaired, x: Images, answers: Logits) -> None:
    """Let attacks climb what lies before a rounded or saturated end, if that predicts the same."""
    made.plan.softened = tuple(answers.shape[1:])
    with same_draws(), torch.enable_grad():
        logits = made(x.detach().requires_grad_()).detach()
    top = answers.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)
    # Among equal logits any may be the largest.
    if not bool(logits.isfinite().all()) or float((top < answers.amax(1)).float().mean()) > 0.1:
        made.plan.softened = ()


def _readable(model: Model, x: Images) -> Model:
    """The model, whose calls can be seen: TorchScript is converted to a program that makes them."""
    plain = unwrapped(model)
    if not isinstance(plain, torch.jit.ScriptModule):
        return model
    from torch._export.converter import TS2EPConverter  # seconds to import

    return wrapped(TS2EPConverter(plain, (x[:2],)).convert().module())


def _useful(gradient: Float[Tensor, "n c h w"]) -> Tensor:
    flat = gradient.flatten(1)
    return flat.isfinite().all(1) & (flat.abs().amax(1) > 1e-12)


def _alike(found: Logits, answers: Logits) -> bool:
    return torch.allclose(found.float(), answers, rtol=1e-3, atol=1e-4, equal_nan=True)


def _steady(model: Model, x: Images, answers: Logits) -> bool:
    """Whether the model answers the same twice, with the same draws."""
    with same_draws(), torch.no_grad():
        return _alike(model(x), answers)


def _own(model: Model, x: Images, y: Labels) -> tuple[Tensor | None, Logits | None]:
    """The gradient of the model's own margin, and its answers when it is differentiated."""
    try:
        with same_draws(), torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = model(x).float()
    except Exception as error:  # it takes no images that require gradients
        if is_out_of_memory(error):
            raise
        return None, None
    if not logits.requires_grad:
        return None, logits
    return _of_margin(logits, x, y), logits.detach()


def _of_margin(logits: Logits, x: Images, y: Labels) -> Tensor | None:
    try:
        loss = margin_loss(logits, y, torch.full_like(y, -1))
        (gradient,) = torch.autograd.grad(loss.sum(), x, allow_unused=True)
    except Exception as error:  # somebody's backward pass
        if is_out_of_memory(error):
            raise
        return None
    return gradient
