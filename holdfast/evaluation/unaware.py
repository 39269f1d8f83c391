"""A defence as its authors would have measured it: by an attacker who does not know of it."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from .. import draws
from ..attacks import PGD, Items, Oracle, run
from ..intervals import clopper_pearson
from ..search import Verifier
from ..stored import ModelImages
from ..threat import Threat
from ..types import Images, Model
from .result import Unaware

STEPS = 40
IMAGES = 1000


def unaware_points(
    network: Model, images: Images, labels: Tensor, threat: Threat, seeds: Int64[Tensor, " n"]
) -> Images:
    """For each image the point of smallest margin that PGD on the cross-entropy finds.

    The search is not stopped at the first success: a point that only just fools the network is
    undone by any change to the image.

    Cost: `STEPS` + 1 forwards and backwards of the network.
    """
    attack = PGD(steps=STEPS)
    items = Items(
        images=images,
        labels=labels,
        targets=torch.full_like(labels, -1),
        eps=threat.radii(images),
        seeds=seeds.to(images.device),
    )
    oracle = Oracle(network)
    return run(attack, oracle, items, threat, steps=attack.iterations, own_draws=False).best


def unaware_accuracy(
    network: Model,
    verifier: Verifier,
    images: ModelImages,
    labels: Int64[Tensor, " n"],
    threat: Threat,
    *,
    batch_size: int,
    device: torch.device,
    seed: int,
) -> Unaware:
    """Accuracy of the defended model on the first `IMAGES` images, attacked unawares.

    A random model is queried once an image, as authors do.

    Args:
        network: what is attacked, behind the defences.
        verifier: of the defended model.
    """
    n, right = min(len(images), IMAGES), 0
    for rows in torch.arange(n).split(batch_size):
        x, y = images[rows].to(device), labels[rows].to(device)
        point = unaware_points(network, x, y, threat, unaware_seeds(seed, rows))
        answers = verifier.predict(point, draws.item_seeds(seed, "unaware verdict", rows), 1)
        right += int((answers.prediction == y).sum())
    attack = f"PGD on the cross-entropy, {STEPS} steps, on the network behind the defence"
    return Unaware(
        attack=attack,
        n=n,
        robust_accuracy=right / n,
        robust_accuracy_interval=clopper_pearson(right, n),
    )


def unaware_seeds(seed: int, rows: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Of the attack on the images of these numbers."""
    return draws.item_seeds(seed, "unaware", rows)
