"""Certified ≤ true ≤ attacked: in every result, across interruptions, and on digits."""

from __future__ import annotations

import copy
import csv
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from verbs import certify_command

import holdfast as hf
from holdfast import data as datasets
from holdfast import draws
from holdfast.attacks import APGD, DDN, PGD
from holdfast.certification import bounds as interval
from holdfast.certification.run import (
    Certification,
    IntervalBounds,
    Smoothing,
    certify_by,
    read_rows,
)
from holdfast.certification.smoothing import ABSTAIN, Certificates, Smoothed
from holdfast.errors import InputError
from holdfast.models import build, save_checkpoint
from holdfast.report import write_report
from holdfast.training.objectives import Batch, objective_named

SIGMA = 0.25
L2 = hf.Threat("l2", 0.25)
LINF = hf.Threat("linf", 0.05)
CLASSES = [str(i) for i in range(10)]


def fitted(name: str, architecture: str, threat: hf.Threat, steps: int) -> nn.Module:
    """A small reader of digits, trained by an objective for about a second."""
    held = datasets.load("digits")
    x, y = datasets.to_tensor(held.train.images), torch.from_numpy(held.train.labels)
    torch.manual_seed(0)
    model = build(architecture, {**ARGUMENTS[architecture], "mean": [0.3], "std": [0.37]})
    objective = objective_named(name, {})
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(steps):
        rows = torch.randint(0, len(x), (96,), generator=torch.Generator().manual_seed(step))
        objective.progress = step / steps
        seeds = draws.item_seeds(step, rows)
        loss = objective(model.train(), Batch(x[rows], y[rows], seeds), threat)
        optimiser.zero_grad()
        loss.value.backward()
        optimiser.step()
    return model.eval()


ARGUMENTS = {"small-cnn": {"width": 8}, "interval-cnn": {"width": 8, "stride": 1}}


@pytest.fixture(scope="module")
def noisy() -> nn.Module:
    return fitted("gaussian", "small-cnn", L2, 100)


@pytest.fixture(scope="module")
def bounded() -> nn.Module:
    return fitted("interval", "interval-cnn", LINF, 150)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    test = datasets.load("digits").test
    return datasets.to_tensor(test.images[:200]), torch.from_numpy(test.labels[:200].copy())


def saved(folder: Path, model: nn.Module, architecture: str, threat: hf.Threat) -> str:
    arguments = {**ARGUMENTS[architecture], "mean": [0.3], "std": [0.37]}
    card = {
        "architecture": architecture,
        "arguments": arguments,
        "classes": CLASSES,
        "threat": {"norm": threat.norm, "eps": threat.eps},
    }
    return str(save_checkpoint(folder, model, card))


def sandwiched(result: Certification) -> bool:
    """Whether what is certified at the attack's radius is no more than what the attack left."""
    rows = [r for r in result.rows if r.prediction == r.label]
    certified = sum(r.radius >= result.threat["eps"] for r in rows) / result.n
    assert not any(r.broken for r in rows if r.radius >= result.threat["eps"])
    return certified <= result.attacked_accuracy


# --- smoothing --------------------------------------------------------------------------------


def test_no_attack_contradicts_a_certificate_inside_its_radius(noisy, digits):
    """200 digits; each attack may go as far as the certificate says, and no further."""
    images, _ = digits
    smoothed = Smoothed(noisy, SIGMA)
    found = smoothed.certify(images, n0=20, n=400, alpha=0.001)
    sure = found.prediction != ABSTAIN
    assert sure.sum() > 150 and found.radius[sure].median() > 0.25
    x, y, radius = images[sure], found.prediction[sure], found.radius[sure].float()
    soft = smoothed.soft(4)
    attacks = (
        PGD(steps=6, step_size=0.5, loss="margin"),
        APGD(steps=6, loss="ce"),
        DDN(steps=6),
    )
    changed = 0
    for attack in attacks:
        threat = hf.Threat("l2", 2 * float(radius.max()))
        reached = attack(soft, x, y, threat)
        # Drawn back into each image's own ball.
        step = reached - x
        length = step.flatten(1).norm(dim=1)
        share = ((radius * (1 - 1e-5)) / length.clamp_min(1e-9)).clamp_max(1)
        inside = (x + share.view(-1, 1, 1, 1) * step).clamp(0, 1)
        said = smoothed.predict(inside, n=150, indices=torch.arange(200)[sure])
        assert not ((said != ABSTAIN) & (said != y)).any(), attack
        with torch.no_grad():
            changed += int((soft(reached).argmax(1) != y).sum())
    assert changed > 10  # beyond the certified radii the same attacks do change answers


def test_an_abstention_is_never_right_and_never_broken_by_itself():
    class Undecided(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1).sum(1), x.flatten(1).sum(1).neg() + 16], 1)

    x = torch.full((4, 1, 4, 4), 0.5)  # the mean of the noise is exactly on the boundary
    method = Smoothing(Smoothed(Undecided(), 0.5), L2, n0=10, n=200, steps=2, samples=2)
    rows = method.certify(x, torch.arange(4))
    assert (rows.prediction == ABSTAIN).all() and (rows.radius == 0).all()


