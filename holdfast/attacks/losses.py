"""What an attack climbs: losses per image, from logits. Higher means closer to being fooled."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..types import Labels, Logits

Values = Float[Tensor, " n"]
# (logits, labels, targets) → one value an image. `targets` is −1 where there is none.
Loss = Callable[[Logits, Labels, Labels], Values]


def _pick(logits: Logits, classes: Labels) -> Values:
    return logits.gather(1, classes[:, None]).squeeze(1)


def best_other(logits: Logits, labels: Labels) -> Values:
    """The largest logit among the wrong classes."""
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def margin(logits: Logits, labels: Labels, goals: Labels | None = None) -> Values:
    """What an attacker still lacks: below 0 it has succeeded.

    z_y − max_{j≠y} z_j: below 0 the image is misclassified; −∞ where the model answers nothing
    (its logits are NaN). Where one class t alone counts as a success, max_{j≠t} z_j − z_t: below 0
    t is predicted; +∞ where the model answers nothing.

    Args:
        goals: int64 (N,), these classes; −1 where any mistake will do. By default it always does.
    """
    difference = _pick(logits, labels) - best_other(logits, labels)
    lacks = torch.where(difference.isnan(), -torch.inf, difference)
    if goals is None or not bool((goals >= 0).any()):
        return lacks
    return torch.where(goals >= 0, -margin(logits, goals.clamp_min(0)), lacks)


def cross_entropy(logits: Logits, labels: Labels, targets: Labels) -> Values:
    """−log softmax(z)_y."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin_loss(logits: Logits, labels: Labels, targets: Labels) -> Values:
    """z_t − z_y for the target, or for the best wrong class where there is none.

    Carlini & Wagner, "Towards evaluating the robustness of neural networks", 2017.
    """
    other = torch.where(
        targets >= 0, _pick(logits, targets.clamp_min(0)), best_other(logits, labels)
    )
    return other - _pick(logits, labels)


def difference_of_logits_ratio(logits: Logits, labels: Labels, targets: Labels) -> Values:
    """DLR: −(z_y − z_other) / (z_π1 − z_π3), invariant to shifting and scaling the logits.

    With a target: −(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2). Needs 3 classes, targeted 4;
    with fewer it is the plain margin, which has the same sign.
    Croce & Hein, "Reliable evaluation of adversarial robustness", ICML 2020, eqs. 6 and 7.
    """
    return _by_span(margin_loss(logits, labels, targets), logits, targets >= 0)


def _by_span(values: Values, logits: Logits, targeted: Bool[Tensor, " n"]) -> Values:
    """Values divided by the logits' span as DLR measures it."""
    classes = logits.shape[1]
    if classes < 3:
        return values
    top = logits.topk(min(4, classes), dim=1).values
    fourth = top[:, 3] if classes >= 4 else top[:, 2]
    third = torch.where(targeted, (top[:, 2] + fourth) / 2, top[:, 2])
    return values / (top[:, 0] - third + 1e-12)


def climbed(loss: Loss, logits: Logits, labels: Labels, targets: Labels, goals: Labels) -> Values:
    """What an attack climbs: the loss; where one class t alone counts as a success, the loss that t
    would have as the label, with its sign turned.

    So the cross-entropy becomes log softmax(z)_t, and the margin z_t − max_{j≠t} z_j; DLR is that
    margin over the targeted form's span.

    Args:
        goals: as in `margin`.
    """
    values = loss(logits, labels, targets)
    if not bool((goals >= 0).any()):
        return values
    one, none = goals.clamp_min(0), torch.full_like(goals, -1)
    if loss is difference_of_logits_ratio:
        # The targeted span: by the other, DLR is constant while the goal is third.
        toward = _by_span(-margin_loss(logits, one, none), logits, goals >= 0)
    else:
        toward = -loss(logits, one, none)
    return torch.where(goals >= 0, toward, values)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "dlr": difference_of_logits_ratio,
    "margin": margin_loss,
}


def loss_named(name: str) -> Loss:
    """A loss by its short name; InputError naming the known ones."""
    if name not in LOSSES:
        raise InputError(f"loss {name!r} is unknown; the losses are {', '.join(LOSSES)}")
    return LOSSES[name]
