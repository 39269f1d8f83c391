"""Adaptive attacks: what a defence declares is used, and luck decides no verdict."""

from __future__ import annotations

import json

import models
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import holdfast as hf
from holdfast import draws
from holdfast.attacks import (
    APGD,
    PGD,
    HopSkipJump,
    Items,
    Oracle,
    Square,
    Stage,
    State,
    Suite,
    adaptive,
)
from holdfast.attacks.losses import margin_loss
from holdfast.attacks.suite import UNDEFENDED
from holdfast.attacks.suites import suite_named
from holdfast.defences import (
    BitDepth,
    Defence,
    Jpeg,
    Median,
    Noise,
    chain,
    shown,
    steps,
    undefended,
    views,
    with_network,
)
from holdfast.errors import InputError
from holdfast.evaluation.inspection import reason
from holdfast.evaluation.unaware import unaware_points, unaware_seeds
from holdfast.search import MAJORITY_OF, Verifier
from holdfast.threat import Threat


class Coin(Defence):
    """Shows the network a black image instead, each time with the same chance."""

    random = True

    def __init__(self, model, *, chance: float = 0.2):
        super().__init__(model, chance=chance)
        self.chance = chance

    def transform(self, images):
        spoilt = draws.uniform(self.draw_seeds(images), 0) < self.chance
        return images * (~spoilt).float().view(-1, 1, 1, 1)


class Detached(Defence):
    """Cuts the graph and says nothing of it."""

    def transform(self, images):
        return images.detach() * 1.0


class HalfDetached(Defence):
    """Gradients are there, and all of them are zero."""

    def transform(self, images):
        return images.detach() + 0 * images


def problem(n: int = 12):
    model = models.Net(classes=5, seed=2, scale=12.0)
    x = models.images(n, seed=2)
    return model, x, models.answers(model, x), Threat("linf", 0.05)


def evaluate(model, x, labels, threat, suite="adaptive", **options):
    return hf.evaluate(model, x, labels, threat, suite, **{"batch_size": 8, **options})


def flag(result, name):
    (found,) = [f for f in result.flags if f.name == name]
    return found


# -- how a defended model may be looked at ------------------------------------------------------


def test_views_are_the_backward_passes_that_are_not_in_use():
    net = models.Net()
    assert views(net) == {} and undefended(net) is net
    assert list(views(Median(net))) == ["identity"]
    assert list(views(Jpeg(net))) == ["identity"]  # its own is the surrogate
    chained = chain(net, ["noise", "bit-depth"])
    assert [s.backward for s in steps(chained)] == ["exact", "identity"]
    found = views(chained)
    assert {name: [s.backward for s in steps(view)] for name, view in found.items()} == {
        "identity": ["identity", "identity"],
        "surrogate": ["exact", "surrogate"],
    }
    assert undefended(chained) is net
    straight = Jpeg(net).with_backward("identity")
    assert list(views(straight)) == ["surrogate"]


@pytest.mark.parametrize("network", [models.Net(), lambda x: x.flatten(1)])
def test_the_same_defences_in_front_of_another_network(network):
    x = models.images(3)
    original = chain(models.Net(seed=1), ["bit-depth:bits=2", "median"])
    moved = with_network(original, network)
    expected = chain(network, ["bit-depth:bits=2", "median"])
    assert torch.equal(moved(x), expected(x)) and undefended(moved) is network
    assert not torch.equal(original(x), moved(x)[:, :4])
    seen = Median(nn.Identity()).transform(BitDepth(nn.Identity(), bits=2).transform(x))
    assert torch.equal(shown(original, x), seen)


def test_why_a_defence_needs_the_suite():
    net = models.Net()
    assert reason(net) == reason(Median(net)) == ""
    assert reason(Noise(Median(net), sigma=0.1)) == "noise:sigma=0.1 draws random numbers"
    both = reason(Jpeg(Noise(net)))
    assert both.startswith("jpeg:quality=75 has no gradient of its own; noise:sigma=0.05 draws")


# -- the suite ----------------------------------------------------------------------------------


def named(suite: Suite) -> list[tuple[str, int]]:
    return [(stage.name, stage.samples) for stage in suite.stages]


def test_the_suite_is_made_from_what_is_declared():
    plain = adaptive()
    assert {stage.view for stage in plain.stages} == {""}
    assert {stage.samples for stage in plain.stages} == {1}
    assert suite_named("adaptive").describe() == plain.describe()
    steady = named(adaptive(["identity", UNDEFENDED]))
    assert steady[:3] == [("pgd, undefended", 1), ("pgd", 1), ("pgd, identity", 1)]
    assert {"square", "hop-skip-jump", "apgd-ce", "apgd-ce, identity"} <= {n for n, _ in steady}
    shaky = dict(named(adaptive(["surrogate", UNDEFENDED], random=True)))
    assert shaky["pgd"] == shaky["apgd-ce, surrogate"] == 20
    assert shaky["pgd, undefended"] == 1  # the network behind draws nothing
    assert shaky["square"] == shaky["hop-skip-jump"] == 5
    assert dict(named(adaptive(random=True, samples=8)))["pgd"] == 8
    # Gradient attacks come first: they cost least for what they break.
    kinds = [stage.attack.needs_gradient for stage in adaptive(["identity"]).stages]
    assert kinds == sorted(kinds, reverse=True)


