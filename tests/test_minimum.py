"""The suite `minimum`: distances, verdicts and the security curve that follow from them."""

from __future__ import annotations

import csv
import json

import models
import numpy as np
import pytest
import torch
from linear_classifiers import Linear, linear

import holdfast as hf
from holdfast.attacks import DDN, FAB, FMN, Stage, Suite, suite_named
from holdfast.attacks.losses import margin
from holdfast.errors import InputError
from holdfast.evaluation.curve import distance_curve
from holdfast.intervals import clopper_pearson
from holdfast.report import write_report
from holdfast.threat import Threat

WHOLE = {"stop_inside": False}
QUICK = Suite(
    "quick",
    (
        Stage(FMN(steps=20, **WHOLE)),
        Stage(FAB(steps=5, targeted=True, **WHOLE), targets=2),
        Stage(DDN(steps=20, **WHOLE)),
    ),
    closest=True,
)


def evaluate(model, x, labels, threat, suite=QUICK, **options):
    options = {"batch_size": 5, "precision": "original", **options}
    return hf.evaluate(model, x, labels, threat, suite, **options)


def problem(norm: str = "l2") -> tuple[Linear, np.ndarray, Threat]:
    """A linear classifier, the true distances, and an ε that half of them are below."""
    model = linear(3, "binding" if norm == "l0" else "free", count=8)
    optimum = model.optimum(norm)
    middle = float(np.sort(optimum)[3:5].mean())
    return model, optimum, Threat(norm, round(middle) if norm == "l0" else middle)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_distances_are_the_closed_form_ones(norm):
    """The suite as it is named, but for its longest searches, on what can be computed."""
    named = suite_named("minimum").fitting(Threat(norm, 1))
    short = tuple(s for s in named.stages if s.attack.iterations <= 501)
    model, optimum, threat = problem(norm)
    suite = Suite("minimum", short, closest=True)
    result = evaluate(model, model.images, model.labels, threat, suite, batch_size=100)
    distance = np.array([row.distance for row in result.verdicts])
    assert (distance >= optimum * (1 - 1e-4)).all()
    assert (distance <= optimum * 1.05).all(), distance / optimum
    # Broken is what lies inside, and what comes back is adversarial wherever it lies.
    inside = distance <= threat.eps
    assert result.broken.tolist() == inside.tolist() and 0 < inside.sum() < len(inside)
    assert (model(result.adversarial).argmax(1) != model.labels).all()
    measured = threat.distance(result.adversarial, model.images).tolist()
    assert measured == pytest.approx(distance.tolist(), rel=1e-6)


def test_every_norm_has_its_attacks():
    names = {
        norm: [s.attack.name for s in suite_named("minimum").fitting(Threat(norm, 1)).stages]
        for norm in ("linf", "l2", "l1", "l0")
    }
    assert names == {
        "linf": ["fab-targeted", "fmn-targeted", "fmn", "deepfool", "hop-skip-jump"],
        "l2": [
            "fab-targeted",
            "fmn-targeted",
            "fmn",
            "deepfool",
            "ddn",
            "carlini-wagner",
            "hop-skip-jump",
        ],
        "l1": ["fab-targeted", "fmn-targeted", "fmn"],
        "l0": ["fmn-targeted", "fmn", "sigma-zero"],
    }
    with pytest.raises(InputError, match="not spatial"):
        suite_named("minimum").fitting(Threat("spatial", 1))
    with pytest.raises(InputError, match="fab stops inside the ball"):
        Suite("minimum", (Stage(FAB()),), closest=True)


def test_no_attack_stops_at_eps_and_no_image_is_left_out():
    """The ball holds every image's neighbours, and still each attack runs to its end."""
    model, optimum, _ = problem()
    result = evaluate(model, model.images, model.labels, Threat("l2", 2 * optimum.max()))
    assert result.broken.all()
    whole = sum(stage.attack.iterations * (stage.targets or 1) for stage in QUICK.stages)
    for row in result.verdicts:
        # The clean answer, and what it took to confirm each item's point.
        assert whole + 1 + 4 <= row.forwards <= whole + 1 + 4 * 4
    far = evaluate(model, model.images, model.labels, Threat("l2", optimum.min() / 10))
    assert not far.broken.any()
    assert [r.distance for r in far.verdicts] == [r.distance for r in result.verdicts]
    # The attack that found the closest point is the one that broke the image.
    best = {
        number: evaluate(model, model.images, model.labels, Threat("l2", 1),
                         Suite("one", (stage,), closest=True))
        for number, stage in enumerate(QUICK.stages)
    }  # fmt: skip
    for i, row in enumerate(result.verdicts):
        alone = {QUICK.stages[n].name: b.verdicts[i].distance for n, b in best.items()}
        assert row.distance == pytest.approx(min(alone.values()), rel=1e-5)
        assert alone[row.attack] == pytest.approx(row.distance, rel=1e-5)


