"""Gradients that are hidden are repaired, and those that are not stay as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hidden import THREAT, diagnosed, small_network, smooth_pictures, standing
from hiding import FURTHER, INPUTS, LOGITS, WHOLE, Hiding, Whole
from plain_networks import PLAIN, plain
from torch import nn

import holdfast as hf
from holdfast.attacks import APGD, suite_named
from holdfast.attacks.suite import REPAIRED
from holdfast.models.wrapper import wrapped
from holdfast.repair import repaired
from holdfast.runs.records import Repair

# What cannot be told from the bare network to rounding: where the answer itself is another.
OTHER_PICTURES = {
    "jpeg", "pil", "scipy", "inverted by numpy", "mirrored by numpy", "thermometer", "sine",
    "buckets", "table", "bits",
}  # fmt: skip


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


class Quantise(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x * 15).round() / 15)


@pytest.mark.parametrize("before", INPUTS)
def test_what_hides_before_the_network_is_repaired(before, network, images, labels) -> None:
    model, found = diagnosed(Hiding(network, before=before), images, labels)
    assert found.model is not None, found
    assert found.repairs
    with torch.no_grad():
        own = model(images).argmax(1)
    hit = standing(model, wrapped(found.model), images, own)
    bare = standing(wrapped(network), wrapped(network), images, labels)
    assert hit <= bare + (5 if before in OTHER_PICTURES else 2), (hit, bare)


@pytest.mark.parametrize("after", LOGITS)
def test_what_hides_behind_the_network_is_repaired(after, network, images, labels) -> None:
    model, found = diagnosed(Hiding(network, after=after), images, labels)
    assert found.model is not None, found
    with torch.no_grad():
        own = model(images).float().argmax(1)
    hit = standing(model, wrapped(found.model), images, own)
    bare = standing(wrapped(network), wrapped(network), images, labels)
    assert hit <= bare + 2, (hit, bare)


@pytest.mark.parametrize("name", [*FURTHER, *WHOLE])
def test_rarer_ways_are_repaired_too(name, network, images, labels) -> None:
    model, found = diagnosed(Whole(network, name), images, labels)
    assert found.model is not None, found
    assert found.repairs
    with torch.no_grad():
        own = model(images).argmax(1)
    hit = standing(model, wrapped(found.model), images, own)
    bare = standing(wrapped(network), wrapped(network), images, labels)
    assert hit <= bare + 4, (hit, bare)


def _programs(network: nn.Module, images: torch.Tensor) -> dict[str, nn.Module]:
    """A model that rounds, in the forms in which models are handed on."""
    batch = ({0: torch.export.Dim("n")},)
    model = Quantise(network).eval()
    linear = {nn.Linear}
    return {
        "script": torch.jit.script(model),
        "trace": torch.jit.trace(model, images),
        "export": torch.export.export(model, (images,), dynamic_shapes=batch).module(),
        "compiled": torch.compile(model, backend="eager"),
        "quantised": torch.ao.quantization.quantize_dynamic(network, linear, dtype=torch.qint8),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["script", "trace", "export", "compiled", "quantised"])
def test_programs_are_repaired(form, network, images, labels) -> None:
    model, found = diagnosed(_programs(network, images)[form], images, labels)
    assert found.model is not None, found
    with torch.no_grad():
        own = model(images).argmax(1)
    hit = standing(model, wrapped(found.model), images, own)
    bare = standing(wrapped(network), wrapped(network), images, labels)
    assert hit <= bare + 2, (hit, bare)


@pytest.mark.parametrize("before", INPUTS)
def test_answers_stay_as_they_are(before, network, images, labels) -> None:
    model, found = diagnosed(Hiding(network, before=before), images, labels)
    assert found.model is not None
    with torch.no_grad():
        answers = model(images)
        assert torch.equal(found.model(images), answers)
    x = images.clone().requires_grad_()
    assert torch.allclose(found.model(x), answers, atol=1e-5)


@pytest.mark.parametrize("after", LOGITS)
def test_predictions_stay_as_they_are(after, network, images, labels) -> None:
    model, found = diagnosed(Hiding(network, after=after), images, labels)
    assert found.model is not None
    with torch.no_grad():
        answers = model(images).float()
        assert torch.equal(found.model(images).float(), answers)
    if "differentiated" not in after:
        x = images.clone().requires_grad_()
        assert torch.equal(found.model(x).argmax(1), answers.argmax(1))


@pytest.mark.parametrize("name", PLAIN)
def test_what_hides_nothing_is_left_alone(name, images) -> None:
    model = wrapped(plain(name))
    with torch.no_grad():
        labels = model(images).argmax(1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = repaired(model, images, labels)
    assert found.model is None and not found.remark, found
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", PLAIN)
def test_repair_changes_no_verdict_where_nothing_is_hidden(name, images) -> None:
    model = plain(name)
    with torch.no_grad():
        labels = model(images).argmax(1)
    results = [
        hf.evaluate(model, images[:6], labels[:6], THREAT, "pgd", repair=repair)
        for repair in (True, False)
    ]
    first, second = (
        [(v.broken, v.attack, v.adversarial_prediction, v.distance) for v in result.verdicts]
        for result in results
    )
    assert first == second
    assert not results[0].repairs
    assert results[0].identity == results[1].identity


def test_an_image_gets_the_same_gradient_alone_and_in_a_batch(network, images, labels) -> None:
    for before in ("round", "thermometer", "jpeg", "numpy", "inverted by numpy", "table"):
        found = diagnosed(Hiding(network, before=before), images, labels)[1].model
        assert found is not None

        def gradient(x: torch.Tensor, found=found) -> torch.Tensor:
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(found(x)[:, 0].sum(), x)
            return slope

        together, alone = gradient(images[:4]), gradient(images[1:2])
        assert torch.allclose(together[1:2], alone, atol=1e-6), before


def test_the_result_tells_what_was_repaired_and_where(network, images, labels) -> None:
    result = hf.evaluate(Quantise(network), images, labels, THREAT, "swift")
    assert [str(repair) for repair in result.repairs] == ["`round` in `Quantise.forward`, 1 time"]
    fired = {flag.name for flag in result.flags if flag.fired}
    assert "hidden-gradients" in fired
    detail = next(flag.detail for flag in result.flags if flag.name == "hidden-gradients")
    assert "`round` in `Quantise.forward`" in detail and "no defence" in detail
    assert result.attacks[0].name == "swift, repaired" and result.attacks[0].broken > 0
    free = [cost for cost in result.attacks if cost.name == "square" and cost.ran]
    assert not free  # no long search without gradients


def test_without_repair_it_is_as_before(network, images, labels) -> None:
    model = Quantise(network)
    blind = hf.evaluate(model, images[:8], labels[:8], THREAT, "pgd", repair=False)
    seeing = hf.evaluate(model, images[:8], labels[:8], THREAT, "pgd")
    assert not blind.repairs
    assert not any("repaired" in cost.name for cost in blind.attacks)
    assert not any(flag.name == "hidden-gradients" for flag in blind.flags)
    assert seeing.robust_accuracy < blind.robust_accuracy
    assert seeing.identity != blind.identity


@pytest.mark.parametrize("suite", ["apgd", "autoattack", "swift", "pgd", "adaptive"])
def test_every_suite_gets_a_stage_before_the_gradient_free_ones(
    suite, network, images, labels
) -> None:
    result = hf.evaluate(Quantise(network), images[:4], labels[:4], THREAT, suite)
    names = [cost.name for cost in result.attacks]
    through = [k for k, name in enumerate(names) if name.endswith(REPAIRED)]
    free = [k for k, name in enumerate(names) if name.startswith(("square", "hop"))]
    assert through and (not free or max(through[:1]) < min(free))
    bare = hf.evaluate(network, images[:4], labels[:4], THREAT, "pgd")
    assert result.robust_accuracy <= bare.robust_accuracy + 0.25


def test_a_random_model_is_repaired_over_draws(network, images, labels) -> None:
    class Random(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return network(((x + 0.02 * torch.randn_like(x)) * 15).round() / 15)

    result = hf.evaluate(Random(), images[:6], labels[:6], THREAT, "adaptive", samples=4)
    assert result.repairs
    assert result.attacks[0].name.endswith(REPAIRED)
    assert result.robust_accuracy <= 0.5


def test_stages_that_wait_still_wait_for_the_same_stage() -> None:
    suite = suite_named("swift").through(REPAIRED)
    square = next(k for k, stage in enumerate(suite.stages) if stage.share < 1)
    assert {stage.after for stage in suite.stages} == {None, square}
    own = [stage for stage in suite.stages if not stage.view]
    assert [s.name for s in own] == [s.name for s in suite_named("swift").stages]


def test_declared_defences_keep_their_own_backward_passes(network, images, labels) -> None:
    from holdfast.defences import BitDepth, Jpeg

    for defence in (Jpeg(network, quality=80), BitDepth(network, bits=3)):
        found = repaired(wrapped(defence), images, labels)
        assert found.model is None and not found.remark, found


def test_a_model_that_cannot_be_repaired_is_told(images) -> None:
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))

    def opaque(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            z = hidden(x).numpy()
        return torch.tensor([[hash(float(v)) % 7 for v in row] for row in z]).float()

    labels = opaque(images).argmax(1)
    result = hf.evaluate(opaque, images[:4], labels[:4], THREAT, APGD(steps=5))
    assert not result.repairs


def test_a_repair_reads_as_a_sentence() -> None:
    assert str(Repair(what="round", where="Net.forward", times=2)) == (
        "`round` in `Net.forward`, 2 times"
    )


def test_the_example_of_the_page_runs(capsys) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "hidden-gradients.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    assert "round" in capsys.readouterr().out


def test_torchs_random_numbers_go_on_as_if_nothing_had_been_asked(network, images, labels) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    repaired(wrapped(Quantise(network)), images, labels)
    assert torch.equal(torch.rand(3), expected)


def test_a_gradient_that_is_zero_everywhere_is_looked_into(network, images, labels) -> None:
    """x − x % s meets nothing that kills a gradient; the two slopes cancel each other."""
    _, found = diagnosed(Hiding(network, before="remainder"), images, labels)
    assert [repair.what for repair in found.repairs] == ["remainder"]


def test_a_history_is_not_lost_to_what_is_written_into_it(network, images, labels) -> None:
    """The leading logit overwritten by a constant, which has no gradient: it gets none."""

    class Lowered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.network(x).clone()
            z[torch.arange(len(z)), z.argmax(1)] = -5.0
            return z + z.detach().round() * 0

    model, found = diagnosed(Lowered(), images, labels)
    search = wrapped(found.model) if found.model is not None else model
    slopes = []
    for each in (model, search):
        x = images.clone().requires_grad_()
        leads = each(x).argmin(1)
        (slope,) = torch.autograd.grad(each(x).gather(1, leads[:, None]).sum(), x)
        slopes.append(slope)
    assert torch.equal(slopes[0], slopes[1]) and not slopes[0].any()
