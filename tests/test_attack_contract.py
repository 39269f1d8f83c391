"""What every attack keeps to; attacks are found in their package, so a new one is tested too."""

from __future__ import annotations

import sys
from pathlib import Path

import models
import pytest
import torch
from contributing import snippet
from linear_classifiers import assert_items_are_independent, linear

import holdfast.attacks
from holdfast import draws
from holdfast.attacks import Attack, Items, Oracle, State, attack_classes, run, suite_named
from holdfast.attacks.gradient_ascent import GradientAscent
from holdfast.errors import InputError
from holdfast.threat import Threat

ITERATIONS = 6
RADII = {"linf": 0.1, "l2": 0.5, "l1": 3.0, "l0": 12.0, "spatial": 1.0}
KNOWN = [(name, norm) for name, kind in attack_classes().items() for norm in sorted(kind.norms)]


def items_of(model, threat: Threat, attack: Attack) -> Items:
    count = len(model.labels)
    return Items(
        images=model.images,
        labels=model.labels,
        targets=(model.labels + 1) % len(model.bias) if attack.targeted else model.labels * 0 - 1,
        eps=threat.radii(model.images),
        seeds=draws.item_seeds(0, torch.arange(count)),
    )


def problem(name: str, norm: str):
    attack, threat = attack_classes()[name](), Threat(norm, RADII[norm])
    model = linear(4, "edges", shape=(3, 8, 8), count=5)
    return attack, model, threat, items_of(model, threat, attack)


def stepped(attack: Attack, model, items: Items, threat: Threat, count: int) -> State:
    return run(attack, Oracle(model), items, threat, steps=count)


def assert_same(one: State, other: State) -> None:
    assert type(one) is type(other)
    for name, value in one.tensors().items():
        assert torch.equal(value, other.tensors()[name]), name


# -- attacks ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), KNOWN)
def test_what_an_attack_believes_is_so(name, norm):
    """`best` lies in the box, inside the ball where the score says that it breaks the image, and
    then the model misclassifies it; before the first step nothing is known."""
    attack, model, threat, items = problem(name, norm)
    before = attack.start(items, threat)
    assert torch.equal(before.best, items.images) and before.score.isinf().all()
    assert not before.finished.any() and (before.iteration == 0).all()
    state = stepped(attack, model, items, threat, ITERATIONS)
    assert (state.iteration <= ITERATIONS).all() and (state.iteration > 0).any()
    assert state.best.min() >= 0 and state.best.max() <= 1
    broken = state.score < 0
    inside = threat.contains(state.best, items.images, items.eps, state.witness)
    assert inside[broken].all() and (attack.minimum_norm or inside.all())
    assert (model(state.best).argmax(1) != items.labels)[broken].all()


@pytest.mark.parametrize(("name", "norm"), KNOWN)
def test_items_depend_on_nothing_but_themselves(name, norm):
    attack, _, threat, _ = problem(name, norm)
    model = linear(4, "edges", shape=(3, 8, 8), count=3)
    assert_items_are_independent(attack, model, threat, ITERATIONS)


@pytest.mark.parametrize(("name", "norm"), KNOWN)
def test_states_are_stored_and_put_back(name, norm):
    attack, model, threat, items = problem(name, norm)
    state = stepped(attack, model, items, threat, 2)
    stored = {name: value.clone() for name, value in state.tensors().items()}
    fresh = attack.start(items, threat)
    assert_same(fresh.restore(torch.arange(len(items)), stored), state)
    rows = torch.tensor([3, 0])
    some = fresh.restore(rows, {name: value[rows] for name, value in stored.items()})
    assert_same(some.select(rows), state.select(rows))
    others = torch.tensor([1, 2, 4])
    assert_same(some.select(others), attack.start(items, threat).select(others))
    assert_same(state.select(others).join(state.select(rows)).select(torch.tensor([4, 0, 1, 3, 2])),
                state)  # fmt: skip


@pytest.mark.parametrize("name", attack_classes())
def test_every_attack_is_a_suite_of_its_name(name):
    (stage, *more) = suite_named(name).stages
    # Names are part of random seeds; an object's says more than its class's, not something else.
    assert attack_classes()[name]().name.startswith(name)
    # Some names are those of suites that are more than the attack by itself.
    assert isinstance(stage.attack, attack_classes()[name])
    assert not more or name in holdfast.attacks.SUITES


@pytest.mark.parametrize(("name", "norm"), KNOWN)
def test_an_attack_on_images_that_are_wrong_already_does_nothing(name, norm):
    attack, model, threat, _ = problem(name, norm)
    wrong = (model.labels + 1) % len(model.bias)
    assert torch.equal(attack(model, model.images, wrong, threat), model.images)


@pytest.mark.parametrize("name", attack_classes())
def test_every_attack_refuses_a_norm_that_it_does_not_know(name):
    attack = attack_classes()[name]()
    norm = next(norm for norm in RADII if norm not in attack.norms)
    model = linear(2, "free", shape=(3, 8, 8), count=2)
    threat = Threat(norm, RADII[norm])
    with pytest.raises(InputError, match="knows the norms"):
        attack.start(items_of(model, threat, attack), threat)


# The example of CONTRIBUTING.md, under a name that nobody's file has.
NEW = snippet("CosinePGD").replace('"cosine-pgd"', '"test-cosine-pgd"')


