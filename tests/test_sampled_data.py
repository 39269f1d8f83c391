"""Whoever takes part of a folder gets a sample of it, and says which classes it lacks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import write_image
from torch import nn
from verbs import certify_command, evaluate_command, mix_command, uncertainty_command

from holdfast import cli, data
from holdfast.data.base import DataSet, held_back, holds_out, seen_in_training
from holdfast.errors import InputError
from holdfast.models import SmallCNN, save_checkpoint
from holdfast.training import TrainingResult, train
from holdfast.training.recipe import recipe_from

CLASSES = ("ant", "bee", "cat")
COUNTS = {"train": 20, "validation": 30, "test": 30}


class AlwaysFirst(nn.Module):
    """Answers class 0, whatever it sees, with some slope for attacks to climb."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([9.0, 0.0, 0.0]) + 1e-3 * x.mean((1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, named so that whatever sorts by name sorts by class."""
    folder, seed = tmp_path_factory.mktemp("pictures"), 0
    for split, n in COUNTS.items():
        for name in CLASSES:
            for i in range(n):
                seed += 1
                write_image(folder / split / name / f"{name}-{i:03d}.png", seed)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    card = {
        "architecture": "small-cnn",
        "arguments": {"width": 2, "classes": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
        "classes": list(CLASSES),
        "threat": {"norm": "linf", "eps": 0.05},
    }
    built = SmallCNN(**card["arguments"])
    return save_checkpoint(tmp_path_factory.mktemp("model") / "net", built, card)


def judged(source: str, pictures: Path, out: Path, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "suite": "fgsm",
        "norm": "linf",
        "eps": "0.02",
        "limit": None,
        "split": "test",
        "pixels": None,
        "curve": False,
        "batch_size": None,
        "precision": "float32",
        "size": None,
        "seed": 0,
        "device": "cpu",
    }
    evaluate_command(source, str(pictures), out, **options | changes)
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_model_that_always_answers_the_first_class_is_seen_through(pictures, tmp_path, split):
    found = judged("test_sampled_data:AlwaysFirst", pictures, tmp_path, limit=15, split=split)
    assert found["standard_accuracy"] < 0.67  # sorted by class it would be 100 %
    assert found["data"]["classes_without_images"] == []


def test_evaluate_says_which_classes_it_lacks(pictures, model, tmp_path, capsys):
    found = judged(str(model), pictures, tmp_path / "run", limit=1)
    seen = data.load(pictures).test.labels[0]
    absent = [name for name in CLASSES if name != CLASSES[seen]]
    assert found["data"]["classes_without_images"] == absent
    said = f"note: 2 of 3 classes have no image among the 1 of test.*{', '.join(absent)}"
    assert_said(said, capsys.readouterr().out)


def assert_said(pattern: str, text: str) -> None:
    assert len(re.findall(pattern, text)) == 1, text


def test_certify_says_which_classes_it_lacks(pictures, model, tmp_path, capsys):
    certify_command(str(model), str(pictures), tmp_path / "run", sigma=0.1, n=20, limit=1)
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(found["data"]["classes_without_images"]) == 2
    assert_said("2 of 3 classes have no image among the 1 of test", capsys.readouterr().out)


def test_mix_says_which_classes_it_lacks(pictures, model, tmp_path, capsys):
    mix_command(str(model), str(model), str(pictures), tmp_path / "mix", limit=1, steps=1, rounds=1)
    found = json.loads((tmp_path / "mix" / "card.json").read_text())
    assert len(found["data"]["classes_without_images"]) == 2
    assert_said("2 of 3 classes have no image among the 1 of validation", capsys.readouterr().out)


def test_uncertainty_says_which_classes_it_lacks(pictures, model, tmp_path, capsys, monkeypatch):
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "holdfast.uncertainty.run.measure.measure",
        lambda *_, described, **__: asked.append(described),
    )
    uncertainty_command(str(model), str(pictures), tmp_path / "run", attack="fgsm", limit=1)
    assert len(asked[0]["data"]["classes_without_images"]) == 2
    assert_said("2 of 3 classes have no image among the 1 of test", capsys.readouterr().out)


