"""Robust checkpoints from the literature load by file, and give their publication's logits."""

from __future__ import annotations

from pathlib import Path

import published_networks as theirs
import pytest
import torch
import torch.nn.functional as F

import holdfast as hf
from holdfast.errors import InputError
from holdfast.models.naming import PUBLISHED, fitting, translations
from holdfast.models.registry import arguments_of, build

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
EIGHTEEN, FIFTY = (2, 2, 2, 2), (3, 4, 6, 3)


def loaded(tmp_path: Path, held: object, architecture: str) -> torch.nn.Module:
    file = tmp_path / "weights.pt"
    torch.save(held, file)
    return hf.load(file, architecture=architecture)


def alike(model: torch.nn.Module, expected: torch.Tensor, images: torch.Tensor = IMAGES) -> bool:
    """Whether logits are the expected ones, up to rounding, and say something."""
    assert expected.std() > 1e-2
    with torch.no_grad():
        return torch.allclose(model(images), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


SMALL = {
    "wide-resnet-trades:depth=16,widen=2,classes=7": (
        theirs.trades(16, 2, 7),
        lambda s: theirs.trades_logits(s, IMAGES, 16, 2),
    ),
    "wide-resnet-trades:depth=10,widen=1,classes=10": (
        theirs.trades(10, 1, leftover=True),
        lambda s: theirs.trades_logits(s, IMAGES, 10, 1),
    ),
    "wide-resnet-deepmind:depth=16,widen=2,classes=100": (
        theirs.deepmind(16, 2, 100),
        lambda s: theirs.deepmind_logits(s, IMAGES, 16, 2, mean=theirs.MEAN100, std=theirs.STD100),
    ),
    "wide-resnet-deepmind:depth=10,widen=1,classes=10": (
        theirs.deepmind(10, 1, inside=True),
        lambda s: theirs.deepmind_logits(s, IMAGES, 10, 1),
    ),
    "preact-resnet-deepmind:depth=18,width=8,classes=10": (
        theirs.deepmind_preact(EIGHTEEN, 8),
        lambda s: theirs.deepmind_preact_logits(s, IMAGES, EIGHTEEN, 8),
    ),
    "preact-resnet-deepmind:depth=34,width=4,classes=10": (
        theirs.deepmind_preact(FIFTY, 4),
        lambda s: theirs.deepmind_preact_logits(s, IMAGES, FIFTY, 4),
    ),
    "preact-resnet-kuangliu:depth=18,width=8,classes=10": (
        theirs.kuangliu_preact(EIGHTEEN, 8),
        lambda s: theirs.kuangliu_preact_logits(s, IMAGES, EIGHTEEN, 8),
    ),
    "preact-resnet-kuangliu:depth=18,width=8,classes=10,last_norm=false": (
        theirs.kuangliu_preact(EIGHTEEN, 8, last_norm=False),
        lambda s: theirs.kuangliu_preact_logits(s, IMAGES, EIGHTEEN, 8),
    ),
    "resnet:depth=18,width=8,classes=10": (
        theirs.resnet(EIGHTEEN, False, 8),
        lambda s: theirs.resnet_logits(s, IMAGES, EIGHTEEN, False),
    ),
    "resnet:depth=50,width=4,classes=10": (
        theirs.resnet(FIFTY, True, 4),
        lambda s: theirs.resnet_logits(s, IMAGES, FIFTY, True),
    ),
    "resnet:depth=50,width=4,widen=2,stem=imagenet,classes=20": (
        theirs.resnet(FIFTY, True, 4, 2, classes=20, torchvision=True),
        lambda s: theirs.resnet_logits(s, IMAGES, FIFTY, True, torchvision=True),
    ),
}


@pytest.mark.parametrize("architecture", SMALL)
def test_published_weights_give_the_logits_of_their_publication(architecture, tmp_path, capsys):
    state, logits = SMALL[architecture]
    assert alike(loaded(tmp_path, state, architecture), logits(state))
    assert "published names" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", SMALL)
def test_the_options_follow_from_the_shapes(architecture, tmp_path):
    state, _ = SMALL[architecture]
    found = fitting(state)
    assert found is not None and found.architecture == architecture
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=f"--architecture {architecture}") as error:
        hf.load(tmp_path / "weights.pt")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=f"they fit --architecture {architecture}"):
        hf.load(tmp_path / "weights.pt", architecture="small-cnn")


