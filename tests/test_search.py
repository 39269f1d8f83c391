"""The engine: verdicts that no schedule changes, honest counting, nothing lost, nobody believed."""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from pathlib import Path

import compiler
import models
import pytest
import torch
from torch import Tensor

from holdfast.attacks import APGD, FAB, FGSM, PGD, Attack, Square, Stage, Suite
from holdfast.attacks.state import State
from holdfast.errors import InputError
from holdfast.search import CLEAN, STANDING, FastCopy, Journal, Ledger, Level, Search
from holdfast.search import search as suite_search
from holdfast.search.fast_copies import compiled, fast_copy_of, original
from holdfast.threat import Threat

CPU = torch.device("cpu")
SUITE = Suite(
    "mixed",
    (
        Stage(PGD(steps=2), restarts=3),
        Stage(APGD(steps=10, loss="dlr", targeted=True), restarts=2, targets=2),
        Stage(FAB(steps=3, targeted=True), targets=2),  # its best points lie outside the ball
        Stage(Square(queries=15)),
    ),
)


def run(
    model,
    x: Tensor,
    labels: Tensor,
    threat: Threat,
    suite: Suite = SUITE,
    *,
    batch_size: int = 64,
    fast_copies=None,
    path: Path | None = None,
    index: Tensor | None = None,
    seed: int = 0,
    misled: bool = False,
) -> Search:
    """A search run to its end."""
    search = Search(
        model,
        x,
        labels,
        threat,
        suite,
        levels=fast_copies or [Level(original(model))],
        batch_size=batch_size,
        device=CPU,
        seed=seed,
        ledger=Ledger.of(x, labels, torch.arange(len(x)) if index is None else index),
        journal=Journal(path, "this run"),
        misled=misled,
    )
    try:
        search.run()
    finally:
        search.journal.close()
    return search


def differences(a: Ledger, b: Ledger) -> list[str]:
    return [
        field.name
        for field in fields(Ledger)
        if not torch.equal(getattr(a, field.name), getattr(b, field.name))
    ]


def problem(n: int = 16):
    """A network, images and labels with one clean mistake, and a ball that breaks some of them."""
    model, x = models.Net(classes=5, seed=2, scale=12.0), models.images(n, seed=2)
    labels = models.answers(model, x)
    labels[2] = (labels[2] + 1) % 5
    return model, x, labels, Threat("linf", 0.02)


def two_lanes(model) -> list[Level]:
    """A coarse fast copy that is fooled a little too willingly, and the model itself."""

    def kind(z: Tensor) -> Tensor:
        return z + 0.05 * torch.nn.functional.one_hot(z.detach().argmax(1), z.shape[1])

    coarse = FastCopy(models.Wrapped(model, after=kind), "coarse", 0.05)
    return [Level(coarse), Level(original(model), near=0.15)]


# -- verdicts ---------------------------------------------------------------------------------


def test_the_problem_is_neither_easy_nor_hopeless():
    model, x, labels, threat = problem()
    ledger = run(model, x, labels, threat).ledger
    assert {CLEAN, STANDING, 0, 1} <= set(ledger.stage.tolist())
    assert int(ledger.item.max()) >= 1  # not always at the first attempt


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_the_batch_size_changes_nothing(batch_size, levels):
    model, x, labels, threat = problem()
    fast_copies = two_lanes(model) if levels == 2 else None
    a = run(model, x, labels, threat, batch_size=64, fast_copies=fast_copies).ledger
    b = run(model, x, labels, threat, batch_size=batch_size, fast_copies=fast_copies).ledger
    assert differences(a, b) == []


def test_a_real_network_in_float32_gives_the_same_verdicts_in_any_batch():
    model, x, labels = models.digits(16)
    suite = Suite(
        "short", (Stage(APGD(steps=8)), Stage(APGD(steps=6, loss="dlr", targeted=True), targets=2))
    )
    found = [
        run(model, x, labels, Threat("linf", 0.06), suite, batch_size=size).ledger
        for size in (1, 7, 64, 512)
    ]
    assert 2 <= int(found[0].broken.sum()) <= 14
    for other in found[1:]:
        assert torch.equal(other.broken, found[0].broken)


