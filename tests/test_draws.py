"""Random draws that belong to an item: known values, independence, uniformity."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from holdfast import draws

SEEDS = draws.item_seeds(7, torch.arange(400), "attack", 0, -1)
# The largest draw there is, 1 − 2⁻²⁴, lies at this place of the first draw of seed 3.
LARGEST_SEED, LARGEST_PLACE = 3, 566559


def test_splitmix64_gives_its_published_numbers():
    # The first outputs for seed 1234567, as the generator's reference implementations print them.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = 1234567 + torch.arange(1, 4) * draws._GOLDEN
    assert [value % 2**64 for value in draws._mix(states).tolist()] == expected


def test_draws_never_change():
    # Reports quote seeds: these numbers must be the same on every machine, for ever.
    seeds = draws.item_seeds(0, torch.tensor([0, 1]), "apgd-ce", 0, -1)
    assert seeds.tolist() == [1734388134083656467, -9173663070862690720]
    drawn = (draws.uniform(seeds, 0, (2,)) * 2**24).long().tolist()
    assert drawn == [[11906810, 1817995], [16402319, 15900423]]


def test_draws_do_not_depend_on_the_batch():
    order = torch.randperm(len(SEEDS), generator=torch.Generator().manual_seed(0))
    for kind in (draws.uniform, draws.normal):
        whole = kind(SEEDS, 3, (2, 5))
        assert torch.equal(kind(SEEDS[order], 3, (2, 5)), whole[order])
        assert torch.equal(kind(SEEDS[9:10], 3, (2, 5)), whole[9:10])
    index = torch.arange(400)
    assert torch.equal(draws.item_seeds(7, index[order], "attack", 0, -1), SEEDS[order])


def test_items_of_different_ages_draw_as_they_would_alone():
    counters = torch.arange(len(SEEDS)) % 5
    together = draws.uniform(SEEDS, counters, (3,))
    for age in range(5):
        rows = counters == age
        assert torch.equal(together[rows], draws.uniform(SEEDS[rows], age, (3,)))


def test_a_longer_draw_begins_with_the_shorter_one():
    assert torch.equal(draws.uniform(SEEDS, 0, (8,))[:, :3], draws.uniform(SEEDS, 0, (3,)))


def test_shapes_and_types():
    assert draws.uniform(SEEDS, 0).shape == (400,)
    assert draws.uniform(SEEDS, 0, (3, 2, 2)).shape == (400, 3, 2, 2)
    assert draws.uniform(SEEDS, 0).dtype == draws.normal(SEEDS, 0).dtype == torch.float32
    assert draws.integers(SEEDS, 0, 7, (2,)).dtype == torch.int64
    assert draws.item_seeds(0, 1, "x").shape == (1,)


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(lambda: draws.uniform(SEEDS, 0, (100,)), id="one draw"),
        pytest.param(
            lambda: torch.stack([draws.uniform(SEEDS[:40], c) for c in range(500)]), id="counters"
        ),
        pytest.param(
            lambda: draws.uniform(draws.item_seeds(0, torch.arange(20000)), 0), id="images"
        ),
        pytest.param(
            lambda: torch.cat([draws.uniform(draws.item_seeds(s, 0), 0) for s in range(500)]),
            id="seeds of runs",
        ),
        pytest.param(lambda: draws.uniform(torch.arange(20000), 0), id="raw seeds"),
    ],
)
def test_draws_are_uniform(sample):
    drawn = sample().flatten().numpy()
    assert drawn.min() >= 0 and drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3


def test_draws_that_differ_in_anything_are_uncorrelated():
    a = draws.uniform(SEEDS, 0, (50,))
    others = {
        "counter": draws.uniform(SEEDS, 1, (50,)),
        "image": draws.uniform(
            draws.item_seeds(7, 1 + torch.arange(400), "attack", 0, -1), 0, (50,)
        ),
        "run": draws.uniform(draws.item_seeds(8, torch.arange(400), "attack", 0, -1), 0, (50,)),
        "attack": draws.uniform(draws.item_seeds(7, torch.arange(400), "attacl", 0, -1), 0, (50,)),
        "restart": draws.uniform(draws.item_seeds(7, torch.arange(400), "attack", 1, -1), 0, (50,)),
        "target": draws.uniform(draws.item_seeds(7, torch.arange(400), "attack", 0, 0), 0, (50,)),
        "order": draws.uniform(draws.item_seeds(7, torch.arange(400), "attack", -1, 0), 0, (50,)),
    }
    for what, b in others.items():
        # 20,000 pairs: the correlation's standard deviation is 0.007.
        seen = float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
        assert abs(seen) < 0.03, what
        assert not bool((a == b).all(1).any()), what


def test_no_two_items_share_a_seed():
    images, targets = torch.arange(20000), range(10)
    seeds = torch.cat([draws.item_seeds(0, images, "apgd", 0, t) for t in targets])
    assert len(seeds.unique()) == len(seeds)


def test_normal_draws_are_normal_and_finite():
    drawn = draws.normal(SEEDS, 0, (100,)).flatten()
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3
    worst = torch.tensor([LARGEST_SEED])
    u = draws.uniform(worst, 0, (LARGEST_PLACE + 1,))
    assert float(u[0, -1]) == 1 - 2.0**-24  # or this test looks at nothing
    extreme = draws.normal(worst, 0, (LARGEST_PLACE + 1,))
    assert torch.isfinite(extreme).all() and float(extreme[0, -1]) > 5


def test_normal_is_finite_at_both_ends(monkeypatch):
    ends = torch.tensor([[0.0, 1 - 2.0**-24]])
    monkeypatch.setattr(draws, "uniform", lambda *arguments: ends)
    low, high = draws.normal(SEEDS[:1], 0, (2,))[0].tolist()
    assert low == pytest.approx(-5.42, abs=0.01) and high == pytest.approx(5.29, abs=0.02)


def test_integers_are_uniform_and_below_their_bound():
    drawn = draws.integers(SEEDS, 0, 7, (100,)).flatten()
    assert stats.chisquare(torch.bincount(drawn, minlength=7).numpy()).pvalue > 1e-3
    high = torch.arange(1, 401)
    assert (draws.integers(SEEDS, 0, high) < high).all()


def test_the_largest_draw_stays_below_every_bound(monkeypatch):
    high = torch.arange(1, 70000)
    top = torch.full(high.shape, 1 - 2.0**-24)
    monkeypatch.setattr(draws, "uniform", lambda *arguments: top)
    assert torch.equal(draws.integers(SEEDS, 0, high), high - 1)