FULL = {
    "wide-resnet-trades:depth=28,widen=10,classes=10": lambda how: theirs.trades(28, 10, **how),
    "wide-resnet-trades:depth=34,widen=10,classes=100": (
        lambda how: theirs.trades(34, 10, 100, leftover=True, **how)
    ),
    "wide-resnet-trades:depth=34,widen=20,classes=10": lambda how: theirs.trades(34, 20, **how),
    "wide-resnet-trades:depth=70,widen=16,classes=10": lambda how: theirs.trades(70, 16, **how),
    "wide-resnet-deepmind:depth=28,widen=10,classes=10": lambda how: theirs.deepmind(28, 10, **how),
    "wide-resnet-deepmind:depth=70,widen=16,classes=100": (
        lambda how: theirs.deepmind(70, 16, 100, **how)
    ),
    "wide-resnet-deepmind:depth=106,widen=16,classes=10": (
        lambda how: theirs.deepmind(106, 16, **how)
    ),
    "preact-resnet-deepmind:depth=18,width=64,classes=10": (
        lambda how: theirs.deepmind_preact(EIGHTEEN, **how)
    ),
    "preact-resnet-kuangliu:depth=18,width=64,classes=100": (
        lambda how: theirs.kuangliu_preact(EIGHTEEN, classes=100, **how)
    ),
    "resnet:depth=18,width=64,classes=10": lambda how: theirs.resnet(EIGHTEEN, False, **how),
    "resnet:depth=50,width=64,stem=imagenet,classes=1000": (
        lambda how: theirs.resnet(FIFTY, True, classes=1000, torchvision=True, **how)
    ),
}


@pytest.mark.parametrize("architecture", FULL)
def test_networks_of_full_size_are_known_by_their_shapes(architecture):
    state = FULL[architecture]({"on": "meta"})
    found = fitting({f"module.{name}": value for name, value in state.items()})
    assert found is not None and found.architecture == architecture


def test_a_wide_resnet_28_10_in_half_precision(tmp_path, capsys):
    state = {k: v.half() if v.is_floating_point() else v for k, v in theirs.trades(28, 10).items()}
    architecture = "wide-resnet-trades:depth=28,widen=10"
    model = loaded(tmp_path, state, architecture)
    whole = {name: value.float() for name, value in state.items()}
    expected = theirs.trades_logits(whole, IMAGES[:2], 28, 10)
    assert alike(model, expected, IMAGES[:2])
    assert "float16 weights used in float32" in capsys.readouterr().err


@pytest.mark.parametrize("activation", ["relu", "silu", "swish"])
def test_the_activation_is_named(tmp_path, activation):
    act = F.relu if activation == "relu" else theirs.swish
    for name, state, logits in (
        ("wide-resnet-trades", theirs.trades(10, 1), theirs.trades_logits),
        ("wide-resnet-deepmind", theirs.deepmind(10, 1), theirs.deepmind_logits),
    ):
        model = loaded(tmp_path, state, f"{name}:depth=10,widen=1,activation={activation}")
        assert alike(model, logits(state, IMAGES, 10, 1, act))


@pytest.mark.parametrize("last_norm", [True, False])
def test_shortcuts_of_the_input_as_it_is(tmp_path, last_norm):
    state = theirs.kuangliu_preact(EIGHTEEN, 8, last_norm=last_norm)
    name = f"preact-resnet-kuangliu:width=8,last_norm={str(last_norm).lower()},shortcut=input"
    expected = theirs.kuangliu_preact_logits(state, IMAGES, EIGHTEEN, 8, of_input=True)
    assert alike(loaded(tmp_path, state, name), expected)