def test_a_norm_that_some_attacks_do_not_know():
    names = {stage.attack.name for stage in adaptive(norm="l1").stages}
    assert "square" in names and "hop-skip-jump" not in names
    with pytest.raises(InputError, match="no attack that knows the norm l0"):
        adaptive(norm="l0")
    for samples in (0, -1, 2.5, True):
        with pytest.raises(InputError, match="samples must be a whole number of at least 1"):
            adaptive(samples=samples)


# -- expectation over draws ---------------------------------------------------------------------


def test_twenty_draws_are_one_batch_and_cost_twenty_passes():
    """Point by point: at most 20 times a single pass, and one call instead of 20."""

    class Calls(models.Counted):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    net, x = models.Net(), models.images(8)
    labels = models.answers(net, x)
    counted = Calls(net)
    oracle = Oracle(Noise(counted), samples=20)
    oracle.gradient(x, lambda z: margin_loss(z, labels, torch.full_like(labels, -1)))
    assert (counted.forwards, counted.backwards, counted.calls) == (160, 160, 1)
    assert (oracle.forwards, oracle.backwards) == (20, 20)


def test_a_look_is_the_mean_over_draws_that_belong_to_the_item():
    net, x = models.Net(), models.images(6)
    noisy = Noise(net, sigma=0.2)
    labels = torch.zeros(6, dtype=torch.int64)
    items = Items(
        images=x, labels=labels, targets=labels - 1, eps=torch.ones(6), seeds=torch.arange(6)
    )
    state = State.begin(items, x, iteration=torch.tensor([0, 3, 1, 0, 2, 5]))

    def look(rows, samples=20):
        oracle = Oracle(noisy, samples)
        oracle.prepare(state.select(rows))
        return oracle.logits(x[rows])

    together = look(torch.arange(6))
    assert torch.allclose(look(torch.tensor([4, 1])), together[[4, 1]], atol=1e-6)
    assert not torch.allclose(look(torch.arange(6), 1), together, atol=1e-3)
    state = state.replace(iteration=state.iteration + 1)
    assert not torch.allclose(look(torch.arange(6)), together, atol=1e-3)
    # Over many draws it settles, as means of independent draws do.
    settled = look(torch.arange(6), 1000)
    off = {n: float((look(torch.arange(6), n) - settled).abs().mean()) for n in (2, 100)}
    assert off[100] < off[2] / 3


def test_decisions_are_averaged_as_votes():
    def body(x):  # class 1 wins seldom, but by far
        return torch.stack([x.flatten(1)[:, 0] * 0, 100 * (x.flatten(1)[:, 0] - 0.9)], 1)

    x = torch.linspace(0, 1, 10).view(1, 10, 1, 1)

    class Row(Defence):  # the copies of an image become its pixels in turn
        def transform(self, images):
            return images

        def forward(self, images):
            return body(images[:1].flatten().view(-1, 1, 1, 1))

    votes = Oracle(Row(nn.Identity()), samples=10, decisions=True).logits(x)
    assert votes.tolist() == [[pytest.approx(0.9), pytest.approx(0.1)]]
    assert HopSkipJump.decisions and not Square.decisions


# -- verdicts on random models ------------------------------------------------------------------


def test_a_judge_wants_a_clear_vote():
    net, x, labels, _ = problem(60)
    seeds = torch.arange(60)

    def share(chance):
        spoilt = Coin(net, chance=chance)
        dark = models.answers(net, 0 * x[:1])
        rows = labels != dark  # those that a black image is wrong for
        fooled, passes = Verifier(spoilt, MAJORITY_OF).fooled(x[rows], labels[rows], seeds[rows])
        assert ((passes == 5) | (passes == 5 + MAJORITY_OF)).all()
        return float(fooled.float().mean())

    assert share(0.1) == 0 and share(1.0) == 1
    assert share(0.5) < 0.1 and share(0.9) > 0.7


