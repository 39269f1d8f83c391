"""What a defence declares, how defences chain and are written, and what bad input says."""

import inspect
import sys

import pytest
import torch
from contributing import snippet
from torch import nn

from holdfast import defences
from holdfast.defences import (
    DEFENCES,
    BitDepth,
    Defence,
    Jpeg,
    Median,
    Noise,
    chain,
    declared,
    parse,
    registry,
    replace_backward,
    steps,
)
from holdfast.draws import fixed_draws, new_seeds, repeated_draws
from holdfast.errors import InputError
from holdfast.models.unet import DenoisingUNet

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Pixels(nn.Module):
    """A "model" whose logits are the pixels it is shown."""

    def forward(self, x):
        return x.flatten(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).eval()


def one(text: str, model: nn.Module | None = None) -> Defence:
    options = {"weights": TRAINED[text]()} if text in TRAINED else {}
    return parse(text)(model or Pixels(), **options)


def autoencoder() -> defences.autoencoder.DenoisingAutoencoder:
    torch.manual_seed(0)
    return defences.autoencoder.DenoisingAutoencoder(width=4)


def diffusion() -> DenoisingUNet:
    torch.manual_seed(0)
    return DenoisingUNet(width=4)


TRAINED = {"autoencoder": autoencoder, "purification": diffusion}  # defences that need weights


# --- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_has_defaults_and_says_what_it_is(name):
    parameters = list(inspect.signature(DEFENCES[name]).parameters.values())[1:]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)
    defence = one(name)
    assert defence.backward == defence.backwards[0]
    assert defence.differentiable == ("exact" in defence.backwards)
    if name not in TRAINED:
        assert parse(defence.spec)(Pixels()).spec == defence.spec


def test_a_new_file_is_all_that_a_new_defence_needs(tmp_path, monkeypatch):
    # The example of CONTRIBUTING.md, under a name that nobody's file has.
    text = snippet("Darken").replace('"darken"', '"test-darken"')
    # What another module defines is found there, not here.
    text = text.replace("from .base", "from .noise import Noise\nfrom .base")
    (tmp_path / "test_darken.py").write_text(text)
    monkeypatch.setattr(defences, "__path__", [*defences.__path__, str(tmp_path)])
    found = registry._defences()
    monkeypatch.delitem(sys.modules, "holdfast.defences.test_darken")
    assert found.keys() == DEFENCES.keys() | {"test-darken"}
    assert all(found[name] is DEFENCES[name] for name in DEFENCES)
    assert torch.equal(found["test-darken"](Pixels())(IMAGES), IMAGES.flatten(1) / 2)


SHIPPED = {
    "autoencoder", "bit-depth", "crop-ensemble", "gaussian-blur", "jpeg", "median", "noise",
    "palette", "purification", "resize-pad", "thermometer", "total-variation",
}  # fmt: skip


def test_which_of_holdfasts_own_are_random_and_which_have_no_gradient():
    assert DEFENCES.keys() >= SHIPPED  # a new file may have added others
    assert {n for n in SHIPPED if DEFENCES[n].random} == {
        "resize-pad",
        "crop-ensemble",
        "noise",
        "purification",
    }
    assert {n for n in SHIPPED if "exact" not in DEFENCES[n].backwards} == {
        "jpeg",
        "bit-depth",
        "thermometer",
        "palette",
    }


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_declares_whether_it_draws(name):
    defence = one(name)
    with fixed_draws(0):
        first = defence.defended(IMAGES)
    with fixed_draws(1):
        second = defence.defended(IMAGES)
    assert torch.equal(first, second) != defence.random


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_declares_an_exact_gradient_where_it_has_one(name):
    defence = one(name)
    images = IMAGES.clone().requires_grad_()
    with fixed_draws(0):
        shown = defence.transform(images)
    slope = torch.zeros_like(images)
    if shown.requires_grad:
        (found,) = torch.autograd.grad(shown.sum(), images, allow_unused=True)
        slope = slope if found is None else found
    assert bool(slope.any()) >= ("exact" in defence.backwards)


