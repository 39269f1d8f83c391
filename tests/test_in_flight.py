"""Items in flight: a run killed more often than an item lasts goes on, with the same result."""

from __future__ import annotations

import itertools
import sqlite3
from dataclasses import fields
from pathlib import Path

import models
import pytest
import torch
from torch import Tensor

from holdfast import draws
from holdfast.attacks import APGD, FAB, PGD, Attack, Square, Stage, State, Suite
from holdfast.errors import InputError
from holdfast.search import FastCopy, Journal, Ledger, Level, Search
from holdfast.search import scheduler as engine
from holdfast.search.fast_copies import original
from holdfast.threat import Threat

SUITE = Suite(
    "long items",
    (
        Stage(APGD(steps=30, loss="dlr", targeted=True), restarts=2, targets=2),
        Stage(FAB(steps=12, targeted=True), targets=2),
        Stage(Square(queries=25)),
    ),
)
LOOKS = 31  # of the longest item


class Dies(Exception):
    pass


def problem(n: int = 12):
    model, x = models.Net(classes=5, seed=2, scale=12.0), models.images(n, seed=2)
    labels = models.answers(model, x)
    labels[2] = (labels[2] + 1) % 5
    return model, x, labels, Threat("linf", 0.02)


def run(path: Path | None, steps: int | None = None, batch_size: int = 64, levels=None) -> Search:
    """A search; it dies after so many steps."""
    model, x, labels, threat = problem()
    left = steps or 10**9

    def report(share: float, word: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Dies

    search = Search(
        model, x, labels, threat, SUITE,
        levels=levels or [Level(original(model))], batch_size=batch_size,
        device=torch.device("cpu"),
        seed=0, ledger=Ledger.of(x, labels, torch.arange(len(x))),
        journal=Journal(path, "this run"), report=report,
    )  # fmt: skip
    try:
        search.run()
    finally:
        search.journal.close()
    return search


def coarse_then_exact() -> list[Level]:
    model = problem()[0]

    def kind(z: Tensor) -> Tensor:
        return z + 0.05 * torch.nn.functional.one_hot(z.detach().argmax(1), z.shape[1])

    coarse = FastCopy(models.Wrapped(model, after=kind), "coarse", 0.05)
    return [Level(coarse), Level(original(model), near=0.15)]


def differences(a: Ledger, b: Ledger) -> list[str]:
    return [
        field.name
        for field in fields(Ledger)
        if not torch.equal(getattr(a, field.name), getattr(b, field.name))
    ]


@pytest.fixture
def at_every_step(monkeypatch):
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(engine, "CHECKPOINT_SHARE", float("inf"))


@pytest.mark.parametrize("two_lanes", [False, True])
@pytest.mark.parametrize("sizes", [(64,), (7, 64, 3)])
def test_a_run_killed_more_often_than_an_item_lasts_ends_all_the_same(
    tmp_path, at_every_step, sizes, two_lanes
):
    levels = coarse_then_exact() if two_lanes else None
    whole = run(None, levels=levels)
    deaths, steps = 0, LOOKS // 4
    while True:
        try:
            again = run(tmp_path / "j", steps, sizes[deaths % len(sizes)], levels)
            break
        except Dies:
            deaths += 1
            assert deaths < 400, "no progress"
    assert deaths > 8
    assert differences(whole.ledger, again.ledger) == []
    held = sqlite3.connect(tmp_path / "j").execute("SELECT COUNT(*) FROM flight").fetchone()
    assert held == (0,)


def test_without_checkpoints_it_would_not_end(tmp_path):
    for _ in range(30):
        with pytest.raises(Dies):
            run(tmp_path / "j", LOOKS // 4)


def test_checkpoints_are_made_from_time_to_time(tmp_path, monkeypatch):
    made, now = [], [0.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    real = Journal.fly

    def counted(self, stage, level, items):
        if items:
            made.append(now[0])
            now[0] += 2.0  # a slow disk
        real(self, stage, level, items)

    monkeypatch.setattr(engine, "time", Clock)
    monkeypatch.setattr(Journal, "fly", counted)
    step = APGD.step

    def slow(self, *arguments):
        now[0] += 10.0
        return step(self, *arguments)

    monkeypatch.setattr(APGD, "step", slow)
    run(tmp_path / "j")
    pauses = [b - a for a, b in itertools.pairwise(made)]
    assert len(made) >= 2
    # The first after 30 s; then what they take is 2 % of the time at most.
    assert 30 <= made[0] <= 40 and min(pauses) >= 100


def test_a_damaged_item_in_flight_is_one_line(tmp_path, at_every_step):
    with pytest.raises(Dies):
        run(tmp_path / "j", 5)
    with sqlite3.connect(tmp_path / "j") as db:
        db.execute("UPDATE flight SET state = x'00'")
    with pytest.raises(InputError, match="damaged") as refused:
        run(tmp_path / "j")
    assert "\n" not in str(refused.value)


# -- equal stages -------------------------------------------------------------------------------


class Recording(Attack):
    """Remembers the seeds that it was given."""

    name, norms, iterations = "recording", frozenset({"linf"}), 1

    def __init__(self, name: str = "recording"):
        super().__init__()
        self.name, self.seeds = name, []

    def start(self, items, threat):
        self.seeds.append(items.seeds)
        return State.begin(items, items.images)

    def step(self, model, state, threat):
        state = state.observe(model.logits(state.point))
        iteration = state.iteration + 1
        return state.replace(iteration=iteration, finished=iteration > 0)


def test_a_stage_that_comes_again_draws_other_numbers_and_all_others_the_same():
    model, x, labels, threat = problem(3)
    labels = models.answers(model, x)
    attacks = [Recording(), Recording("other"), Recording(), Recording()]
    suite = Suite("again", tuple(Stage(attack) for attack in attacks))
    Search(
        model, x, labels, threat, suite, levels=[Level(original(model))], batch_size=8,
        device=torch.device("cpu"), seed=4, ledger=Ledger.of(x, labels, torch.arange(3)),
        journal=Journal(None, "a"),
    ).run()  # fmt: skip
    index, any_class = torch.arange(3), torch.full((3,), -1)
    first, other, second, third = (torch.cat(attack.seeds) for attack in attacks)
    assert torch.equal(first, draws.item_seeds(4, index, "recording", index * 0, any_class))
    assert torch.equal(other, draws.item_seeds(4, index, "other", index * 0, any_class))
    assert len({*first.tolist(), *second.tolist(), *third.tolist()}) == 9


def test_two_equal_stages_do_not_search_twice_in_the_same_place():
    model, x, labels, threat = problem()
    twice = Suite("twice", (Stage(PGD(steps=1)), Stage(PGD(steps=1))))
    points = []
    for suite in (twice, Suite("once", twice.stages[:1])):
        search = Search(
            model, x, labels, threat, suite, levels=[Level(original(model))], batch_size=8,
            device=torch.device("cpu"), seed=0, ledger=Ledger.of(x, labels, torch.arange(len(x))),
            journal=Journal(None, "a"),
        )  # fmt: skip
        search.run()
        points.append(search.ledger)
    # The first stage is what it is alone; the second finds stronger points for some.
    first = points[1].stage == 0
    assert torch.equal(points[0].adversarial[first], points[1].adversarial[first])
    assert (points[0].score < points[1].score).any()