def test_other_images_change_nothing():
    # What belongs to an image depends on its place in the data set, not on the company it keeps.
    model, x, labels, threat = problem()
    whole = run(model, x, labels, threat).ledger
    rows = torch.tensor([11, 0, 7])
    part = run(model, x[rows], labels[rows], threat, index=rows).ledger
    for field in fields(Ledger):
        assert torch.equal(getattr(part, field.name), getattr(whole, field.name)[rows]), field.name


def test_the_seed_matters():
    model, x, labels, threat = problem()
    a, b = (run(model, x, labels, threat, seed=s).ledger for s in (0, 1))
    assert not torch.equal(a.adversarial, b.adversarial)


def test_broken_means_misclassified_inside_ball_and_box():
    model, x, labels, threat = problem()
    ledger = run(model, x, labels, threat).ledger
    assert torch.equal(models.answers(model, ledger.adversarial) != labels, ledger.broken)
    assert threat.contains(ledger.adversarial, x).all()
    assert ledger.stage[2] == CLEAN and torch.equal(ledger.adversarial[2], x[2])
    by_attack = ledger.stage >= 0
    assert torch.equal(by_attack | (ledger.stage == CLEAN), ledger.broken)
    assert (ledger.score[by_attack] < 0).all() and (ledger.item[by_attack] >= 0).all()
    standing = ledger.stage == STANDING
    margins = model(ledger.adversarial)[standing].topk(2).values
    torch.testing.assert_close(ledger.score[standing], margins[:, 0] - margins[:, 1])


# -- the order of items, and what they cost ---------------------------------------------------


