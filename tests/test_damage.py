"""A flipped bit anywhere in a run leads to the same figures or to one line, never to others."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import models
import pytest
import torch

import holdfast as hf
from holdfast.errors import InputError
from holdfast.runs.folder import finished, holds
from holdfast.runs.lock import worker_on
from holdfast.search import Journal, Search
from holdfast.training import train
from holdfast.training.recipe import recipe_from

THREAT = hf.Threat("linf", 0.1)
FLIPS = 60


def ask(run: Path) -> hf.Evaluation:
    torch.manual_seed(0)
    model, x = models.Net(), models.images(12)
    labels = models.answers(model, x)
    labels[:2] = (labels[:2] + 1) % 4
    options = {"suite": "apgd", "batch_size": 8, "precision": "original"}
    return hf.evaluate(model, x, labels, THREAT, run=run, **options)


def told(result: hf.Evaluation) -> tuple:
    return result.verdicts, result.adversarial.numpy().tobytes(), result.robust_accuracy


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    bit = chance.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("whole", [True, False])
def test_a_flipped_bit_never_leads_to_other_figures(tmp_path: Path, whole: bool, monkeypatch):
    run, chance = tmp_path / "run", random.Random(int(whole))
    expected = told(ask(run))
    if not whole:  # as a process leaves it that is killed before it has a result
        (run / "result.json").unlink()
        monkeypatch.setattr(Journal, "conclude", lambda self, packed: None)
        shutil.rmtree(run)
        ask(run)
        (run / "result.json").unlink()
    # Pictures are written anew with the result.
    anew = set() if whole else {"pictures.safetensors"}
    files = sorted({p.name for p in run.iterdir()} - anew)
    refused = 0
    for number in range(FLIPS):
        damaged = tmp_path / f"damaged-{number}"
        shutil.copytree(run, damaged)
        flip(damaged / chance.choice(files), chance)
        try:
            assert told(ask(damaged)) == expected
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(damaged) in str(error)
    assert refused > FLIPS // 4


def test_a_finished_run_is_read_and_no_attack_is_made(tmp_path: Path, monkeypatch):
    first = ask(tmp_path / "run")
    assert holds(tmp_path / "run", "evaluate", first.identity) and finished(tmp_path / "run")

    def attacked(*arguments: object, **named: object) -> None:
        raise AssertionError("it is computed again")

    monkeypatch.setattr(Search, "run", attacked)
    again = ask(tmp_path / "run")
    assert told(again) == told(first) and again.finished == first.finished
    assert worker_on(tmp_path / "run") is None
    (tmp_path / "run" / "result.json").unlink()  # killed between its last verdict and its result
    assert told(ask(tmp_path / "run")) == told(first) and finished(tmp_path / "run")


@pytest.mark.parametrize("name", ["card.json", "model.safetensors", "metrics.csv", "result.json"])
def test_a_run_knows_the_model_that_it_made(tmp_path: Path, name: str):
    recipe = recipe_from(
        {
            "model": {"architecture": "small-cnn", "arguments": {"width": 4}},
            "validation": {"steps": 1, "images": 10},
            "epochs": 1,
            "batch_size": 600,
            "precision": "float32",
        }
    )
    run, data = tmp_path / "run", hf.data.load("digits")
    first = train(recipe, data, run, device="cpu")
    hf.load(run)
    file = next(run.rglob(name))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for again in (lambda: hf.load(run), lambda: train(recipe, data, run, device="cpu")):
        with pytest.raises(InputError, match=r"damaged|cannot be read") as refused:
            again()
        assert str(file) in str(refused.value) and "\n" not in str(refused.value)
    file.write_bytes(
        bytes(content[: len(content) // 2])
        + bytes([content[len(content) // 2] ^ 1])
        + bytes(content[len(content) // 2 + 1 :])
    )
    assert train(recipe, data, run, device="cpu").finished == first.finished