@pytest.mark.parametrize("name", DEFENCES)
@pytest.mark.parametrize("size", [(13, 16), (16, 16)])
def test_shape_and_range_are_kept(name, size):
    defence = one(name)
    noisy = torch.rand(2, 3, *size)
    corners = torch.stack([torch.zeros(3, *size), torch.ones(3, *size), noisy[0].round()])
    images = torch.cat([noisy, corners])
    shown = defence.defended(images)
    assert shown.shape == images.shape
    assert shown.min() >= -1e-5 and shown.max() <= 1 + 1e-5
    assert not torch.equal(shown, images)


@pytest.mark.parametrize("name", sorted(DEFENCES))
def test_straight_through_is_the_identity_and_leaves_the_forward_pass_alone(name):
    model = network()
    defence = one(name, model)
    if name == "crop-ensemble":  # the other forward passes are model(transform(images))
        defence.crops, model = 1, nn.Sequential(model, nn.LogSoftmax(1))
    x = IMAGES.clone().requires_grad_()
    with fixed_draws(0):
        shown = defence.defended(IMAGES).detach().requires_grad_()
        logits = defence.with_backward("identity")(x)
    expected = model(shown)
    assert torch.allclose(logits, expected, atol=1e-6)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    (straight,) = torch.autograd.grad(expected[:, 1].sum(), shown)
    assert torch.equal(gradient, straight)
    with fixed_draws(0):
        assert torch.equal(defence(IMAGES), logits)


def test_replaced_backward_is_exact_in_both_directions():
    x = torch.rand(5, dtype=torch.float64, requires_grad=True)
    value = torch.tensor([0.1, 0.2, 0.3, 1.0, 0.0], dtype=torch.float64)
    out = replace_backward(value, x.sin())
    assert torch.equal(out, value)
    (gradient,) = torch.autograd.grad((out * torch.arange(5)).sum(), x)
    assert torch.equal(gradient, torch.arange(5) * x.detach().cos())


def test_a_random_step_shows_its_surrogate_the_draws_of_its_transform():
    class Shift(Defence):
        random = True
        backwards = ("surrogate",)
        seen = ()

        def transform(self, images):
            self.seen += (self.draw_seeds(images),)
            return images

        def surrogate(self, images):
            return self.transform(images)

    shift = Shift(Pixels())
    shift(IMAGES)
    shift(IMAGES)
    with fixed_draws(3):
        shift(IMAGES)
    first, its_surrogate, second, _, fixed, its_own = shift.seen
    assert torch.equal(first, its_surrogate) and not torch.equal(first, second)
    assert torch.equal(fixed, its_own)


# --- chains -----------------------------------------------------------------------------------


def test_the_first_defence_sees_the_image_first():
    median, blur = Median(Pixels()), defences.GaussianBlur(Pixels(), sigma=1.0)
    chained = chain(Pixels(), ["median", "gaussian-blur:sigma=1.0"])
    shown = blur.transform(median.transform(IMAGES)).flatten(1)
    assert torch.equal(chained(IMAGES), shown)
    other_way = median.transform(blur.transform(IMAGES)).flatten(1)
    assert not torch.allclose(shown, other_way, atol=1e-3)
    assert [step.name for step in steps(chained)] == ["median", "gaussian-blur"]
    assert chain(network, []) is network


def test_a_chain_declares_what_its_steps_declare_together():
    assert declared(network()) == defences.Declaration(True, False, ())
    assert declared(lambda images: images) == defences.Declaration(True, False, ())
    chained = chain(Pixels(), ["noise", "bit-depth"])
    assert declared(chained) == defences.Declaration(
        False, True, ("exact", "identity", "surrogate")
    )
    assert declared(chained.model).random is False


def test_with_backward_reaches_every_step_that_offers_it_and_shares_the_weights():
    model = network()
    inside = nn.Sequential(nn.Identity(), BitDepth(model))  # a wrapper between two defences
    chained = Median(Jpeg(Noise(inside)))
    fast_copy = chained.with_backward("surrogate")
    assert [step.backward for step in steps(fast_copy)] == [
        "exact",
        "surrogate",
        "exact",
        "surrogate",
    ]
    assert [step.backward for step in steps(chained)] == ["exact", "surrogate", "exact", "identity"]
    assert all(a is b for a, b in zip(fast_copy.parameters(), model.parameters(), strict=True))
    straight = chained.with_backward("identity")
    assert {step.backward for step in steps(straight)} == {"identity"}
    with pytest.raises(InputError, match="no defence here offers backward 'surrogate'"):
        Median(model).with_backward("surrogate")


