"""Budgets of queries: no attack and no suite exceeds one, and a killed run keeps its account."""

from __future__ import annotations

import multiprocessing
import os
import signal

import models
import pytest
import torch
from torch import Tensor, nn

import holdfast as hf
from holdfast.attacks import SUITES, HopSkipJump, RayS, Square, attack_classes
from holdfast.errors import HoldfastError, InputError
from holdfast.models.metered import MeteredModel, about, point_key, rows_asked
from holdfast.models.wrapper import WrappedModel
from holdfast.search import scheduler

RADII = {"linf": 0.02, "l2": 0.15, "l1": 0.5, "l0": 6.0, "spatial": 1.0}
NET = models.Net(classes=4)
X = models.images(4)
Y = models.answers(NET, X)


class Counting(nn.Module):
    """Counts all images that it is shown."""

    def __init__(self, body=NET):
        super().__init__()
        self.body, self.shown = body, []

    @property
    def images(self) -> int:
        return sum(len(batch) for batch in self.shown)

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x.detach().clone())
        return self.body(x)


# -- no attack, and no suite, exceeds it ----------------------------------------------------------

ATTACKS = [(name, norm) for name, kind in attack_classes().items() for norm in sorted(kind.norms)]
OF_SUITES = [
    (name, norm)
    for name in SUITES
    for norm in {"patch": ["l0"], "spatial": ["spatial"]}.get(name, ["linf", "l2"])
]


@pytest.mark.parametrize("queries", [1, 7, 100])
@pytest.mark.parametrize(("name", "norm"), sorted({*ATTACKS, *OF_SUITES}))
def test_one_image_is_asked_about_no_more_often(name, norm, queries):
    """Its clean prediction, and `queries` at most: all that the model is ever shown."""
    model = Counting()
    result = hf.evaluate(model, X[:1], Y[:1], (norm, RADII[norm]), suite=name, queries=queries)
    assert model.images == 1 + result.queries.asked <= 1 + queries
    assert torch.equal(model.shown[0], X[:1])
    assert result.queries.outside == 1 and result.queries.most == result.queries.asked
    (verdict,) = result.verdicts
    assert verdict.queries == result.queries.asked or verdict.broken


@pytest.mark.parametrize("suite", ["autoattack", "minimum", "black-box", "spsa"])
def test_of_several_images_none_takes_anothers_share(suite):
    """Images are told apart by one pixel, which no attack inside a small ball changes much."""
    x = X.clone()
    x[:, 0, 0, 0] = torch.arange(4) / 4 + 0.1
    y, model = models.answers(NET, x), Counting()
    result = hf.evaluate(model, x, y, ("linf", 0.01), suite=suite, queries=40)
    if suite == "minimum":  # looks beyond the ball
        assert model.images <= 4 * 41
        return
    tags = torch.cat(model.shown)[:, 0, 0, 0]
    shown = [int(((tags - tag).abs() < 0.02).sum()) for tag in x[:, 0, 0, 0]]
    assert sum(shown) == model.images and max(shown) <= 41
    assert shown == [1 + v.queries if not v.broken else count
                     for v, count in zip(result.verdicts, shown, strict=True)]  # fmt: skip


def test_a_budget_is_used_up_where_an_image_stands():
    model = Counting()
    for suite in ([Square(queries=10), RayS(), HopSkipJump()], "apgd"):
        model.shown = []
        result = hf.evaluate(model, X[:1], Y[:1], ("linf", 1e-4), suite=suite, queries=50)
        assert not result.broken.any() and model.images == 51
    assert [cost.outcome for cost in result.attacks] == [
        "ran",
        "not needed: the budget of queries was spent",
    ]
    result = hf.evaluate(
        model, X[:1], Y[:1], ("linf", 1e-4), suite=[Square(), HopSkipJump()], queries=50
    )
    assert result.attacks[1].outcome == "not needed: the budget of queries was spent"


def test_a_success_by_the_last_query_counts():
    """What the search asked needs no second query to count."""
    x, threat = X[:1], ("linf", 0.5)
    free = hf.evaluate(Counting(), x, Y[:1], threat, suite="square", outputs="scores")
    needed = free.verdicts[0].queries
    assert free.broken.all() and needed >= 1
    exact = hf.evaluate(Counting(), x, Y[:1], threat, suite="square", queries=needed)
    assert exact.broken.all() and exact.verdicts[0].queries == needed
    if needed > 1:
        less = hf.evaluate(Counting(), x, Y[:1], threat, suite="square", queries=needed - 1)
        assert not less.broken.any()


