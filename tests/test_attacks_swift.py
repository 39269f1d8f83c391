"""Swift: what it breaks, in which order it tries, when it gives up; stages that share and wait."""

import pytest
import torch
from linear_classifiers import assert_items_are_independent, linear
from test_search import Identity, Scripted, run

import holdfast as hf
from holdfast import draws
from holdfast.attacks import SUITES, Items, Oracle, Stage, Suite, Swift, suite_named
from holdfast.attacks.swift import USUAL
from holdfast.errors import InputError
from holdfast.evaluation.request import Request
from holdfast.threat import Threat


def stepped(attack, model, images, labels, threat, iterations):
    """The states after each look."""
    items = Items(
        images,
        labels,
        torch.full_like(labels, -1),
        threat.radii(images),
        draws.item_seeds(0, torch.arange(len(images))),
    )
    state, states = attack.start(items, threat), []
    for _ in range(iterations):
        state = attack.step(Oracle(model), state, threat)
        states.append(state)
    return states


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("box", ["free", "edges"])
def test_breaks_what_a_slightly_larger_ball_than_the_closest_point_holds(norm, box):
    model = linear(7, box, count=8)
    for row, distance in enumerate(model.optimum(norm)):
        x, y = model.images[row : row + 1], model.labels[row : row + 1]
        inside = Swift()(model, x, y, Threat(norm, 1.03 * float(distance)))
        assert model(inside).argmax(1) != y
        outside = Swift()(model, x, y, Threat(norm, 0.97 * float(distance)))
        assert model(outside).argmax(1) == y


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_items_are_independent(norm):
    eps = {"linf": 0.02, "l2": 0.1, "l1": 0.5}[norm]
    # Twelve looks reach into the third run.
    attack = Swift(steps=3, targets=2, near=0.99, long_steps=2)
    assert_items_are_independent(attack, linear(5, "edges"), Threat(norm, eps))


def slopes(x):
    """The clean image says 1, 2 and 3 in that order; in the ball, 3 is closer than 2."""
    gaps = torch.tensor([0.0, 0.3, 0.6, 0.65])
    gain = torch.tensor([0.0, 0.1, 0.1, 0.4])  # per ε of the pixel that belongs to the class
    return -gaps + gain * (x.flatten(1) - 0.5)


def test_the_later_runs_go_for_the_next_classes_from_where_the_search_stands():
    x, y = torch.full((2, 4, 1, 1), 0.5), torch.zeros(2, dtype=torch.int64)
    attack = Swift(steps=5, targets=3, near=0.99, long_steps=7, long_runs=2)
    states = stepped(attack, slopes, x, y, Threat("linf", 0.5), attack.iterations)
    assert attack.iterations == 5 * 6 + 2 * 8
    begins = [5, 11, 17, 23, 29, 37]  # the looks that end a run begin the next
    # 1 stands 0.3 − 0.05 behind, 3 stands 0.65 − 0.2, 2 stands 0.6 − 0.05; the long runs go for
    # the closest again, and for any.
    assert [states[k].targets.tolist() for k in begins] == [[t, t] for t in (-1, 1, 3, 2, 1, -1)]
    assert [states[k].run[0].item() for k in begins] == [1, 2, 3, 4, 5, 6]
    assert states[-1].finished.all() and not states[-2].finished.any()
    left = [int(attack.iterations_left(s)[0]) for s in states]
    # A run's end is stepped over into the next one's start.
    assert left == list(range(attack.iterations - 1, -1, -1))


def test_targets_that_do_not_exist_are_passed_over():
    x, y = torch.full((2, 4, 1, 1), 0.5), torch.zeros(2, dtype=torch.int64)
    attack = Swift(steps=5, targets=9, near=0.99, long_steps=7, long_runs=1)
    iterations = 5 * 6 + 8  # there are 3 wrong classes
    states = stepped(attack, slopes, x, y, Threat("linf", 0.5), iterations)
    assert states[29].run.tolist() == [attack.short_runs] * 2
    assert states[-1].finished.all() and not states[-2].finished.any()