def test_zeros_around_grey_images(tmp_path):
    state = theirs.deepmind(10, 1, channels=1)
    found = fitting(state)
    assert found is not None
    assert found.architecture.startswith("wide-resnet-deepmind:depth=10,widen=1,classes=10,channel")
    grey = IMAGES[:, :1, :28, :28]
    half = {"mean": theirs.HALF, "std": theirs.HALF}
    expected = theirs.deepmind_logits(state, grey, 10, 1, border=2, **half)
    assert alike(loaded(tmp_path, state, f"{found.architecture},border=2"), expected, grey)


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])


@pytest.mark.parametrize(
    "named",
    [
        lambda s: {"mu": MEAN.view(1, 3, 1, 1), "sigma": STD.view(1, 3, 1, 1), **s},
        lambda s: {"normalize.mean": MEAN, "normalize.std": STD, **_behind("model.", s)},
        lambda s: {"0.mean": MEAN.view(3, 1, 1), "0.std": STD.view(3, 1, 1), **_behind("1.", s)},
        lambda s: _behind("module.", {"mean": MEAN, "std": STD, **s}),
        lambda s: _behind(
            "module.",
            {
                "normalizer.new_mean": MEAN.view(3, 1, 1),
                "normalizer.new_std": STD.view(3, 1, 1),
                **_behind("model.", s),
                "attacker.normalize.new_mean": MEAN.view(3, 1, 1),
                **_behind("attacker.model.", s),
            },
        ),
        lambda s: {
            "n_averaged": torch.tensor(5),
            **_behind("module.", {"mu": MEAN, "sigma": STD, **s}),
        },
    ],
)
def test_a_normalisation_in_the_file_is_used(tmp_path, named, capsys):
    state = theirs.trades(10, 1)
    model = loaded(tmp_path, named(state), "wide-resnet-trades:depth=10,widen=1,normalise=cifar10")
    inside = (IMAGES - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)
    assert alike(model, theirs.trades_logits(state, inside, 10, 1))
    assert "normalised by the file" in capsys.readouterr().err


def _behind(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def test_a_normalisation_that_is_not_in_the_file_is_named(tmp_path, capsys):
    state = theirs.trades(10, 1)
    model = loaded(tmp_path, state, "wide-resnet-trades:depth=10,widen=1,normalise=cifar10")
    inside = (IMAGES - theirs.MEAN) / theirs.STD
    assert alike(model, theirs.trades_logits(state, inside, 10, 1))
    assert "normalise=cifar10, since the file says nothing" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"shapes do not tell .*the normalisation, none unless"):
        hf.load(tmp_path / "weights.pt")


def test_that_nothing_normalises_is_said(tmp_path, capsys):
    loaded(tmp_path, theirs.trades(10, 1), "wide-resnet-trades:depth=10,widen=1")
    assert "normalise=none, since the file says nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("small-cnn", {"width": 4, "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}),
        ("wide-resnet", {"depth": 10, "widen": 1, "mean": [0.5], "std": [0.2]}),
        ("interval-cnn", {"width": 2, "mean": [0.5, 0.4], "std": [0.2, 0.3]}),
        ("preact-resnet", {"width": 4, "stages": 3, "depth": 14, "stem_stride": 2}),
    ],
)
def test_the_architecture_that_is_named_loads_as_it_is_written(tmp_path, name, arguments):
    network = build(name, arguments).eval()
    found = fitting(network.state_dict())
    assert found is not None
    model = loaded(tmp_path, network.state_dict(), found.architecture)
    images = IMAGES[:, : network.normalise.mean.shape[1]]
    with torch.no_grad():
        assert torch.equal(model(images), network(images))


def test_leftovers_are_left_out_and_said(tmp_path, capsys):
    loaded(tmp_path, theirs.trades(10, 1, leftover=True), "wide-resnet-trades:depth=10,widen=1")
    assert "left out: sub_block1.layer.0.bn1.weight" in capsys.readouterr().err


