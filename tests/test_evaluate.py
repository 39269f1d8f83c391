"""`evaluate`: honest results from any model, one-line errors, runs that survive being killed."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import compiler
import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import holdfast as hf
from holdfast.attacks import APGD, PGD, Square, Stage, Suite
from holdfast.errors import InputError
from holdfast.evaluation import inspection
from holdfast.intervals import clopper_pearson
from holdfast.search import FastCopy, Level
from holdfast.search import fast_copies as levels
from holdfast.search import scheduler as search
from holdfast.threat import Threat

QUICK = Suite(
    "quick",
    (
        Stage(PGD(steps=2), restarts=2),
        Stage(APGD(steps=6, loss="dlr", targeted=True), targets=2),
    ),
)


def problem(n: int = 10, classes: int = 5):
    """A network, images, labels with one clean mistake, and a ball that breaks some of them."""
    model, x = models.Net(classes=classes, seed=2, scale=12.0), models.images(n, seed=2)
    labels = models.answers(model, x)
    labels[2] = (labels[2] + 1) % classes
    return model, x, labels, Threat("linf", 0.02)


def evaluate(model, x, labels, threat, suite=QUICK, **options):
    options = {"batch_size": 8, "precision": "original", **options}
    return hf.evaluate(model, x, labels, threat, suite, **options)


def flag(result, name: str):
    (found,) = [f for f in result.flags if f.name == name]
    return found


def assert_honest(result, model, x: Tensor, labels: Tensor, threat: Threat) -> None:
    """What the result says is what the model says of the images that it hands back."""
    n = len(x)
    answers = models.answers(model, result.adversarial)
    assert result.adversarial.shape == x.shape and result.adversarial.dtype == torch.float32
    assert torch.equal(result.broken, answers != labels)
    assert threat.contains(result.adversarial, x).all()
    clean = models.answers(model, x)
    assert result.n == n
    assert result.standard_accuracy == int((clean == labels).sum()) / n
    assert result.robust_accuracy == int((~result.broken).sum()) / n
    assert result.broken[clean != labels].all()
    assert result.robust_accuracy_interval == clopper_pearson(int((~result.broken).sum()), n)
    low, high = result.standard_accuracy_interval
    assert 0 <= low <= result.standard_accuracy <= high <= 1
    distance = threat.distance(result.adversarial, x)
    for i, row in enumerate(result.verdicts):
        assert row.index == i and row.label == int(labels[i])
        assert row.broken == bool(result.broken[i])
        assert row.clean_prediction == int(clean[i])
        assert row.adversarial_prediction == int(answers[i])
        assert row.distance == pytest.approx(float(distance[i]), abs=1e-6)
        assert (row.attack == "clean") == (int(clean[i]) != int(labels[i]))
        assert (row.attack == "") == (not row.broken)
    assert len(result.verdicts) == n
    for cost in result.attacks:
        assert cost.broken == sum(row.attack == cost.name for row in result.verdicts)
    assert sum(cost.broken for cost in result.attacks) == int(
        result.broken.sum() - (clean != labels).sum()
    )
    assert result.forwards == n + sum(cost.forwards for cost in result.attacks)
    assert sum(row.forwards for row in result.verdicts) <= result.forwards
    json.dumps(result.to_dict(), allow_nan=False)


# -- verdicts ---------------------------------------------------------------------------------


def test_the_result_is_what_the_model_says():
    model, x, labels, threat = problem()
    result = evaluate(model, x, labels, threat)
    assert_honest(result, model, x, labels, threat)
    assert 0 < result.robust_accuracy < result.standard_accuracy < 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("precision", ["auto", "float32", "bf16", "original"])
def test_any_precision_of_the_search_gives_true_verdicts(norm, precision):
    model, x, labels = models.digits(6)
    threat = Threat(norm, {"linf": 0.06, "l2": 0.4, "l1": 2.0}[norm])
    suite = Suite("short", (Stage(APGD(steps=10)),))
    result = evaluate(model, x, labels, threat, suite, precision=precision, batch_size=None)
    assert_honest(result, model, x, labels, threat)
    original = evaluate(model, x, labels, threat, suite)
    assert abs(result.robust_accuracy - original.robust_accuracy) <= 1 / 6 + 1e-9


@pytest.mark.parametrize("classes", [2, 3])
def test_the_suite_of_nine_targets_on_fewer_classes(classes):
    model, x, labels, _ = problem(5, classes)
    threat = Threat("linf", 0.005)
    result = evaluate(model, x, labels, threat, "apgd")
    assert_honest(result, model, x, labels, threat)
    costs = result.attacks
    assert [cost.name for cost in costs] == ["apgd-ce", "apgd-dlr-targeted"]
    # An image that stands is searched once and then once for each wrong class.
    looks = 1 + 101 + (classes - 1) * 101
    standing = [row for row in result.verdicts if not row.broken]
    assert standing and all(looks <= row.forwards <= looks + 20 for row in standing)


@pytest.mark.parametrize("shape", [(3, 4, 9), (1, 1, 1), (1, 7, 2)])
def test_images_that_are_not_square(shape):
    model, x = models.Net(classes=3, shape=shape), models.images(5, shape)
    labels = models.answers(model, x)
    threat = Threat("linf", 0.1)
    assert_honest(evaluate(model, x, labels, threat), model, x, labels, threat)


def test_one_image():
    model, x, labels, threat = problem()
    for i in (0, 2, 4):
        one = slice(i, i + 1)
        result = evaluate(model, x[one], labels[one], threat, batch_size=None, precision="auto")
        assert_honest(result, model, x[one], labels[one], threat)


def test_all_images_misclassified():
    model, x, labels, threat = problem()
    labels = (models.answers(model, x) + 1) % 5
    result = evaluate(model, x, labels, threat)
    assert_honest(result, model, x, labels, threat)
    assert result.standard_accuracy == result.robust_accuracy == 0
    assert result.broken.all() and torch.equal(result.adversarial, x)
    assert all(cost.forwards == cost.backwards == 0 for cost in result.attacks)


def test_zero_images_left_standing():
    model, x, _, _ = problem()
    labels, threat = models.answers(model, x), Threat("linf", 0.5)
    result = evaluate(model, x, labels, threat, curve=True)
    assert_honest(result, model, x, labels, threat)
    assert (result.standard_accuracy, result.robust_accuracy) == (1, 0)
    assert result.curve is not None and result.curve.points[-1].robust_accuracy == 0


def test_the_curve_begins_at_the_standard_accuracy_and_never_rises():
    model, x, labels, threat = problem()
    result = evaluate(model, x, labels, threat, curve=True)
    points = result.curve.points
    assert points[0].eps == 0 and points[0].robust_accuracy == result.standard_accuracy
    heights = [point.robust_accuracy for point in points]
    assert heights == sorted(heights, reverse=True)
    assert len({point.eps for point in points}) == len(points)


def test_a_model_that_always_answers_the_same_stands_and_is_flagged():
    x = models.images(4)
    constant = models.Wrapped(models.linear(3), after=lambda z: 0 * z + torch.tensor([1.0, 0, 0]))
    labels = torch.zeros(4, dtype=torch.int64)
    threat = Threat("linf", 0.3)
    result = evaluate(constant, x, labels, threat, curve=True)
    assert_honest(result, constant, x, labels, threat)
    assert result.robust_accuracy == 1
    assert flag(result, "gradients-vanish").fired and flag(result, "stands-at-huge-eps").fired
    # So there is no saying that a short search would do.
    swift = evaluate(constant, x, labels, threat, "swift")
    assert swift.attacks[2].name == "apgd-ce" and all(c.forwards > 0 for c in swift.attacks)


def test_swift_on_a_model_without_gradients_is_squares_whole_search():
    model = models.linear(3)

    def closed(x):
        with torch.no_grad():
            return model(x)

    x = models.images(12)
    labels = models.answers(model, x)
    result = evaluate(closed, x, labels, Threat("linf", 0.02), "swift", repair=False)
    tried = [cost for cost in result.attacks if cost.ran]
    assert [cost.name for cost in tried] == ["square, on a sample", "square"]
    assert result.suite == "swift, gradient-free part"
    standing = int((~result.broken).sum())
    assert standing > 0 and tried[-1].forwards >= 5000 * standing


def test_a_view_that_the_model_does_not_offer_is_one_line():
    model, x, labels, threat = problem(4)
    suite = Suite("elsewhere", (Stage(PGD(steps=1), view="surrogate"),))
    with pytest.raises(InputError, match="no view 'surrogate'"):
        evaluate(model, x, labels, threat, suite)


def test_ties_are_settled_as_the_model_settles_them():
    # Logits in whole numbers: at a tie the model answers the lower class.
    model = models.Wrapped(models.linear(3), after=lambda z: z.round())
    x = models.images(12)
    labels = models.answers(model, x)
    threat = Threat("linf", 0.02)
    suite = Suite("square", (Stage(Square(queries=60)),))
    assert_honest(evaluate(model, x, labels, threat, suite), model, x, labels, threat)


def test_the_model_itself_has_the_last_word(monkeypatch):
    # A fast copy that sees the label far ahead of all others lets nothing be verified; but the
    # points that it finds fool the model.
    model, x, labels, threat = problem(30)
    common = int(labels.mode().values)
    x, labels = x[labels == common], labels[labels == common]

    def blind(z: Tensor) -> Tensor:
        return z + 50 * nn.functional.one_hot(torch.tensor(common), z.shape[1])

    fast_copy = FastCopy(models.Wrapped(model, after=blind), "blind", 0.0)
    monkeypatch.setattr(inspection, "levels_of", lambda *arguments: [Level(fast_copy)])
    suite = Suite("weak", (Stage(PGD(steps=1, step_size=1.0, start="clean", loss="margin")),))
    result = evaluate(model, x, labels, threat, suite)
    assert 0 < result.robust_accuracy < result.standard_accuracy
    assert_honest(result, model, x, labels, threat)


# -- the model is handed back as it was -------------------------------------------------------


class Moody(nn.Module):
    """Normalises by the batch and drops pixels while it is in train mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.body = models.linear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.drop(self.norm(x)))


