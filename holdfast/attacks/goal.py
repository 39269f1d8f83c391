"""What an attacker wants: any mistake, or for each image one class of its own."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from .. import draws
from ..errors import InputError
from ..inputs import check_labels, checked_labels
from ..models.wrapper import MASKED
from ..parsing import nearest
from ..stored import TOGETHER, ModelImages
from ..threat import Threat
from ..types import Images, Labels, Logits

UNTARGETED = "untargeted"  # success: the label is not predicted
TARGET = "target"  # success: the target class is predicted; any other mistake is none
GOALS = (UNTARGETED, TARGET)
LEAST_LIKELY, MOST_LIKELY, RANDOM = "least-likely", "most-likely", "random"
KINDS = (LEAST_LIKELY, MOST_LIKELY, RANDOM)  # of targets that are chosen, each for its image
OWN = "own"  # the kind of targets that a caller gives


def checked_goal(goal: Any, targets: Any) -> str:
    """A goal by its name, which fits to the targets that are given or not.

    Raises:
        InputError: an unknown goal; a goal without the targets that it needs, or the reverse; a
            kind of targets that there is not.

    Example:
        >>> checked_goal("target", "random")
        'target'
        >>> checked_goal("target", None)
        Traceback (most recent call last):
        holdfast.errors.InputError: goal 'target' needs targets: a class for every image, or \
least-likely, most-likely or random
    """
    if goal == "targeted":
        goal = TARGET
    if goal not in GOALS:
        raise InputError(f"goal {goal!r} is unknown{nearest(str(goal), GOALS)}")
    if goal == UNTARGETED and targets is not None:
        raise InputError("targets are given, and the goal is untargeted: say goal 'target' as well")
    if goal == TARGET and targets is None:
        raise InputError(
            "goal 'target' needs targets: a class for every image, or least-likely, most-likely or "
            "random"
        )
    if isinstance(targets, str) and targets not in KINDS:
        raise InputError(
            f"targets {targets!r} are unknown{nearest(targets, KINDS)}; or give a class for every "
            "image"
        )
    return str(goal)


def own_targets(targets: Any, labels: Labels, classes: int | None = None) -> Labels:
    """Targets that a caller gives: int64 (N,), on the labels' device.

    Raises:
        InputError: another number of them, no whole numbers, out of range, or an image's own label.
    """
    found = checked_labels(targets, len(labels), "targets").to(labels.device)
    if classes is not None:
        check_labels(found, len(labels), classes, name="targets")
    same = found == labels
    if bool(same.any()):
        others = int(same.sum()) - 1
        more = f" (and so are {others} others)" if others else ""
        raise InputError(
            f"targets[{int(same.nonzero()[0])}] is the image's own label{more}: give a wrong class"
        )
    return found


def chosen_targets(
    kind: str, logits: Logits, labels: Labels, seeds: Int64[Tensor, " n"]
) -> Int64[Tensor, " n"]:
    """One wrong class for each image.

    Classes that the model masks (a logit of −∞) are left out, where another is left: they are never
    predicted, whatever the image.

    Args:
        kind: `least-likely` or `most-likely`, of the wrong classes on the clean image, or `random`.
        logits: (N, K) on the clean images.
        seeds: of random choices, one an image.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])
        >>> [int(chosen_targets(kind, logits, labels, labels)) for kind in KINDS[:2]]
        [1, 2]
    """
    wrong = torch.ones_like(logits, dtype=torch.bool).scatter(1, labels[:, None], False)
    open_to = wrong & (logits > logits.amax(1, keepdim=True) - MASKED)
    among = torch.where(open_to.any(1, keepdim=True), open_to, wrong)
    if kind == LEAST_LIKELY:
        return logits.masked_fill(~among, torch.inf).argmin(1)
    if kind == RANDOM:
        logits = draws.uniform(seeds, 0, (logits.shape[1],)).to(logits)
    return logits.masked_fill(~among, -torch.inf).argmax(1)


def target_seeds(seed: int, index: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Of random targets: they belong to the image, not to the attack."""
    return draws.item_seeds(seed, "target", index)


def nearest_of_class(
    x: Images, goals: Labels, images: ModelImages, labels: Labels, threat: Threat
) -> Images:
    """For each image the closest one whose label is its goal; itself, where there is none.

    From there a search that knows nothing but predicted classes can begin.

    Args:
        x, goals: (N, C, H, W) and (N,), anywhere.
        images, labels: (M, C, H, W) and (M,), to choose from.
    """
    found, order = x.clone(), torch.inf if threat.norm == "linf" else 2
    for row, goal in enumerate(goals.tolist()):
        of_class = (labels == goal).nonzero().squeeze(1).to(images.device)
        if len(of_class):
            image = x[row].to(images.device, images.dtype)
            distance = [
                (images[some] - image).flatten(1).norm(order, dim=1)
                for some in of_class.split(TOGETHER)
            ]
            found[row] = images[of_class[int(torch.cat(distance).argmin())]].to(x)
    return found