def test_certify_writes_reports_and_resumes(noisy, tmp_path, monkeypatch):
    model = saved(tmp_path / "model", noisy, "small-cnn", L2)
    options = {"sigma": SIGMA, "n0": 20, "n": 300, "limit": 12}
    whole = certify_command(model, "digits", tmp_path / "whole", **options)
    assert whole.method == "smoothing"
    assert whole.settings == {
        "sigma": SIGMA,
        "n0": 20,
        "n": 300,
        "alpha": 0.001,
        "attack_samples": 16,
    }
    assert [point.radius for point in whole.certified] == [0, 0.25, 0.5]
    values = [point.certified_accuracy for point in whole.certified]
    assert values == sorted(values, reverse=True) and values[0] == whole.standard_accuracy > 0.5
    assert all(p.interval[0] <= p.certified_accuracy <= p.interval[1] for p in whole.certified)
    assert sandwiched(whole) and not any(flag.fired for flag in whole.flags)
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["status"] == "complete" and "rows" not in result
    with (tmp_path / "whole" / "certificates.csv").open() as file:
        assert [int(row["index"]) for row in csv.DictReader(file)] == list(range(12))
    page = write_report([tmp_path / "whole"], tmp_path / "page.html").read_text()
    assert "Certified ≤ true ≤ attacked" in page and "certified at L2 0.25" in page

    # Stopped in the middle, in another batch size: the same rows, none of them made twice.
    seen: list[int] = []
    certify_once = Smoothing.certify

    def counted(self, images, indices):
        if len(seen) >= 5:
            raise KeyboardInterrupt
        seen.extend(indices.tolist())
        return certify_once(self, images, indices)

    monkeypatch.setattr(Smoothing, "certify", counted)
    monkeypatch.setattr("holdfast.certification.certify.PASSES", 900)  # three at once
    with pytest.raises(KeyboardInterrupt):
        certify_command(model, "digits", tmp_path / "parts", **options, batch_size=40)
    kept = read_rows(tmp_path / "parts" / "certificates.csv")
    assert [row.index for row in kept] == seen and not (tmp_path / "parts/result.json").exists()
    monkeypatch.setattr(
        Smoothing, "certify", lambda s, x, i: seen.extend(i.tolist()) or certify_once(s, x, i)
    )
    parts = certify_command(model, "digits", tmp_path / "parts", **options)
    assert sorted(seen) == list(range(12))

    def bare(rows):
        return [(r.index, r.label, r.prediction, r.radius, r.broken) for r in rows]

    assert bare(parts.rows) == bare(whole.rows) and parts.identity == whole.identity
    with pytest.raises(InputError, match=r"holds another run \(--n 300, not 200\)"):
        certify_command(model, "digits", tmp_path / "parts", **{**options, "n": 200})


def test_a_false_certificate_is_a_flag(noisy, digits, tmp_path):
    class Boastful(Smoothing):
        def certify(self, images, indices):
            found = super().certify(images, indices)
            return Certificates(found.prediction, torch.full_like(found.radius, 9.0))

    images, labels = digits
    threat = hf.Threat("l2", 2.5)
    method = Boastful(Smoothed(noisy, SIGMA), threat, n0=20, n=200, steps=8, samples=4)
    result = certify_by(method, noisy, images[:10], labels[:10], tmp_path / "run", radii=[0.0])
    fired = {flag.name: flag.fired for flag in result.flags}
    assert fired == {"certificate-contradicted": True}
    page = write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "Do not rely on these certificates" in page


# --- interval bounds --------------------------------------------------------------------------


def test_interval_certificates_are_the_largest_verified_radii(bounded, digits):
    images, _ = digits
    method = IntervalBounds(bounded, LINF)
    found = method.certify(images[:40], torch.arange(40))
    for eps in (LINF.eps / 4, LINF.eps, 2 * LINF.eps):
        sure = interval.verified(bounded, images[:40], found.prediction, eps)
        assert torch.equal(sure, found.radius >= eps)
    assert len(found.radius.unique()) > 3


def test_certified_is_at_most_attacked_on_digits(bounded, tmp_path):
    model = saved(tmp_path / "model", bounded, "interval-cnn", LINF)
    result = certify_command(model, "digits", tmp_path / "run", limit=100)
    assert result.method == "interval bounds" and result.threat == {"norm": "linf", "eps": 0.05}
    assert [point.radius for point in result.certified] == pytest.approx([0, 0.025, 0.05])
    assert sandwiched(result) and not any(flag.fired for flag in result.flags)
    certified = result.certified[-1].certified_accuracy
    assert 0.3 < certified < result.attacked_accuracy < result.standard_accuracy
    write_report([tmp_path / "run"], tmp_path / "page.html")