def test_an_attack_is_added_by_one_file(tmp_path: Path, monkeypatch):
    (tmp_path / "test_cosine_pgd.py").write_text(NEW)
    with pytest.raises(InputError, match="'test-cosine-pgd' is unknown"):
        suite_named("test-cosine-pgd")
    paths = [*holdfast.attacks.__path__, str(tmp_path)]
    monkeypatch.setattr(holdfast.attacks, "__path__", paths)
    attack_classes.cache_clear()
    try:
        (stage,) = suite_named("test-cosine-pgd").stages
    finally:
        attack_classes.cache_clear()
        del sys.modules["holdfast.attacks.test_cosine_pgd"], holdfast.attacks.test_cosine_pgd
    assert stage.attack.describe() == {
        "name": "test-cosine-pgd",
        "steps": 40,
        "first": 1.0,
        "loss": "ce",
    }
    model = linear(2, "free", shape=(3, 6, 6), count=4)
    threat = Threat("linf", 1.5 * model.optimum("linf").max())
    points = stage.attack(model, model.images, model.labels, threat)
    assert (model(points).argmax(1) != model.labels).all()


def test_an_attack_of_holdfasts_own_takes_no_options_in_the_name_of_a_suite():
    with pytest.raises(InputError, match="'pgd' takes no options here"):
        suite_named("pgd:steps=10")


# -- records ------------------------------------------------------------------------------


def begun(count: int = 3, **own) -> State:
    x, labels = models.images(count), torch.zeros(count, dtype=torch.int64)
    return State.begin(Items(x, labels, labels - 1, torch.ones(count), labels), x, **own)


def test_a_misspelt_name_is_an_error():
    state = begun()
    with pytest.raises(TypeError, match="itaration"):
        state.replace(itaration=state.iteration)
    with pytest.raises(TypeError, match="besst"):
        begun(besst=state.best)
    with pytest.raises(AttributeError):
        state.scores  # noqa: B018
    with pytest.raises(AttributeError):
        state.score = state.score + 1  # type: ignore[misc]
    with pytest.raises(KeyError, match="score"):
        stored = state.tensors()
        del stored["score"]
        state.restore(torch.arange(3), stored)


def test_a_search_begins_at_its_image_unless_told_otherwise():
    x, labels = models.images(3), torch.zeros(3, dtype=torch.int64)
    items = Items(x, labels, labels - 1, torch.ones(3), labels)
    assert items.start is items.images
    some = items.select(torch.tensor([2, 0]))
    assert some.start is some.images  # one tensor under two names stays one
    assert len(some) == 2 and torch.equal(some.images, x[[2, 0]])
    elsewhere = Items(x, labels, labels - 1, torch.ones(3), labels, start=1 - x)
    assert torch.equal(elsewhere.select(torch.tensor([1])).start, 1 - x[1:2])
    joined = items.join(elsewhere, some)
    assert torch.equal(joined.start, torch.cat([x, 1 - x, x[[2, 0]]]))
    assert torch.equal(joined.images, torch.cat([x, x, x[[2, 0]]]))


def test_rows_are_selected_by_index_or_mask_and_moved_between_devices():
    state = begun(4)
    mask = torch.tensor([True, False, True, False])
    assert_same(state.select(mask), state.select(torch.tensor([0, 2])))
    assert_same(state.to("cpu"), state)
    assert state.to("meta").best.device.type == "meta"


# -- the loop -----------------------------------------------------------------------------


class Counts(GradientAscent):
    """Breaks each image at an iteration of its own, and counts how many items it steps."""

    name = "counts"

    def __init__(self, when: list[int], steps: int):
        super().__init__(steps=steps)
        self.when, self.sizes = torch.tensor(when), []

    def first_point(self, items, threat):
        return items.images

    def step(self, oracle, state, threat):
        self.sizes.append(len(state))
        iteration = state.iteration + 1
        return state.replace(
            iteration=iteration,
            score=torch.where(iteration >= self.when[state.seeds], -1.0, 1.0),
            finished=iteration >= self.iterations,
        )


def items_to_count(count: int) -> Items:
    x, labels = models.images(count), torch.zeros(count, dtype=torch.int64)
    return Items(x, labels, labels - 1, torch.ones(count), torch.arange(count))


def test_a_search_ends_item_by_item_and_keeps_their_order():
    attack, items = Counts([3, 1, 9, 2], steps=4), items_to_count(4)
    state = run(attack, Oracle(models.Net()), items, Threat("linf", 0.1))
    assert state.seeds.tolist() == [0, 1, 2, 3]
    assert state.iteration.tolist() == [3, 1, 5, 2] and state.score.tolist() == [-1, -1, 1, -1]
    assert state.finished.tolist() == [False, False, True, False]
    assert attack.sizes == [4, 3, 2, 1, 1]
    assert torch.equal(state.images, items.images)


def test_so_many_steps_are_taken_whatever_comes_of_them():
    attack = Counts([1, 1], steps=2)
    state = run(attack, Oracle(models.Net()), items_to_count(2), Threat("linf", 0.1), steps=5)
    assert state.iteration.tolist() == [5, 5] and attack.sizes == [2] * 5
    state = run(attack, Oracle(models.Net()), items_to_count(2), Threat("linf", 0.1), steps=0)
    assert state.iteration.tolist() == [0, 0]


def test_nothing_to_search_is_nothing_found():
    attack = Counts([1], steps=2)
    state = run(attack, Oracle(models.Net()), items_to_count(0), Threat("linf", 0.1))
    assert len(state) == 0 and attack.sizes == []


@pytest.mark.parametrize("own_draws", [True, False])
def test_random_models_draw_from_their_items_or_not(own_draws):
    seeds = []

    class Watched(Counts):
        def step(self, oracle, state, threat):
            seeds.append(oracle.seeds)
            return super().step(oracle, state, threat)

    attack, items = Watched([9, 9], steps=1), items_to_count(2)
    run(attack, Oracle(models.Net()), items, Threat("linf", 0.1), own_draws=own_draws)
    assert len(seeds) == 2 and all((each is not None) == own_draws for each in seeds)
    assert not own_draws or not torch.equal(*seeds)  # fresh ones at every iteration
