"""Whether this machine compiles: a C++ compiler that makes a kernel which loads and is right."""

from __future__ import annotations

import functools

import pytest
import torch


@functools.cache
def _missing() -> str:
    """Why nothing can be compiled here; empty where it can."""

    def kernel(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * 2 + 1

    x = torch.tensor([-1.0, 0.5, 3.0])
    try:
        found = torch.compile(kernel, dynamic=False)(x)
    except Exception as error:  # no compiler, no headers, no place to write: all mean the same
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    assert torch.equal(found, kernel(x))
    return ""


def needed() -> None:
    """Skip the test where there is no compiler, and only there."""
    if _missing():
        pytest.skip(f"nothing can be compiled here: {_missing()}")