def test_a_wrong_bound_is_caught(bounded, digits, tmp_path, monkeypatch):
    """Intervals that come out of every affine layer at a tenth of their width."""
    honest = interval._affine

    def narrow(bounds, apply, spread):
        return honest(bounds, apply, lambda radius: 0.1 * spread(radius))

    monkeypatch.setattr(interval, "_affine", narrow)
    images, labels = digits
    method = IntervalBounds(bounded, hf.Threat("linf", 0.2), steps=10)
    result = certify_by(method, bounded, images[:30], labels[:30], tmp_path / "run", radii=[0.2])
    fired = {flag.name: flag.fired for flag in result.flags}
    assert fired == {"bounds-are-left": True, "certificate-contradicted": True}


# --- objectives -------------------------------------------------------------------------------


def batch(count: int = 6) -> Batch:
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(x, torch.arange(count) % 10, torch.arange(count))


def test_gaussian_training_adds_unclamped_noise_of_the_stated_width():
    given, model = batch(200), build("small-cnn", {"width": 2})
    objective = objective_named("gaussian", {"sigma": 0.4})
    points = objective.points(model, given, L2)
    noise = points - given.images
    assert float(noise.std()) == pytest.approx(0.4, rel=0.02)
    assert points.min() < 0 and points.max() > 1
    assert torch.equal(points, objective.attacked(model, given, L2))  # of the seeds alone
    loss = objective.loss(model.eval(), points, given)
    expected = F.cross_entropy(model(points), given.labels)
    assert float(loss.value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_smoothadv_climbs_the_mean_probability_with_the_noise_it_trains_on():
    given, model = batch(), build("small-cnn", {"width": 4}).train()
    objective = objective_named("smoothadv", {"sigma": 0.2, "samples": 3, "steps": 1})
    noise = objective.noise(given)
    assert len(noise.flatten(1).unique(dim=0)) == 18
    points = objective.attacked(model, given, L2)
    moved = (points - noise).unflatten(0, (6, 3))
    assert torch.allclose(moved[:, 0], moved[:, 2], atol=1e-6)  # one point an image
    x = given.images.clone().requires_grad_()
    fast_copy = copy.deepcopy(model)  # whose running statistics may change
    mean = fast_copy(x.repeat_interleave(3, 0) + noise).softmax(1).unflatten(0, (6, 3)).mean(1)
    loss = F.nll_loss(mean.log(), given.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    unit = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = L2.project(given.images + L2.eps * unit, given.images)
    assert torch.allclose(moved[:, 0], expected, atol=1e-4)
    found = objective(model, given, L2)
    assert found.logits.shape == (6, 10)


def test_interval_training_begins_clean_and_ends_at_the_full_radius():
    given = batch()
    model = build("interval-cnn", {"width": 2, "stride": 1, "mean": [0.3], "std": [0.4]})
    objective = objective_named("interval", {"warmup": 0.2, "ramp": 0.6, "clean_share": 0.25})
    clean = F.cross_entropy(model(given.images), given.labels)
    for progress, strength in ((0.0, 0.0), (0.2, 0.0), (0.4, 0.5), (0.6, 1.0), (1.0, 1.0)):
        objective.progress = progress
        found = objective(model, given, LINF).value
        bounds = interval.margin_bounds(model, given.images, given.labels, strength * LINF.eps)
        worst = F.cross_entropy(-bounds, given.labels)
        share = 1 - 0.75 * strength
        expected = share * clean + (1 - share) * worst
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments", "threat", "says"),
    [
        ("gaussian", {"sigma": 0}, L2, "sigma must be above 0"),
        ("smoothadv", {"samples": 0}, L2, "samples must be at least 1"),
        ("interval", {"ramp": 0.01}, LINF, "warmup below ramp"),
        ("interval", {"clean_share": 2}, LINF, "clean_share must be at most 1"),
        ("interval", {}, L2, "knows the norm linf, not l2"),
        ("interval", {}, LINF, "need an nn.Sequential"),
    ],
)
def test_bad_objectives(name, arguments, threat, says):
    with pytest.raises(InputError, match=says):
        objective_named(name, arguments)(build("small-cnn", {"width": 2}), batch(), threat)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sigma": -1.0}, "sigma must be a number above 0"),
        ({"sigma": 0.25, "n": 0}, "n must be a whole number"),
        ({"sigma": 0.25, "alpha": 0.0}, "alpha must be"),
        ({"sigma": 0.25, "radius": [-0.1]}, "radius must be a number of at least 0"),
        ({"sigma": 0.25, "radius": [math.nan]}, "radius must be"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({}, "interval bounds need an nn.Sequential"),
        ({"sigma": 0.25, "split": "devset"}, "split 'devset' is unknown"),
    ],
)
def test_bad_input_is_one_line(options, says, noisy, tmp_path):
    model = saved(tmp_path / "model", noisy, "small-cnn", L2)
    with pytest.raises(InputError, match=says) as raised:
        certify_command(model, "digits", tmp_path / "run", **{"limit": 2, **options})
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_damaged_rows_are_one_line(tmp_path):
    file = tmp_path / "certificates.csv"
    file.write_text("index,label,prediction,radius,broken,seconds\n0,1,2,x,0,1\n")
    with pytest.raises(InputError, match=r"certificates\.csv is damaged"):
        read_rows(file)
