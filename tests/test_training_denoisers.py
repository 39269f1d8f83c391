"""Networks that are no classifiers go through the shared loop: resumed, kept, shown, used."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from holdfast import data as datasets
from holdfast.defences import Autoencoder, parse
from holdfast.errors import InputError
from holdfast.models import load_checkpoint
from holdfast.models.autoencoder import DenoisingAutoencoder
from holdfast.report import write_report
from holdfast.training import load_recipe, train
from holdfast.training.recipe import Recipe, recipe_from
from holdfast.training.trainer import Trainer

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def recipe(**changes: object) -> Recipe:
    values = {
        "model": {"architecture": "denoising-autoencoder", "arguments": {"width": 4}},
        "objective": {"name": "denoising", "arguments": {"sigma": 0.3}},
        "optimiser": {"name": "adam", "learning_rate": 0.01, "weight_decay": 0.01},
        "augment": {"crop_padding": 0, "flip": "none"},
        "validation": {"images": 40, "every": 0.5},
        "epochs": 1.5,
        "batch_size": 64,
        "averaging": 0.9,
        "precision": "float32",
    }
    return recipe_from({**values, **changes})


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    return train(recipe(), digits, tmp_path_factory.mktemp("denoiser") / "run").run


def test_an_autoencoder_trains_and_is_used_by_name(digits, run):
    result = json.loads((run / "result.json").read_text())
    assert result["validation"].keys() == {"psnr", "n"}
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["train_accuracy"] == "" and "live_pgd_accuracy" not in rows[-1]
    # The best weights are kept.
    best = max(float(row["validation_psnr"]) for row in rows)
    assert result["validation"]["psnr"] == pytest.approx(best)
    assert float(rows[-1]["validation_psnr"]) > float(rows[0]["validation_psnr"])
    card = json.loads((run / "model" / "card.json").read_text())
    assert card["arguments"] == {"channels": 1, "width": 4}
    assert card["figures"]["validation"]["psnr"] == pytest.approx(best)
    for folder in (run, run / "model"):
        defence = parse(f"autoencoder:weights={folder}")(torch.nn.Identity())
        assert isinstance(defence, Autoencoder)
        images = datasets.to_tensor(digits.test.images[:3])
        expected = load_checkpoint(run / "model")(images)
        assert torch.equal(defence(images), expected)


def test_its_run_is_shown(run, tmp_path):
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "PGD is a check along the way" not in page and "validation psnr" in page


def test_adam_goes_on_as_if_nothing_had_happened(digits, run, tmp_path, monkeypatch):
    saved = Trainer.save
    count = [0]

    def stop(self, name):
        saved(self, name)
        count[0] += name == "latest"
        if count[0] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), digits, tmp_path / "again")
    monkeypatch.setattr(Trainer, "save", saved)
    train(recipe(), digits, tmp_path / "again")
    weights = [load_checkpoint(r / "model").state_dict() for r in (run, tmp_path / "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_objective_and_architecture_must_belong_together(digits, tmp_path):
    with pytest.raises(InputError, match="trains the architecture 'denoising-autoencoder'"):
        train(recipe(model={"architecture": "small-cnn"}), digits, tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["digits-gaussian", "digits-smoothadv", "digits-interval", "digits-diffusion"]
)
def test_every_recipe_for_digits_runs(name, digits, tmp_path):
    changes = ["epochs=0.2", "validation.images=20", "model.arguments.width=4"]
    result = train(load_recipe(RECIPES / f"{name}.yaml", changes), digits, tmp_path / "run")
    own = {
        "digits-gaussian": "noisy_accuracy",
        "digits-smoothadv": "noisy_accuracy",
        "digits-interval": "verified_accuracy",
        "digits-diffusion": "psnr",
    }[name]
    assert own in result.validation and not isinstance(result.model, DenoisingAutoencoder)
