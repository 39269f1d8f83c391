"""Figures show what they say: pixels, sums, answers, views; and the same bytes each time."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import endpoints
import numpy as np
import pytest
import torch
from command_line import command, small_checkpoint
from models import digits, linear, without_torch
from PIL import Image
from torch import nn

import holdfast as hf
from holdfast import canvas, data
from holdfast.cli import figure as verb
from holdfast.data import Augment, DataSet, Split
from holdfast.defences import Jpeg, Noise, chain, shown
from holdfast.training import load_recipe
from holdfast.training.batches import Batches

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
THREAT = hf.Threat("linf", 0.2)


@pytest.fixture(scope="module")
def reader() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    return digits(60)


def pixels(file: Path, left: float, top: float, side: float) -> np.ndarray:
    """A square of a PNG by its place on the page."""
    page = np.asarray(Image.open(file).convert("RGB"))
    x, y, s = (round(2 * value) for value in (left, top, side))
    return page[y : y + s, x : x + s]


def small(square: np.ndarray, side: int = 8) -> np.ndarray:
    """A picture of side × side pixels from its enlargement, grey; fails if that is not sharp."""
    factor = len(square) // side
    grey = square[:, :, 0]
    assert (square == grey[:, :, None]).all()
    one = grey[factor // 2 :: factor, factor // 2 :: factor]
    np.testing.assert_array_equal(np.kron(one, np.ones((factor, factor), np.uint8)), grey)
    return one


# --- an adversarial example -----------------------------------------------------------------------


def test_the_equation_is_true(reader, tmp_path: Path) -> None:
    model, x, y = reader
    file = tmp_path / "e.png"
    found = hf.figures.example(model, x, y, file, THREAT)
    picture = Image.open(file)
    assert picture.width == 1800 and picture.info["Software"] == canvas.MADE_BY
    assert np.asarray(picture)[0, 0, 3] == 0 and np.asarray(picture)[0, 900, 3] == 255
    clean, delta, attacked = (
        small(pixels(file, left, 44, 224)).astype(float) / 255 for left in (28, 338, 648)
    )
    np.testing.assert_allclose(clean, x[found.index, 0].numpy(), atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(attacked, found.rows[0].adversarial[0], atol=0.5 / 255 + 1e-6)
    # image + ε × perturbation, of which −1 is black and 1 is white
    np.testing.assert_allclose(clean + 0.2 * (2 * delta - 1), attacked, atol=1.5 / 255)
    assert bool(THREAT.contains(found.rows[0].adversarial[None], x[found.index][None]))


def test_the_answers_are_the_models(reader, tmp_path: Path) -> None:
    model, x, y = reader
    found = hf.figures.example(model, x, y, tmp_path / "e.svg", THREAT)
    (row,) = found.rows
    for image, said in ((x[found.index], row.clean), (row.adversarial, row.attacked)):
        with torch.no_grad():
            shares = model(image[None]).softmax(1)[0]
        assert said.label == int(shares.argmax())
        assert said.confidence == pytest.approx(float(shares.max()), abs=1e-5)
    assert row.clean.label == found.label == int(y[found.index]) != row.attacked.label
    text = (tmp_path / "e.svg").read_text()
    assert f"{100 * row.attacked.confidence:.1f}\u00a0%" in text or ">\u00a099.9" in text


def test_the_first_image_that_can_be_broken_confidently_is_chosen(tmp_path: Path) -> None:
    """Of a linear classifier it is known which: margin and ‖w‖₁ decide."""
    model = linear(2, (1, 4, 4))
    w = (model.weight[0] - model.weight[1]).float()
    middle = torch.full((1, 4, 4), 0.5)
    distances = [-0.04, 0.30, 0.18, 0.095, 0.03]  # from the plane, in L∞; the first is wrong
    sign = w.sign()
    images = torch.stack([middle + d * sign for d in distances])
    images[0] = middle - 0.04 * sign
    labels = torch.zeros(5, dtype=torch.int64)
    found = hf.figures.example(model, images, labels, tmp_path / "e.svg", ("linf", 0.1))
    reach = {i: (d - 0.1) * float(w.abs().sum()) for i, d in enumerate(distances)}
    sure = {i: 1 / (1 + np.exp(m)) for i, m in reach.items() if i and m < 0}
    confident = [i for i, share in sure.items() if share >= 0.9]
    assert found.index == (confident[0] if confident else max(sure, key=sure.__getitem__))
    assert found.rows[0].attacked.confidence == pytest.approx(sure[found.index], abs=1e-3)


def test_rows_of_several_models_share_the_image(reader, tmp_path: Path) -> None:
    model, x, y = reader
    file = tmp_path / "two.svg"
    found = hf.figures.example(
        {"bare": model, "blurred": chain(model, ["median"])}, x, y, file, THREAT
    )
    assert [row.name for row in found.rows] == ["bare", "blurred"]
    assert all(row.clean.label == found.label for row in found.rows)
    assert len(ET.parse(file).findall(f".//{SVG}image")) == 6
    assert "bare" in ET.parse(file).find(f"{SVG}desc").text  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("threat", [("l2", 1.5), ("l1", 6.0), ("l0", 8)])
def test_other_norms(reader, tmp_path: Path, threat) -> None:
    model, x, y = reader
    found = hf.figures.example(model, x[:12], y[:12], tmp_path / "e.svg", threat)
    row = found.rows[0]
    assert 0 < row.distance <= threat[1] * (1 + 1e-5) and row.attacked.label != found.label
    text = (tmp_path / "e.svg").read_text()
    assert ("values changed" in text) == (threat[0] == "l0")


def test_an_index_is_shown_whatever_comes_of_it(reader, tmp_path: Path) -> None:
    model, x, y = reader
    found = hf.figures.example(
        model, x, y, tmp_path / "e.svg", ("linf", 0.001), index=3, source="digits", first=100
    )
    assert found.index == 103 and found.rows[0].attacked.label == int(y[3])
    assert "digits 103, true class" in found.said
    assert "✗" not in (tmp_path / "e.svg").read_text()  # a sign besides the colour
    assert (tmp_path / "e.svg").read_text().count("✓") >= 2


def test_models_without_gradients_and_suites(reader, tmp_path: Path, monkeypatch) -> None:
    model, x, y = reader
    monkeypatch.setattr("holdfast.figures.subject.QUERIES", 100)
    found = hf.figures.example(without_torch(model), x[:4], y[:4], tmp_path / "a.svg", THREAT)
    assert "Square" in found.said and found.rows[0].attacked.label != found.label
    found = hf.figures.example(model, x[:4], y[:4], tmp_path / "b.svg", THREAT, suite="fgsm")
    assert "suite fgsm" in found.said


def test_models_that_show_labels_only(reader, tmp_path: Path) -> None:
    model, x, y = reader
    with endpoints.serving(endpoints.model_behind(model, "labels")) as server:
        found = hf.figures.example(
            hf.load(server.url), x[:1], y[:1], tmp_path / "e.svg", THREAT, index=0,
            classes=list("0123456789"),
        )  # fmt: skip
    assert "suite rays" in found.said and found.rows[0].attacked.label != found.label
    assert np.isnan(found.rows[0].attacked.confidence)  # it shows none
    assert (tmp_path / "e.svg").read_text().count("label only") >= 2


def test_the_model_is_handed_back_as_it_was(reader, tmp_path: Path) -> None:
    model, x, y = reader
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hf.figures.example(model, x[:8], y[:8], tmp_path / "e.svg", THREAT)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()


# --- a defence ------------------------------------------------------------------------------------


def test_a_strip_shows_what_the_network_gets(reader, tmp_path: Path) -> None:
    model, x, y = reader
    file = tmp_path / "d.png"
    found = hf.figures.defence(model, x, y, file, ["bit-depth:bits=1"], THREAT, index=2)
    defended = chain(model, ["bit-depth:bits=1"])
    for number, strip in enumerate(found.strips):
        with torch.no_grad():
            seen = shown(defended, strip.attacked[None])[0]
            bare = model(torch.stack([x[2], strip.attacked])).softmax(1)
            behind = defended(strip.attacked[None]).softmax(1)
        assert torch.equal(seen, strip.defended)
        expected = [*bare, behind[0]]
        for answer, shares in zip(strip.answers, expected, strict=True):
            assert answer.label == int(shares.argmax())
            assert answer.confidence == pytest.approx(float(shares.max()), abs=1e-5)
        top = 44 + 26 + number * (34 + 160 + 46 + 20) + 34
        for column, picture in ((0, x[2]), (1, strip.attacked), (3, strip.defended)):
            tile = small(pixels(file, 28 + column * 171, top, 160)) / 255
            np.testing.assert_allclose(tile, picture[0], atol=0.5 / 255 + 1e-6)
    assert bool(THREAT.contains(found.strips[1].attacked[None], x[2][None]))


def test_the_one_who_knows_the_defence_does_not_do_worse(reader, tmp_path: Path) -> None:
    model, x, y = reader
    found = hf.figures.defence(model, x, y, tmp_path / "d.svg", ["bit-depth:bits=2"], THREAT)
    unaware, adaptive = (strip.answers[2] for strip in found.strips)
    assert unaware.label == found.label or "mended none" in found.said
    assert adaptive.label != found.label  # straight through, nothing stands at 0.2
    assert "identity" in found.said
    assert len(ET.parse(tmp_path / "d.svg").findall(f".//{SVG}image")) == 10


def test_random_defences_answer_by_vote_and_the_same_twice(reader, tmp_path: Path) -> None:
    model, x, y = reader
    for name in ("a.svg", "b.svg"):
        torch.manual_seed(len(name))
        found = hf.figures.defence(
            Noise(model, sigma=0.1), x, y, tmp_path / name, threat=THREAT, index=1
        )
        torch.rand(1)
    assert "vote of 21 draws" in found.said
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


# --- classes and augmentation ---------------------------------------------------------------------


def test_classes_are_the_contact_sheet(tmp_path: Path) -> None:
    data.figure(data.load("digits"), tmp_path / "a.png", seed=3)
    hf.figures.classes("digits", tmp_path / "b.png", seed=3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    hf.figures.classes("digits", tmp_path / "c.svg")
    assert len(ET.parse(tmp_path / "c.svg").findall(f".//{SVG}image")) == 100


CHANGES = ["augment.colour=0.8", "augment.erase=0.5", "augment.cutmix=0.4", "augment.mixup=0.3"]


def test_views_are_those_of_training() -> None:
    held = data.load("digits")
    operations = Augment(crop_padding=1, erase=0.5, colour=0.5, cutmix=0.4, mixup=0.3)
    batches = Batches(held.train, 64, operations, 5, torch.device("cpu"), 10)
    step = batches.steps_per_epoch + 3  # in the second epoch
    batch = batches.batch(step)
    rows = batches.sources[0].order[1][3 * 64 : 4 * 64]
    again, labels, truth = batches.sources[0].seen(rows, 1, 1.0)
    assert torch.equal(labels, batch.labels) and truth is not None
    assert torch.equal((again.float() / 255).contiguous(), batch.images.contiguous())
    assert not torch.equal(again, torch.from_numpy(held.train.images)[rows])


def test_the_figure_shows_them(tmp_path: Path) -> None:
    file = tmp_path / "v.png"
    hf.figures.augment("digits-smoothadv", "digits", file, changes=CHANGES, seed=2)
    held = data.load("digits").split(load_recipe("digits-smoothadv").train_on)
    operations = load_recipe("digits-smoothadv", CHANGES).augment.operations()
    (source,) = Batches(held, 64, operations, 2, torch.device("cpu"), 10).sources
    left = 28 + 64 + 12
    first = [small(pixels(file, 28, 70 + 70 * i, 64)) for i in range(8)]
    rows = [
        next(row for row in range(len(held)) if (held.images[row, 0] == image).all())
        for image in first
    ]
    assert len({int(held.labels[row]) for row in rows}) == 8
    for epoch in (0, 7):
        views = source.seen(torch.tensor(rows), epoch, 1.0)[0].numpy()
        for i, view in enumerate(views):
            tile = small(pixels(file, left + 70 * epoch, 70 + 70 * i, 64))
            np.testing.assert_array_equal(tile, view[0])


def test_operations_are_named_with_their_probabilities(tmp_path: Path) -> None:
    hf.figures.augment(
        "digits-gaussian", "digits", tmp_path / "v.svg",
        changes=[*CHANGES, "augment.warmup=0.25", "augment.flip=random"],
    )  # fmt: skip
    text = ET.parse(tmp_path / "v.svg").find(f"{SVG}desc").text or ""  # type: ignore[union-attr]
    for said in ("mirror probability 0.5", "colour or shape probability 0.8", "rotate 1/8",
                 "shear x 1/16", "erasing probability 0.5", "CutMix probability 0.4",
                 "mixup probability 0.3"):  # fmt: skip
        assert said in text
    assert "25\u00a0%" in (tmp_path / "v.svg").read_text()
    assert Augment(crop_padding=0, flip="none").in_words() == []
    shares = [how for name, how in Augment(colour=1.0).in_words() if name.startswith("  ")]
    assert sum(float(np.divide(*map(int, share.split("/")))) for share in shares) == 1


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", canvas.KINDS)
def test_the_same_bytes_twice(reader, tmp_path: Path, monkeypatch, kind: str) -> None:
    import matplotlib

    model, x, y = reader
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        hf.figures.example(model, x, y, folder / f"e.{kind}", THREAT, index=0)
        hf.figures.defence(model, x, y, folder / f"d.{kind}", ["median"], THREAT, index=0)
        hf.figures.classes("digits", folder / f"c.{kind}")
        hf.figures.augment("digits-gaussian", "digits", folder / f"a.{kind}")
        made.append([(folder / f"{name}.{kind}").read_bytes() for name in "edca"])
        # Neither the clock nor a user's own settings are in it.
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
        monkeypatch.setitem(matplotlib.rcParams, "font.family", ["serif"])
        monkeypatch.setitem(matplotlib.rcParams, "savefig.facecolor", "red")
    assert made[0] == made[1]
    for content in made[0]:
        start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[kind]
        assert content.startswith(start) and canvas.is_figure(content)


def test_an_svg_stands_alone(reader, tmp_path: Path) -> None:
    model, x, y = reader
    hf.figures.example(model, x, y, tmp_path / "e.svg", THREAT, index=0)
    root = ET.parse(tmp_path / "e.svg").getroot()
    assert root.get("role") == "img" and root.get("width") == "900"
    assert root.get("viewBox", "").startswith("0 0 900 ")
    assert root.find(f"{SVG}title").text == "An adversarial example"  # type: ignore[union-attr]
    assert "plus perturbation gives" in (root.find(f"{SVG}desc").text or "")  # type: ignore[union-attr]
    assert not root.findall(f".//{SVG}text") and not root.findall(f".//{SVG}script")
    links = [value for each in root.iter() for key, value in each.items() if key == LINK]
    assert links and all(link.startswith(("data:image/png", "#")) for link in links)
    for image in root.findall(f".//{SVG}image"):
        assert "pixelated" in image.get("style", "")


def test_names_of_any_kind(tmp_path: Path) -> None:
    shape = (4, 3, 6, 5)
    images = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    split = Split(images, np.array(list("abcd")), np.arange(4), "made up")
    names = ("a$\\frac{$b]]>--", "\x1b[2J\ud800\ufffe", "猫 ة <script>&", "x" * 500)
    hf.figures.classes(DataSet("--><b>\0", names, split, split, split), tmp_path / "c.svg")
    ET.parse(tmp_path / "c.svg")
    model = nn.Sequential(nn.Flatten(), nn.Linear(90, 4))
    for kind in canvas.KINDS:
        hf.figures.example(
            {name: model for name in names}, torch.from_numpy(images).float() / 255,
            torch.arange(4), tmp_path / f"e.{kind}", THREAT, index=1, classes=names,
            source="\x1b]0;\ufffe",
        )  # fmt: skip
    ET.parse(tmp_path / "e.svg")


def test_tiles_are_sharp_or_reduced() -> None:
    for side, shown_side in ((1, 224), (8, 224), (32, 224), (28, 224), (60, 210), (224, 224)):
        tile = canvas.Tile(np.arange(side * side).reshape(1, side, side).astype(np.uint8), 224)
        factor = len(tile.pixels) // side
        assert tile.width == tile.height == shown_side and factor * side == len(tile.pixels)
        one = tile.pixels[::factor, ::factor]
        np.testing.assert_array_equal(one, tile.pixels[factor - 1 :: factor, factor - 1 :: factor])
    assert canvas.Tile(np.zeros((3, 224, 224), np.uint8), 160).width == 160  # whole: 112
    wide = canvas.Tile(np.zeros((1, 300, 900), np.float32), 224)
    assert (wide.width, wide.height) == (224, 74.5)
    with pytest.raises(hf.InputError, match="1 or 3 channels"):
        canvas.Tile(np.zeros((4, 8, 8), np.uint8), 224)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear_ = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear_, (0.2126, 0.7152, 0.0722)))


def test_words_can_be_read_and_colours_told_apart() -> None:
    for colour in (canvas.INK, canvas.SOFT, canvas.RIGHT, canvas.WRONG):
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5  # WCAG 2, AA, on white
    # Machado, Oliveira & Fernandes (2009), severity 1: no red cones, no green ones.
    for matrix in (
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]],
    ):  # fmt: skip
        seen = [
            np.array(matrix) @ [int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            for c in (canvas.RIGHT, canvas.WRONG)
        ]
        assert np.abs(seen[0] - seen[1]).max() > 0.4


# --- what is refused ------------------------------------------------------------------------------


def test_refusals_in_python(reader, tmp_path: Path) -> None:
    model, x, y = reader
    out = tmp_path / "f.svg"
    example, defence = hf.figures.example, hf.figures.defence
    for says, call in (
        ("ending in .svg, .png, .pdf", lambda: example(model, x, y, "f.gif", THREAT)),
        ("a turned image is no sum", lambda: example(model, x, y, out, ("spatial", 1))),
        ("index must be a whole number from 0 to 59",
         lambda: example(model, x, y, out, THREAT, index=60)),
        ("at least one model", lambda: example({}, x, y, out, THREAT)),
        ("is broken within L∞ 1e-05", lambda: example(model, x, y, out, ("linf", 1e-5))),
        ("without an attack", lambda: example(model, x[:3], (y[:3] + 1) % 10, out, THREAT)),
        ("1 or 3 channels", lambda: example(model, x.repeat(1, 2, 1, 1), y, out, THREAT)),
        ("there is no defence", lambda: defence(model, x, y, out, threat=THREAT)),
        ("PGD knows no l0", lambda: defence(Jpeg(model), x, y, out, threat=("l0", 3))),
        ("suite 'pdg' is unknown", lambda: example(model, x, y, out, THREAT, suite="pdg")),
        ("no gradients", lambda: defence(without_torch(model), x, y, out, ["jpeg"], THREAT)),
        ("crop_shift 8 leaves nothing", lambda: hf.figures.augment(
            "digits-gaussian", "digits", out,
            changes=["augment.crop_padding=0", "augment.crop_shift=8"])),
    ):  # fmt: skip
        with pytest.raises(hf.InputError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not out.exists()


def test_nothing_but_a_figure_is_overwritten(reader, tmp_path: Path, monkeypatch) -> None:
    model, x, y = reader
    out = tmp_path / "notes.svg"
    out.write_text("mine")
    file = sys.modules["holdfast.figures.example"]
    monkeypatch.setattr(file, "Subject", lambda *_: pytest.fail("attacked"))
    with pytest.raises(hf.InputError, match="did not write there"):
        hf.figures.example(model, x, y, out, THREAT)
    assert out.read_text() == "mine"


def test_the_command_line(tmp_path: Path, monkeypatch, capsys) -> None:
    model = small_checkpoint(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    shared = ["--data", "digits", "--quiet"]
    assert command(
        monkeypatch, "figure", "example", model, model, "--name", "a", "--name", "b", *shared,
        "--limit", 100, "--eps", 0.4, "--out", "e.svg",
    ) == 0  # fmt: skip
    assert command(
        monkeypatch, "figure", "defence", model, "--defence", "median", "--index", 7, *shared,
        "--out", "d.png",
    ) == 0  # fmt: skip
    assert command(monkeypatch, "figure", "classes", "--data", "digits", "--out", "c.pdf") == 0
    assert command(
        monkeypatch, "figure", "augment", "digits-gaussian", "--data", "digits", "--set",
        "augment.erase=1", "--out", "a.svg",
    ) == 0  # fmt: skip
    said = capsys.readouterr()
    assert [line for line in said.out.splitlines() if line.startswith("figure: ")] == [
        f"figure: {name}" for name in ("e.svg", "d.png", "c.pdf", "a.svg")
    ]
    assert "digits, test image 7, true class" in said.out and not said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "Missing command. Say which: example, defence, classes, augment"),
        ("exampel", "Did you mean 'example'"),
        ("classes --data digits --out c.jpg", "ending in .svg, .png, .pdf"),
        ("classes --data digits --out .", "ending in"),
        ("classes --data nowhere --out c.svg", "no such folder"),
        ("classes --data digits --image-size 16 --out c.svg", "--image-size 16"),
        ("example --out e.svg", "Missing argument"),
        ("example model --data digits", "--out"),
        ("example nothing --data digits --out e.svg", "'nothing'"),
        ("example model --data digits --out e.svg --eps 300", "300"),
        ("example model --data digits --out e.svg --eps x", "'x'"),
        ("example model --data digits --out e.svg --norm l7", "l7"),
        ("example model --data digits --out e.svg --norm spatial", "turned image"),
        ("example model --data digits --out e.svg --index 300", "from 0 to 299"),
        ("example model --data digits --out e.svg --index -1", "from 0 to 299"),
        ("example model --data digits --out e.svg --limit 0", "at least 1"),
        ("example model --data digits --out e.svg --split tset", "'tset'"),
        ("example model --data digits --out e.svg --suite pdg", "pdg"),
        ("example model --data digits --out e.svg --device gpu9", "gpu9"),
        ("example model --data digits --out e.svg --seed 99999999999999999999", "--seed"),
        ("example model --data digits --out e.svg --defence jpg", "jpg"),
        ("example model model --data digits --out e.svg", "same name"),
        ("example model --name a --name b --data digits --out e.svg", "1 models and 2 --name"),
        ("example model --data digits --out model/card.json/e.svg", "card.json"),
        ("defence model --data digits --out d.svg", "no defence"),
        ("defence model --defence jpeg:quality=0 --data digits --out d.svg", "quality"),
        ("augment no-such --data digits --out a.svg", "no-such"),
        ("augment digits-gaussian --data digits --out a.svg --set augment.erase=2", "erase"),
        ("augment digits-gaussian --data digits --out a.svg --set nonsense", "key=value"),
    ],
)
def test_bad_requests_are_one_line(
    tmp_path: Path, monkeypatch, capsys, words: str, says: str
) -> None:
    small_checkpoint(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "figure", *words.split()) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_the_verb_can_be_called(tmp_path: Path) -> None:
    asked = verb.Classes(tmp_path / "c.svg", "digits")
    assert verb.run(asked) == "" and asked.out.is_file()
    assert set(verb.KINDS) == set(hf.figures.__all__) & set(verb.KINDS)
