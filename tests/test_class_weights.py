"""Classes weigh in the loss as the recipe says, with every objective."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from test_objectives import LINF, batch, made, network
from test_training import digits, one_line, tiny, trainer
from torch import Tensor

from holdfast.data.base import DataSet
from holdfast.errors import InputError
from holdfast.models import build
from holdfast.training import load_recipe, train
from holdfast.training.class_weights import class_weights
from holdfast.training.job import TrainingJob
from holdfast.training.objectives import OBJECTIVES, Batch, objective_named

LABELS = digits().train.labels
COUNTS = np.bincount(LABELS, minlength=10)


def weights_of(run: Path, asked: object, data: DataSet | None = None) -> Tensor | None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    return class_weights(TrainingJob(tiny(class_weights=asked), data or digits(), run, fabric))


# -- what the recipe says -----------------------------------------------------------------------


def test_balanced_is_inverse_to_the_number_of_images(tmp_path):
    found = weights_of(tmp_path, "balanced")
    assert torch.allclose(found, torch.tensor(50 / (10 * COUNTS), dtype=torch.float32))
    assert float((found * torch.tensor(COUNTS)).sum() / 50) == pytest.approx(1)


def test_a_list_and_a_mapping_are_scaled_to_a_mean_of_one_over_the_images(tmp_path):
    asked = [1.0, 2.0, 3.0] + [0.5] * 7
    expected = np.array(asked) / (np.array(asked) * COUNTS / 50).sum()
    found = weights_of(tmp_path, asked)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float32))
    named = weights_of(tmp_path, {"3": 4})
    assert float(named[3] / named[0]) == pytest.approx(4)
    assert weights_of(tmp_path, None) is None


def test_a_class_without_images_does_not_count(tmp_path):
    whole = digits()
    kept = whole.train.labels != 7
    train_split = dataclasses.replace(
        whole.train,
        **{name: getattr(whole.train, name)[kept] for name in ("images", "filenames", "labels")},
    )
    data = DataSet("digits", whole.classes, train_split, whole.validation, whole.validation)
    found = weights_of(tmp_path, "balanced", data)
    counts = np.bincount(train_split.labels, minlength=10)
    assert float((found * torch.tensor(counts)).sum() / counts.sum()) == pytest.approx(1)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ([1, 2], "holds 2 numbers, the data has 10 classes"),
        ({"thre": 2}, "no class 'thre'"),
        ([0] * 10, "at least one class"),
        ({str(k): 0 for k in range(10)}, "at least one class"),
        ("balance", "must be balanced, a list"),
        ([1] * 9 + [-1], "must be balanced, a list"),
        ([1] * 9 + [float("nan")], "must be balanced, a list"),
        ([1] * 9 + ["x"], "must be balanced, a list"),
        (3, "must be balanced, a list"),
        ({"1": None}, "must be balanced, a list"),
    ],
)
def test_what_makes_no_weights_is_one_line(tmp_path, asked, says):
    with pytest.raises(InputError, match=says) as error:
        train(tiny(class_weights=asked), digits(), tmp_path / "run", device="cpu")
    one_line(error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "held"),
    [
        ("class_weights=balanced", "balanced"),
        ("class_weights={3: 2, yes: 1e-1}", {"3": 2.0, "yes": 0.1}),
        ("class_weights={true: 2, null: 3}", {"true": 2.0, "null": 3.0}),
        ("class_weights.7=2", {"7": 2.0}),
        ("class_weights=[1, '2', 3.5]", [1, 2.0, 3.5]),
    ],
)
def test_the_command_line_writes_them_like_this(change, held):
    assert load_recipe("digits-gaussian", [change]).class_weights == held


# -- what the loss is ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["standard", "n-fgsm", "pgd"])
def test_the_weighted_cross_entropy_by_hand(name):
    given, model, weights = batch(), network(), torch.rand(12) * 3
    objective = objective_named(name, {})
    points = objective.points(model, given, LINF)
    value = objective.loss(network(), points, given._replace(weights=weights)).value
    p = network()(points).softmax(1)
    by_hand = sum(-w * row[k].log() for w, row, k in zip(weights, p, given.labels, strict=True))
    assert float(value) == pytest.approx(float(by_hand) / 12, rel=1e-4)


def plain(name: str) -> tuple[object, object, Batch, object]:
    """An objective, its network, a batch, and the points to take the loss at."""
    given = batch(n=8)
    if name == "interval":
        objective, model = (
            made(name, {"warmup": 0.0, "ramp": 0.1}),
            build("interval-cnn", ARGUMENTS),
        )
        objective.progress = 0.5
    elif name == "denoising":
        objective, model = made(name), build("denoising-autoencoder", {"channels": 1, "width": 4})
    elif name == "diffusion":
        objective, model = made(name), build("denoising-unet", UNET)
    else:
        objective, model = made(name), network()
        objective.progress = 0.5
    return objective, model.train(), given, objective.points(model, given, LINF)


ARGUMENTS = {"width": 2, "mean": [0.3], "std": [0.4], "classes": 10}
UNET = {"width": 8, "mean": [0.3], "std": [0.4], "levels": 1, "blocks": 1}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_multiplies_each_images_loss(name):
    """The loss is linear in the weights: with ones it is the plain one, with those of one class
    alone the loss of its images."""
    objective, model, given, points = plain(name)

    def value(weights: Tensor | None) -> float:
        torch.manual_seed(0)
        found = objective.loss(model, points, given._replace(weights=weights)).value
        return float(found.detach())

    ones = torch.ones(8)
    assert value(ones) == pytest.approx(value(None), rel=1e-4)
    assert value(2.5 * ones) == pytest.approx(2.5 * value(None), rel=1e-4)
    parts = [(given.labels == k).float() for k in given.labels.unique()]
    if name != "nuat":  # a norm of the whole batch is no sum
        assert sum(map(value, parts)) == pytest.approx(value(None), rel=1e-3)
    assert value(parts[0]) != pytest.approx(value(None) / 8, rel=1e-3)


def test_the_nuclear_norm_is_of_the_weighted_rows():
    objective = objective_named("nuat", {})
    a, b, weights = torch.rand(6, 10), torch.rand(6, 10), torch.rand(6)
    rows = torch.stack([w * (x - y) for w, x, y in zip(weights, a, b, strict=True)])
    by_hand = torch.linalg.svdvals(rows).sum() / 6
    assert float(objective.change(a, b, weights)) == pytest.approx(float(by_hand), rel=1e-4)


def test_attacks_are_not_weighted():
    """An image's attack is its own: how much it weighs changes no point."""
    for name in ("n-fgsm", "pgd", "trades", "gat", "nuat"):
        given = batch()
        weighted = given._replace(weights=torch.rand(12))
        points = [objective_named(name, {}).points(network(), g, LINF) for g in (given, weighted)]
        assert torch.equal(*points)


