"""Kinds of hiding: whatever the means, what hides is repaired, and answers stay as they are."""

from __future__ import annotations

import threading
from concurrent.futures import thread

import pytest
import torch
from hidden import diagnosed, small_network, smooth_pictures, standing
from hiding_kinds import KINDS
from plain_networks import PLAIN, plain
from torch import nn

from holdfast.models.wrapper import wrapped
from holdfast.repair import contest, repaired

WAYS = [(kind, name) for kind, ways in KINDS.items() for name in ways]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return smooth_pictures()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_network()


@pytest.fixture(scope="module")
def labels(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(images).argmax(1)


class Kind(nn.Module):
    def __init__(self, network: nn.Module, kind: str, name: str):
        super().__init__()
        self.network, self.way = network, KINDS[kind][name]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.way(self.network, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), WAYS)
def test_every_kind_is_repaired_and_answers_stay(kind, name, network, images, labels) -> None:
    model, found = diagnosed(Kind(network, kind, name).eval(), images, labels)
    search = wrapped(found.model or model)  # where it is none, the model's own must do
    with torch.no_grad():
        answers = model(images)
        assert torch.equal(search(images), answers)
    if found.model is not None:
        assert found.repairs
        x = images.clone().requires_grad_()
        assert torch.equal(search(x).argmax(1), answers.argmax(1))
    hit = standing(model, search, images, answers.argmax(1))
    bare = standing(wrapped(network), wrapped(network), images, labels)
    assert hit <= bare + 3, (hit, bare)


@pytest.mark.parametrize("name", PLAIN)
def test_no_search_is_held_where_nothing_is_hidden(name, images, monkeypatch) -> None:
    """Nor is anything doubtful there: the contest of gradients is for what hides."""
    model = wrapped(plain(name))
    with torch.no_grad():
        labels = model(images).argmax(1)
    monkeypatch.setattr(contest, "best", lambda *args: pytest.fail("nothing hides"))
    assert repaired(model, images, labels).model is None


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 0.1 * torch.randn_like(x),
        lambda x: x * (0.9 + 0.2 * torch.rand(len(x), 1, 1, 1)),
        lambda x: torch.roll(x, int(torch.randint(0, 3, ())), 3),
    ],
    ids=["noise", "brightness", "place"],
)
def test_random_numbers_hide_nothing(change, network, images, labels, monkeypatch) -> None:
    monkeypatch.setattr(contest, "best", lambda *args: pytest.fail("nothing hides"))
    found = repaired(wrapped(lambda x: network(change(x))), images, labels)
    assert found.model is None and not found.remark, found


def test_torch_is_left_as_it_was(network, images, labels) -> None:
    """What is replaced while a model is looked at is put back, also after a failure."""
    homes = [
        (threading.Thread, "run"),
        (thread._WorkItem, "run"),
        (torch.autograd.graph.saved_tensors_hooks, "__enter__"),
        (torch.autograd.graph.saved_tensors_hooks, "__exit__"),
        (torch.utils.hooks.BackwardHook, "setup_input_hook"),
        (torch.utils.hooks.BackwardHook, "setup_output_hook"),
    ]

    def failing(x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            raise RuntimeError("no gradients here")
        return network(x.round())

    before = [getattr(home, name) for home, name in homes]
    for model in (lambda x: network(x.round()), failing):
        repaired(wrapped(model), images, labels)
    assert [getattr(home, name) for home, name in homes] == before