def test_the_curve_counts_the_distances():
    model, _, threat = problem()
    labels = model.labels.clone()
    labels[0] = (labels[0] + 1) % 3  # a clean mistake
    result = evaluate(model, model.images, labels, threat)
    distance = np.array([row.distance for row in result.verdicts])
    assert distance[0] == 0 and result.verdicts[0].attack == "clean"
    curve = result.curve
    assert curve.attack == "suite quick" and curve.n == 8
    for point in curve.points:
        standing = int((distance > point.eps * (1 + 2e-5) + 6e-8).sum())
        assert point.robust_accuracy == standing / 8
        assert point.interval == clopper_pearson(standing, 8)
    shares = [point.robust_accuracy for point in curve.points]
    assert shares[0] == result.standard_accuracy == 7 / 8
    assert shares == sorted(shares, reverse=True) and shares[-1] == 0
    (here,) = [p for p in curve.points if p.eps == threat.eps]
    assert here.robust_accuracy == result.robust_accuracy


def test_a_curve_where_nothing_was_found_never_falls():
    distances = torch.tensor([0.0, 0.5, torch.inf])
    curve = distance_curve(distances, "suite minimum", Threat("linf", 0.5))
    assert curve.points[0].robust_accuracy == 2 / 3
    assert curve.points[-1].robust_accuracy == 1 / 3 and curve.points[-1].eps == 16
    whole = distance_curve(torch.tensor([1.0, 3.0, 4.0]), "suite minimum", Threat("l0", 3))
    radii = [point.eps for point in whole.points]
    assert radii == [0, 1, 2, 3, 4] and whole.points[3].robust_accuracy == 1 / 3
    assert whole.points[4].robust_accuracy == 0


def stubborn(x):
    """Two classes, and inside the box always the first."""
    return torch.stack([0 * x[:, 0, 0, 0], x.mean((1, 2, 3)) - 2.0], 1)


def test_where_nothing_is_found_the_distance_is_infinite(tmp_path):
    x, labels = models.images(4), torch.zeros(4, dtype=torch.int64)
    run = tmp_path / "run"
    result = evaluate(stubborn, x, labels, Threat("l2", 1), run=run)
    assert [row.distance for row in result.verdicts] == [np.inf] * 4
    assert result.robust_accuracy == 1 and torch.equal(result.adversarial, x)
    assert {p.robust_accuracy for p in result.curve.points} == {1.0}
    rows = list(csv.DictReader((run / "verdicts.csv").open()))
    assert {row["distance"] for row in rows} == {"inf"}
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "does not reach 0" in page and "L2 inf" not in page


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_nothing(batch_size):
    model, x = models.Net(3, scale=6), models.images(4)
    labels = models.answers(model, x)
    for norm, eps in (("l2", 0.3), ("l0", 3)):
        suite = Suite("quick", tuple(s for s in QUICK.stages if norm in s.attack.norms), True)
        results = [
            evaluate(model, x, labels, Threat(norm, eps), suite, batch_size=size)
            for size in (batch_size, 2)
        ]
        assert results[0].verdicts == results[1].verdicts
        assert torch.equal(results[0].adversarial, results[1].adversarial)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    model, x = models.Net(3, scale=6), models.images(6)
    labels, threat = models.answers(model, x), Threat("l2", 0.3)
    whole = evaluate(model, x, labels, threat)
    for attack, stop in ((FMN, 15), (FMN, 25), (FAB, 9), (DDN, 5), (DDN, 30)):
        iterations, step = [0], attack.step

        def counted(self, *given, iterations=iterations, stop=stop, step=step):
            iterations[0] += 1
            if iterations[0] == stop:
                raise Interrupted
            return step(self, *given)

        monkeypatch.setattr(attack, "step", counted)
        with pytest.raises(Interrupted):
            evaluate(model, x, labels, threat, run=tmp_path / "run")
        monkeypatch.setattr(attack, "step", step)
    again = evaluate(model, x, labels, threat, run=tmp_path / "run")
    assert again.verdicts == whole.verdicts
    assert torch.equal(again.adversarial, whole.adversarial)
    assert again.curve == whole.curve