@pytest.mark.parametrize("suite", ["square", "apgd", "black-box", "minimum"])
def test_the_batch_changes_no_verdict_and_no_count(suite):
    threat = ("linf", 0.05)
    rows = [
        [
            (v.broken, v.attack, v.queries, v.distance)
            for v in hf.evaluate(
                NET, X, Y, threat, suite=suite, queries=60, batch_size=size
            ).verdicts
        ]
        for size in (1, 3, 64)
    ]
    assert rows[0] == rows[1] == rows[2]


def test_a_model_of_one_batch_size_is_filled_up_with_black_images():
    class Four(Counting):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 4:
                raise ValueError("batches of 4")
            return super().forward(x)

    model = Four()
    hf.evaluate(model, X[:2], Y[:2], ("linf", 0.02), suite="square", queries=9)
    shown = torch.cat(model.shown)
    black = (shown.flatten(1) == 0).all(1)
    assert int((~black).sum()) <= 2 * 10 and bool(black.any())


@pytest.mark.parametrize(("spec", "random"), [("bit-depth:bits=4", False), ("noise", True)])
def test_a_defended_model_is_one_black_box(spec, random):
    """Votes over the draws of a random one are queries as well."""
    model = Counting()
    defended = hf.defences.chain(model, [spec])
    result = hf.evaluate(defended, X, Y, ("linf", 0.3), suite="adaptive", samples=4, queries=120)
    assert result.queries.most <= 120
    clean = result.queries.outside
    assert model.images == result.queries.asked + clean
    assert clean == 4 if not random else clean > 4
    assert result.robust_accuracy < 1


def test_other_libraries_keep_to_it_too():
    pytest.importorskip("foolbox")
    model = Counting()
    hf.evaluate(model, X, Y, ("linf", 0.02), suite="foolbox:LinfPGD:steps=40", queries=25)
    assert model.images <= 4 * 26


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "many", True])
def test_other_budgets_are_one_line(wrong):
    with pytest.raises(InputError, match="queries"):
        hf.evaluate(NET, X, Y, ("linf", 0.1), queries=wrong)


# -- what it bought -------------------------------------------------------------------------------


def test_the_curve_is_exact():
    result = hf.evaluate(NET, X, Y, ("linf", 0.08), suite="square", queries=200)
    figures = result.queries
    assert [p.queries for p in figures.curve] == [0, 1, 2, 5, 10, 20, 50, 100, 200]
    for point in figures.curve:
        standing = [not v.broken or v.queries > point.queries for v in result.verdicts]
        assert point.robust_accuracy == sum(standing) / 4
    assert figures.curve[0].robust_accuracy == result.standard_accuracy
    assert figures.curve[-1].robust_accuracy == result.robust_accuracy < 1
    again = type(result).checked(
        {**result.to_dict(), "broken": result.broken, "adversarial": result.adversarial,
         "verdicts": result.verdicts}, "it")  # fmt: skip
    assert again.queries == figures


def test_clean_mistakes_take_no_queries():
    wrong = (Y + 1) % 4
    model = Counting()
    result = hf.evaluate(model, X, wrong, ("linf", 0.1), suite="square", queries=5)
    assert model.images == 4 and result.queries.asked == 0
    assert [v.queries for v in result.verdicts] == [0] * 4


def test_without_a_budget_nothing_is_counted_and_checks_ask():
    result = hf.evaluate(NET, X, Y, ("linf", 0.1), suite="square")
    assert result.queries is None and {v.queries for v in result.verdicts} == {-1}


# -- killed and gone on with ----------------------------------------------------------------------


