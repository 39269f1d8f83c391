"""Models and images on different devices: the right answer, and the model handed back in place."""

from __future__ import annotations

import models
import pytest
import torch

import holdfast as hf
from holdfast import distributed as workers
from holdfast.attacks import APGD, Stage, Suite
from holdfast.errors import InputError

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
SUITE = Suite("short", (Stage(APGD(steps=6)),))


def problem():
    model, x = models.Net(classes=5, seed=2, scale=12.0), models.images(10, seed=2)
    return model, x, models.answers(model, x), hf.Threat("linf", 0.02)


@gpu
@pytest.mark.parametrize(
    ("home", "images", "asked"),
    [
        ("cuda", "cpu", None),
        ("cuda", "cuda", "cpu"),
        ("cpu", "cuda", "cuda"),
        ("cpu", "cuda", None),
    ],
)
def test_any_places_give_the_verdict_of_one(home, images, asked):
    model, x, labels, threat = problem()
    expected = hf.evaluate(model, x, labels, threat, SUITE, precision="original")
    model.to(home)
    result = hf.evaluate(
        model, x.to(images), labels.to(images), threat, SUITE, precision="original", device=asked
    )
    assert {p.device.type for p in model.parameters()} == {home}
    assert result.adversarial.device.type == result.broken.device.type == "cpu"
    assert torch.equal(result.broken, expected.broken)


@gpu
def test_a_function_whose_weights_lie_elsewhere_is_one_line():
    model, x, labels, threat = problem()
    model.cuda()

    def call(images):
        return model(images)

    with pytest.raises(InputError, match="cannot answer") as refused:
        hf.evaluate(call, x, labels, threat, SUITE)
    assert "\n" not in str(refused.value)
    result = hf.evaluate(call, x, labels, threat, SUITE, device="cuda")
    assert result.standard_accuracy == 1


def test_every_worker_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert workers.own_device("cuda") == "cuda"  # alone, torch's own choice
    for key, value in {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": "5"}.items():
        monkeypatch.setenv(key, value)
    assert workers.own_device("cuda") == "cuda:1"
    assert workers.own_device("cuda:3") == "cuda:3"
    assert workers.own_device("cpu") == "cpu"
