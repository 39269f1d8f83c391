"""Every second of an evaluation stands in its cost table."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from linear_classifiers import linear
from torch import nn

import holdfast as hf
from holdfast.cli.evaluate import other_costs_line
from holdfast.evaluation.spending import Spending
from holdfast.runs.records import EvaluationRecord, read_result


class Slow(nn.Module):
    """Takes its time, so that time not accounted for is seen."""

    def __init__(self, model: nn.Module, seconds: float = 0.002):
        super().__init__()
        self.model, self.seconds = model, seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.model(images)


def accounted(result: EvaluationRecord) -> float:
    attacks = sum(cost.seconds or 0.0 for cost in result.attacks)
    return attacks + sum(cost.seconds for cost in result.other_costs)


@pytest.mark.parametrize("limits", [{}, {"until": 0.2}, {"budget": 60}])
def test_attacks_and_the_rest_sum_to_the_whole(tmp_path: Path, limits: dict) -> None:
    model = linear(4, "free", count=24)
    result = hf.evaluate(
        Slow(model), model.images, model.labels, ("linf", 0.03), "swift",
        curve=True, run=tmp_path / "run", batch_size=16, **limits,
    )  # fmt: skip
    assert accounted(result) == pytest.approx(result.seconds, rel=0.02)
    rest = {cost.name: cost.seconds for cost in result.other_costs}
    assert {"inspection", "health checks", "security curve", "last word"} <= set(rest)
    assert rest.get("everything else", 0.0) < 0.2 * result.seconds
    # A machine may be too fast for any part to be named.
    longer = [cost.model_copy(update={"seconds": 3.0}) for cost in result.other_costs]
    told = other_costs_line(result.model_copy(update={"other_costs": tuple(longer)}))
    assert told.startswith("besides the attacks ") and "health checks 3.0 s" in told
    assert read_result(tmp_path / "run").other_costs == result.other_costs
    page = hf.write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert all(name in page for name in rest)


def test_earlier_sessions_stand_in_the_table(tmp_path: Path) -> None:
    model = linear(4, "free", count=24)
    arguments = (Slow(model), model.images, model.labels, ("linf", 0.03), "swift")
    hf.evaluate(*arguments, until=0.3, run=tmp_path / "run")
    more = hf.evaluate(*arguments, until=0.05, run=tmp_path / "run")
    assert "earlier sessions, besides the attacks" in {cost.name for cost in more.other_costs}
    assert accounted(more) == pytest.approx(more.seconds, rel=0.02)


def test_a_file_of_before_says_nothing_of_it(tmp_path: Path) -> None:
    model = linear(4, "free", count=8)
    result = hf.evaluate(model, model.images, model.labels, ("linf", 0.03), "fgsm")
    held = result.to_dict()
    held.pop("other_costs")
    assert EvaluationRecord.checked(held, "x").other_costs == ()
    assert json.dumps(held)


def test_what_runs_inside_something_else_counts_once(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    spending = Spending()
    with spending.on("outer"):
        now[0] += 1
        with spending.on("inner"):
            now[0] += 3
        now[0] += 2
    with spending.on("inner"):
        now[0] += 4
    assert spending.seconds == {"outer": 3, "inner": 7}
    rows = {cost.name: cost.seconds for cost in spending.costs(total=20.0, attacks=6.0)}
    assert rows == {"outer": 3, "inner": 7, "everything else": 4}
