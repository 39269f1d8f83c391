"""Every shipped recipe trains: two steps of its own objective and optimiser, on a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from holdfast import data
from holdfast.data.base import DataSet, Split
from holdfast.training import trainer as training_loop
from holdfast.training.job import TrainingJob
from holdfast.training.recipe import Recipe, load_recipe, recipe_from

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


def shrunk(recipe: Recipe) -> Recipe:
    """The recipe with the narrowest network, a handful of images, and no budget."""
    values = recipe.to_dict()
    for name, least in (("width", 8), ("widen", 1)):
        if name in values["model"]["arguments"]:
            values["model"]["arguments"][name] = least
    values["validation"] = {"images": 4, "steps": 1}
    values["train_on"] = values["train_on"].replace("-1000", "-7")
    return recipe_from({**values, "batch_size": 4, "epochs": 1, "budget": None})


def pictures(name: str) -> DataSet:
    """Eight images to train on, of the size that the recipe is for."""
    if name.startswith("digits"):
        whole = data.load("digits")
        few = Split(
            *(getattr(whole.train, key)[:8] for key in ("images", "filenames", "labels")), ""
        )
        return DataSet("digits", whole.classes, few, few, few)
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    split = Split(images, np.arange(8).astype(str), np.arange(8, dtype=np.int64), "noise")
    return DataSet("noise", tuple("0123456789"), split, split, split)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_trains_two_steps(tmp_path, file):
    unfrozen = ["optimiser.frozen_epochs=0"] if file.stem == "fine-tune" else []
    recipe = shrunk(load_recipe(file, unfrozen))
    precision = "bf16-mixed" if recipe.precision == "bf16" else "32-true"
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    trainer = training_loop.Trainer(TrainingJob(recipe, pictures(file.stem), tmp_path, fabric))
    trainer.model.train()
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    for _ in range(2):
        assert trainer._step() > 0
        trainer.schedule.advance(0.1)
    assert trainer.schedule.done
    moved = [key for key, value in trainer.model.named_parameters() if not value.equal(before[key])]
    # Layers that start at zero hold others back for a few steps.
    assert len(moved) > len(before) / 4
    assert all(torch.isfinite(value).all() for value in trainer.tensors().values())
