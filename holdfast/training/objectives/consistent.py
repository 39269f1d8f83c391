"""LIET: one step from a start that the labels give, and answers that agree at both ends of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import draws
from ...attacks import FGSM, Items
from ...threat import Threat, per_item
from ...types import Images
from .augmented import jensen_shannon
from .base import Batch, Loss, Network, Objective, inside, perturb


class _FromClass(FGSM):
    """FGSM from the direction of each image's class, a part of it replaced by uniform noise.

    Args:
        directions: of every class, (K, C, H, W), each of length 1 in the norm.
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
        move = per_item(sign, x) * torch.where(replaced, noise, self.directions[items.labels])
        return self.project(x + per_item(items.eps, x) * move, items, threat)


@dataclass(kw_only=True, eq=False)
class LIET(Objective):
    """Cross-entropy on the end of one step + λ × Jensen–Shannon between its start and its end.

    Fan et al., FastAT benchmark (arXiv 2604.22853), there "LIET": the step of ε begins at the
    direction in which a grey image of the same class is left fastest, of random sign, with 10 to
    50 % of its components replaced by uniform noise. λ rises linearly from 0 to `guide` over the
    schedule. Start and end pass through the model as one batch. The publication smooths labels at
    random; here smoothing is even.

    Args:
        guide: λ at the end; at least 0.
        label_smoothing: of the cross-entropy, in [0, 1).
        least_noise, most_noise: shares of the start's components that are noise; 1 and 1 make it
            noise alone.
    """

    guide: float = 100.0
    label_smoothing: float = 0.6
    least_noise: float = 0.1
    most_noise: float = 0.5

    def directions(self, model: nn.Module, images: Images, threat: Threat, classes: int) -> Images:
        """Of every class, the steepest way up the cross-entropy at grey, of length 1."""
        module = inside(model)
        grey = torch.full_like(images[:1], 0.5).repeat(classes, 1, 1, 1).requires_grad_()
        training = module.training
        module.eval()  # the statistics of grey images would be none at all
        logits = module(grey).float()
        module.train(training)
        labels = torch.arange(classes, device=grey.device)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, grey)
        return threat.table.steepest(gradient)

    def prepare(self, images: Images, classes: int) -> None:
        self.classes = classes

    def ends(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """The starts and the ends of the steps, (2 N, C, H, W)."""
        directions = self.directions(model, batch.images, threat, self.classes)
        parts = 1 + self.caution
        attack = _FromClass(1 / parts, directions, self.least_noise, self.most_noise)
        end = perturb(model, batch, attack, threat, parts)
        eps = threat.radii(batch.images)
        unmoved = torch.full_like(batch.labels, -1)
        items = Items(batch.images, batch.labels, unmoved, eps, batch.seeds)
        return torch.cat([attack.first_point(items, threat), end])

    def attacked(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        return self.ends(model, batch, threat)

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
