"""The program as a user calls it, and a checkpoint to call it with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from holdfast.cli import program
from holdfast.models import build, save_checkpoint


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run `holdfast WORDS…`; its exit status."""
    monkeypatch.setattr(sys, "argv", ["holdfast", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        program.main()
    return int(end.value.code or 0)


def small_checkpoint(folder: Path) -> Path:
    """An untrained network for 8×8 grey images of ten classes, L∞ 0.1 on its card."""
    torch.manual_seed(0)
    card = {
        "architecture": "small-cnn",
        "arguments": {"width": 4},
        "classes": [str(i) for i in range(10)],
        "threat": {"norm": "linf", "eps": 0.1},
    }
    return save_checkpoint(folder, build("small-cnn", {"width": 4}), card)
