"""A network whose gradient ways of hiding are tried on, and how it stands against a search."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import holdfast as hf
from holdfast.attacks import PGD
from holdfast.models.wrapper import wrapped
from holdfast.repair import Diagnosis, repaired

THREAT = hf.Threat("linf", 8 / 255)


def smooth_pictures() -> torch.Tensor:
    """(24, 3, 16, 16): what leaves PyTorch is known again by its looks."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(24, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(small, (16, 16), mode="bilinear").clamp(0, 1)


def small_network() -> nn.Module:
    """A network with margins of about 1 that every PGD breaks."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(),
            nn.Linear(128, 5),
        )  # fmt: skip
    return net.eval()


def standing(model: nn.Module, search: nn.Module, images, labels) -> int:
    points = PGD(steps=20, step_size=0.15, loss="margin")(search, images, labels, THREAT)
    with torch.no_grad():
        return int((model(points).argmax(1) == labels).sum())


def diagnosed(model: nn.Module, images, labels) -> tuple[nn.Module, Diagnosis]:
    model = wrapped(model)
    found = repaired(model, images, labels)
    assert not found.remark
    return model, found
