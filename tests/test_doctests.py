"""Every example in a docstring runs and prints what it says, and the public API has examples."""

from __future__ import annotations

import doctest
import importlib
import inspect
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import holdfast
from holdfast.defences import DEFENCES

PACKAGE = Path(holdfast.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PUBLIC = (
    "holdfast.certification.bounds",
    "holdfast.certification.smoothing",
    "holdfast.intervals",
    "holdfast.uncertainty.abstaining",
    "holdfast.uncertainty.calibration",
    "holdfast.uncertainty.calibration_intervals",
    "holdfast.uncertainty.conformal",
    "holdfast.uncertainty.detection",
    "holdfast.uncertainty.human",
    "holdfast.uncertainty.metrics",
    "holdfast.uncertainty.scores",
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write files
    outcome = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert outcome.attempted > 0 and outcome.failed == 0


def called_by_users(part: object, module: str) -> bool:
    """A function or a class, but no record that functions return, and nothing abstract."""
    if getattr(part, "__module__", None) != module:
        return False
    if not isinstance(part, type):
        return inspect.isfunction(part)
    record = issubclass(part, tuple) or (
        is_dataclass(part) and not {"fit", "__call__"} & vars(part).keys()
    )
    return not record and not inspect.isabstract(part) and not getattr(part, "_is_protocol", False)


@pytest.mark.parametrize("name", PUBLIC)
def test_what_users_call_has_an_example(name):
    public = {
        key: part
        for key, part in vars(importlib.import_module(name)).items()
        if not key.startswith("_") and called_by_users(part, name)
    }
    assert len(public) >= 3 or name.endswith(("calibration_intervals", "human"))
    assert [key for key, part in public.items() if ">>> " not in (part.__doc__ or "")] == []


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_has_an_example(name):
    assert ">>> " in (DEFENCES[name].__doc__ or "")
