"""Rotation and translation: moves known by hand, brute force, and verdicts that can be checked."""

from __future__ import annotations

import dataclasses
import json

import models
import pytest
import torch
from linear_classifiers import assert_items_are_independent, linear

import holdfast as hf
from holdfast.attacks import Items, Oracle, RotationTranslation
from holdfast.errors import InputError
from holdfast.report import write_report
from holdfast.spatial import transformed
from holdfast.threat import Threat

SHAPE = (1, 7, 7)
THREAT = Threat("spatial", 1, degrees=30, pixels=2)


def run(attack, model, x, labels, threat):
    """The state at the attack's end, all that it looked at, and the oracle."""
    items = Items(
        images=x,
        labels=labels,
        targets=torch.full_like(labels, -1),
        eps=threat.radii(x),
        seeds=torch.arange(len(x)),
    )
    oracle, state, looked = Oracle(model), attack.start(items, threat), []
    for _ in range(attack.iterations):
        looked.append(state.parameters)
        assert threat.contains(state.point, x, witness=state.parameters).all()
        state = attack.step(oracle, state, threat)
    assert state.finished.all()
    assert threat.contains(state.best, x, witness=state.witness).all()
    return state, torch.stack(looked, 1), oracle


# -- the moves ----------------------------------------------------------------------------


def test_moves_known_by_hand():
    x = models.images(2, (3, 6, 5))

    def by(*parameters, of=x):
        return transformed(of, torch.tensor([parameters]).float().expand(len(of), 3))

    torch.testing.assert_close(by(0, 0, 0), x, atol=2e-6, rtol=0)
    down = torch.zeros_like(x)
    down[:, :, 2:] = x[:, :, :-2]
    torch.testing.assert_close(by(0, 2, 0), down, atol=2e-6, rtol=0)
    right = torch.zeros_like(x)
    right[..., 1:] = x[..., :-1]
    torch.testing.assert_close(by(0, 0, 1), right, atol=2e-6, rtol=0)
    left_half = (x + torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], 3)) / 2
    torch.testing.assert_close(by(0, 0, -0.5), left_half, atol=2e-6, rtol=0)
    square = models.images(2, (1, 5, 5))
    torch.testing.assert_close(
        by(90, 0, 0, of=square), torch.rot90(square, 1, (2, 3)), atol=2e-6, rtol=0
    )
    # Turned first, then shifted.
    turned = torch.rot90(square, -1, (2, 3))
    both = torch.zeros_like(square)
    both[:, :, 1:] = turned[:, :, :-1]
    torch.testing.assert_close(by(-90, 1, 0, of=square), both, atol=2e-6, rtol=0)
    assert by(13, 0.4, 1.7).amax() <= 1 and by(13, 0.4, 1.7).amin() >= 0


