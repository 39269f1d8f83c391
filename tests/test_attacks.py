"""Attacks inside a ball: how close to the optimum they come, and that they keep their promises."""

from __future__ import annotations

import json

import models
import pytest
import torch
from linear_classifiers import Linear, linear
from torch import Tensor

from holdfast import draws
from holdfast.attacks import APGD, FGSM, PGD, Attack, Items, Oracle, Square, suite_named
from holdfast.attacks.base import State, common_state, observe
from holdfast.attacks.losses import margin_loss
from holdfast.errors import InputError
from holdfast.threat import Threat

NORMS = ("linf", "l2", "l1")


def steps_of(attack: Attack, model, items: Items, threat: Threat, count: int) -> State:
    """The state of all items after `count` steps, none of them leaving early."""
    oracle, state = Oracle(model), attack.start(items, threat)
    for _ in range(count):
        state = attack.step(oracle, state, threat)
    return state


def items_for(x: Tensor, labels: Tensor, eps, targets: Tensor | None = None) -> Items:
    return Items(
        images=x,
        labels=labels,
        targets=torch.full_like(labels, -1) if targets is None else targets,
        eps=torch.as_tensor(eps, dtype=torch.float32).expand(len(x)),
        seeds=draws.item_seeds(0, torch.arange(len(x)), "test"),
    )


def found(attack: Attack, problem: Linear, norm: str, factor: float) -> Tensor:
    """bool (N,): which images the attack breaks when each ball is `factor` times the distance to
    that image's closest adversarial point. All points must be legal and beliefs true."""
    optimum = torch.tensor(problem.optimum(norm), dtype=torch.float32)
    targets = None
    if attack.targeted:  # the class of the closest adversarial point
        alone = [
            [problem._distance(norm, x, y, k) if k != y else 9e9 for k in range(len(problem.bias))]
            for x, y in zip(problem.images, problem.labels.tolist(), strict=True)
        ]
        targets = torch.tensor(alone).argmin(1)
    items = items_for(problem.images, problem.labels, factor * optimum, targets)
    threat = Threat(norm, 1)
    state = steps_of(attack, problem, items, threat, attack.looks)
    assert state["finished"].all()
    assert threat.contains(state["best"], items.images, items.eps).all()
    broken = problem(state["best"]).argmax(1) != problem.labels
    assert torch.equal(state["score"] < 0, broken)
    return broken


def assert_strong(attack: Attack, problem: Linear, norm: str, factor: float) -> None:
    """The attack breaks every image at `factor` times the optimum, and none below the optimum."""
    assert not found(attack, problem, norm, 0.98).any()
    broken = found(attack, problem, norm, factor)
    assert broken.all(), f"{attack} left {(~broken).sum()} of {len(broken)} standing"


class Nothing(Attack):
    """Looks at the image again and again."""

    name, norms, looks = "nothing", frozenset(NORMS), 5

    def start(self, items, threat):
        return common_state(items, items.images)

    def step(self, model, state, threat):
        best, score = observe(state, model.logits(state["point"]))
        age = state["age"] + 1
        finished = age >= self.looks
        return {**state, "best": best, "score": score, "age": age, "finished": finished}


class Backwards(PGD):
    """PGD with the wrong sign."""

    def __init__(self):
        super().__init__(steps=30, loss=lambda z, y, t: -margin_loss(z, y, t))


# How many times the optimum the ball is. `free`: the box does not bind, so that one step of the
# right kind is nearly the answer; `binding`: a third of the components lie on its walls.
STRONG = [
    # attack, norm, factor where the box is free, and where it binds
    (FGSM(), "linf", 1.01, 1.01),
    (FGSM(), "l2", 1.01, 1.5),
    (FGSM(), "l1", 1.5, None),  # one step cannot spread: it needs components with room
    (PGD(steps=40), "linf", 1.01, 1.01),
    (PGD(steps=40), "l2", 1.05, 1.1),
    (PGD(steps=60), "l1", 1.2, 1.2),
    (PGD(steps=40, momentum=0.75, loss="margin"), "linf", 1.01, 1.01),
    (PGD(steps=40, loss="dlr", start="clean"), "l2", 1.05, 1.1),
    (APGD(steps=50, loss="ce"), "linf", 1.01, 1.01),
    (APGD(steps=50, loss="ce"), "l2", 1.01, 1.02),
    (APGD(steps=100, loss="ce"), "l1", 1.2, 1.2),
    (APGD(steps=50, loss="dlr"), "linf", 1.01, 1.01),
    (APGD(steps=50, loss="margin"), "l2", 1.01, 1.02),
    (APGD(steps=100, loss="dlr"), "l1", 1.2, 1.2),
    (APGD(steps=50, loss="dlr", targeted=True), "linf", 1.01, 1.01),
    (APGD(steps=50, loss="margin", targeted=True), "l2", 1.01, 1.02),
    (APGD(steps=100, loss="dlr", targeted=True), "l1", 1.2, 1.2),
    (Square(queries=1000), "linf", 1.05, 1.05),
]


@pytest.mark.parametrize(("attack", "norm", "free", "binding"), STRONG, ids=repr)
def test_attacks_come_close_to_the_optimum(attack, norm, free, binding):
    assert_strong(attack, linear(2, "free"), norm, free)
    if binding is not None:
        assert_strong(attack, linear(2, "binding"), norm, binding)


@pytest.mark.parametrize("norm", NORMS)
def test_the_right_target_is_reached_among_many_classes(norm):
    steps, factor = (100, 1.2) if norm == "l1" else (50, 1.02)
    attack = APGD(steps=steps, loss="dlr", targeted=True)
    assert_strong(attack, linear(5, "binding"), norm, factor)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [Nothing(), Backwards()], ids=repr)
def test_attacks_that_do_nothing_or_the_opposite_fail_these_tests(attack, norm):
    with pytest.raises(AssertionError, match="standing"):
        assert_strong(attack, linear(2, "free"), norm, 1.5)
