"""Interval bound propagation, L∞ (Gowal et al., "On the effectiveness of interval bound
propagation for training verifiably robust models", 2018).

An interval [lower, upper] around every value is carried through the network, layer by layer;
whatever the attacker does inside the ball, every value stays inside its interval. It works for
an `nn.Sequential` (or several, nested) of the layers listed in `propagate`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.func import functional_call

from .. import draws
from ..defences.base import real_number
from ..errors import InputError
from ..inputs import check_labels
from ..models.layers import Normalise
from ..types import Images

Interval = tuple[Tensor, Tensor]  # lower and upper, of one shape

# An increasing function of each input maps the ends of an interval to the ends.
_INCREASING = (
    nn.ReLU,
    nn.Flatten,
    nn.Identity,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.MaxPool2d,
    nn.AdaptiveMaxPool2d,
    Normalise,
)
_SUPPORTED = ", ".join(
    layer.__name__ for layer in (nn.Linear, nn.Conv2d, nn.BatchNorm2d, *_INCREASING)
)
# What float32 arithmetic may be off by, relative to the largest bound: a margin must exceed it.
_ROUNDING = 1e-5


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a sequential network in order.

    Raises:
        InputError: for a network of another kind.
    """
    if not isinstance(model, nn.Sequential):
        raise InputError(
            f"interval bounds need an nn.Sequential of {_SUPPORTED}; this is a "
            f"{type(model).__name__}"
        )
    return [
        layer
        for child in model
        for layer in (layers(child) if isinstance(child, nn.Sequential) else [child])
    ]


def propagate(layer: nn.Module, interval: Interval) -> Interval:
    """The interval after one layer, given the one before it.

    Raises:
        InputError: no rule for this layer, or batch norm in training mode.
    """
    lower, upper = interval
    if isinstance(layer, nn.Linear | nn.Conv2d):
        absolute = {"weight": layer.weight.abs()}
        if layer.bias is not None:
            absolute["bias"] = torch.zeros_like(layer.bias)
        return _affine(interval, layer, lambda radius: functional_call(layer, absolute, radius))
    if isinstance(layer, nn.BatchNorm2d):
        if layer.training or layer.running_var is None:
            raise InputError(
                "interval bounds need batch norm with fixed statistics: call model.eval()"
            )
        slope = torch.rsqrt(layer.running_var + layer.eps)
        if layer.weight is not None:
            slope = slope * layer.weight
        slope = slope.abs().view(1, -1, 1, 1)
        return _affine(interval, layer, lambda radius: radius * slope)
    if isinstance(layer, _INCREASING):
        return layer(lower), layer(upper)
    raise InputError(
        f"interval bounds have no rule for {type(layer).__name__}; there are rules for {_SUPPORTED}"
    )


def _affine(
    interval: Interval, apply: Callable[[Tensor], Tensor], spread: Callable[[Tensor], Tensor]
) -> Interval:
    """The centre goes through the layer itself, the half-width through its absolute weights."""
    lower, upper = interval
    centre, radius = apply((lower + upper) / 2), spread((upper - lower) / 2)
    return centre - radius, centre + radius


def _input_interval(images: Images, eps: float) -> Interval:
    if eps != 0:
        real_number("interval bounds", "eps", eps, above=0)
    return (images - eps).clamp_min(0), (images + eps).clamp_max(1)


def logit_bounds(
    model: nn.Module, images: Images, eps: float
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Lower and upper bounds of every logit over the L∞ ball of radius eps and [0, 1].

    Args:
        eps: in image units, at least 0.

    Raises:
        InputError: a layer without a rule, or a radius below 0.
    """
    interval = _input_interval(images, eps)
    for layer in layers(model):
        interval = propagate(layer, interval)
    return interval


def margin_bounds(
    model: nn.Module, images: Images, labels: Int64[Tensor, " n"], eps: float
) -> Float[Tensor, "n k"]:
    """Lower bounds of (label's logit − logit k) over the ball; 0 at k = label.

    Where the last layer is linear, the difference is taken inside of it, which gives tighter
    bounds than the difference of two bounds ("elision of the last layer", section 3 there).
    """
    *body, last = layers(model)
    interval = _input_interval(images, eps)
    for layer in body:
        interval = propagate(layer, interval)
    if isinstance(last, nn.Linear):
        check_labels(labels, len(images), last.out_features)
        weight = last.weight[labels].unsqueeze(1) - last.weight  # (N, K, D)
        bias = 0 if last.bias is None else last.bias[labels].unsqueeze(1) - last.bias
        lower, upper = interval
        centre, radius = (lower + upper).unsqueeze(2) / 2, (upper - lower).unsqueeze(2) / 2
        return (weight @ centre - weight.abs() @ radius).squeeze(2) + bias
    lower, upper = propagate(last, interval)
    check_labels(labels, len(images), lower.shape[1])
    return (lower.gather(1, labels[:, None]) - upper).scatter(1, labels[:, None], 0)


def verified(
    model: nn.Module, images: Images, labels: Int64[Tensor, " n"], eps: float
) -> Bool[Tensor, " n"]:
    """Which images no attack inside the ball can break; False says nothing either way.

    Verified accuracy is the mean. A margin must exceed what float32 rounding may hide.
    """
    with torch.no_grad():
        margins = margin_bounds(model, images, labels, eps)
        lower, upper = logit_bounds(model, images, eps)
    slack = _ROUNDING * torch.maximum(lower.abs(), upper.abs()).amax(1)
    others = margins.scatter(1, labels[:, None], torch.inf)
    return others.amin(1) > slack


def ibp_loss(
    model: nn.Module,
    images: Images,
    labels: Int64[Tensor, " n"],
    eps: float,
    clean_share: float = 0.5,
) -> Float[Tensor, ""]:
    """The training loss: clean cross-entropy and that of the worst logits the bounds allow.

    Training starts with eps = 0 and clean_share = 1 and moves both over slowly (to the target
    radius and ½ in the paper); at once at full strength it learns a constant.

    Args:
        clean_share: κ in the paper, 0 to 1.
    """
    clean = F.cross_entropy(model(images), labels)
    worst = F.cross_entropy(-margin_bounds(model, images, labels, eps), labels)
    return clean_share * clean + (1 - clean_share) * worst


def escapes(
    model: nn.Module,
    images: Images,
    eps: float,
    bounds: tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]],
    points: int = 32,
    seed: int = 0,
) -> Bool[Tensor, " n"]:
    """Whether points of the ball were found whose logits leave the bounds: each is a bug.

    Looks at random corners and inner points, and for every logit at the two corners where it is
    lowest and highest to first order.

    Args:
        bounds: what `logit_bounds` said.
        points: random points an image.

    Returns:
        bool (N,), True where a bound is wrong.
    """
    lower, upper = bounds
    slack = _ROUNDING * torch.maximum(lower.abs(), upper.abs()).amax(1, keepdim=True)
    outside = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def look(direction: Tensor) -> None:
        with torch.no_grad():
            logits = model((images + eps * direction).clamp(0, 1))
        left = (logits < lower - slack) | (logits > upper + slack)
        outside.logical_or_(left.any(1))

    seeds = draws.item_seeds(seed, "escapes", torch.arange(len(images))).to(images.device)
    for i in range(points):
        direction = draws.uniform(seeds, i, images.shape[1:]) * 2 - 1
        look(direction if i % 2 else direction.sign())
    for k in range(lower.shape[1]):
        with torch.enable_grad():
            x = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(model(x)[:, k].sum(), x)
        look(gradient.sign())
        look(-gradient.sign())
    return outside
