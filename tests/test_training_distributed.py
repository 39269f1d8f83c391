"""Several processes train the model that one would have, and may take over from each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast import data
from holdfast.models.layers import Normalise
from holdfast.models.registry import NETWORKS
from holdfast.training import train
from holdfast.training import trainer as training_loop
from holdfast.training.recipe import Recipe, recipe_from

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


class Plain(nn.Module):
    """Without batch norm, whose statistics are each process's own: gradients add up exactly."""

    def __init__(self, *, classes: int = 10, mean: list[float], std: list[float]):
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.linear = nn.Linear(12 * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.silu(self.conv(self.normalise(images)))
        return self.linear(F.avg_pool2d(x, 2).flatten(1))


def recipe(architecture: str = "plain", **changes) -> Recipe:
    return recipe_from(
        {
            "model": {"architecture": architecture},
            "threat": {"norm": "l2", "eps": "0.5"},
            "objective": {"name": "n-fgsm", "arguments": {"noise": 1.0}},
            "optimiser": {"learning_rate": 0.05},
            "augment": {"crop_padding": 1, "flip": "none"},
            "validation": {"images": 150, "steps": 3},
            "batch_size": 64,
            "epochs": 3,
            "averaging": 0.9,
            "precision": "float32",
            **changes,
        }
    )


OWN = """
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1)
        self.unused = nn.Linear(3, 3)  # a step leaves it out
        self.linear = nn.Linear(12 * 16, classes)

    def forward(self, x):
        return self.linear(F.avg_pool2d(F.silu(self.conv(x)), 2).flatten(1))
"""


def own_network(folder: Path) -> Recipe:
    """A network and weights of one's own, classes that weigh otherwise, parts that learn otherwise,
    and a run that is stopped."""
    return recipe(
        model={"architecture": f"{folder}/net.py:Net", "weights": f"{folder}/begin.pth"},
        optimiser={"learning_rate": 0.2, "classifier_rate": 2, "frozen_epochs": 0.5},
        class_weights={"3": 2, "8": 0.5},
        patience=2,
    )


def work(run: str, stop_at: int, architecture: str) -> None:
    """Train; with `stop_at`, every process dies before that step."""
    torch.set_num_threads(1)
    NETWORKS["plain"] = Plain
    step = training_loop.Trainer._step

    def mortal(self):
        if self.schedule.steps == stop_at:
            self.fabric.barrier()
            os._exit(9)
        return step(self)

    training_loop.Trainer._step = mortal
    training_loop.CHECKPOINT_SECONDS = -1
    own = architecture == "own"
    asked = own_network(Path(run).parent) if own else recipe(architecture)
    train(asked, data.load("digits"), run, seed=2, device="cpu")


def started(processes: int, run: Path, stop_at: int = -1, architecture: str = "plain") -> int:
    """`work` in one process, or in several under torchrun with gloo; its exit status."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, run, stop_at]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [*map(str, command), architecture],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if stop_at < 0:
        assert done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def model(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "model.safetensors")


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative, over all weights."""
    keys = [key for key in a if not key.startswith("normalise")]
    gap = torch.cat([(a[key] - b[key]).flatten() for key in keys]).norm()
    return float(gap / torch.cat([a[key].flatten() for key in keys]).norm())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    started(1, run)
    return run


def test_two_processes_reach_the_weights_of_one(alone, tmp_path):
    started(2, tmp_path / "run")
    assert distance(model(alone), model(tmp_path / "run")) < 1e-3
    told = [json.loads((run / "result.json").read_text()) for run in (alone, tmp_path / "run")]
    assert told[0]["identity"] == told[1]["identity"]
    assert told[0]["steps"] == told[1]["steps"] == 3 * (1197 // 64)
    accuracies = [result["validation"]["standard_accuracy"] for result in told]
    assert accuracies[0] > 0.6  # it learnt something to compare
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.02)


def test_so_they_do_with_a_network_and_weights_of_ones_own(tmp_path):
    (tmp_path / "net.py").write_text(OWN)
    begin = {"conv.weight": torch.randn(12, 1, 3, 3) / 3, "conv.bias": torch.zeros(12)}
    begin |= {"unused.weight": torch.eye(3), "unused.bias": torch.zeros(3)}
    begin |= {"linear.weight": torch.zeros(7, 192), "linear.bias": torch.zeros(7)}
    torch.save(begin, tmp_path / "begin.pth")
    runs = [tmp_path / "one", tmp_path / "two"]
    for processes, run in enumerate(runs, 1):
        started(processes, run, architecture="own")
    assert distance(*map(model, runs)) < 1e-3
    told = [json.loads((run / "result.json").read_text()) for run in runs]
    for key in ("identity", "steps", "started_from", "class_weights"):
        assert told[0][key] == told[1][key]
    assert told[0]["validation"]["standard_accuracy"] > 0.5


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on_with_a_run(alone, tmp_path, before, after):
    run = tmp_path / "run"
    assert started(before, run, stop_at=25) != 0
    assert not (run / "result.json").exists()
    started(after, run)
    assert distance(model(alone), model(run)) < 1e-3


def test_with_batch_norm_accuracies_agree_within_noise(tmp_path):
    runs = [tmp_path / "one", tmp_path / "two"]
    for processes, run in enumerate(runs, 1):
        started(processes, run, architecture="small-cnn")
    found = [json.loads((run / "result.json").read_text())["validation"] for run in runs]
    assert found[0]["standard_accuracy"] > 0.8
    for key in ("standard_accuracy", "pgd_accuracy"):
        assert found[1][key] == pytest.approx(found[0][key], abs=0.08)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3])
