"""One image before one model: what is said of it is true, and bad input ends in a line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import command, small_checkpoint
from models import digits, linear, without_torch
from PIL import Image
from torch import nn

import holdfast as hf
from holdfast import canvas, one_image
from holdfast.defences import chain
from holdfast.one_image import Calibration, Picture, Shape, brought, shape_of
from holdfast.one_image.found import written
from holdfast.one_image.trial import chosen_attack, number_of


@pytest.fixture(scope="module")
def reader() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    return digits(120)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def plane(distance: float) -> tuple[nn.Module, torch.Tensor, float]:
    """A linear classifier of two classes, an image so far in L∞ from its boundary, and ‖w‖₁."""
    model = linear(2, (1, 4, 4))
    w = (model.weight[0] - model.weight[1]).detach().float().view(1, 4, 4)
    at = torch.full((1, 4, 4), 0.5)
    return model, at + distance * w.sign(), float(w.abs().sum())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.4), ("l1", 2.0)])
def test_the_smallest_eps_is_the_distance_to_the_boundary(norm: str, eps: float) -> None:
    """Of a linear classifier it is known: the margin over the dual norm of the weights."""
    model, image, total = plane(0.05)
    w = (model.weight[0] - model.weight[1]).detach().float()
    margin = 0.05 * total
    dual = {"linf": total, "l2": float(w.norm()), "l1": float(w.abs().max())}[norm]
    found = hf.try_image(model, image, (norm, eps), label=0)
    assert found.smallest == pytest.approx(margin / dual, rel=0.02)
    assert found.broken == (margin / dual < eps)
    assert found.nearest is not None
    near = hf.Threat(norm, found.smallest * 1.001)
    assert bool(near.contains(found.nearest[None], image[None]))
    assert int(model(found.nearest[None]).argmax()) == 1


def test_a_ball_that_is_too_small_leaves_it_standing() -> None:
    model, image, _ = plane(0.05)
    found = hf.try_image(model, image, ("linf", 0.04), label=0)
    assert not found.broken and found.outcome == "stands"
    assert found.attacked.answer.label == 0 and found.smallest == pytest.approx(0.05, rel=0.02)
    assert found.attacked.answer.confidence < found.clean.answer.confidence


def test_the_answers_are_the_models(reader) -> None:
    model, x, y = reader
    found = hf.try_image(model, x[0], ("linf", 0.2), label=int(y[0]), closest=False)
    with torch.no_grad():
        for image, look in ((x[0], found.clean), (found.adversarial, found.attacked)):
            shares = model(image[None]).softmax(1)[0]
            torch.testing.assert_close(look.probabilities, shares, atol=1e-5, rtol=0)
            assert look.answer.label == int(shares.argmax())
            assert look.likeliest(3)[0].confidence == pytest.approx(float(shares.max()), abs=1e-5)
    assert bool(hf.Threat("linf", 0.2).contains(found.adversarial[None], x[:1]))
    assert found.broken and not found.searched and found.smallest_said == "not looked for"


def test_without_a_label_the_clean_answer_counts(reader) -> None:
    model, x, _ = reader
    found = hf.try_image(model, x[0], ("linf", 0.2), closest=False)
    assert found.label == found.clean.answer.label and not found.label_given
    assert "no true class was given" in dict(found.lines())["label"]


def test_an_image_that_is_wrong_already_needs_no_attack(reader) -> None:
    model, x, y = reader
    other = (int(y[0]) + 1) % 10
    found = hf.try_image(model, x[0], ("linf", 0.2), label=other)
    assert found.smallest == 0 and found.outcome == "wrong without any attack"


def test_a_target_is_reached_or_not(reader) -> None:
    model, x, y = reader
    target = (int(y[0]) + 3) % 10
    found = hf.try_image(model, x[0], ("linf", 0.5), label=int(y[0]), target=target, steps=40)
    assert found.broken and found.attacked.answer.label == target
    assert found.outcome == f"reached {target}"
    near = found.nearest
    assert near is not None and int(model(near[None]).argmax()) == target
    kept = hf.try_image(model, x[0], ("linf", 0.001), label=int(y[0]), target=target, closest=False)
    assert not kept.broken and kept.outcome == f"kept from {target}"


def test_a_model_without_gradients_is_searched_without(reader) -> None:
    model, x, y = reader
    found = hf.try_image(without_torch(model), x[0], ("linf", 0.3), label=int(y[0]))
    assert found.broken and found.attack == "Square, 1,000 queries"
    assert found.smallest is not None and found.smallest <= 0.3
    with pytest.raises(hf.InputError, match="apgd-ce needs gradients"):
        hf.try_image(without_torch(model), x[0], ("linf", 0.3), attack="apgd", closest=False)


def test_a_model_of_labels_has_no_confidence(reader) -> None:
    model, x, y = reader

    def labels(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return nn.functional.one_hot(model(images).argmax(1), 10).float()

    calibration = x[20:], y[20:]
    found = hf.try_image(
        labels, x[0], ("linf", 0.4), label=int(y[0]), closest=False, calibration=calibration
    )
    assert found.said(found.clean) == f"{int(y[0])} label only"
    assert found.clean.classes is None and "labels alone" in found.calibration.promise
    assert found.to_dict()["clean"]["probabilities"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_random_defence_is_averaged_over(reader, tmp_path: Path) -> None:
    model, x, y = reader
    noisy = chain(model, ["noise:sigma=0.1"])
    once = hf.try_image(noisy, x[0], ("linf", 0.2), label=int(y[0]), steps=5, closest=False)
    again = hf.try_image(noisy, x[0], ("linf", 0.2), label=int(y[0]), steps=5, closest=False)
    assert torch.equal(once.adversarial, again.adversarial)
    assert "over 10 draws" in once.attack and once.defences == ("noise:sigma=0.1",)


def test_the_conformal_set_is_that_of_split_conformal(reader) -> None:
    model, x, y = reader
    found = hf.try_image(
        model, x[0], ("linf", 0.2), label=int(y[0]), closest=False, calibration=(x[20:], y[20:])
    )
    with torch.no_grad():
        held = model(x[20:]).softmax(1).double()
        own = model(x[:1]).softmax(1).double()
    from holdfast.uncertainty.conformal import SplitConformal

    sets = SplitConformal.fit(held, y[20:], 0.1, score="lac").sets(own)[0]
    assert found.clean.classes is not None
    assert set(found.clean.classes) == set(np.flatnonzero(sets).tolist())
    assert "90% of clean images" in found.calibration.promise and "100 images" in (
        found.calibration.promise
    )
    few = hf.try_image(
        model, x[0], ("linf", 0.2), closest=False, calibration=(x[:5], y[:5]), label=int(y[0])
    )
    assert few.clean.classes is None and few.calibration.promise.startswith("No conformal set")


def test_models_of_the_zoo_bring_their_calibration_without_other_defences() -> None:
    model = hf.load("cifar10-linf-slim")
    own = Calibration.of(model)
    assert own.conformal is not None and own.conformal.n >= 500
    # By arithmetic: LAC holds what has at least 1 − threshold.
    threshold = own.conformal.thresholds[0]
    shares = torch.full((10,), (1 - 2 * (1 - threshold)) / 8)
    shares[3], shares[4] = 1 - threshold + 1e-4, 1 - threshold - 1e-4
    assert own.classes(shares) == (3,)
    assert "without this defence" in Calibration.of(model, defences=True).promise
    assert "has no calibration" in Calibration.of(nn.Flatten()).promise


# --- pictures -------------------------------------------------------------------------------------


def test_the_middle_is_cut_out_and_resized() -> None:
    pixels = np.zeros((3, 40, 80), np.uint8)
    pixels[:, :, 20:60] = 200
    image, said = brought(Picture(pixels, "p"), Shape(3, 8, 8))
    assert said == "80×40 pixels: the middle 40×40 cut out, resized to 8×8"
    torch.testing.assert_close(image, torch.full((3, 8, 8), 200 / 255))
    grey, said = brought(Picture(pixels, "p"), Shape(1, 8, 8))
    assert grey.shape == (1, 8, 8) and said.endswith("made grey")
    wide, said = brought(Picture(pixels[:1], "p"), Shape(3, 20, 40))
    assert wide.shape == (3, 20, 40) and "cut" not in said
    assert "its grey shown in three equal channels" in said
    same, said = brought(Picture(pixels, "p"), Shape(3, 40, 80))
    assert said == "80×40 pixels" and same.shape == (3, 40, 80)


def test_the_shape_is_the_models() -> None:
    assert str(shape_of(hf.load("cifar10-linf-slim"))) == "32×32"
    assert shape_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), channels=1).width == 8
    assert shape_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 3))).height == 12
    assert shape_of(nn.Sequential(nn.Conv2d(1, 2, 3))).channels == 1
    assert shape_of(nn.Flatten(), classes=1000).width == 224
    assert shape_of(nn.Flatten(), 50) == Shape(3, 50, 50)
    asked = hf.loading.adapted_as(nn.Flatten(), input_size="24x30")  # type: ignore[attr-defined]
    assert (shape_of(asked).height, shape_of(asked).width) == (24, 30)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("text.png", b"this is no picture", "no readable image"),
        ("empty.png", b"", "it is empty"),
        ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "no readable image"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, name, content, says) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(hf.InputError, match=says) as caught:
        one_image.read_picture(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(file)
    assert file.stat().st_size < 100_000
    with pytest.raises(hf.InputError, match="more than 50,000,000 pixels"):
        one_image.read_picture(file)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.zeros(2, 8, 8), "must be \\(C, H, W\\)"),
        (torch.full((1, 8, 8), 2.0), "outside"),
        (5, "is a int"),
        ("nowhere.png", "does not exist"),
    ],
)
def test_bad_images(reader, image, says) -> None:
    with pytest.raises(hf.InputError, match=says) as caught:
        hf.try_image(reader[0], image, ("linf", 0.1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label": "kat"}, "did you mean 'cat'"),
        ({"label": 7}, "0 to 1"),
        ({"label": 0, "target": 0}, "own class"),
        ({"attack": "pdg"}, "did you mean 'pgd'"),
        ({"attack": "autoattack", "steps": 3}, "suite of attacks"),
        ({"steps": 0}, "whole number"),
        ({"threat": ("spatial", 1)}, "turned image"),
        ({"threat": ("linf", 8)}, "8/255"),
        ({"threat": ("l0", 3), "attack": "pgd"}, "knows the norms"),
        ({"size": 8}, "taken as it is"),
        ({"out": "card.txt"}, "ending in"),
    ],
)
def test_bad_options(options, says) -> None:
    model, image, _ = plane(0.05)
    given = {"threat": ("linf", 0.1), "classes": ["cat", "dog"], **options}
    with pytest.raises(hf.InputError, match=says) as caught:
        hf.try_image(model, image, **given)
    assert "\n" not in str(caught.value)


def test_attacks_by_name() -> None:
    attack, suite = chosen_attack("pgd", 7)
    assert attack is not None and attack.settings["steps"] == 7 and suite is None
    attack, _ = chosen_attack("square", 300)
    assert attack is not None and attack.settings["queries"] == 300
    assert chosen_attack("autoattack", None)[0] is None
    assert chosen_attack(None, 5) == (None, None)


@pytest.mark.parametrize("attack", ["fgsm", "apgd", "fab", "ddn", "square", "swift"])
def test_other_attacks_and_suites_stay_inside_the_ball(reader, attack: str) -> None:
    model, x, y = reader
    norm, eps = ("l2", 1.5) if attack == "ddn" else ("linf", 0.2)
    heard: list[tuple[float | None, str]] = []
    found = hf.try_image(
        model, x[1], (norm, eps), label=int(y[1]), attack=attack, closest=False,
        progress=lambda share, word: heard.append((share, word)),
    )  # fmt: skip
    assert bool(hf.Threat(norm, eps).contains(found.adversarial[None], x[1:2]))
    assert found.broken or attack == "fgsm"
    assert heard and attack in found.attack and all(word for _, word in heard)
    shares = [share for share, _ in heard if share is not None]
    assert shares == sorted(shares)


def test_what_progress_raises_ends_the_search(reader) -> None:
    model, x, _ = reader

    def stop(share: float | None, word: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hf.try_image(model, x[0], ("linf", 0.2), attack="apgd", steps=500, progress=stop)


def test_words() -> None:
    assert number_of("dog", ["dog", "cat"], 2, "class") == 0
    assert number_of(None, [], 2, "class") is None
    assert written("linf", 12.34 / 255) == "12.3/255"


# --- the card and the command ---------------------------------------------------------------------


def test_the_card_shows_the_image_and_goes_over_nothing_else(reader, tmp_path: Path) -> None:
    model, x, y = reader
    found = hf.try_image(model, x[0], ("linf", 0.2), label=int(y[0]), out=tmp_path / "a.png")
    page = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    top, left, side = (round(2 * value) for value in (44 + 34, 28, 224))
    factor = side // 8
    small = page[top + factor // 2 : top + side : factor, left + factor // 2 : left + side : factor]
    np.testing.assert_allclose(small / 255, x[0, 0].numpy(), atol=1 / 255)
    assert Image.open(tmp_path / "a.png").info["Software"] == canvas.MADE_BY
    several = one_image.write_card([found, found], tmp_path / "b.svg")
    assert several.read_text().count("<image") == 6
    with pytest.raises(hf.InputError, match="1 to 4 models"):
        one_image.write_card([], tmp_path / "c.png")
    (tmp_path / "mine.png").write_bytes(b"mine")
    with pytest.raises(hf.InputError, match="did not write"):
        hf.try_image(model, x[0], ("linf", 0.2), out=tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


def test_the_command(monkeypatch, capsys, tmp_path: Path, photo: Path) -> None:
    model = small_checkpoint(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "try", model, photo, "--steps", 3, "--quiet") == 0
    said = capsys.readouterr().out
    assert "64×48 pixels: the middle 48×48 cut out, resized to 8×8, made grey" in said
    assert "within L∞ 0.1 by PGD on the margin, 3 steps" in said and "No conformal set" in said
    assert (tmp_path / "photo-card.png").is_file()


def test_an_image_of_the_data_brings_its_class_and_a_calibration(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    model = small_checkpoint(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    words = ("--data", "digits", "--norm", "l2", "--eps", 0.3, "--steps", 2, "--json", "--quiet")
    assert command(monkeypatch, "try", model, 7, *words) == 0
    found = json.loads(capsys.readouterr().out)
    split = hf.data.load("digits").test
    assert found["label"] == int(split.labels[7]) and found["label_given"]
    assert found["conformal"]["alpha"] == 0.1 and found["clean"]["conformal_set"]
    assert found["threat"] == {"norm": "l2", "eps": 0.3} and Path(found["card"]).is_file()
    assert command(monkeypatch, "try", model, 300, *words) == 2
    assert "300" in capsys.readouterr().err


def test_bad_input_ends_before_a_model_is_loaded(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("text")
    assert command(monkeypatch, "try", "no-such-model", "text.png") == 2
    assert "no readable image" in capsys.readouterr().err
    assert not (tmp_path / "text-card.png").exists()
