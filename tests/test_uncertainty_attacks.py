"""Attacks on uncertainty: they do what they are for, and nothing that does not count."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import Net, digits, images, linear
from torch import nn

from holdfast.attacks import PGD, Items
from holdfast.data import digits as embedded
from holdfast.errors import InputError
from holdfast.search import Journal, scheduler
from holdfast.threat import Threat
from holdfast.uncertainty import goals
from holdfast.uncertainty.attacks import Ascent, _orthogonal, seek
from holdfast.uncertainty.calibration import TemperatureScaling
from holdfast.uncertainty.conformal import NoisyModel, SplitConformal, report_sets
from holdfast.uncertainty.detection import (
    WithDetector,
    evaluate_detector,
    last_linear,
    threshold_at_fpr,
)
from holdfast.uncertainty.metrics import auroc, ece
from holdfast.uncertainty.run.probed_model import ProbedModel
from holdfast.uncertainty.scores import LayerFeatures, LogitScore, Mahalanobis, max_softmax

THREATS = [Threat("linf", 0.15), Threat("l2", 1.0)]


@pytest.fixture(scope="module")
def read():
    """A network that reads digits, 60 test images and their labels."""
    model, x, y = digits(60)
    return model, x, y


def confidence(outputs):
    return outputs.softmax(1).amax(1)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_miscalibration_moves_confidence_and_no_answer(read, threat):
    model, x, y = read
    y = y.clone()
    y[:15] = (y[:15] + 1) % 10  # so that a quarter of the answers are wrong
    with torch.no_grad():
        before = model(x)
    right = before.argmax(1) == y
    found = seek(Ascent(goals.Miscalibrate()), model, x, y, threat)
    with torch.no_grad():
        after = model(found.images)
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert threat.contains(found.images, x).all()
    assert torch.allclose(found.outputs, after, atol=1e-4)
    was, now = confidence(before), confidence(after)
    assert now[right].mean() < was[right].mean() - 0.3
    assert now[~right].mean() > max(was[~right].mean() + 0.02, 0.97)
    raised = ece(after.softmax(1), y)
    assert raised > ece(before.softmax(1), y) + 0.2


def test_confidence_of_a_linear_model_falls_by_what_the_ball_allows():
    """Two classes: the log odds are linear, so the least in the ball is known."""
    model, threat = linear(2, seed=1), Threat("linf", 0.02)
    x = images(40, seed=2) * 0.8 + 0.1  # away from the walls of the box
    with torch.no_grad():
        z = model(x)
    y = z.argmax(1)
    odds = (z[:, 0] - z[:, 1]).abs()
    reach = threat.eps * float((model.weight[0] - model.weight[1]).abs().sum())
    far = odds > reach  # the boundary lies outside
    assert 5 < far.sum() < 40
    found = seek(Ascent(goals.Miscalibrate(), steps=30), model, x, y, threat)
    left = (found.outputs[:, 0] - found.outputs[:, 1]).abs()
    assert left[far].numpy() == pytest.approx((odds - reach)[far].numpy(), abs=0.02 * reach)
    assert (left[~far] < 0.1 * odds[~far] + 0.02 * reach).all()  # right up to the boundary


def broken_by_pgd(model, x, y, threat):
    adversarial = PGD(steps=20, loss="margin")(model, x, y, threat)
    with torch.no_grad():
        broken = model(adversarial).argmax(1) != y
        broken &= model(x).argmax(1) == y
    return adversarial[broken], broken


def detectors(model, x, y):
    layer = LayerFeatures(model, last_linear(model), take="input")
    return {
        "max-softmax": LogitScore(model),
        "mahalanobis": Mahalanobis(layer, x, y, classes=10),
    }


@pytest.mark.parametrize(("name", "eps"), [("max-softmax", 0.2), ("mahalanobis", 0.4)])
def test_a_detector_that_looks_good_falls_to_who_knows_it(read, name, eps):
    model, x, y = read
    threat = Threat("linf", eps)
    train = embedded.load().train
    known = torch.from_numpy(train.images).float() / 255
    detector = detectors(model, known, torch.from_numpy(train.labels))[name]
    adversarial, broken = broken_by_pgd(model, x, y, threat)
    assert broken.sum() > 40
    clean = detector.in_batches(x[broken])
    positive = torch.arange(2 * len(clean)) >= len(clean)
    unaware = auroc(torch.cat([clean, detector.in_batches(adversarial)]), positive)
    watched = WithDetector(model, detector).eval()
    scores = []
    for orthogonal in (False, True):
        found = seek(
            Ascent(goals.Evade(), orthogonal=orthogonal),
            watched,
            x[broken],
            y[broken],
            threat,
            starts=adversarial,
        )
        logits, score = found.outputs[:, :-1], found.outputs[:, -1]
        assert found.holds.all()
        assert (logits.argmax(1) != y[broken]).all()
        assert torch.allclose(score, detector.in_batches(found.images), rtol=1e-3, atol=1e-5)
        assert threat.contains(found.images, x[broken]).all()
        scores.append(score)
    aware = auroc(torch.cat([clean, torch.stack(scores).amin(0)]), positive)
    assert unaware > 0.8, unaware
    assert aware < 0.5, aware


def test_evading_breaks_labels_by_itself(read):
    """Without starts that are broken, the condition is reached first, and the score lowered."""
    model, x, y = read
    watched = WithDetector(model, LogitScore(model)).eval()
    found = seek(Ascent(goals.Evade()), watched, x, y, Threat("linf", 0.3))
    wrong = found.outputs[:, :-1].argmax(1) != y
    assert torch.equal(found.holds, wrong)
    assert wrong.float().mean() > 0.9


def test_an_aim_ends_the_search_sooner(read):
    model, x, y = read
    iterations = [0]

    def counted(images):
        iterations[0] += len(images)
        return model(images)

    spent = []
    for aim in (None, 0.0):  # a wrong class ahead of the right one is enough
        iterations[0] = 0
        attack = Ascent(goals.Miscover(), aim=aim)
        found = seek(attack, model, x, y, Threat("linf", 0.3), search=counted)
        assert (found.outputs.argmax(1) != y).float().mean() > 0.8
        spent.append(iterations[0])
    assert spent[1] < 0.8 * spent[0]


def test_orthogonal_gradients_are_orthogonal():
    g, o = torch.randn(20, 3, 4, 4), torch.randn(20, 3, 4, 4) * 1e-12
    rest = _orthogonal(g, o)
    dots = (rest * o).flatten(1).sum(1) / o.flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1)
    assert dots.abs().max() < 1e-5
    assert (rest * g).flatten(1).sum(1).min() > 0
    assert torch.equal(_orthogonal(g, 3 * g), g)  # nothing would be left
    assert torch.equal(_orthogonal(g, torch.zeros_like(g)), g)


def test_a_twin_may_lie_and_nothing_that_it_says_counts(read):
    model, x, y = read
    threat = Threat("linf", 0.1)
    for lie in (lambda x: -model(x), lambda x: model(x).roll(1, 1), lambda x: model(1 - x)):
        found = seek(Ascent(goals.Miscalibrate()), model, x, y, threat, search=lie)
        with torch.no_grad():
            before, after = model(x), model(found.images)
        assert torch.equal(before.argmax(1), after.argmax(1))
        assert threat.contains(found.images, x).all()
        sure = goals.log_odds(after, before.argmax(1)) - goals.log_odds(before, before.argmax(1))
        wanted = torch.where(before.argmax(1) == y, -sure, sure)
        assert (wanted > -1e-4).all()  # never worse for the attacker than the clean image
        assert torch.equal(found.images[~found.moved], x[~found.moved])


def test_what_is_found_does_not_depend_on_the_batch():
    model, x = Net(), images(50)
    y = torch.arange(50) % 4
    threat = Threat("linf", 0.05)
    first, again = (
        seek(Ascent(goals.Miscalibrate()), model, x, y, threat, batch_size=size) for size in (7, 64)
    )
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.outputs, again.outputs)


def test_the_attack_alone(read):
    model, x, y = read
    threat = Threat("linf", 0.1)
    attack = Ascent(goals.Miscover())
    alone = attack(model, x, y, threat)
    assert torch.equal(alone, seek(attack, model, x, y, threat).images)
    assert attack.describe()["goal"] == "miscover"


def test_conformal_sets_lose_their_label_and_grow(read):
    model, x, y = read
    with torch.no_grad():
        z = model(x)
    sets = SplitConformal(0.1, "lac", np.full(10, 0.8), 60, 0)  # classes of p ≥ 0.2 are let in
    clean = report_sets(sets.sets(z.softmax(1)), y)
    threat = Threat("linf", 0.2)
    missed = seek(Ascent(goals.Miscover()), model, x, y, threat)
    grown = seek(Ascent(goals.Enlarge(0.2)), model, x, y, threat)
    assert clean.coverage > 0.9
    assert report_sets(sets.sets(missed.outputs.softmax(1)), y).coverage < 0.2
    larger = report_sets(sets.sets(grown.outputs.softmax(1)), y)
    assert larger.mean_size > clean.mean_size + 0.7
    with torch.no_grad():  # noise of the same size does neither
        noise = (x + 0.2 * (torch.rand(x.shape) * 2 - 1).sign()).clamp(0, 1)
        noisy = report_sets(sets.sets(model(noise).softmax(1)), y)
    assert noisy.coverage > 0.5
    assert noisy.mean_size < larger.mean_size - 0.3


def test_out_of_distribution_images_come_to_look_familiar(read):
    model, x, _ = read
    noise = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(60, dtype=torch.int64)
    found = seek(Ascent(goals.LookFamiliar()), model, noise, nothing, Threat("linf", 0.2))
    with torch.no_grad():
        clean, before = max_softmax(model(x)), max_softmax(model(noise))
    positive = torch.arange(120) >= 60
    noticed = auroc(torch.cat([clean, before]), positive)
    assert auroc(torch.cat([clean, max_softmax(found.outputs)]), positive) < noticed - 0.4


def test_random_models_draw_from_their_items(read):
    model, x, y = read
    noisy = NoisyModel(model, 0.1).eval()
    attack, threat = Ascent(goals.Miscover(), steps=3), Threat("l2", 0.5)
    first, again = (
        seek(attack, noisy, x, y, threat, samples=2, batch_size=size) for size in (13, 13)
    )
    assert torch.equal(first.images, again.images)
    other = seek(attack, noisy, x, y, threat, samples=2, seed=1)
    assert not torch.equal(first.images, other.images)
    items = Items(x, labels=y, targets=y, eps=threat.radii(x), seeds=y)
    assert (goals.Miscover().value(first.outputs, items)).mean() > -2


def test_bad_input(read):
    model, x, y = read
    threat = Threat("linf", 0.1)
    far = (x + 0.2).clamp(0, 1)
    for call, says in [
        (lambda: Ascent(goals.Miscover(), steps=0), "steps must be at least 1"),
        (lambda: goals.Enlarge(1.0), "[0, 1)"),
        (lambda: seek(Ascent(goals.Miscover()), model, x, y, threat, starts=far), "inside the"),
        (lambda: seek(Ascent(goals.Miscover()), model, x * 2, y, threat), "outside [0, 1]"),
        (lambda: seek(Ascent(goals.Miscover()), model, x, y[:3], threat), "labels"),
        (lambda: seek(Ascent(goals.Miscover()), model, x, y, Threat("l0", 3)), "not l0"),
        (lambda: threshold_at_fpr(torch.rand(10), 1.0), "strictly between 0 and 1"),
        (lambda: threshold_at_fpr(torch.full((10,), torch.nan), 0.5), "NaN"),
        (lambda: threshold_at_fpr(torch.ones(10), 0.5), "constant"),
    ]:
        with pytest.raises(InputError) as error:
            call()
        assert says in str(error.value)
        assert "\n" not in str(error.value)


# --- detectors ----------------------------------------------------------------------------------


def test_thresholds_and_robust_error_by_hand():
    validation = torch.arange(1.0, 11.0)  # 1 … 10
    assert threshold_at_fpr(validation, 0.5) == 5  # five of ten lie above
    assert threshold_at_fpr(validation, 0.15) == 9  # one lies above, two would be too many
    clean = torch.tensor([2.0, 6.0, 3.0, 4.0])
    attacked = torch.tensor([5.0, 1.0, 9.0, 5.5])
    wrong = torch.tensor([True, False, True, True])
    verdict = evaluate_detector(validation, clean, attacked, wrong, 0.5)
    assert verdict.robust_error == 0.25  # the first alone is wrong and not above 5
    assert verdict.clean_rejected == 0.25
    assert verdict.threshold == 5 and verdict.n == 4
    with pytest.raises(InputError, match="one shape"):
        evaluate_detector(validation, clean[:3], attacked, wrong, 0.5)


def test_a_watched_model_says_what_both_say(read):
    model, x, _ = read
    for detector in detectors(model, x, torch.arange(60) % 10).values():
        calls = [0]
        hook = model.linear.register_forward_hook(
            lambda *_, calls=calls: calls.__setitem__(0, 1 + calls[0])
        )
        with torch.no_grad():
            outputs = WithDetector(model, detector).eval()(x)
        hook.remove()
        assert calls[0] == 1  # one pass for both
        with torch.no_grad():
            assert torch.allclose(outputs[:, :-1], model(x))
            assert torch.allclose(outputs[:, -1], detector(x), rtol=1e-4, atol=1e-6)
    assert last_linear(model) == "linear"
    assert last_linear(nn.Flatten()) is None
    assert last_linear(lambda x: x) is None


class _Interrupted(Exception):
    pass


@pytest.mark.parametrize("moment", [3, 14, 25])
def test_an_interrupted_search_goes_on_in_its_midst(read, tmp_path, monkeypatch, moment):
    model, x, y = read
    threat, attack = THREATS[0], Ascent(goals.Miscalibrate(), steps=6)
    expected = seek(attack, model, x, y, threat, batch_size=16)
    monkeypatch.setattr(scheduler, "CHECKPOINT_SECONDS", 0.0)  # after every step
    monkeypatch.setattr(scheduler, "CHECKPOINT_SHARE", float("inf"))
    shares: list[float] = []

    def asked(stop: int | None):
        shares.clear()

        def report(share: float) -> None:
            shares.append(share)
            if len(shares) == stop:
                raise _Interrupted

        journal = Journal(tmp_path / "search.sqlite", "this search")
        try:
            return seek(attack, model, x, y, threat, batch_size=16, journal=journal, report=report)
        finally:
            journal.close()

    with pytest.raises(_Interrupted):
        asked(moment)
    steps = len(shares)
    found = asked(None)
    whole = -(-60 * 7 // 16)
    assert len(shares) <= whole - steps + 2  # no more than the step that was lost is done again
    for was, now in zip(expected, found, strict=True):
        assert torch.equal(was, now)


def test_two_detectors_attacked_alike_do_not_share_what_was_found(read, tmp_path):
    model, x, y = read
    threat, attack = THREATS[0], Ascent(goals.Evade(), steps=4, aim=10.0)  # which neither reaches
    request = SimpleNamespace(seed=0, device=torch.device("cpu"))
    probed = ProbedModel(request, TemperatureScaling(1.0), folder=tmp_path, key="the run")
    found = {}
    for name in ("max-softmax", "entropy"):
        both = WithDetector(model, LogitScore(model, name)).eval()
        kept = probed.seek(name, attack, both, x, y, threat)
        alone = seek(attack, both, x, y, threat, seed=0)
        assert torch.equal(kept.images, alone.images)
        again = probed.seek(name, attack, both, x, y, threat)  # from the journal
        assert torch.equal(again.images, alone.images)
        found[name] = alone.images
    assert not torch.equal(found["max-softmax"], found["entropy"])
    assert len(list(tmp_path.glob("search-*.sqlite"))) == 2
