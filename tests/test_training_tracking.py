"""Trackers see what metrics.csv sees, change nothing, and say so when they are not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_training import digits, figures, one_line, same, tiny, weights

from holdfast.errors import InputError
from holdfast.training import tracking, train


class Recorder:
    """A Fabric logger that remembers what it was told."""

    def __init__(self, run: Path):
        self.run, self.told, self.settings, self.end = run, [], [], []

    def log_hyperparams(self, settings: Any) -> None:
        self.settings.append(settings)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.told.append((step, metrics))

    def save(self) -> None:
        pass

    def finalize(self, status: str) -> None:
        self.end.append(status)


def test_a_tracker_sees_every_row_and_the_run_is_the_same(tmp_path, monkeypatch):
    made: list[Recorder] = []

    def recorder(run: Path) -> Recorder:
        made.append(Recorder(run))
        return made[-1]

    monkeypatch.setitem(tracking.TRACKERS, "recorder", (("json",), recorder))
    run = tmp_path / "run"
    train(tiny(), digits(), run, device="cpu", log=["recorder"])
    train(tiny(), digits(), tmp_path / "plain", device="cpu")
    (one,) = made
    assert one.run == run
    rows = figures(run)
    assert [step for step, _ in one.told] == [int(row["step"]) for row in rows]
    for (_, told), row in zip(one.told, rows, strict=True):
        assert all(str(told[key]) == row[key] for key in row)
    assert one.settings == [tiny().to_dict()]
    assert one.end == ["success"]
    assert rows == figures(tmp_path / "plain")
    assert same(weights(run), weights(tmp_path / "plain"))
    # It is no part of what identifies the run.
    train(tiny(), digits(), run, device="cpu")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tensorboard", "pip install tensorboard"),
        ("mlflow", "pip install mlflow"),
        ("tensorbord", "did you mean 'tensorboard'"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line_before_anything_is_written(
    tmp_path, monkeypatch, name, says
):
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=says) as error:
        train(tiny(), digits(), tmp_path / "run", device="cpu", log=[name])
    one_line(error)
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_its_figures_through_fabrics_logger(tmp_path, monkeypatch):
    """Lightning's own logger, over a stand-in for TensorBoard's writer."""
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, log_dir: str, **more: Any):
            self.log_dir = log_dir

        def add_scalar(self, key: str, value: float, step: int) -> None:
            written.append((key, value, step))

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments, **named: None

        def _get_file_writer(self) -> Any:
            return self

    module, summary = ModuleType("torch.utils.tensorboard"), ModuleType("summary")
    module.SummaryWriter = SummaryWriter
    summary.hparams = lambda *arguments: (None, None, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.summary", summary)
    from lightning_fabric.loggers import tensorboard

    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", True)
    table = tracking.Tracking(tmp_path, ["tensorboard"], tiny().to_dict())
    rows = [{"step": 3, "train_loss": 1.5, "validation_accuracy": 0.25}]
    table.log(rows)
    rows.append({"step": 6, "train_loss": 1.0, "validation_accuracy": 0.5})
    table.log(rows)
    table.close()
    assert ("train_loss", 1.5, 3) in written
    assert ("validation_accuracy", 0.5, 6) in written
    assert (tmp_path / "metrics.csv").read_text().splitlines()[2] == "6,1.0,0.5"


def test_the_command_line_takes_log(tmp_path):
    from typer.testing import CliRunner

    from holdfast.cli import app

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {architecture: small-cnn}")
    command = ["train", str(recipe), "--data", "digits", "--out", str(tmp_path / "run")]
    ended = CliRunner().invoke(app, [*command, "--log", "tensorbord"])
    assert isinstance(ended.exception, InputError)
    assert "did you mean 'tensorboard'" in str(ended.exception)