def test_moves_can_be_differentiated():
    x = models.images(1, (1, 5, 5)).double()
    parameters = torch.tensor([[7.3, 0.31, -0.27]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda p: transformed(x * 0.8 + 0.1, p), (parameters,), atol=1e-4
    )


# -- the threat model ---------------------------------------------------------------------


def test_a_point_is_legal_by_its_parameters():
    x = models.images(6, SHAPE)
    parameters = torch.tensor(
        [[30, 2, -2], [30.1, 0, 0], [0, 2.1, 0], [0, 0, -2.1], [5, 1, 1], [0, 0, 0]]
    )
    points = transformed(x, parameters)
    legal = THREAT.contains(points, x, witness=parameters)
    assert legal.tolist() == [True, False, False, False, True, True]
    # Other parameters, an image touched afterwards, NaN, another ε.
    assert not THREAT.contains(points, x, witness=parameters.flip(0))[:3].any()
    touched = points.clone()
    touched[:, 0, 3, 3] = 1 - touched[:, 0, 3, 3]
    assert not THREAT.contains(touched, x, witness=parameters)[points[:, 0, 3, 3] != 0.5].any()
    assert not THREAT.contains(points, x, witness=parameters * torch.nan).any()
    half = THREAT.contains(points, x, torch.full((6,), 0.5), parameters)
    assert half.tolist() == [False] * 4 + [True, True]
    assert THREAT.distance(points, x, parameters).tolist() == pytest.approx(
        [1, 30.1 / 30, 1.05, 1.05, 0.5, 0]
    )
    with pytest.raises(InputError, match="judged by its rotation and shift"):
        THREAT.contains(points, x)
    with pytest.raises(InputError, match="has no norm"):
        THREAT.project(points, x)


def test_only_turning_or_only_shifting():
    x = models.images(2, SHAPE)
    turns = Threat("spatial", 1, degrees=20, pixels=0)
    parameters = torch.tensor([[20.0, 0, 0], [20.0, 0, 0.01]])
    assert turns.contains(transformed(x, parameters), x, witness=parameters).tolist() == [
        True,
        False,
    ]
    _, looked, _ = run(RotationTranslation(grid=(5, 3)), models.linear(2, SHAPE), x,
                       torch.tensor([0, 1]), turns)  # fmt: skip
    assert (looked[..., 1:] == 0).all() and looked[..., 0].abs().amax() == 20


def test_what_it_says_of_itself():
    assert str(Threat("spatial", 1)) == "spatial ±30° ±3 px"
    assert str(Threat("spatial", 0.5, degrees=10, pixels=1)) == "spatial ±5° ±0.5 px"
    assert Threat(**THREAT.describe()) == THREAT
    assert Threat("linf", 0.1).describe() == {"norm": "linf", "eps": 0.1}
    for wrong in ({"degrees": -1}, {"pixels": float("inf")}, {"degrees": 0, "pixels": 0}):
        with pytest.raises(InputError, match="degrees and pixels"):
            Threat("spatial", 1, **wrong)
    with pytest.raises(InputError, match="l0, spatial"):
        Threat("spatail", 1)


# -- the attack ---------------------------------------------------------------------------


def test_the_grid_holds_every_combination_once():
    attack = RotationTranslation(grid=(4, 3))
    _, looked, oracle = run(attack, models.linear(2, SHAPE), models.images(2, SHAPE),
                            torch.tensor([0, 1]), THREAT)  # fmt: skip
    wanted = {
        (a, d, r) for a in (-30.0, -10.0, 10.0, 30.0) for d in (-2.0, 0, 2) for r in (-2.0, 0, 2)
    }
    for points in looked:
        assert {tuple(round(v, 3) for v in p) for p in points.tolist()} == wanted
    assert (oracle.forwards, oracle.backwards) == (36, 0) and not attack.needs_gradient


def test_finds_the_best_of_all_moves_on_a_linear_classifier():
    model, x = models.linear(3, SHAPE), models.images(3, SHAPE)
    labels = models.answers(model, x)
    state, looked, _ = run(RotationTranslation(grid=(7, 5)), model, x, labels, THREAT)
    for i, label in enumerate(labels.tolist()):
        every = transformed(x[i : i + 1].expand(looked.shape[1], -1, -1, -1), looked[i])
        logits = model(every)
        others = logits.clone()
        others[:, label] = -torch.inf
        margins = logits[:, label] - others.amax(1)
        assert float(state.score[i]) == pytest.approx(float(margins.min()), abs=1e-4)
        torch.testing.assert_close(state.witness[i], looked[i, margins.argmin()])


def bar_reader(angle: float):
    """Class 1 where a bright bar through the middle lies as the bar turned by `angle` does."""
    bar = torch.zeros(1, *SHAPE)
    bar[0, 0, 3] = 1.0
    wanted = transformed(bar, torch.tensor([[angle, 0, 0]]))[0]

    def answer(x):
        seen = -(x - wanted).square().sum((1, 2, 3))
        return torch.stack([torch.full_like(seen, -0.02), seen], 1)

    return bar, answer


@pytest.mark.parametrize("angle", [-22.0, 24.0])
def test_gradient_steps_find_the_angle_between_the_points_of_the_grid(angle):
    bar, answer = bar_reader(angle)
    label = torch.zeros(1, dtype=torch.int64)
    turns = Threat("spatial", 1, degrees=30, pixels=0)
    coarse, _, _ = run(RotationTranslation(grid=(5, 1)), answer, bar, label, turns)
    assert float(coarse.score) > 0, "the grid alone must not be enough"
    attack = RotationTranslation(grid=(5, 1), steps=60)
    assert attack.iterations == 65 and attack.needs_gradient
    fine, _, oracle = run(attack, answer, bar, label, turns)
    assert float(fine.witness[0, 0]) == pytest.approx(angle, abs=1)
    assert float(fine.score) < 0
    assert (oracle.forwards, oracle.backwards) == (65, 65)


def test_random_points_fill_the_box_and_belong_to_the_item():
    attack = RotationTranslation(grid=(0, 0), draws=200)
    model, x = models.linear(2, SHAPE), models.images(2, SHAPE)
    _, looked, _ = run(attack, model, x, torch.tensor([0, 1]), THREAT)
    limits = torch.tensor([30.0, 2.0, 2.0])
    assert (looked.abs() <= limits).all() and (looked.abs().amax(1) > 0.9 * limits).all()
    assert (looked.mean(1).abs() < 0.25 * limits).all()
    assert not torch.equal(looked[0], looked[1])


@pytest.mark.parametrize(
    "attack",
    [RotationTranslation(grid=(3, 3)), RotationTranslation(grid=(2, 1), draws=2, steps=20)],
)
def test_items_are_independent(attack):
    model = linear(3, "free", shape=SHAPE, count=3)
    assert_items_are_independent(attack, model, THREAT, iterations=10)


@pytest.mark.parametrize(
    "wrong", [{"grid": (-1, 2)}, {"draws": -1}, {"steps": -1}, {"grid": (0, 0)}, {"grid": (5, 0)}]
)
def test_bad_settings(wrong):
    with pytest.raises(InputError, match="must"):
        RotationTranslation(**wrong)


# -- verdicts -----------------------------------------------------------------------------

QUICK = hf.attacks.Suite(
    "quick",
    (
        hf.attacks.Stage(RotationTranslation(grid=(3, 3))),
        hf.attacks.Stage(RotationTranslation(grid=(0, 0), draws=5, steps=5)),
    ),
)


def shifty(n: int = 10):
    """A classifier that some images survive turned and shifted, and one clean mistake."""
    model, x = models.Net(3, SHAPE, scale=3), models.images(n, SHAPE)
    labels = models.answers(model, x)
    labels[1] = (labels[1] + 1) % 3
    return model, x, labels


@pytest.mark.parametrize("precision", ["original", "float32"])
def test_verdicts_are_true(precision):
    model, x, labels = shifty()
    small = dataclasses.replace(THREAT, eps=0.1)
    result = hf.evaluate(model, x, labels, small, QUICK, batch_size=4, precision=precision)
    assert torch.equal(result.broken, models.answers(model, result.adversarial) != labels)
    assert 0 < result.robust_accuracy < result.standard_accuracy
    assert result.threat == {"norm": "spatial", "eps": 0.1, "degrees": 30, "pixels": 2}
    assert result.described_threat == "spatial ±3° ±0.2 px"
    assert all(0 <= row.distance <= 0.1 + 1e-6 for row in result.verdicts)
    assert all(row.distance > 0 for row in result.verdicts if row.attack not in ("", "clean"))
    assert result.verdicts[1].attack == "clean" and result.verdicts[1].distance == 0
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_nothing(batch_size):
    model, x, labels = shifty(6)
    results = [
        hf.evaluate(model, x, labels, THREAT, QUICK, batch_size=size, precision="original")
        for size in (batch_size, 4)
    ]
    assert results[0].verdicts == results[1].verdicts


class Liar(RotationTranslation):
    """Claims points that its parameters do not make."""

    def step(self, model, state, threat):
        state = super().step(model, state, threat)
        return state.replace(best=1 - state.images, score=torch.full_like(state.score, -1.0))


def test_a_lie_about_the_parameters_counts_for_nothing():
    model, x, labels = shifty()
    assert (models.answers(model, 1 - x) != labels).any(), "the lie would pay"
    result = hf.evaluate(model, x, labels, THREAT, Liar(grid=(1, 1)), precision="original")
    assert result.robust_accuracy == result.standard_accuracy


def test_a_resumed_run_knows_the_parameters(tmp_path):
    model, x, labels = shifty()
    options = {"batch_size": 4, "precision": "original", "run": tmp_path / "run"}
    first = hf.evaluate(model, x, labels, THREAT, QUICK, **options)
    (tmp_path / "run" / "result.json").unlink()
    again = hf.evaluate(model, x, labels, THREAT, QUICK, **options)
    assert again.verdicts == first.verdicts and torch.equal(again.adversarial, first.adversarial)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["threat"] == THREAT.describe()
    page = write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "turn the image by up to 30° and shift it by up to 2 pixels each way" in page
    assert "spatial ±30° ±2 px" in page


def test_the_suite_by_name_and_norms_that_do_not_fit():
    model, x, labels = shifty(2)
    with pytest.raises(InputError, match="rotation-translation knows the norms spatial, not linf"):
        hf.evaluate(model, x, labels, Threat("linf", 0.1), "spatial")
    with pytest.raises(InputError, match="not spatial"):
        hf.evaluate(model, x, labels, THREAT, "apgd")
    result = hf.evaluate(model, x, labels, THREAT, "spatial", precision="original")
    assert [cost.name for cost in result.attacks] == [
        "rotation-translation",
        "rotation-translation-gradient",
    ]
