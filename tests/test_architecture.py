"""What `docs/architecture.md` tells is so."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import models

import holdfast as hf
from holdfast.evaluation.evaluate import evaluate  # imported before it is watched

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def told() -> list[tuple[str, str]]:
    """Each step of the story: its file, and the function that it begins in."""
    return re.findall(r"^\| \d+ \| `([^`]+)` \| `([^`]+)` \|", PAGE, re.MULTILINE)


def test_the_story_has_at_most_ten_steps_each_in_a_file_of_its_own() -> None:
    files = [file for file, _ in told()]
    assert 5 <= len(files) <= 10 and len(set(files)) == len(files)
    assert all((ROOT / "holdfast" / file).is_file() for file in files)


def test_the_story_is_the_order_in_which_an_evaluation_goes(tmp_path: Path) -> None:
    model, images, labels = models.digits(4)
    package, called = Path(hf.__file__).parent, {}

    def watch(frame: Any, event: str, _: object) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(package):
            name = frame.f_code.co_qualname.removesuffix(".__init__")
            called.setdefault((file.relative_to(package).as_posix(), name))

    sys.setprofile(watch)
    try:
        evaluate(model, images, labels, hf.Threat("linf", 0.1), "swift", run=tmp_path / "run")
    finally:
        sys.setprofile(None)
    story = told()
    assert [step for step in called if step in story] == story


def test_every_room_on_the_page_is_there_and_none_is_missing() -> None:
    rooms = {
        path.name for path in (ROOT / "holdfast").iterdir() if (path / "__init__.py").is_file()
    }
    named = set(re.findall(r"`([a-z_]+)/`", PAGE.split("## Rooms")[1].split("## Ideas")[0]))
    assert named - {"records"} == rooms