class Identity(torch.nn.Module):
    """Logits are the pixels: images (N, K, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Scripted(Attack):
    """Steps onto its target's corner of the box at a given look; before, it stays at the image.

    Args:
        when: the look (from 1) at which each class is reached; 0 for never.
    """

    name, norms, targeted, needs_gradient = "scripted", frozenset({"linf"}), True, False

    def __init__(self, when: tuple[int, ...], iterations: int = 8):
        super().__init__(when=list(when))
        self.when, self.iterations = torch.tensor(when), iterations

    def start(self, items, threat):
        return self._next(State.begin(items, items.images))

    def _next(self, state):
        reached = (self.when[state.targets] == state.iteration + 1).view(-1, 1, 1, 1)
        corner = torch.zeros_like(state.images).flatten(1)
        corner.scatter_(1, state.targets[:, None], 1.0)
        point = torch.where(reached, corner.view_as(state.images), state.images)
        return state.replace(point=point)

    def step(self, model, state, threat):
        state = state.observe(model.logits(state.point))
        iteration = state.iteration + 1
        finished = iteration >= self.iterations
        return self._next(state.replace(iteration=iteration, finished=finished))


def scripted(when: tuple[int, ...], n: int = 1, **settings):
    """n copies of an image of class 0 whose other classes are likely in the order 1, 2, 3, …"""
    model = models.Counted(Identity())
    logits = torch.tensor([0.9, 0.6, 0.5, 0.4, 0.3])
    x = logits.view(1, 5, 1, 1).repeat(n, 1, 1, 1)
    suite = Suite("scripted", (Stage(Scripted(when)),))
    search = run(model, x, torch.zeros(n, dtype=torch.int64), Threat("linf", 1), suite, **settings)
    return search, model


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 512])
def test_the_verdict_is_that_of_the_first_item_that_succeeds(batch_size):
    # Class 3 is reached at once, class 1 late: class 1 comes first in the order of the items.
    search, _ = scripted((0, 5, 0, 1, 1), n=3, batch_size=batch_size)
    ledger = search.ledger
    assert ledger.target.tolist() == [1, 1, 1] and ledger.item.tolist() == [0, 0, 0]
    assert ledger.adversarial[0].flatten().tolist() == [0, 1, 0, 0, 0]
    # The clean pass, five looks and one verification.
    assert ledger.forwards.tolist() == [1 + 5 + 1] * 3


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 512])
def test_items_before_the_first_success_run_to_their_end(batch_size):
    search, _ = scripted((0, 0, 0, 2, 1), n=3, batch_size=batch_size)
    ledger = search.ledger
    assert ledger.target.tolist() == [3, 3, 3] and ledger.item.tolist() == [2, 2, 2]
    # The clean pass, two items of eight looks in vain, two looks and one verification.
    assert ledger.forwards.tolist() == [1 + 8 + 8 + 2 + 1] * 3
    assert (ledger.backwards == 0).all()


def test_a_tie_that_the_model_settles_for_the_attacker_counts_at_once():
    # Class 1 is right; class 0 can be made as likely, and then the model answers 0.
    x = torch.tensor([0.2, 0.9, 0.1]).view(1, 3, 1, 1)
    model = models.Wrapped(Identity(), after=lambda z: z.clamp(max=0.7))
    suite = Suite("long", (Stage(PGD(steps=300, step_size=0.5)),))
    search = run(model, x, torch.tensor([1]), Threat("linf", 0.6), suite)
    assert search.ledger.broken.all() and search.ledger.stage.tolist() == [0]
    assert int(search.ledger.forwards) < 20
    # Where the model settles it for the label, it is no success.
    right = run(model, x.flip(1), torch.tensor([1]), Threat("linf", 0.05), suite)
    assert not right.ledger.broken.any()


def test_cancelling_saves_passes():
    # Class 1 falls at the first look; the three items behind it must not look again.
    n = 10
    one, _ = scripted((0, 1, 0, 0, 0), n=n, batch_size=1)
    assert one.costs[0].forwards == n * (1 + 1)  # nothing is even begun in vain
    whole, model = scripted((0, 1, 0, 0, 0), n=n, batch_size=4 * n)
    assert whole.costs[0].forwards == n * (4 + 1)
    assert model.forwards == n + n * (4 + 1)
    # Half the room: items of the second class are begun beside those of the first only.
    half, _ = scripted((0, 1, 0, 0, 0), n=n, batch_size=2 * n)
    assert half.costs[0].forwards == n * (2 + 1)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_every_pass_is_counted(batch_size):
    body, x, labels, threat = problem()
    model = models.Counted(body)
    search = run(model, x, labels, threat, batch_size=batch_size)
    assert model.forwards == len(x) + sum(cost.forwards for cost in search.costs)
    assert model.backwards == sum(cost.backwards for cost in search.costs)
    assert int(search.ledger.forwards.sum()) <= model.forwards
    assert int(search.ledger.backwards.sum()) <= model.backwards
    if batch_size == 1:  # nothing runs ahead in vain
        assert int(search.ledger.forwards.sum()) == model.forwards
        assert int(search.ledger.backwards.sum()) == model.backwards


def test_passes_of_the_twins_and_of_samples_are_counted_too():
    body, x, labels, threat = problem(8)
    model, fast_copy = models.Counted(body), models.Counted(body)
    suite = Suite("eot", (Stage(PGD(steps=3), samples=4, restarts=2),))
    levels = [
        Level(FastCopy(fast_copy, "fast copy", 0.01)),
        Level(FastCopy(fast_copy, "fast copy", 0.0), near=0.5),
    ]
    search = run(model, x, labels, threat, suite, fast_copies=levels)
    assert model.forwards + fast_copy.forwards == len(x) + search.costs[0].forwards
    assert model.backwards + fast_copy.backwards == search.costs[0].backwards
    assert model.backwards == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_searches_for_the_closest_point_begin_on_the_coarse_twin(norm):
    """Far from the ball they end there; near it the exact one has the last word."""
    body, x, labels, _ = problem(24)
    model, exact, coarse = models.Counted(body), models.Counted(body), models.Counted(body)
    kind = models.Wrapped(coarse, after=lambda z: z + 0.01 * z.detach().sign())
    slopes = torch.autograd.grad(
        (lambda z: z.amax(1) - z.topk(2).values[:, 1])(body(x.requires_grad_())).sum(), x
    )[0]
    x = x.detach()
    threat = Threat(norm, {"linf": 0.02, "l2": 0.1, "l1": 0.5}[norm])
    suite = Suite("fab", (Stage(FAB(steps=10, targeted=True), targets=4),))
    alone = run(body, x, labels, threat, suite).ledger
    levels = [
        Level(FastCopy(kind, "coarse", 0.01, slopes)),
        Level(FastCopy(exact, "exact", 0.0), near=3.0, slopes=slopes),
    ]
    both = run(model, x, labels, threat, suite, fast_copies=levels).ledger
    assert torch.equal(both.broken, alone.broken)
    assert 1 < int(both.broken.sum()) < 24
    assert 0 < exact.backwards < 0.5 * coarse.backwards
    # Nothing says how far such a fast copy may be trusted where no slopes are known.
    unknown = [
        Level(FastCopy(kind, "coarse", 0.01)),
        Level(FastCopy(exact, "exact", 0.0), near=0.03),
    ]
    before = coarse.backwards
    run(model, x, labels, threat, suite, fast_copies=unknown)
    assert coarse.backwards == before


def test_a_distance_is_a_margin_over_the_dual_norm_of_the_slopes():
    slopes = torch.tensor([[3.0, -4.0], [3.0, 4.0], [0.0, 0.0]]).view(3, 2, 1, 1)
    level = Level(original(models.Net()), near=0.7, slopes=slopes)
    for norm, distance in (("linf", 0.7 / 7), ("l2", 0.7 / 5), ("l1", 0.7 / 4)):
        assert level.near_in(Threat(norm, 1)) == pytest.approx(distance)
    assert level.near_in(Threat("l0", 1)) is None


def test_images_that_are_broken_are_left_alone():
    model, x, labels, threat = problem()
    labels = (models.answers(model, x) + 1) % 5  # all wrong already
    counted = models.Counted(model)
    search = run(counted, x, labels, threat)
    assert search.ledger.broken.all() and (search.ledger.stage == CLEAN).all()
    assert counted.forwards == len(x) and (search.ledger.forwards == 1).all()
    assert torch.equal(search.ledger.adversarial, x)


# -- whom the engine believes -----------------------------------------------------------------


def liar(model) -> Level:
    """A fast copy that says of everything that it is fooled, ever more so."""
    return Level(FastCopy(models.Wrapped(model, after=lambda z: 100 * z.roll(1, 1)), "liar", 0.0))


def test_a_lying_twin_breaks_nothing():
    model, x, labels, _ = problem()
    threat = Threat("linf", 1e-6)  # nothing can be fooled
    ledger = run(model, x, labels, threat, fast_copies=[liar(model)]).ledger
    assert ledger.broken.tolist() == [i == 2 for i in range(len(x))]


def test_what_a_lying_twin_stumbles_on_still_has_to_be_true():
    model, x, labels, _ = problem()
    threat = Threat("linf", 0.5)
    ledger = run(model, x, labels, threat, fast_copies=[liar(model)]).ledger
    assert torch.equal(models.answers(model, ledger.adversarial) != labels, ledger.broken)
    assert threat.contains(ledger.adversarial, x).all()


def test_a_twin_of_nan_is_asked_again_of_the_original_and_the_next_lane_does_not_trust_it():
    model, x, labels, threat = problem()
    blind = Level(FastCopy(models.Wrapped(model, after=lambda z: z * torch.nan), "nan", 0.0))
    alone = run(model, x, labels, threat, fast_copies=[blind]).ledger
    assert torch.equal(models.answers(model, alone.adversarial) != labels, alone.broken)
    assert alone.score[~alone.broken].isinf().all() and 0 < int(alone.broken.sum()) < len(x)
    both = run(
        model, x, labels, threat, fast_copies=[blind, Level(original(model), near=0.0)]
    ).ledger
    assert torch.equal(both.broken, run(model, x, labels, threat).ledger.broken)


def test_a_coarse_twin_is_finished_on_the_exact_one():
    model, x, labels, threat = problem()
    both = run(model, x, labels, threat, fast_copies=two_lanes(model))
    alone = run(model, x, labels, threat)
    assert int(both.ledger.broken.sum()) >= int(alone.ledger.broken.sum())
    # Far from the boundary, nobody searches twice.
    far = both.ledger.score > 0.15
    assert far.any() and (both.ledger.forwards[far] == alone.ledger.forwards[far]).all()


class Outside(Attack):
    """Claims points far outside the ball, or that are no numbers."""

    name, norms, iterations = "outside", frozenset({"linf"}), 3

    def __init__(self, value: float):
        super().__init__(value=str(value))
        self.value = value

    def start(self, items, threat):
        return State.begin(items, items.images)

    def step(self, model, state, threat):
        model.logits(state.point)
        return state.replace(
            best=torch.full_like(state.images, self.value),
            score=torch.full_like(state.score, -5.0) - state.iteration,
            iteration=state.iteration + 1,
            finished=state.iteration >= 2,
        )


@pytest.mark.parametrize("value", [0.0, 1.0, 7.0, float("nan")])
def test_points_outside_the_ball_never_count(value):
    model, x, labels, _ = problem()
    threat = Threat("linf", 0.01)
    suite = Suite("outside", (Stage(Outside(value)), Stage(FGSM())))
    ledger = run(model, x, labels, threat, suite).ledger
    assert not (ledger.stage == 0).any()
    assert threat.contains(ledger.adversarial, x).all()
    assert torch.equal(models.answers(model, ledger.adversarial) != labels, ledger.broken)


def test_only_one_success_is_needed():
    model, x, labels, threat = problem()
    suite = Suite("twice", (Stage(PGD(steps=4)), Stage(PGD(steps=40))))
    counted = models.Counted(model)
    search = run(counted, x, labels, threat, suite)
    first = search.ledger.stage == 0
    assert first.any() and (search.ledger.forwards[first] <= 1 + 5 + 5).all()


# -- fast copies -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_fast_twin_answers_alike_and_leaves_the_model_alone(precision):
    model, x, labels = models.digits(8)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.requires_grad for p in model.parameters()]
    fast_copy = fast_copy_of(model, x, labels, precision)
    assert fast_copy is not None
    with torch.no_grad():
        difference = (fast_copy.model(x) - model(x)).abs().max()
    assert float(difference) <= (1e-3 if precision == "float32" else 1.0)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == grads


def test_what_is_no_module_or_draws_random_numbers_has_no_twin():
    model, x, labels = models.digits(4)
    assert fast_copy_of(lambda images: model(images), x, labels, "float32") is None
    noisy = models.Wrapped(model, before=lambda x: x + 0.3 * torch.randn_like(x))
    assert fast_copy_of(noisy, x, labels, "float32") is None


# -- the journal ------------------------------------------------------------------------------


def test_a_finished_run_is_read_back_without_an_attack(tmp_path):
    model, x, labels, threat = problem()
    first = run(model, x, labels, threat, path=tmp_path / "j")
    counted = models.Counted(model)
    again = run(counted, x, labels, threat, path=tmp_path / "j", batch_size=5)
    assert differences(first.ledger, again.ledger) == []
    assert again.costs == first.costs
    found = int((first.ledger.found >= 0).sum())  # points that are looked at again
    assert (counted.forwards, counted.backwards) == (len(x) + found, 0)  # and the clean answers


class Dies(Exception):
    pass


def interrupted(
    tmp_path, monkeypatch, method: str, moment: int, error=Dies, fast_copies=None
) -> bool:
    """Whether a run dies at the `moment`-th call of one of the journal's methods, *after* it has
    written: what the open transaction holds must not survive."""
    calls = 0
    real = getattr(Journal, method)

    def dying(self, *arguments, **named):
        nonlocal calls
        real(self, *arguments, **named)
        calls += 1
        if calls == moment:
            raise error("now")

    model, x, labels, threat = problem()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, method, dying)
        try:
            run(
                model, x, labels, threat, path=tmp_path / "j", batch_size=7, fast_copies=fast_copies
            )
        except error:
            return True
    return False


@pytest.mark.parametrize("method", ["clean", "finished", "strongest", "broken", "spend"])
@pytest.mark.parametrize("moment", [1, 2, 4])
def test_an_interruption_inside_a_transaction_loses_nothing(tmp_path, monkeypatch, method, moment):
    model, x, labels, threat = problem()
    expected = run(model, x, labels, threat).ledger
    died = interrupted(tmp_path, monkeypatch, method, moment)
    assert died or (method, moment) == ("clean", 4)
    again = run(model, x, labels, threat, path=tmp_path / "j", batch_size=64).ledger
    assert differences(expected, again) == []


def test_ctrl_c_inside_a_transaction_is_rolled_back(tmp_path, monkeypatch):
    assert interrupted(tmp_path, monkeypatch, "broken", 1, KeyboardInterrupt)
    held = sqlite3.connect(tmp_path / "j").execute("SELECT COUNT(*) FROM broken").fetchone()
    assert held == (0,)


@pytest.mark.parametrize("method", ["finished", "broken", "spend"])
@pytest.mark.parametrize("moment", [3, 8, 20, 60])
def test_an_interruption_in_any_lane_loses_nothing(tmp_path, monkeypatch, method, moment):
    model, x, labels, threat = problem()
    fast_copies = two_lanes(model)
    expected = run(model, x, labels, threat, fast_copies=fast_copies).ledger
    interrupted(tmp_path, monkeypatch, method, moment, fast_copies=fast_copies)
    again = run(model, x, labels, threat, path=tmp_path / "j", fast_copies=fast_copies).ledger
    assert differences(expected, again) == []


def test_many_interruptions_in_a_row(tmp_path, monkeypatch):
    model, x, labels, threat = problem()
    expected = run(model, x, labels, threat).ledger
    monkeypatch.setattr(suite_search, "ACCOUNT_SECONDS", 0.0)  # after every step
    deaths = 0
    while interrupted(tmp_path, monkeypatch, "spend", 3 + 4 * deaths):
        deaths += 1
    assert deaths >= 4
    again = run(model, x, labels, threat, path=tmp_path / "j").ledger
    assert differences(expected, again) == []


def test_the_journal_of_another_run_is_refused_and_unharmed(tmp_path):
    Journal(tmp_path / "j", "a").close()
    with pytest.raises(InputError, match="another run") as refused:
        Journal(tmp_path / "j", "b")
    assert "\n" not in str(refused.value)
    Journal(tmp_path / "j", "a").close()


def corrupt_header(path: Path) -> None:
    path.write_bytes(b"this is no database, but long enough to be one" * 100)


def corrupt_middle(path: Path) -> None:
    held = bytearray(path.read_bytes())
    for start in range(4096, len(held), 4096):
        held[start : start + 200] = b"\xff" * 200
    path.write_bytes(bytes(held))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def wrong_blob(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE strongest SET point = x'00'")
        db.execute("UPDATE broken SET point = x'00'")


def no_blob(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE strongest SET point = NULL")


def words_for_numbers(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE clean SET prediction = 'cat'")


def unknown_image(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE clean SET image = image + 1000")


def other_tables(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE item")
        db.execute("CREATE TABLE item (what TEXT)")


@pytest.mark.parametrize(
    "damage",
    [
        corrupt_header,
        corrupt_middle,
        truncate,
        wrong_blob,
        no_blob,
        words_for_numbers,
        unknown_image,
        other_tables,
    ],
)
def test_a_damaged_journal_is_one_line(tmp_path, damage):
    model, x, labels, threat = problem()
    path = tmp_path / "j"
    run(model, x, labels, threat, path=path)
    damage(path)
    with pytest.raises(InputError) as refused:
        run(model, x, labels, threat, path=path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_journal_where_none_can_be_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be used"):
        Journal(tmp_path / "missing" / "j", "a")
    with pytest.raises(InputError, match="cannot be used"):
        Journal(tmp_path, "a")


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path, monkeypatch):
    model, x, labels, threat = problem()
    path = tmp_path / "j"
    opened = Journal.__init__

    def small(self, path, identity):
        opened(self, path, identity)
        pages = self.db.execute("PRAGMA page_count").fetchone()[0]
        self.db.execute(f"PRAGMA max_page_count={pages + 1}")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "__init__", small)
        with pytest.raises(InputError, match="full") as refused:
            run(model, x, labels, threat, path=path)
    assert "\n" not in str(refused.value)
    again = run(model, x, labels, threat, path=path).ledger
    assert differences(run(model, x, labels, threat).ledger, again) == []


def test_images_come_back_from_the_journal_bit_for_bit(tmp_path):
    model, x, labels, threat = problem()
    x[0, 0, 0, :3] = torch.tensor([0.0, 1e-42, 1.0])  # a subnormal number too
    labels = models.answers(model, x)
    first = run(model, x, labels, threat, path=tmp_path / "j").ledger
    again = run(model, x, labels, threat, path=tmp_path / "j").ledger
    assert torch.equal(first.adversarial, again.adversarial)
    assert torch.equal(first.score, again.score)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 255).round() / 255

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class _Rounded(torch.nn.Module):
    """A network behind a step with a backward pass of its own."""

    def __init__(self):
        super().__init__()
        self.body = models.Net(classes=5, seed=2)

    def forward(self, x):
        return self.body(_StraightThrough.apply(x))


def test_a_twin_keeps_backward_passes_that_the_model_defines_itself():
    model, x = _Rounded().eval(), models.images(8, seed=2)
    fast_copy = fast_copy_of(model, x, models.answers(model, x), "float32")
    assert fast_copy is not None
    slopes = []
    for answers in (model, fast_copy.model):
        point = x.clone().requires_grad_()
        answers(point)[:, 0].sum().backward()
        slopes.append(point.grad)
    assert float(slopes[0].abs().max()) > 0
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-5)


def test_a_compiled_twin_answers_alike_in_batches_of_any_size():
    model, x = models.Net(classes=5, seed=2), models.images(16, seed=2)
    compiler.needed()
    labels = models.answers(model, x)
    said: list[str] = []
    fast_copy = compiled(fast_copy_of(model, x, labels, "float32"), model, x, labels, said.append)
    assert fast_copy is not None, said
    assert fast_copy.batch_size == 16
    assert not said
    for count in (16, 11, 3, 20):
        points = models.images(count, seed=3).requires_grad_()
        reference = points.detach().clone().requires_grad_()
        answer, expected = fast_copy.model(points), model(reference)
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)
        answer[:, 1].sum().backward()
        expected[:, 1].sum().backward()
        torch.testing.assert_close(points.grad, reference.grad, rtol=1e-3, atol=1e-4)


def test_a_compilation_that_fails_or_answers_otherwise_says_why(monkeypatch):
    model, x = models.Net(classes=5, seed=2), models.images(8, seed=2)
    labels = models.answers(model, x)
    fast_copy = fast_copy_of(model, x, labels, "float32")

    def no_compiler(function, **options):
        raise RuntimeError("\n  InvalidCxxCompiler: no g++\nand a page of more")

    said: list[str] = []
    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(RuntimeError):
        torch.compile(model)
    assert compiled(fast_copy, model, x, labels, said.append) is None
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda z: 2 * function(z))
    assert compiled(fast_copy, model, x, labels, said.append) is None
    assert said[0] == "not compiled: RuntimeError: InvalidCxxCompiler: no g++"
    assert said[1].startswith("not compiled: its margins are off by ")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert compiled(fast_copy, model, x, labels, said.append) is not None
    assert len(said) == 2


def test_a_twin_that_is_refused_says_why():
    model, x, labels = models.digits(4)
    said: list[str] = []
    assert fast_copy_of(lambda images: model(images), x, labels, "float32", said.append) is None
    assert said == ["no float32 copy: the model is no torch.nn.Module"]
    said.clear()
    noisy = models.Wrapped(model, before=lambda x: x + 0.3 * torch.randn_like(x))
    assert fast_copy_of(noisy, x, labels, "float32", said.append) is None
    assert [line.split(": ")[0] for line in said] == [
        "no folded float32 copy",
        "no plain float32 copy",
    ]
    assert all("its margins are off by" in line or "gradients" in line for line in said)
    said.clear()
    # Traced, the gradient vanishes; copied, everything is as it was.
    rounded, points = _Rounded().eval(), models.images(8, seed=2)
    given = models.answers(rounded, points)
    assert fast_copy_of(rounded, points, given, "float32", said.append) is not None
    assert said == ["no folded float32 copy: its gradients point elsewhere"]