def test_points_that_only_the_twin_believes_are_pushed_on_or_dropped():
    """A fast copy that is a little too easily fooled: its points are not taken at their word."""
    from holdfast.search import FastCopy, Journal, Ledger, Level, Search

    model, optimum, threat = problem()

    clean = margin(model(model.images), model.labels)

    def searched(share: float):
        """By a fast copy whose margins are too small by a share of those of the clean images."""

        class Easy:
            def __call__(self, z):
                gaps = (z[:, None] - model.images[None]).flatten(2).square().sum(2)
                nearest = gaps.argmin(1)
                label = torch.nn.functional.one_hot(model.labels[nearest], 3)
                return model(z) - share * clean[nearest, None] * label

        ledger = Ledger.of(model.images, model.labels, torch.arange(8))
        suite = Suite("one", (Stage(FMN(steps=60, **WHOLE)),), closest=True)
        Search(
            model,
            model.images,
            model.labels,
            threat,
            suite,
            levels=[Level(FastCopy(Easy(), "easy", 0.0))],
            batch_size=8,
            device=torch.device("cpu"),
            seed=0,
            ledger=ledger,
            journal=Journal(None, "x"),
        ).run()
        return ledger

    slightly = searched(0.005)
    assert (slightly.found >= 0).all()
    assert (model(slightly.adversarial).argmax(1) != model.labels).all()
    distance = threat.distance(slightly.adversarial, model.images).numpy()
    assert (distance <= optimum * 1.05).all()
    widely = searched(0.5)
    claimed = model(widely.adversarial).argmax(1) != model.labels
    assert torch.equal(claimed, widely.found >= 0) and not claimed.all()
    assert not widely.broken[~claimed].any()


def test_the_report_draws_the_curve_of_the_distances(tmp_path):
    model, _, threat = problem()
    run = tmp_path / "run"
    evaluate(model, model.images, model.labels, threat, run=run)
    result = json.loads((run / "result.json").read_text())
    assert len(result["curve"]["points"]) > 8 and result["curve"]["attack"] == "suite quick"
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "the line is made of the same distances" in page
    assert "suite quick, n = 8" in page


def test_models_without_gradients_are_searched_by_decisions():
    model, x = models.linear(3), models.images(3)
    labels = models.answers(model, x)
    short = tuple(
        Stage(type(s.attack)(**{**s.attack.settings, "queries": 300}))
        if s.attack.name == "hop-skip-jump"
        else s
        for s in suite_named("minimum").fitting(Threat("l2", 1)).stages
    )
    suite = Suite("minimum", short, closest=True)
    result = evaluate(models.without_torch(model), x, labels, Threat("l2", 5.0), suite)
    assert result.suite == "minimum, gradient-free part"
    assert [cost.name for cost in result.attacks if cost.ran] == ["hop-skip-jump"]
    assert all(np.isfinite(row.distance) for row in result.verdicts)
    assert result.curve.attack == "suite minimum, gradient-free part"


class Escapes(FMN):
    """Believes in a point that fools the model from outside the box."""

    def __init__(self, toward: torch.Tensor):
        super().__init__(steps=3, **WHOLE)
        self.toward = toward  # (N, C, H, W), one an image

    def step(self, model, state, threat):
        state = super().step(model, state, threat)
        rows = [int((self.known == x).flatten(1).all(1).nonzero()[0]) for x in state.images]
        best = state.images + 50 * self.toward[rows]
        return state.replace(best=best, distance=threat.distance(best, state.images))


def test_a_point_outside_the_box_is_no_closest_one():
    model, _, threat = problem()
    x, labels = model.images, model.labels
    others = (labels + 1) % 3
    slope = torch.as_tensor(model.weights)[others] - torch.as_tensor(model.weights)[labels]
    attack = Escapes(slope.view_as(x).float())
    attack.known = x
    far = x + 50 * attack.toward
    assert (model(far).argmax(1) != labels).all()  # it would fool, if it were an image
    result = evaluate(model, x, labels, threat, Suite("one", (Stage(attack),), closest=True))
    assert (result.adversarial >= 0).all()
    assert (result.adversarial <= 1).all()
    told = torch.tensor([row.distance for row in result.verdicts])
    found = told.isfinite()
    assert found.any()
    assert torch.allclose(threat.distance(result.adversarial, x)[found], told[found], rtol=1e-4)