def test_lucky_draws_break_nothing():
    net, x, labels, _ = problem(40)
    rows = labels != models.answers(net, 0 * x[:1])
    x, labels = x[rows], labels[rows]
    threat = Threat("linf", 1e-6)  # nothing can be done but wait for a lucky draw
    suite = Suite("patient", (Stage(PGD(steps=30)),))
    result = evaluate(Coin(net, chance=0.2), x, labels, threat, suite)
    assert result.standard_accuracy == result.robust_accuracy == 1
    average, worst, majority = result.draws
    assert (average.kind, worst.kind, majority.kind) == ("average", "worst", "majority")
    assert (average.draws, worst.draws, majority.draws) == (MAJORITY_OF, 10, MAJORITY_OF)
    assert average.robust_accuracy == pytest.approx(0.8, abs=0.06)
    assert worst.robust_accuracy < 0.3 and worst.standard_accuracy < 0.3
    assert majority.robust_accuracy == result.robust_accuracy
    assert majority.robust_accuracy_interval == result.robust_accuracy_interval
    low, high = average.robust_accuracy_interval
    assert low < average.robust_accuracy < high
    # One pass of the clean image a draw is paid for.
    assert all(row.forwards >= MAJORITY_OF for row in result.verdicts)


def test_what_a_search_believed_by_luck_stands_after_all(monkeypatch):
    def gullible(self, images, labels, seeds, *goals):
        return torch.ones_like(labels, dtype=torch.bool), torch.ones_like(labels)

    monkeypatch.setattr(Verifier, "fooled", gullible)
    net, x, labels, _ = problem(12)
    rows = labels != models.answers(net, 0 * x[:1])
    suite = Suite("patient", (Stage(PGD(steps=20)),))
    x, labels, threat = x[rows], labels[rows], Threat("linf", 1e-6)
    result = evaluate(Coin(net, chance=0.2), x, labels, threat, suite)
    # They left the search early, for it believed them broken.
    assert min(row.forwards for row in result.verdicts) < MAJORITY_OF + 20
    assert result.robust_accuracy == 1 and result.attacks[0].broken == 0
    assert all(
        row.attack == "" and row.adversarial_prediction == row.label for row in result.verdicts
    )


def test_what_is_wrong_most_of_the_time_is_broken():
    net, x, labels, threat = problem(20)
    rows = labels != models.answers(net, 0 * x[:1])
    result = evaluate(Coin(net, chance=0.9), x[rows], labels[rows], threat, PGD(steps=2))
    assert result.standard_accuracy == 0 and result.robust_accuracy == 0
    assert all(
        row.attack == "clean" and row.clean_prediction != row.label for row in result.verdicts
    )


@pytest.mark.parametrize(
    ("text", "eps"), [("noise:sigma=0.1", 0.02), ("bit-depth:bits=3+noise:sigma=0.05", 0.05)]
)
def test_verdicts_on_a_random_defence_do_not_depend_on_the_batch(text, eps, tmp_path):
    net, x, labels, _ = problem()
    threat = Threat("linf", eps)
    model = chain(net, text.split("+"))
    suite = Suite("short", (Stage(PGD(steps=4), samples=3), Stage(Square(queries=6), samples=2)))
    whole = evaluate(model, x, labels, threat, suite, run=tmp_path / "a", precision="original")
    torch.manual_seed(77)
    again = evaluate(model, x, labels, threat, suite, batch_size=3, precision="original")
    assert torch.equal(whole.broken, again.broken)
    assert torch.allclose(whole.adversarial, again.adversarial, atol=1e-6)
    assert whole.draws == again.draws and whole.unaware == again.unaware
    assert 0 < whole.robust_accuracy < 1
    for row in whole.verdicts:
        assert row.broken == (row.adversarial_prediction != row.label)
    # The flag tells of the draws, but does not cry wolf where they are averaged over.
    assert not flag(whole, "outputs-change-between-calls").fired
    assert "averages over up to 3 draws" in flag(whole, "outputs-change-between-calls").detail
    single = evaluate(model, x, labels, threat, PGD(steps=2), precision="original")
    assert flag(single, "outputs-change-between-calls").fired


# -- what each part of the suite finds ----------------------------------------------------------


def test_rounding_hides_gradients_from_nobody():
    """Accuracy that only stands because a step has no gradient falls; unaware, it looked good."""
    net, x, labels, _ = problem(24)
    guarded = BitDepth(net, bits=2)
    labels = models.answers(guarded, x)
    blind = models.Wrapped(net, before=lambda x: torch.round(x * 3) / 3)
    assert torch.equal(models.answers(blind, x), labels)
    quick = Suite("pgd", (Stage(PGD(steps=20, loss="margin")),))
    hidden = evaluate(blind, x, labels, Threat("linf", 0.2), quick, repair=False)
    seen_through = evaluate(blind, x, labels, Threat("linf", 0.2), quick)
    found = evaluate(guarded, x, labels, Threat("linf", 0.2), quick)
    assert flag(hidden, "gradients-vanish").fired and not flag(found, "gradients-vanish").fired
    assert found.robust_accuracy < 0.2 < 0.4 < hidden.robust_accuracy
    assert seen_through.robust_accuracy < 0.2