# --- random draws -----------------------------------------------------------------------------

RANDOM = ["noise", "resize-pad", "crop-ensemble:crops=3,size=0.5"]


@pytest.mark.parametrize("text", RANDOM)
def test_draws_are_fresh_unless_fixed_and_then_belong_to_the_image(text):
    defence = one(text, network())
    assert not torch.equal(defence(IMAGES), defence(IMAGES))

    seeds = new_seeds(len(IMAGES))
    with fixed_draws(seeds):
        together = defence(IMAGES)
        assert torch.equal(defence(IMAGES), together)
    apart = []
    for i in range(len(IMAGES)):
        with fixed_draws(seeds[i : i + 1]):
            apart.append(defence(IMAGES[i : i + 1]))
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)

    with fixed_draws(7):
        by_position = defence(IMAGES)
        assert torch.allclose(defence(IMAGES[:2]), by_position[:2], atol=1e-5)
    assert not torch.allclose(by_position, together, atol=1e-3)
    torch.manual_seed(5)
    fresh = defence(IMAGES)
    torch.manual_seed(5)
    assert torch.equal(defence(IMAGES), fresh)


@pytest.mark.parametrize("text", RANDOM)
def test_copies_in_a_batch_draw_independently(text):
    defence = one(text, network())
    copies = IMAGES[:1].repeat(8, 1, 1, 1)
    assert len(defence(copies).unique(dim=0)) > 4


def test_copies_for_an_expectation_draw_the_same_whatever_the_batch():
    chained = chain(network(), ["noise", "crop-ensemble:crops=2,size=0.5"])
    seeds = new_seeds(3)

    def expectation(rows):
        with fixed_draws(seeds[rows]), repeated_draws(20):
            copies = chained(IMAGES[rows].repeat_interleave(20, 0))
        return copies.view(len(rows), 20, -1)

    together = expectation(torch.tensor([0, 1, 2]))
    assert torch.allclose(expectation(torch.tensor([2]))[0], together[2], atol=1e-5)
    assert len(together[0].unique(dim=0)) == 20


def test_two_equal_steps_draw_different_numbers():
    grey = torch.full((1, 1, 32, 32), 0.5)
    with fixed_draws(0):
        once, twice = Noise(Pixels())(grey), Noise(Noise(Pixels()))(grey)
    ratio = float((twice - 0.5).std() / (once - 0.5).std())
    assert ratio == pytest.approx(2**0.5, rel=0.1)  # 2 if the draws were the same


def test_seeds_that_do_not_fit_the_batch_are_refused():
    with (
        pytest.raises(InputError, match=r"seeds of shape \(2,\) for 6 images"),
        fixed_draws(new_seeds(2)),
    ):
        Noise(Pixels())(IMAGES)


# --- how defences are written -----------------------------------------------------------------


