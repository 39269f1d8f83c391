"""How many draws of a random model a look takes: few where these say enough."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import holdfast as hf
from holdfast import draws
from holdfast.attacks import HopSkipJump, Stage, State, Suite
from holdfast.attacks.base import Oracle
from holdfast.attacks.state import Items
from holdfast.defences import Noise

SIGMA = 0.1


class TwoClasses(torch.nn.Module):
    """The margin of class 0 is 10 · (the mean pixel − 0.5)."""

    def forward(self, images: Tensor) -> Tensor:
        lead = 10 * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([lead, torch.zeros_like(lead)], 1)


def noisy() -> torch.nn.Module:
    return Noise(TwoClasses(), sigma=SIGMA).eval()


def prepared(oracle: Oracle, images: Tensor) -> State:
    n = len(images)
    labels = torch.zeros(n, dtype=torch.int64)
    items = Items(
        images, labels, labels - 1, torch.full((n,), 0.1), draws.item_seeds(0, torch.arange(n))
    )
    state = State.begin(items, images)
    oracle.prepare(state)
    return state


def test_far_from_the_boundary_few_draws_do_and_near_it_all_are_asked() -> None:
    images = torch.tensor([0.75, 0.5, 0.25])[:, None, None, None].expand(3, 1, 2, 2).contiguous()
    oracle = Oracle(noisy(), samples=20)
    prepared(oracle, images)
    gradient, logits, _ = oracle.gradient(images, lambda z: z[:, 0] - z[:, 1])
    assert oracle.forwards == oracle.backwards == 4
    assert oracle.own is not None and oracle.own_backwards is not None
    assert (
        oracle.own[[0, 2]].tolist() == [0, 0]
        and oracle.own.tolist() == oracle.own_backwards.tolist()
    )
    assert oracle.own[1] in (0, 16)
    assert logits[0, 0] > 1 and logits[2, 0] < -1
    assert torch.allclose(gradient, torch.full_like(gradient, 2.5), atol=0.7)  # 10 / 4 pixels


def test_a_look_that_takes_all_draws_takes_those_that_it_always_took() -> None:
    images = torch.full((40, 1, 2, 2), 0.5)
    few, all_ = Oracle(noisy(), samples=20), Oracle(noisy(), samples=20)
    for oracle in (few, all_):
        prepared(oracle, images)
    all_._items = None  # as before there were few
    looked, whole = few.logits(images), all_.logits(images)
    assert few.own is not None
    near = few.own > 0
    assert int(near.sum()) >= 30
    assert torch.allclose(looked[near], whole[near], atol=1e-5)


@pytest.mark.parametrize("samples", [5, 20])
def test_on_the_boundary_few_draws_rarely_pass_for_enough(samples: int) -> None:
    # The stated error: one look of twenty.
    images = torch.full((4000, 1, 2, 2), 0.5)
    oracle = Oracle(noisy(), samples=samples)
    prepared(oracle, images)
    oracle.logits(images)
    assert oracle.own is not None
    assert 0.03 < float((oracle.own == 0).float().mean()) < 0.065


def test_votes_end_when_the_majority_is_certain_and_never_change_it() -> None:
    images = torch.linspace(0.4, 0.6, 500)[:, None, None, None].expand(500, 1, 2, 2).contiguous()
    few, whole = (Oracle(noisy(), samples=5, decisions=True) for _ in range(2))
    for oracle in (few, whole):
        prepared(oracle, images)
    whole._items = None
    assert torch.equal(few.logits(images).argmax(1), whole.logits(images).argmax(1))
    assert few.forwards == 3 and few.own is not None
    assert 0 < int((few.own > 0).sum()) < 400 and set(few.own.tolist()) == {0, 2}


def test_an_attack_by_decisions_asks_for_several_draws_of_no_point_at_all() -> None:
    # All items probing in one step left an empty batch of single points, which had no shape.
    images, labels = torch.full((2, 1, 2, 2), 0.7), torch.zeros(2, dtype=torch.int64)
    suite = Suite("mine", (Stage(HopSkipJump(queries=300), samples=5),))
    result = hf.evaluate(noisy(), images, labels, ("linf", 0.3), suite)
    assert result.attacks[0].broken >= 1


def test_what_a_stage_costs_counts_the_draws_that_were_asked() -> None:
    images = torch.full((4, 1, 2, 2), 0.95)
    labels = torch.zeros(4, dtype=torch.int64)
    result = hf.evaluate(noisy(), images, labels, ("linf", 0.05), "adaptive")
    pgd = next(cost for cost in result.attacks if cost.name == "pgd")
    assert result.robust_accuracy == 1
    assert pgd.forwards <= 4 * 21 * 20 / 4 and pgd.forwards >= pgd.backwards > 0