def test_other_names_are_no_publication():
    state = theirs.trades(10, 1)
    assert not list(translations({**state, "conv7.weight": torch.zeros(1)}))
    assert fitting({**state, "fc.weight": torch.zeros(10, 63)}) is None
    assert fitting({"a.weight": torch.zeros(3)}) is None


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            lambda: {**theirs.trades(10, 1), "head2.weight": torch.zeros(3, 3)},
            "their names are those of wide-resnet-trades, but not head2.weight",
        ),
        (
            lambda: {**theirs.deepmind(10, 1), "logits.weight": torch.zeros(10, 63)},
            "their names are those of wide-resnet-deepmind, but the sizes are not of one",
        ),
        (lambda: _zeros("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"), "timm:NAME"),
        (lambda: _zeros("module.features.0.weight", "module.classifier.1.bias"), "torchvision:N"),
        (lambda: _zeros("vit.embeddings.cls_token", "classifier.weight"), "transformers:FOLDER"),
        (lambda: _zeros("a.weight", "b.weight"), "names are preact-resnet"),
    ],
)
def test_what_fits_nothing_is_told_what_it_looks_like(tmp_path, state, said):
    torch.save({"state_dict": state()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=said) as error:
        hf.load(tmp_path / "weights.pt")
    assert "\n" not in str(error.value)


def _zeros(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2) for name in names}


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    state = theirs.trades(10, 1)
    state["fc.bias"][3] = float("nan")
    with pytest.raises(InputError, match=r"linear\.bias.*not finite"):
        loaded(tmp_path, state, "wide-resnet-trades:depth=10,widen=1")


def test_every_publication_has_its_architecture():
    for naming in PUBLISHED:
        assert {"classes", "channels", "normalise"} <= set(arguments_of(naming.architecture))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("wide-resnet-trades", {"normalise": "cifar"}, "known: none, half, cifar10"),
        ("wide-resnet-trades", {"normalise": "cifar10", "channels": 1}, "for 3 channels, not 1"),
        ("wide-resnet-trades", {"depth": 30}, "depth 30"),
        ("wide-resnet-deepmind", {"border": -1}, "border"),
        ("preact-resnet-kuangliu", {"shortcut": "raw"}, "activated"),
        ("preact-resnet-kuangliu", {"last_norm": 1}, "last_norm"),
        ("resnet", {"depth": 20}, "use 18, 34, 50"),
        ("resnet", {"widen": 2}, "depth 50"),
        ("resnet", {"stem": "large"}, "stem"),
    ],
)
def test_bad_options_are_refused(name, arguments, said):
    with pytest.raises(InputError, match=said):
        build(name, arguments)


def test_the_command_that_the_message_names_evaluates(tmp_path):
    from verbs import evaluate_command

    state = theirs.resnet(EIGHTEEN, False, 4)
    state = {k: v[:, :1] if k == "conv1.weight" else v for k, v in state.items()}
    torch.save({"net": state}, tmp_path / "ckpt.pth")
    with pytest.raises(InputError) as error:
        hf.load(tmp_path / "ckpt.pth")
    architecture = str(error.value).partition("--architecture resnet")[2].split(" ")[0]
    result = evaluate_command(
        str(tmp_path / "ckpt.pth"),
        "digits",
        tmp_path / "run",
        architecture=f"resnet{architecture}",
        suite="fgsm",
        limit=4,
    )
    assert result.n == 4
    record = hf.read(tmp_path / "run")
    told = "ckpt.pth: 'net' taken, published names, normalise=none, since the file says nothing"
    assert record.model is not None and told in record.model.adaptation


@pytest.mark.parametrize("architecture", SMALL)
def test_published_networks_are_folded_for_the_search(architecture, tmp_path):
    from holdfast.search import fast_copy_of

    state, _ = SMALL[architecture]
    model = loaded(tmp_path, state, architecture)
    refused: list[str] = []
    copied = fast_copy_of(model, IMAGES, torch.tensor([0, 1, 2]), "float32", refused.append)
    assert copied is not None and not refused
    norms = [m for m in copied.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    own = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) < len(own)