def test_options_are_read_by_their_type():
    assert parse("jpeg")(Pixels()).options == {"quality": 75}
    assert parse("jpeg:quality=10")(Pixels()).options == {"quality": 10}
    assert parse("noise:sigma=8/255")(Pixels()).sigma == pytest.approx(8 / 255)
    thermometer = parse("thermometer:decode=no, levels=4")(Pixels())
    assert (thermometer.levels, thermometer.decode) == (4, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpg", r"defence 'jpg' is unknown; did you mean 'jpeg'\?"),
        ("", r"defence '' is unknown; known: autoencoder, bit-depth, .*package.module:Class"),
        ("nothing-like-it", "known: autoencoder, bit-depth, crop-ensemble, .*total-variation"),
        ("jpg:quality=3", "defence 'jpg' is unknown"),
        ("jpeg:qualty=3", r"jpeg has no option 'qualty'; did you mean 'quality'\?"),
        ("jpeg:x=3", "jpeg has no option 'x'; known: quality"),
        ("jpeg:75", "'75' is not written key=value"),
        ("jpeg:quality=3,quality=4", "'quality' is given twice"),
        ("jpeg:quality=high", "quality=high is not a whole number"),
        ("jpeg:quality=7.5", "quality=7.5 is not a whole number"),
        ("noise:sigma=much", "sigma=much is not a number"),
        ("thermometer:decode=perhaps", "decode=perhaps is neither true nor false"),
        ("no.such.module:Class", "cannot import 'no.such.module'"),
        ("holdfast.threat:Nothing", "'holdfast.threat' has no 'Nothing'"),
        ("holdfast.threat:Threat", "must be a subclass of holdfast.defences.Defence"),
        ("jpeg:quality=0", "jpeg: quality must be a whole number from 1 to 100, not 0"),
        ("jpeg:quality=101", "quality must be"),
        ("bit-depth:bits=0", "bits must be a whole number from 1 to 8"),
        ("bit-depth:bits=9", "bits must be"),
        ("median:kernel=4", "median: kernel must be odd"),
        ("median:kernel=1", "kernel must be a whole number of at least 3"),
        ("median:kernel=17", r"kernel of 17 pixels is larger than the images \(16×16\)"),
        ("gaussian-blur:sigma=-1", "gaussian-blur: sigma must be a number above 0, not -1.0"),
        ("gaussian-blur:sigma=nan", "sigma must be"),
        ("gaussian-blur:sigma=3", "kernel of 25 pixels is larger than the images"),
        ("total-variation:weight=0", "weight must be a number above 0"),
        ("total-variation:iterations=0", "iterations must be"),
        ("resize-pad:smallest=1.5", "smallest must be a number above 0 and at most 1, not 1.5"),
        ("crop-ensemble:crops=0", "crops must be"),
        ("crop-ensemble:size=0", "size must be"),
        ("noise:sigma=-0.1", "noise: sigma must be a number above 0, not -0.1"),
        ("thermometer:levels=1", "levels must be a whole number from 2 to 256"),
        ("palette:colours=1", "colours must be a whole number from 2 to 256, not 1"),
        ("autoencoder", "autoencoder:weights=FOLDER"),
        ("autoencoder:weights=no-such-folder", "weights folder no-such-folder does not exist"),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_wrong(text, message):
    with pytest.raises(InputError, match=message) as raised:
        parse(text)(Pixels())(IMAGES)
    assert "\n" not in str(raised.value)


OWN = """
import torch
from holdfast.defences import Defence

class Dim(Defence):
    def __init__(self, model, *, factor: float = 0.5):
        super().__init__(model, factor=factor)
        self.factor = factor
    def transform(self, images):
        return images * self.factor

class Half(Defence):
    def transform(self, images):
        return images[:, :, ::2, ::2]

class Needy(Dim):
    def __init__(self, model, *, factor: float):
        super().__init__(model, factor=factor)
"""


def test_a_defence_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "own_defences.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    dim = parse("own_defences:Dim:factor=0.25")(Pixels())
    assert torch.equal(dim(IMAGES), IMAGES.flatten(1) * 0.25)
    assert dim.spec == "own_defences:Dim:factor=0.25"
    with pytest.raises(InputError, match=r"own_defences:Half: .*shape \(6, 3, 16, 16\) into"):
        parse("own_defences:Half")(Pixels())(IMAGES)
    # the backward pass of a bad step must not hide what is wrong with it
    with pytest.raises(InputError, match="it must keep the shape"):
        parse("own_defences:Half")(Pixels()).with_backward("identity")(IMAGES)
    with pytest.raises(InputError, match=r"own_defences:Dim: transform left \[0, 1\]"):
        parse("own_defences:Dim:factor=2")(Pixels())(IMAGES)
    with pytest.raises(InputError, match="left"):
        parse("own_defences:Dim:factor=nan")(Pixels())(IMAGES)
    with pytest.raises(InputError, match="needs its option 'factor'"):
        parse("own_defences:Needy")
    with pytest.raises(InputError, match="no option 'factr'; did you mean 'factor'"):
        parse("own_defences:Dim:factr=1")


def test_an_unknown_backward_is_refused_when_it_is_declared():
    with pytest.raises(InputError, match="backwards must name some of exact, identity, surrogate"):
        type("Bad", (Defence,), {"backwards": ("guess",)})
