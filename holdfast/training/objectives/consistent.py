"""LIET: one step from a start that the labels give, and answers that agree at both ends of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import draws
from ...attacks import FGSM, Items
from ...errors import InputError
from ...threat import Threat, per_item
from ...types import Images
from .augmented import jensen_shannon
from .base import Batch, Loss, Network, Objective, inside, perturb


class _FromClass(FGSM):
    """FGSM from the direction of each image's class, a part of it replaced by uniform noise.

    Args:
        directions: of every image's class, (N, C, H, W), each of length 1 in the norm.
        least, most: between which shares of the components the noise replaces.
    """

    def __init__(self, step: float, directions: Images, least: float, most: float):
        super().__init__(step=step)
        self.directions, self.least, self.most = directions, least, most

    def first_point(self, items: Items, threat: Threat) -> Images:
        x, seeds = items.images, items.seeds
        share = self.least + (self.most - self.least) * draws.uniform(seeds, 1)
        sign = torch.where(draws.uniform(seeds, 2) < 0.5, -1.0, 1.0)
        noise = threat.table.noise(seeds, 0, x)
        replaced = draws.uniform(seeds, 3, x.shape[1:]) < per_item(share, x)
        move = per_item(sign, x) * torch.where(replaced, noise, self.directions)
        return self.project(x + per_item(items.eps, x) * move, items, threat)


@dataclass(kw_only=True, eq=False)
class LIET(Objective):
    """Cross-entropy on the end of one step + λ × Jensen–Shannon between its start and its end.

    The method of that name in the FastAT benchmark, arXiv 2604.22853: the step of ε begins at the
    direction in which a grey image of the same class is left fastest, of random sign, with 10 to
    50 % of its components replaced by uniform noise. λ rises linearly from 0 to `guide` over the
    schedule. Start and end pass through the model as one batch. The publication smooths labels at
    random; here smoothing is even.

    Args:
        guide: λ at the end; at least 0.
        label_smoothing: of the cross-entropy, in [0, 1); in the publication 0.6.
        least_noise, most_noise: shares of the start's components that are noise, in [0, 1];
            with 1 and 1 the start is noise alone.

    Raises:
        InputError: the shares are no range in [0, 1].
    """

    guide: float = 100.0
    label_smoothing: float = 0.0
    least_noise: float = 0.1
    most_noise: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.least_noise <= self.most_noise <= 1:
            raise InputError(
                f"objective 'liet': noise from {self.least_noise} to {self.most_noise} is no range "
                "in [0, 1]"
            )

    def directions(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """The steepest way up the cross-entropy at grey of every image's class, of length 1."""
        module = inside(model)
        classes, which = batch.labels.unique(return_inverse=True)
        grey = torch.full_like(batch.images[:1], 0.5).repeat(len(classes), 1, 1, 1)
        grey.requires_grad_()
        training = module.training
        module.eval()  # grey images have no statistics of their own
        loss = nn.functional.cross_entropy(module(grey).float(), classes, reduction="sum")
        module.train(training)
        (gradient,) = torch.autograd.grad(loss, grey)
        return threat.table.steepest(gradient)[which]

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """The starts and the ends of the steps, (2 N, C, H, W)."""
        directions = self.directions(model, batch, threat)
        parts = 1 + self.caution
        attack = _FromClass(1 / parts, directions, self.least_noise, self.most_noise)
        end = perturb(model, batch, attack, threat, parts)
        anywhere = torch.full_like(batch.labels, -1)
        items = Items(batch.images, batch.labels, anywhere, threat.radii(batch.images), batch.seeds)
        return torch.cat([attack.first_point(items, threat), end])

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        start, end = model(points).float().chunk(2)
        value = batch.cross_entropy(end, self.label_smoothing)
        return Loss(value + self.weight() * self.change(start, end, batch), end.detach())

    def change(self, start: Tensor, end: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Mean Jensen–Shannon divergence between the answers to start and end, (N, K) each."""
        return jensen_shannon(torch.stack([start, end]), batch.mean)

    def weight(self) -> float:
        """λ at the present point of the schedule."""
        return self.guide * self.progress
