"""The check `more-steps-do-not-help` stops when its answer is certain, and answers as before."""

from __future__ import annotations

import pytest
import torch
from linear_classifiers import linear
from torch import Tensor

from holdfast.attacks import PGD
from holdfast.attacks.losses import margin
from holdfast.evaluation.health import MORE_STANDING, more_steps
from holdfast.threat import Threat

EPS = 0.1


def trap(images: Tensor) -> Tensor:
    """Breaks beyond 0.45 ε; before that, the gradient leads back to the clean image. Only long
    steps jump over."""
    off = (images - 0.5).flatten(1)[:, :1] / EPS
    value = torch.where(off.abs() < 0.45, 1 + off.abs(), -1 - 0 * off)
    return torch.cat([value, 0 * value], 1)


def standing(model, images: Tensor, labels: Tensor, threat: Threat, steps: int) -> float:
    """As the check once counted: the attack on all images."""
    attack = PGD(steps=steps, loss="margin", step_size=2.5 / steps)
    points = attack(model, images, labels, threat, seed=3)
    return float((margin(model(points), labels) > 0).float().mean())


def test_it_fires_where_long_runs_break_fewer() -> None:
    images, labels, threat = torch.full((64, 1, 1, 1), 0.5), torch.zeros(64).long(), ("linf", EPS)
    threat = Threat(*threat)
    flag = more_steps(trap, images, labels, threat, seed=3)
    assert flag.figures["pgd_5"] == pytest.approx(standing(trap, images, labels, threat, 5))
    assert flag.figures["pgd_20"] == pytest.approx(standing(trap, images, labels, threat, 20))
    assert flag.fired


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.1])
def test_it_asks_no_more_than_it_must(eps: float) -> None:
    model, threat, asked = linear(4, "free", count=24), Threat("linf", eps), [0]

    def counting(images: Tensor) -> Tensor:
        asked[0] += len(images)
        return model(images)

    arguments = model.images, model.labels, threat
    flag = more_steps(counting, *arguments, seed=3)
    short, long = (standing(model, *arguments, steps) for steps in (5, 20))
    assert flag.figures["pgd_5"] == pytest.approx(short)
    assert flag.fired == (long > short + MORE_STANDING)
    used, asked[0] = asked[0], 0
    for steps in (5, 20):
        standing(counting, *arguments, steps)
    if short > 0:  # what stands is not searched again
        assert used < 0.7 * asked[0]