def test_the_lowest_of_all_attacks_counts_and_the_unaware_figure_is_kept_apart(tmp_path):
    net, x, labels, _ = problem(16)
    guarded = BitDepth(net, bits=3)
    threat = Threat("linf", 0.06)
    labels = models.answers(guarded, x)
    result = evaluate(guarded, x, labels, threat, run=tmp_path / "run", precision="original")
    assert result.suite == "adaptive" and result.precision == "original"
    assert result.attacks[0].name == "pgd, undefended"
    assert {"pgd", "pgd, surrogate", "square", "hop-skip-jump"} <= {a.name for a in result.attacks}
    assert result.robust_accuracy == 1 - float(result.broken.float().mean())
    assert torch.equal(models.answers(guarded, result.adversarial) != labels, result.broken)

    points = unaware_points(net, x, labels, threat, unaware_seeds(0, torch.arange(16)))
    assert threat.contains(points, x).all()
    stands = models.answers(guarded, points) == labels
    assert result.unaware.n == 16
    assert result.unaware.robust_accuracy == float(stands.float().mean())
    assert result.robust_accuracy <= result.unaware.robust_accuracy

    held = json.loads((tmp_path / "run" / "result.json").read_text())
    assert held["model"]["defences"] == ["bit-depth:bits=3"]
    assert held["unaware"]["robust_accuracy"] == result.unaware.robust_accuracy
    assert held["draws"] == []
    strips = load_file(tmp_path / "run" / "strips.safetensors")
    rows = strips["index"]
    assert torch.equal(strips["clean"], x[rows])
    assert torch.equal(strips["unaware"], points[rows])
    assert torch.equal(strips["adaptive_shown"], guarded.transform(result.adversarial[rows]))
    assert torch.equal(strips["answers"][:, 4] != labels[rows], result.broken[rows])
    assert torch.equal(strips["answers"][:, 2] == labels[rows], stands[rows])


def test_a_transferred_point_never_passes_for_the_strongest():
    net, x, labels, _ = problem()
    suite = Suite("transfer", (Stage(PGD(steps=5), view=UNDEFENDED),))
    grey = Coin(net, chance=0.0)  # the network behind it is fooled, and so is it
    fooled = evaluate(grey, x, labels, Threat("linf", 0.3), suite, precision="original")
    assert fooled.robust_accuracy < 0.5 and fooled.attacks[0].name == "pgd, undefended"

    class Blank(Defence):
        def transform(self, images):
            return 0 * images + 0.5

    labels = models.answers(Blank(net), x)
    stands = evaluate(Blank(net), x, labels, Threat("linf", 0.3), suite)
    assert stands.robust_accuracy == 1 and torch.equal(stands.adversarial, x)


@pytest.mark.parametrize("kind", [Detached, HalfDetached])
def test_a_defence_that_detaches_the_graph_without_saying_so(kind):
    net, x, labels, _ = problem()
    threat = Threat("linf", 0.2)
    result = evaluate(kind(net), x, labels, threat, precision="original")
    assert flag(result, "gradients-vanish").fired
    # Transfer and the straight-through view do not need what it hides.
    assert result.robust_accuracy < 0.2
    assert {"pgd, undefended", "pgd, identity"} <= {a.name for a in result.attacks}
    own = {
        a.name
        for a in result.attacks
        if not a.outcome.startswith("not run")
        and "," not in a.name
        and a.name.startswith(("pgd", "apgd"))
    }
    assert own == set()  # nothing is searched by zeros where the graph can be repaired


def test_a_network_that_takes_codes_is_not_attacked_alone():
    torch.manual_seed(0)
    coded = nn.Sequential(nn.Flatten(), nn.Linear(4 * 108, 5))
    model = chain(coded, ["thermometer:levels=4,decode=no"])
    x = models.images(4)
    suite = Suite("short", (Stage(APGD(steps=3)), Stage(APGD(steps=3), view="surrogate")))
    result = evaluate(model, x, models.answers(model, x), Threat("linf", 0.1), suite)
    assert result.unaware is None and len(result.attacks) == 2


def test_identity_covers_the_defence_and_the_number_of_samples(tmp_path):
    net, x, labels, threat = problem(4)
    quick = Suite("quick", (Stage(PGD(steps=1)),))
    keys = {
        evaluate(model, x, labels, threat, quick, precision="original").identity
        for model in (net, BitDepth(net), BitDepth(net, bits=3), Median(net), BitDepth(Median(net)))
    }
    assert len(keys) == 5
    wide = Threat("linf", 0.9)
    keys = {
        evaluate(Noise(net), x, labels, wide, samples=samples, precision="original").identity
        for samples in (2, 3)
    }
    assert len(keys) == 2