def test_a_model_in_train_mode_is_evaluated_in_eval_mode_and_handed_back():
    model, x = Moody(), models.images(6)
    expected = Moody().eval()
    labels, threat = models.answers(expected, x), Threat("linf", 0.02)
    model.train()
    model.norm.eval()  # one part is frozen, as in fine-tuning
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    result = evaluate(model, x, labels, threat)
    assert [m.training for m in model.modules()] == [True, False, True, True]
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert_honest(result, expected, x, labels, threat)
    assert not any(f.fired for f in result.flags if "change" in f.name)

    with pytest.raises(InputError):
        evaluate(model, x, labels + 4, threat)
    assert [m.training for m in model.modules()] == [True, False, True, True]


def test_nothing_else_of_the_world_is_changed():
    model, x, labels, threat = problem()
    wanted = [p.requires_grad for p in model.parameters()]
    kept, state = (x.clone(), labels.clone()), torch.get_rng_state()
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    evaluate(model, x, labels, threat, precision="auto", curve=True)
    assert torch.equal(x, kept[0]) and torch.equal(labels, kept[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_verdict(mode):
    model, x, labels, threat = problem()
    expected = evaluate(model, x, labels, threat)
    with mode():
        result = evaluate(model, x.clone(), labels, threat)
    assert torch.equal(result.broken, expected.broken)
    assert result.suite == expected.suite


# -- health checks ----------------------------------------------------------------------------


def test_a_plain_model_raises_no_flag():
    model, x, labels, threat = problem()
    result = evaluate(model, x, labels, threat, curve=True)
    assert [f.name for f in result.flags if f.fired] == []


def test_probabilities_are_flagged():
    model, x, labels, threat = problem()
    soft = models.Wrapped(model, after=lambda z: z.softmax(1))
    assert flag(evaluate(soft, x, labels, threat), "outputs-look-like-probabilities").fired


@pytest.mark.parametrize(
    "mask",
    [
        lambda x: torch.round(7 * x) / 7,
        lambda x: (10 * x).floor() / 10,
    ],
)
def test_masked_gradients_are_flagged(mask):
    body, x, _, threat = problem()
    model = models.Wrapped(body, before=mask)
    labels = models.answers(model, x)
    result = evaluate(model, x, labels, threat)
    assert flag(result, "gradients-vanish").fired
    assert_honest(result, model, x, labels, threat)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gradients_of_nan_protect_nobody(norm):
    # The usual trap: the branch that is not taken has a gradient of NaN. The answers are the same.
    def trap(x: Tensor) -> Tensor:
        return torch.where(x > 0.1, 0 * torch.sqrt(x - 0.1) + x, x)

    body, x, _, _ = problem(30)
    model, labels = models.Wrapped(body, before=trap), models.answers(body, x)
    threat = Threat(norm, {"linf": 0.02, "l2": 0.15, "l1": 1.0}[norm])
    suite = Suite("short", (Stage(APGD(steps=20)),))
    result, plain = (evaluate(m, x, labels, threat, suite) for m in (model, body))
    assert_honest(result, model, x, labels, threat)
    assert flag(result, "gradients-vanish").fired
    assert not flag(plain, "gradients-vanish").fired
    assert 0 < plain.robust_accuracy <= result.robust_accuracy <= plain.robust_accuracy + 0.15


def test_winners_that_take_all_are_beaten_without_gradients():
    # k-winners-take-all (Xiao et al., ICLR 2020): gradients point nowhere useful.
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(108, 400, generator=g, dtype=torch.float64)
    out = torch.randn(400, 3, generator=g, dtype=torch.float64)

    def winners(x: Tensor) -> Tensor:
        h = (x.double().flatten(1) - 0.5) @ wide
        h = torch.sin(80 * h)
        kept = h.topk(20, dim=1)
        return (torch.zeros_like(h).scatter(1, kept.indices, kept.values) @ out).float()

    model, x = models.Wrapped(winners), models.images(12)
    labels, threat = models.answers(model, x), Threat("linf", 0.05)
    suite = Suite("both", (Stage(PGD(steps=1, start="clean")), Stage(Square(queries=40))))
    result = evaluate(model, x, labels, threat, suite)
    assert flag(result, "gradient-free-attack-wins").fired
    assert_honest(result, model, x, labels, threat)


def test_a_model_that_draws_random_numbers_is_flagged():
    body, x, labels, threat = problem()
    noisy = models.Wrapped(body, before=lambda x: x + 0.05 * torch.randn_like(x))
    result = evaluate(noisy, x, labels, threat, precision="auto")
    assert flag(result, "outputs-change-between-calls").fired
    assert result.precision == "original"
    assert threat.contains(result.adversarial, x).all()


class Counting(nn.Module):
    """Remembers in a buffer how many images it saw, and grows more confident."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.body(x)


def test_a_model_that_changes_itself_is_flagged():
    body, x, labels, threat = problem()
    result = evaluate(Counting(body), x, labels, threat)
    assert flag(result, "model-changes-itself").fired
    assert not flag(evaluate(body, x, labels, threat), "model-changes-itself").fired


def test_a_forward_pass_that_optimises_is_flagged():
    body, x, labels, threat = problem()

    def purify(x: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(body(inner).logsumexp(1).sum(), inner)
        return (x + 1e-3 * g.sign()).clamp(0, 1)

    result = evaluate(models.Wrapped(body, before=purify), x, labels, threat)
    assert flag(result, "forward-computes-gradients").fired


def test_logits_of_any_size_can_be_written_down():
    body, x, labels, threat = problem()
    for scale in (1e-30, 1e25):
        model = models.Wrapped(body, after=lambda z, s=scale: z * s)
        assert_honest(evaluate(model, x, labels, threat), model, x, labels, threat)


# -- models that cannot be differentiated -----------------------------------------------------


def test_what_cannot_be_differentiated_is_attacked_without_gradients():
    body = models.linear(3)
    model, x = models.without_torch(body), models.images(5)
    labels, threat = models.answers(body, x), Threat("linf", 0.4)
    result = evaluate(model, x, labels, threat)
    assert_honest(result, model, x, labels, threat)
    assert result.robust_accuracy == 0
    assert [cost.name for cost in result.attacks if cost.ran] == ["square"]
    assert "gradient-free" in result.suite
    assert flag(result, "gradients-vanish").fired
    assert result.backwards == 0
    # No gradient attack was tried, so none was beaten.
    assert not flag(result, "gradient-free-attack-wins").fired


def test_a_suite_keeps_its_own_attacks_without_gradients():
    body = models.linear(3)
    model, x = models.without_torch(body), models.images(3)
    labels, threat = models.answers(body, x), Threat("linf", 0.4)
    suite = Suite("both", (Stage(PGD(steps=2)), Stage(Square(queries=33), restarts=2)))
    result = evaluate(model, x, labels, threat, suite)
    assert [cost.name for cost in result.attacks if cost.ran] == ["square"]
    assert max(row.forwards for row in result.verdicts) <= 1 + 2 * (33 + 1) + 4


# -- bad input --------------------------------------------------------------------------------


def spoilt(change) -> dict:
    model, x, labels, threat = problem()
    given = {"model": model, "images": x, "labels": labels, "threat": threat, "suite": QUICK}
    return {**given, **change(given)}


def with_value(value: float):
    def change(given):
        images = given["images"].clone()
        images[7, 1, 2, 3] = value
        return {"images": images}

    return change


def wrapped(after):
    return lambda given: {"model": models.Wrapped(given["model"], after=after)}


def elsewhere(x: Tensor) -> Tensor:
    """What a function says whose weights lie on another device than the images."""
    raise RuntimeError(
        "Expected all tensors to be on the same device, but found two,\ncpu and cuda"
    )


BAD = {
    r"images\[7\].*outside \[0, 1\]": with_value(1.001),
    r"images\[7\].* outside": with_value(-1e-6),
    r"images\[7\] holds NaN": with_value(float("nan")),
    r"images\[7\] holds NaN or inf": with_value(float("inf")),
    "images are int64: give floats in": lambda g: {"images": (255 * g["images"]).long()},
    r"images\[0\] has values outside .*: divide by 255": lambda g: {"images": 255 * g["images"]},
    "images must be a tensor, an array or a list, not a dict": lambda g: {"images": {}},
    r"images must have shape \(N, C, H, W\)": lambda g: {"images": g["images"][0]},
    "images is empty": lambda g: {"images": g["images"][:0], "labels": g["labels"][:0]},
    r"labels must have shape \(10,\)": lambda g: {"labels": g["labels"][:9]},
    "labels must be whole numbers": lambda g: {"labels": g["labels"] + 0.5},
    "labels hold <U1: give numbers": lambda g: {"labels": list("abcdefghij")},
    r"labels\[9\] is 5, out of range; the model has 5 classes": lambda g: {
        "labels": g["labels"].clone().index_fill(0, torch.tensor(9), 5)
    },
    r"labels\[0\] is -1": lambda g: {"labels": g["labels"] * 0 - 1},
    "NaN or infinite logits for image 0": wrapped(lambda z: z * torch.nan),
    "NaN or infinite logits": wrapped(lambda z: z / 0),
    r"labels\[\d\] is \d, out of range; the model has 2 classes": wrapped(lambda z: z[:, 0]),
    r"labels\[\d\] is \d, out of range; the model has 2 classes ": wrapped(lambda z: z[:, :1]),
    r"returned shape \(5, 5\)": wrapped(lambda z: z[:5]),
    r"the model cannot answer images of shape \(10, 1, 6, 6\) on cpu: .*shapes": lambda g: {
        "images": g["images"][:, :1]
    },
    "the model cannot answer .* same device": lambda g: {"model": elsewhere},
    "the model has no weights": lambda g: {"model": nn.Linear(3, 2, device="meta")},
    "the model has 3 classes": wrapped(lambda z: z[:, :3]),
    "returned a tuple": wrapped(lambda z: ("z", None)),
    "suite 'apdg' is unknown.*apgd": lambda g: {"suite": "apdg"},
    "knows the norms": lambda g: {"threat": Threat("l0", 3)},
    "precision must be one of": lambda g: {"precision": "fp8"},
    "batch_size must be a whole number of at least 1": lambda g: {"batch_size": 0},
    "device .*cannot be used": lambda g: {"device": "abacus"},
    "device .*cannot be used ": lambda g: {"device": "xpu:7"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_that_names_it_and_leaves_nothing_behind(message, tmp_path):
    given = spoilt(BAD[message])
    with pytest.raises(ValueError, match=message.strip()) as refused:
        hf.evaluate(**given, run=tmp_path / "run")
    assert isinstance(refused.value, InputError)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_nan_logits_far_into_the_data_name_the_image(tmp_path):
    model, x, labels, threat = problem(80)
    labels = models.answers(model, x)
    bad = x[71]

    def spoil(images: Tensor) -> Tensor:
        hit = (images == bad).flatten(1).all(1)[:, None]
        return torch.where(hit, torch.nan, model(images))

    with pytest.raises(InputError, match=r"image 71$"):
        evaluate(spoil, x, labels, threat)


# -- run folders ------------------------------------------------------------------------------


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_say_what_the_result_says(tmp_path):
    model, x, labels, threat = problem()
    out = tmp_path / "run"
    described = {"model": {"name": "net"}, "data": {"name": "noise", "pixels": "random"}}
    result = evaluate(model, x, labels, threat, run=out, described=described, curve=True)
    held = json.loads((out / "result.json").read_text())
    assert held["schema"] == "holdfast/evaluation/1" and held["status"] == "complete"
    parameters = sum(p.numel() for p in model.parameters())
    assert held["model"] == {**described["model"], "parameters": parameters}
    assert held["data"] == described["data"]
    summary = json.loads(json.dumps(result.to_dict()))
    assert {key: held[key] for key in summary} == summary
    assert held["threat"] == {"norm": "linf", "eps": 0.02} and held["n"] == len(x)
    assert held["identity"] == json.loads((out / "request.json").read_text())["identity"]

    rows = read_table(out / "verdicts.csv")
    assert len(rows) == held["n"]
    broken = sum(int(row["broken"]) for row in rows)
    assert held["robust_accuracy"] == (held["n"] - broken) / held["n"]
    clean = sum(row["attack"] == "clean" for row in rows)
    assert held["standard_accuracy"] == (held["n"] - clean) / held["n"]
    for cost in held["attacks"]:
        assert cost["broken"] == sum(row["attack"] == cost["name"] for row in rows)
    assert held["robust_accuracy_interval"] == list(clopper_pearson(held["n"] - broken, held["n"]))
    for row, verdict in zip(rows, result.verdicts, strict=True):
        for name, value in asdict(verdict).items():
            if name == "attack":
                assert row[name] == value
            else:
                assert float(row[name]) == pytest.approx(float(value), rel=1e-5)

    examples = load_file(out / "examples.safetensors")
    index = examples["index"]
    assert torch.equal(examples["images"], x[index])
    assert torch.equal(examples["adversarial"], result.adversarial[index])
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_a_result_says_which_model_and_data_even_if_nobody_described_them(tmp_path):
    model, x, labels, threat = problem()
    evaluate(model, x, labels, threat, run=tmp_path / "run")
    held = json.loads((tmp_path / "run" / "result.json").read_text())
    assert held["model"]["name"] == "Net" and held["data"]["pixels"]


def test_the_same_call_again_is_the_same_result_without_an_attack(tmp_path):
    model, x, labels, threat = problem()
    first = evaluate(model, x, labels, threat, run=tmp_path / "run")
    written = (tmp_path / "run" / "result.json").read_bytes()
    # What cannot change the result may differ.
    again = evaluate(model, x, labels, threat, run=tmp_path / "run", batch_size=3)
    assert again.verdicts == first.verdicts and again.attacks == first.attacks
    assert torch.equal(again.broken, first.broken)
    assert torch.equal(again.adversarial, first.adversarial)
    assert (again.forwards, again.backwards) == (first.forwards, first.backwards)
    assert (tmp_path / "run" / "result.json").read_bytes() == written
    assert again.seconds >= sum(cost.seconds for cost in first.attacks)


@pytest.mark.parametrize(
    "change",
    [
        lambda g: {"threat": Threat("linf", 0.03)},
        lambda g: {"threat": Threat("l2", 0.02)},
        lambda g: {"suite": Suite("quick", (Stage(PGD(steps=3)),))},
        lambda g: {"seed": 1},
        lambda g: {"labels": (g["labels"] + 1) % 5},
        lambda g: {"images": g["images"].flip(0)},
        lambda g: {"images": g["images"][:9], "labels": g["labels"][:9]},
        lambda g: {"model": models.Net(classes=5, seed=3)},
        lambda g: {"model": lambda x, net=g["model"]: net(x)},
    ],
)
def test_another_run_in_the_folder_is_refused_and_nothing_is_touched(tmp_path, change):
    given = {**spoilt(lambda g: {}), "batch_size": 8, "precision": "original"}
    out = tmp_path / "run"
    hf.evaluate(**given, run=out)
    held = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match="holds another run") as refused:
        hf.evaluate(**{**given, **change(given)}, run=out)
    assert "\n" not in str(refused.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == held


@pytest.mark.parametrize("table", ["clean", "item", "strongest", "broken", "spent"])
def test_a_damaged_journal_is_one_line_and_stays_where_it_is(tmp_path, table):
    model, x, labels, threat = problem()
    evaluate(model, x, labels, threat, run=tmp_path / "run")
    path = tmp_path / "run" / "journal.sqlite"
    with sqlite3.connect(path) as db:
        db.execute(f"DROP TABLE {table}")
        db.execute(f"CREATE TABLE {table} (image TEXT)")
        db.execute(f"INSERT INTO {table} VALUES ('no number')")
    with pytest.raises(InputError, match="damaged") as refused:
        evaluate(model, x, labels, threat, run=tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert path.exists() and (tmp_path / "run" / "result.json").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    model, x, labels, threat = problem()
    (tmp_path / "thesis.tex").write_text("dear reader")
    with pytest.raises(InputError, match="holds other files"):
        evaluate(model, x, labels, threat, run=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


# -- killed and resumed -----------------------------------------------------------------------

KILLS = 20


def child(out: Path, moment: int | None, checkpoint_seconds: float = 0.0) -> bool:
    """Evaluate in a forked process that kills itself at the `moment`-th call or return of any
    Python or C function, wherever that is; whether it got to its end.

    Items in flight are kept after every step, or (30 s) never in so short a run.
    """
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    events = 0

    def count(frame, event, argument):
        nonlocal events
        events += 1
        if events == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    search.CHECKPOINT_SECONDS, search.CHECKPOINT_SHARE = checkpoint_seconds, math.inf
    model, x, labels, threat = problem()
    sys.setprofile(count)
    result = evaluate(model, x, labels, threat, run=out)
    sys.setprofile(None)
    (out.parent / "events").write_text(str(events))
    np.save(out.parent / f"{out.name}.npy", result.adversarial.numpy())
    os._exit(0)


def outcome(out: Path) -> tuple:
    held = json.loads((out / "result.json").read_text())
    return (
        (out / "verdicts.csv").read_text(),
        np.load(out.parent / f"{out.name}.npy").tobytes(),
        [held[key] for key in ("n", "robust_accuracy", "standard_accuracy", "flags", "identity")],
        [(cost["name"], cost["broken"]) for cost in held["attacks"]],
        sorted(path.name for path in out.iterdir() if not path.name.startswith("journal")),
    )


def die_and_resume(folder: Path) -> None:
    """Runs in a process of its own: forking is safe only before torch has started threads."""
    torch.set_num_threads(1)
    assert child(folder / "whole", None)
    expected, events = outcome(folder / "whole"), int((folder / "events").read_text())
    chance, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        out = folder / f"run{runs}"
        while not child(
            out,
            chance.randrange(1, events) if kills < KILLS else None,
            chance.choice([0.0, 30.0]),
        ):
            kills += 1
        assert outcome(out) == expected, f"run {runs} differs after {kills} kills in all"
        runs += 1
    print(f"{kills} kills, {runs} runs, {events} events")


def test_a_run_killed_at_random_moments_gives_the_same_result(tmp_path):
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=570,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{KILLS} kills")


if __name__ == "__main__":
    die_and_resume(Path(sys.argv[1]))


def test_a_huge_ball_is_always_tried_where_gradients_are_climbed() -> None:
    images, labels = torch.rand(4, 3, 6, 6), torch.zeros(4, dtype=torch.int64)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 3))
    for threat, tried in ((hf.Threat("linf", 0.1), True), (hf.Threat("l0", 3), False)):
        suite = "fgsm" if tried else hf.attacks.SigmaZero(steps=3)
        names = {flag.name for flag in hf.evaluate(net, images, labels, threat, suite).flags}
        assert ("stands-at-huge-eps" in names) == tried


@pytest.mark.parametrize(("norm", "eps"), [("linf", 1 / 255), ("l2", 0.05), ("l1", 0.5)])
def test_a_model_that_stands_at_many_times_a_small_eps_is_no_sign(norm: str, eps: float) -> None:
    """Brightness of 0.2 and 0.8, told apart by the mean: 16/255 does not bridge that."""

    class Brightness(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = x.mean((1, 2, 3))
            return 10 * torch.stack([0.5 - mean, mean - 0.5], 1)

    labels = torch.arange(12) % 2
    images = (0.2 + 0.6 * labels.float())[:, None, None, None].expand(12, 3, 6, 6).contiguous()
    result = hf.evaluate(Brightness(), images, labels, (norm, eps), "fgsm")
    found = flag(result, "stands-at-huge-eps")
    assert result.robust_accuracy == 1.0 and not found.fired, found.detail


def test_a_long_search_compiles_its_twin_and_comes_to_the_same(monkeypatch):
    compiler.needed()
    model, x, labels = models.digits(32)
    threat = hf.Threat("linf", 0.1)
    plain = hf.evaluate(model, x, labels, threat, "pgd", batch_size=32, precision="float32")
    monkeypatch.setattr(levels, "COMPILING_SECONDS", 0.0)
    monkeypatch.setattr(levels, "compiling_pays", lambda device: True)
    result = hf.evaluate(model, x, labels, threat, "pgd", batch_size=32, precision="bf16")
    assert result.precision == "bf16, compiled then float32", result.log
    assert 0 < int(plain.broken.sum()) < 32
    # Searches in two precisions may differ on an image at the boundary.
    assert int((result.broken != plain.broken).sum()) <= 1
    assert torch.equal(result.broken, models.answers(model, result.adversarial) != labels)


def test_nothing_is_compiled_for_fewer_images_than_a_batch(monkeypatch):
    model, x, labels = models.digits(32)

    def compiled(*arguments):
        raise AssertionError("its batches would be larger than what was compiled for")

    monkeypatch.setattr(levels, "COMPILING_SECONDS", 0.0)
    monkeypatch.setattr(levels, "compiling_pays", lambda device: True)
    monkeypatch.setattr(levels, "compiled", compiled)
    threat = hf.Threat("linf", 0.1)
    hf.evaluate(model, x, labels, threat, "fgsm", batch_size=33, precision="bf16")
    with pytest.raises(AssertionError, match="its batches would be larger"):
        hf.evaluate(model, x, labels, threat, "fgsm", batch_size=32, precision="bf16")


def test_the_log_says_why_a_search_was_not_faster(monkeypatch, tmp_path, capsys):
    """On the terminal, in the result and in the run's file: no compiler, no copy."""
    model, x, labels = models.digits(16)
    threat = hf.Threat("linf", 0.1)
    plain = hf.evaluate(model, x, labels, threat, "fgsm", batch_size=16, precision="bf16")
    assert plain.log == ()

    def none(function, **options):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(levels, "COMPILING_SECONDS", 0.0)
    monkeypatch.setattr(levels, "compiling_pays", lambda device: True)
    monkeypatch.setattr(torch, "compile", none)
    result = hf.evaluate(
        model, x, labels, threat, "fgsm",
        batch_size=16, precision="bf16", run=tmp_path / "run", progress=True,
    )  # fmt: skip
    assert result.log == ("not compiled: RuntimeError: no C++ compiler",)
    assert torch.equal(result.broken, plain.broken)
    assert result.log[0] in capsys.readouterr().err
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["log"] == list(result.log)
    result = hf.evaluate(lambda z: model(z), x, labels, threat, "fgsm", precision="float32")
    assert result.log == ("no float32 copy: the model is no torch.nn.Module",)