def test_batches_carry_the_weights_of_their_labels(tmp_path):
    asked = [1.0 + k for k in range(10)]
    plain_batch = trainer(tmp_path).batches.batch(1)
    found = trainer(tmp_path, tiny(class_weights=asked)).batches.batch(1)
    table = weights_of(tmp_path, asked)
    assert torch.equal(found.images, plain_batch.images)
    assert torch.equal(found.weights, table[found.labels])
    mixing = tiny(class_weights=asked, augment={"crop_padding": 1, "mixup": 1.0})
    mixed = trainer(tmp_path, mixing).batches.batch(1)
    assert torch.allclose(mixed.weights, mixed.truth @ table)
    assert F.one_hot(mixed.labels, 10).float().ne(mixed.truth).any()


# -- what comes of it ---------------------------------------------------------------------------


def test_weights_of_one_change_nothing_and_others_do(tmp_path):
    def final(run: str, asked: object) -> dict[str, Tensor]:
        result = train(tiny(epochs=1, class_weights=asked), digits(), tmp_path / run, device="cpu")
        return result.model.state_dict()

    same_for_all = final("ones", [2] * 10)
    without = final("none", None)
    for name, value in without.items():
        torch.testing.assert_close(value, same_for_all[name], rtol=1e-4, atol=1e-5)
    other = final("other", {"3": 50})
    assert not torch.allclose(other["linear.bias"], without["linear.bias"], atol=1e-3)
    # Nearly all that is asked is to say 3: a class that weighs more is predicted more.
    assert other["linear.bias"][3] - without["linear.bias"][3] > 0.01


def test_the_record_says_which(tmp_path, capsys):
    recipe = tiny(epochs=1, class_weights={"3": 5})
    result = train(recipe, digits(), tmp_path / "run", device="cpu", progress=True)
    held = json.loads((tmp_path / "run/result.json").read_text())["class_weights"]
    assert held["3"] == pytest.approx(5 * held["0"], rel=1e-4)
    assert result.record.class_weights == held
    assert "class weights: 0 " in capsys.readouterr().err
    again = json.loads((tmp_path / "run/request.json").read_text())
    assert again["asked"]["recipe"]["class_weights"] == {"3": 5.0}
    with pytest.raises(InputError, match="another run"):
        train(tiny(epochs=1), digits(), tmp_path / "run", device="cpu")