def test_only_what_comes_near_is_searched_long():
    model = linear(5, "free", count=40)
    ball = Threat("linf", 0.9 * float(model.optimum("linf").min()))
    attack = Swift(steps=5, targets=3, near=0.3, long_steps=9)
    states = stepped(attack, model, model.images, model.labels, ball, 30)
    share = states[-1].score / states[0].first_margin
    assert 0 < int((share <= 0.3).sum()) < 40
    assert torch.equal(states[-1].finished, share > 0.3)
    assert torch.equal(states[-1].moves, torch.where(share > 0.3, 5, 9))


def test_two_classes_are_enough():
    model = linear(2, "free")
    found = Swift()(model, model.images, model.labels, Threat("linf", 0.5))
    assert (model(found).argmax(1) != model.labels).all()


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="targets"):
        Swift(targets=-1)
    with pytest.raises(InputError, match="near"):
        Swift(near=1)
    with pytest.raises(InputError, match="long_steps"):
        Swift(long_steps=0)
    with pytest.raises(InputError, match="steps"):
        Swift(steps=0)
    with pytest.raises(InputError, match="share"):
        Stage(Swift(), share=0.0)
    with pytest.raises(InputError, match="after"):
        Suite("s", (Stage(Swift(), after=0),))


def test_a_stage_is_tried_on_its_share_of_the_images_whatever_the_batch():
    n = 400
    x = torch.tensor([0.9, 0.6, 0.5]).view(1, 3, 1, 1).repeat(n, 1, 1, 1)
    suite = Suite("sample", (Stage(Scripted((0, 1, 0)), share=0.25),))
    labels = torch.zeros(n, dtype=torch.int64)
    a = run(Identity(), x, labels, Threat("linf", 1), suite).ledger.broken
    b = run(Identity(), x, labels, Threat("linf", 1), suite, batch_size=7).ledger.broken
    assert torch.equal(a, b)
    assert 70 <= int(a.sum()) <= 130  # 100, give or take 3 standard deviations


def test_a_small_evaluation_has_not_a_smaller_sample():
    stage = Stage(Scripted((0, 1, 0)), share=0.1, least=32)
    assert [stage.share_of(n) for n in (1, 32, 64, 320, 1000)] == [1, 1, 0.5, 0.1, 0.1]
    x = torch.tensor([0.9, 0.6, 0.5]).view(1, 3, 1, 1).repeat(32, 1, 1, 1)
    labels = torch.zeros(32, dtype=torch.int64)
    search = run(Identity(), x, labels, Threat("linf", 1), Suite("sample", (stage,)))
    assert bool(search.ledger.broken.all())
    with pytest.raises(InputError, match="least"):
        Stage(Swift(), least=-1)


@pytest.mark.parametrize("found", [False, True])
def test_a_stage_waits_for_another_to_break_something(found):
    x = torch.tensor([0.9, 0.6, 0.5]).view(1, 3, 1, 1).repeat(50, 1, 1, 1)
    suite = Suite(
        "waiting",
        (
            Stage(Scripted((0, 0, 0))),
            Stage(Scripted((0, int(found), 0)), share=0.1),
            Stage(Scripted((0, 0, 1)), after=1),
        ),
    )
    labels = torch.zeros(50, dtype=torch.int64)
    search = run(Identity(), x, labels, Threat("linf", 1), suite)
    assert bool(search.ledger.broken.all()) == found
    assert bool(search.ledger.broken.any()) == found
    assert (search.costs[2].forwards > 0) == found
    # Where gradients are known to mislead, it does not wait.
    assert bool(
        run(Identity(), x, labels, Threat("linf", 1), suite, misled=True).ledger.broken.all()
    )


class Stairs(torch.nn.Module):
    """A linear classifier behind a staircase: its gradient is zero almost everywhere."""

    def forward(self, x):
        return (x * 16).round().flatten(1) / 16


