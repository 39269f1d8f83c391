"""The demo goes the whole way, and shows what it is there to show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.cli import demo


@pytest.mark.slow
def test_undefended_loses_nearly_everything_and_defended_stands_clearly_higher(
    tmp_path: Path,
) -> None:
    page = demo.run(demo.Options(tmp_path, quiet=True)).page
    assert page.stat().st_size > 10_000
    found = {
        name: json.loads((tmp_path / f"{name}-verdict" / "result.json").read_text())
        for name in ("undefended", "defended")
    }
    assert found["undefended"]["standard_accuracy"] > 0.93
    assert found["undefended"]["robust_accuracy"] < 0.05
    assert found["defended"]["standard_accuracy"] > 0.9
    assert found["defended"]["robust_accuracy"] > 0.4
    for result in found.values():
        assert not [flag["name"] for flag in result["flags"] if flag["fired"]]
        assert result["curve"]["points"][-1]["robust_accuracy"] == 0