def test_a_calibration_that_lacks_a_class_says_which_option_helps(pictures, model, tmp_path):
    def said(folder: Path, calibration: int) -> str:
        with pytest.raises(InputError) as caught:
            uncertainty_command(str(model), str(folder), tmp_path / "run", calibration=calibration)
        return str(caught.value)

    message = said(pictures, 2)
    assert "raise --calibration (the validation split has 90 images)" in message
    few = tmp_path / "few"
    shutil.copytree(pictures, few)
    for file in sorted((few / "validation" / "bee").iterdir())[1:]:
        file.unlink()
    assert "has no image of class bee; all 61 validation images are used already" in said(few, 2000)


def recipe(channels: int, **changes: Any) -> dict[str, Any]:
    half = [0.5] * channels
    return {
        "model": {
            "architecture": "small-cnn",
            "arguments": {"width": 3, "mean": half, "std": half},
        },
        "threat": {"eps": "0.1"},
        "augment": {"crop_padding": 1},
        "validation": {"images": 1, "steps": 1},
        "batch_size": 16,
        "epochs": 1,
        "averaging": 0.9,
        "precision": "float32",
        **changes,
    }


def test_training_says_which_classes_its_validation_lacks(pictures, tmp_path, capsys, monkeypatch):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe(3)))  # JSON is YAML
    run = tmp_path / "run"
    monkeypatch.setattr(
        "sys.argv",
        f"holdfast train {file} --data {pictures} --out {run} --device cpu --quiet".split(),
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    found = json.loads((run / "result.json").read_text())
    assert len(found["data"]["classes_without_images"]) == 2
    assert_said("2 of 3 classes have no image among the 1 of validation", capsys.readouterr().out)


def test_validation_images_are_a_sample(pictures, tmp_path):
    """What decides which weights are kept."""
    labels = data.load(pictures).validation.labels
    for n in (12, 30):
        assert (np.bincount(labels[:n], minlength=3) > 0).all()


# --- the same images in two splits --------------------------------------------------------------


def test_shared_images_stand_beside_every_figure(pictures, model, tmp_path, capsys):
    shared = tmp_path / "shared"
    shutil.copytree(pictures, shared)
    for i in range(3):
        shutil.copyfile(shared / f"train/bee/bee-00{i}.png", shared / f"test/bee/copy-{i}.png")
    found = judged(str(model), shared, tmp_path / "run", limit=10)
    assert found["data"]["overlaps"] == [{"split": "test", "other": "train", "images": 3}]
    assert_said("note: 3 images of test can be found in train too", capsys.readouterr().out)


def with_extra(digits: DataSet, held: np.ndarray, folder: Path) -> Any:
    images = np.concatenate([digits.train.images[:30], held]).transpose(0, 2, 3, 1)
    file = folder / "extra.npz"
    np.savez(file, image=np.ascontiguousarray(images), label=np.zeros(len(images), np.int64))
    return recipe_from(recipe(1, extra={"file": str(file), "share": 0.25}))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_images_among_the_extra_ones_are_said(tmp_path, split):
    digits = data.load("digits")
    spec = with_extra(digits, digits.split(split).images[:4], tmp_path)
    (event,) = shared(train(spec, digits, tmp_path / "run", device="cpu"))
    assert event["detail"].startswith(f"4 {split} images are among the extra images")
    clean = with_extra(digits, digits.train.images[40:44], tmp_path)
    assert not shared(train(clean, digits, tmp_path / "clean", device="cpu"))


def shared(result: TrainingResult) -> list[dict[str, Any]]:
    return [event for event in result.events if event["kind"] == "held-out-images-in-extra"]


@pytest.mark.parametrize(
    ("trained_on", "held", "measured", "seen"),
    [
        ("", None, True, {}),
        ("train", None, True, {"train": 1}),
        ("train+validation", 0, False, {"train": 1, "validation": 1}),
        ("train+validation-10", 10, True, {"train": 1, "validation": 11}),
        # From a card that somebody wrote.
        ("train+validation-many", 0, False, {"train": 1, "validation": 1}),
        ("train+validation-" + "9" * 5000, 0, False, {"train": 1, "validation": 1}),
    ],
)
def test_what_a_model_has_seen_follows_from_what_it_was_trained_on(
    trained_on: str, held: int | None, measured: bool, seen: dict[str, int]
) -> None:
    """`seen`: from how many first images of a split on some are known to the model."""
    assert held_back(trained_on) == held
    assert holds_out(trained_on) == measured
    for split in ("train", "validation", "test"):
        first = seen.get(split)
        for count in (1, 10, 11, 500):
            expected = first is not None and count >= first
            assert seen_in_training(trained_on, split, count) == expected, (split, count)
