"""Interval bound propagation, L∞: bounds of a network's logits over a ball of images.

Gowal et al., "On the effectiveness of interval bound propagation for training verifiably robust
models", 2018. An interval [lower, upper] around every value is computed layer by layer. Whatever an
attacker does inside the ball, every value stays inside its interval. Networks must be an
`nn.Sequential` (or several, nested) of layers that `propagate` has rules for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.func import functional_call

from .. import draws
from ..errors import InputError
from ..inputs import check_labels, real_number
from ..models.layers import Normalise
from ..types import Images

Interval = tuple[Tensor, Tensor]  # lower and upper bounds, of one shape

# These increase in every input: they map the ends of an interval to the ends of the next.
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
# Error of float32 arithmetic, relative to the largest bound: a difference of logits must exceed it.
_ROUNDING = 1e-5


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a sequential network, in order.

    Raises:
        InputError: a network that is no `nn.Sequential`.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
        >>> [type(layer).__name__ for layer in layers(model)]
        ['Flatten', 'Linear', 'ReLU']
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
    """The interval after a layer, given the one before it.

    Raises:
        InputError: a layer without a rule, or batch norm in training mode.

    Example:
        >>> lower, upper = propagate(nn.ReLU(), (torch.tensor([-1.0]), torch.tensor([2.0])))
        >>> lower, upper
        (tensor([0.]), tensor([2.]))
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
    """The layer maps the centre of the interval; its absolute weights map the half-width."""
    lower, upper = interval
    centre, radius = apply((lower + upper) / 2), spread((upper - lower) / 2)
    return centre - radius, centre + radius


def _input_interval(images: Images, eps: float) -> Interval:
    if eps != 0:
        real_number("interval bounds: eps", eps, above=0)
    return (images - eps).clamp_min(0), (images + eps).clamp_max(1)


def logit_bounds(
    model: nn.Module, images: Images, eps: float
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Lower and upper bounds (N, K) of every logit over the L∞ ball around each image, in [0, 1].

    Args:
        model: an `nn.Sequential` in eval mode.
        images: (N, C, H, W) in [0, 1].
        eps: radius in image units, at least 0.

    Raises:
        InputError: a layer without a rule, or a radius below 0.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> images = torch.rand(2, 1, 2, 2)
        >>> lower, upper = logit_bounds(model, images, eps=0.1)
        >>> bool(((lower <= model(images)) & (model(images) <= upper)).all())
        True
    """
    interval = _input_interval(images, eps)
    for layer in layers(model):
        interval = propagate(layer, interval)
    return interval


def margin_bounds(
    model: nn.Module, images: Images, labels: Int64[Tensor, " n"], eps: float
) -> Float[Tensor, "n k"]:
    """Lower bounds (N, K) of (label's logit − logit k) over the ball; 0 at k = label.

    If the last layer is linear, its weights are subtracted before they are bounded. This is tighter
    than subtracting two bounds ("elision of the last layer", section 3 of Gowal et al.).

    Args:
        labels: (N,).
        model, images, eps: as in `logit_bounds`.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> margin_bounds(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 2]), eps=0.1).shape
        torch.Size([2, 3])
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
    """Whether it is proved that no attack inside the ball changes the prediction from the label.

    Verified accuracy is the mean. False means that nothing is proved: an attack may exist or not.
    Bounds must exceed what float32 rounding may hide.

    Args:
        model, images, eps: as in `logit_bounds`.
        labels: (N,).

    Returns:
        bool (N,).

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> images = torch.rand(2, 1, 2, 2)
        >>> verified(model, images, model(images).argmax(1), eps=0.0)
        tensor([True, True])
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
    """The training loss: cross-entropy of clean logits, and of the worst logits in the bounds.

    Training starts with eps = 0 and clean_share = 1, and slowly moves to the target radius and, in
    the paper, to ½. If it starts with these, the network learns a constant.

    Args:
        model, images, eps: as in `logit_bounds`.
        labels: (N,).
        clean_share: weight of the clean loss, κ in the paper, 0 to 1.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> loss = ibp_loss(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 2]), eps=0.1)
        >>> loss.backward()
    """
    clean = F.cross_entropy(model(images), labels)
    worst = F.cross_entropy(-margin_bounds(model, images, labels, eps), labels)
    return clean_share * clean + (1 - clean_share) * worst


def outside_bounds(
    model: nn.Module,
    images: Images,
    eps: float,
    bounds: tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]],
    points: int = 32,
    seed: int = 0,
) -> Bool[Tensor, " n"]:
    """Whether some point of the ball has logits outside the bounds: then the bounds are wrong.

    It tries random corners and inner points and, for every logit, the two corners at which it is
    lowest and highest to first order.

    Args:
        model, images, eps: as in `logit_bounds`.
        bounds: from `logit_bounds`.
        points: number of random points an image.
        seed: of these points.

    Returns:
        bool (N,).

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> images = torch.rand(2, 1, 2, 2)
        >>> outside_bounds(model, images, 0.1, logit_bounds(model, images, 0.1))
        tensor([False, False])
    """
    lower, upper = bounds
    slack = _ROUNDING * torch.maximum(lower.abs(), upper.abs()).amax(1, keepdim=True)
    outside = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def compare(direction: Tensor) -> None:
        with torch.no_grad():
            logits = model((images + eps * direction).clamp(0, 1))
        outside.logical_or_(((logits < lower - slack) | (logits > upper + slack)).any(1))

    seeds = draws.item_seeds(seed, "escapes", torch.arange(len(images))).to(images.device)
    for i in range(points):
        direction = draws.uniform(seeds, i, images.shape[1:]) * 2 - 1
        compare(direction if i % 2 else direction.sign())
    for k in range(lower.shape[1]):
        with torch.enable_grad():
            x = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(model(x)[:, k].sum(), x)
        compare(gradient.sign())
        compare(-gradient.sign())
    return outside
