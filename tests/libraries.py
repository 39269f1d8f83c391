"""Other libraries' models for tests, where the libraries are installed.

torchvision, timm and onnx2torch may lie in a folder of their own (`make` puts them there): beside a
torch without CUDA, torchvision cannot be imported before two of its operators are defined, and what
imports it unasked would fail.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

APART = Path(sys.prefix) / "libraries"
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_defined: list[torch.library.Library] = []


@contextmanager
def findable() -> Iterator[None]:
    """Inside, libraries that lie apart are found."""
    before = list(sys.path)
    if APART.is_dir():
        sys.path.append(str(APART))
    try:
        yield
    finally:
        sys.path[:] = before


def library(name: str) -> ModuleType:
    """A library; the test is skipped where it is not installed."""
    with findable():
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
        _define_operators()
        return importlib.import_module(name)


def _define_operators() -> None:
    """What a torchvision that was built for another torch lacks."""
    if importlib.util.find_spec("torchvision") is None or _defined:
        return
    try:
        torch.ops.torchvision.nms  # noqa: B018
    except (AttributeError, RuntimeError):
        held = torch.library.Library("torchvision", "FRAGMENT")
        for schema in OPERATORS:
            held.define(schema)
        _defined.append(held)