def test_masked_gradients_are_noticed_and_searched_without_them():
    x = torch.rand(200, 5, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, 5))
    torch.nn.init.normal_(plain[1].weight, generator=torch.Generator().manual_seed(1))
    plain[1].bias.data = -plain[1].weight.sum(1) / 2  # all classes alike in the middle
    masked = torch.nn.Sequential(Stairs(), plain)
    with torch.no_grad():
        labels = masked(x).argmax(1)
    threat = Threat("linf", 0.02)
    result = hf.evaluate(masked, x, labels, threat, suite="swift", repair=False)
    _, probe, *autoattack = (cost.broken for cost in result.attacks)
    assert 0 < probe < sum(autoattack)
    assert result.robust_accuracy <= hf.evaluate(plain, x, labels, threat).robust_accuracy + 0.1


def test_the_suite_is_described_whole():
    assert "swift" in SUITES
    described = suite_named("swift").describe()["stages"]
    assert described[1]["share"] < 1 and described[2]["after"] == 1


def test_in_l1_runs_are_fewer_and_longer_and_in_other_norms_as_they_were():
    tuned = {norm: suite_named("swift").tuned(Threat(norm, 1)) for norm in ("linf", "l2", "l1")}
    settings = {norm: suite.stages[0].attack.settings for norm, suite in tuned.items()}
    short = {"steps": 3, "targets": 9, "near": 0.35, "long_steps": 20, "long_runs": 2}
    assert settings["linf"] == settings["l2"] == short
    assert settings["l1"]["steps"] > 3 and settings["l1"]["targets"] < 9
    assert settings["l1"]["varied"]
    # The stages that wait for one another stay as they are, and so do the other attacks.
    described = {norm: suite.describe()["stages"] for norm, suite in tuned.items()}
    assert described["l1"][1:] == described["linf"][1:]
    given = Swift(targets=5, varied=False).tuned(Threat("l1", 1)).settings
    assert given == {**settings["l1"], "targets": 5, "varied": False}
    # Tuned once more, nothing changes.
    again = tuned["l1"].tuned(Threat("l1", 1)).stages[0].attack.settings
    assert again == settings["l1"]


def test_an_evaluation_in_l1_is_by_the_settings_that_it_names():
    model = linear(5, "free", count=8)
    wide = Threat("l1", 1.2 * float(model.optimum("l1").max()))
    request = Request.checked(model, model.images, model.labels, wide, "swift")
    assert request.suite.describe()["stages"][0]["steps"] == USUAL["l1"]["steps"]
    assert request.unfitting == ()
    result = hf.evaluate(model, model.images, model.labels, wide, suite="swift")
    assert result.robust_accuracy == 0
    alone = Swift()(model, model.images, model.labels, wide)
    assert (model(alone).argmax(1) != model.labels).all()


def test_varied_runs_climb_the_ratio_towards_a_class_and_the_cross_entropy_at_last():
    x, y = torch.full((1, 4, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    attack = Swift(steps=5, targets=1, near=0.99, long_steps=7, varied=True)
    states = stepped(attack, slopes, x, y, Threat("linf", 0.5), attack.iterations)
    logits = torch.tensor([[0.0, -0.2, -0.6, -1.0]])
    entropy, margin = torch.log(torch.exp(logits).sum()).item(), -0.2
    ratio = margin / (0 - (-0.6 - 1.0) / 2)
    begins = [0, 5, 11, 17, 25]  # margin, cross-entropy, class 1, the closest class, any
    climbed = [float(attack.value(logits, states[k])) for k in begins]
    assert climbed == pytest.approx([margin, entropy, ratio, ratio, entropy])
    plain = Swift(steps=5, targets=1, near=0.99, long_steps=7)
    climbed = [float(plain.value(logits, states[k])) for k in begins]
    assert climbed == pytest.approx([margin, entropy, margin, margin, margin])