class Deadly(Counting):
    """Kills its process at a batch of its own choice; counts in a file, which survives."""

    def __init__(self, path, dies_at: int | None = None):
        super().__init__()
        # No settings: it is the same model, wherever it dies.
        self.own = {"path": path, "dies_at": dies_at, "calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.own["calls"] += 1
        with open(self.own["path"], "ab") as file:
            file.write(b"." * len(x))
        if self.own["calls"] == self.own["dies_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.body(x)


THREAT, SUITE, BUDGET = ("linf", 0.05), "black-box", 80


def _run(folder, count, dies_at):
    torch.set_num_threads(1)
    hf.evaluate(Deadly(count, dies_at), X, Y, THREAT, suite=SUITE, queries=BUDGET, run=folder)


@pytest.mark.parametrize("often", [False, True], ids=["rarely", "often"])
def test_a_killed_run_keeps_its_account(tmp_path, often, monkeypatch):
    """Killed again and again: never more than the budget, and the verdicts of a run that was not,
    but for the queries that were under way when it died."""
    if often:  # items in flight are kept after every step; forked processes inherit it
        monkeypatch.setattr(scheduler, "CHECKPOINT_SECONDS", 0.0)
        monkeypatch.setattr(scheduler, "CHECKPOINT_SHARE", 1e9)
    whole = hf.evaluate(Counting(), X, Y, THREAT, suite=SUITE, queries=BUDGET)
    folder, count = tmp_path / "run", tmp_path / "count"
    context = multiprocessing.get_context("fork")
    deaths = 0
    for dies_at in (3, 12, 25, 9, None):
        process = context.Process(target=_run, args=(folder, count, dies_at))
        process.start()
        process.join(120)
        deaths += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
    assert deaths >= 3 and process.exitcode == 0
    sessions = deaths + 1
    asked = count.stat().st_size
    result = hf.evaluate(Deadly(count), X, Y, THREAT, suite=SUITE, queries=BUDGET, run=folder)
    # Each session asks for the clean predictions anew, nothing else.
    assert asked <= 4 * BUDGET + 4 * sessions
    assert result.queries.most <= BUDGET
    for mine, other in zip(result.verdicts, whole.verdicts, strict=True):
        # A query that was under way when the process died is lost, and counts.
        if other.broken and other.queries < BUDGET - 2 * deaths:
            assert mine.broken and mine.attack == other.attack
            assert other.queries <= mine.queries <= other.queries + 2 * deaths


# -- the model that counts ------------------------------------------------------------------------


def metered(budget=None):
    inner = Counting()
    return MeteredModel(WrappedModel(inner), Y, budget), inner


def test_rows_belong_to_their_images_in_every_usual_layout():
    model, _ = metered()
    with torch.no_grad(), about(torch.tensor([2, 0])):
        model(X[[2, 0]] * 0.5)
        model((X[[2, 0]] * 0.25).repeat_interleave(3, 0) + torch.arange(6).view(-1, 1, 1, 1) / 99)
        with rows_asked(torch.tensor([1, 1, 0])):
            model(torch.rand(3, *models.SHAPE))
        with pytest.raises(HoldfastError, match="nobody can tell"):
            model(torch.rand(3, *models.SHAPE))
    assert model.account.queries.tolist() == [1 + 3 + 2, 0, 1 + 3 + 1, 0]
    model(X)
    assert model.account.outside == 4 and model.account.queries.sum() == 11


def test_what_was_asked_before_is_no_query():
    model, inner = metered(budget=2)
    with torch.no_grad(), about(torch.tensor([1])):
        first = model(X[1:2] * 0.5)
        assert torch.equal(model(X[1:2] * 0.5), first)
        twice = model(torch.cat([X[1:2] * 0.3, X[1:2] * 0.3, X[1:2] * 0.5]))
    assert torch.equal(twice[0], twice[1]) and torch.equal(twice[2:], first)
    assert inner.images == 2 and model.account.queries.tolist() == [0, 2, 0, 0]
    assert model.account.recall(1, X[1] * 0.3).number == 2 and model.account.recall(0, X[0]) is None
    assert model.account.spent([0, 1]).tolist() == [False, True]


def test_beyond_the_budget_the_label_is_the_answer_and_has_no_slope():
    model, inner = metered(budget=1)
    points = torch.stack([X[0] * 0.5, X[0] * 0.4]).requires_grad_()
    with about(torch.tensor([0, 0])):
        logits = model(points)
        (gradient,) = torch.autograd.grad(logits.sum(), points)
    assert inner.images == 1 and int(logits[1].argmax()) == int(Y[0])
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0
    with about(torch.tensor([0])):
        other = (X[:1] * 0.7).requires_grad_()
        (gradient,) = torch.autograd.grad(model(other).sum(), other)
    assert inner.images == 1 and gradient.abs().sum() == 0


def test_a_random_model_is_asked_every_time():
    model, inner = metered()
    model.account.remembers = False
    with torch.no_grad(), about(torch.tensor([0])):
        model(X[:1]), model(X[:1])
    assert inner.images == 2 and model.account.queries[0] == 2


def test_answers_are_forgotten_but_where_they_are_needed():
    model, inner = metered()
    with torch.no_grad():
        with about(torch.arange(4), clean=True):
            model(X)
        with about(torch.arange(4)):
            model(X * 0.5), model(X * 0.4)
    model.account.keep({2: [point_key(X[2] * 0.4)]})
    assert (
        model.account.recall(2, X[2] * 0.4).number == 2
        and model.account.recall(2, X[2] * 0.5) is None
    )
    assert all(model.account.recall(i, X[i]).number == 0 for i in range(4))
    assert model.account.queries.tolist() == [2] * 4 and inner.images == 12
