"""The command line on people's data: what every verb makes of it, and what it says."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import image_folder, write_image
from models import digits as trained_digits
from PIL import Image
from verbs import certify_command, evaluate_command, uncertainty_command

import holdfast as hf
from holdfast import data
from holdfast.cli import data as data_verb
from holdfast.cli import judge, train
from holdfast.errors import InputError
from holdfast.models import save_checkpoint

QUICK: dict[str, Any] = {"suite": "fgsm", "curve": False}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reader of digits whose classes have names, and whose card says what it was trained on."""
    network, _, _ = trained_digits(1)
    card = {
        "architecture": "small-cnn",
        "arguments": {"width": 8},
        "classes": list(NAMES),
        "images": {"height": 8, "width": 8, "channels": 1},
        "threat": {"norm": "linf", "eps": 0.1},
    }
    return str(save_checkpoint(tmp_path_factory.mktemp("model") / "reader", network, card))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test digits as colour PNGs of 16 × 16 in class folders, without any train folder."""
    folder, test = tmp_path_factory.mktemp("own") / "digits", data.load("digits").test
    for row in range(40):
        pixels = np.repeat(np.repeat(test.images[row, 0], 2, 0), 2, 1)
        place = folder / "test" / NAMES[test.labels[row]] / f"{row}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert("RGB").save(place)
    return folder


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_a_test_folder_of_another_size_and_colour(
    model: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card knows what the model takes, in which order it has the classes, and that suffices."""
    found = evaluate_command(model, str(own), tmp_path / "run", **QUICK)
    told = capsys.readouterr().out
    assert "images are brought to 8×8" in told and "the order of the 10 classes" in told
    held = result(tmp_path / "run")["data"]
    assert held["brought"] == {"size": 8, "grey": True} and held["split"] == "test"
    assert any("brought to 8×8" in line for line in held["told"]) and found.n == 40
    assert found.standard_accuracy > 0.7  # halving doubled pixels gives the digits again
    for how in ({"size": 5}, {"size": 8, "grey": True}):
        try:
            evaluate_command(model, str(own), tmp_path / str(how["size"]), **QUICK, **how)
        except InputError as error:
            assert how["size"] == 5, error  # a network for 8 × 8 alone


def test_what_was_found_is_exported_with_the_same_images(
    model: str, own: Path, tmp_path: Path
) -> None:
    evaluate_command(model, str(own), tmp_path / "run", **QUICK)
    files = hf.export(tmp_path / "run", tmp_path / "x.npz", data=str(own)).files
    with np.load(files[0]) as held:
        images = [array for array in held.values() if array.ndim == 4]
        assert images and images[0].shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("kind", ["npz", "npy", "parquet"])
def test_arrays_give_the_verdicts_of_the_data_set(
    model: str, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers as labels are the model's classes of those numbers."""
    test = data.load("digits").test.first(20)
    source = tmp_path / "set"
    if kind == "npz":
        source = tmp_path / "set.npz"
        np.savez(source, x_test=test.images[:, 0] / np.float32(255), y_test=test.labels)
    elif kind == "npy":
        source.mkdir()
        np.save(source / "images.npy", test.images.transpose(0, 2, 3, 1))
        np.save(source / "labels.npy", np.eye(10)[test.labels])
    else:
        pa = pytest.importorskip("pyarrow")
        import io

        import pyarrow.parquet as pq

        rows = []
        for image in test.images:
            buffer = io.BytesIO()
            Image.fromarray(image[0]).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        source.mkdir()
        pq.write_table(
            pa.table({"image": rows, "label": test.labels}), source / "test-00000-of-00001.parquet"
        )
    evaluate_command(model, str(source), tmp_path / "own", **QUICK)
    assert "are the classes of model" in capsys.readouterr().out
    named = data.DataSet("digits", NAMES, test, test, test)
    evaluate_command(model, named, tmp_path / "named", **QUICK)
    verdicts = [
        list(csv.reader((tmp_path / run / "verdicts.csv").read_text().splitlines()))
        for run in ("own", "named")
    ]
    assert verdicts[0] == verdicts[1] and len(verdicts[0]) == 21


def test_chosen_images(model: str, tmp_path: Path) -> None:
    numbers = data.DataSet("digits", NAMES, *[getattr(data.load("digits"), s) for s in
                           ("train", "validation", "test")])  # fmt: skip
    (tmp_path / "rows.txt").write_text("7\n3\n11\n")
    evaluate_command(model, numbers, tmp_path / "a", indices=str(tmp_path / "rows.txt"), **QUICK)
    assert result(tmp_path / "a")["data"]["indices"] == [7, 3, 11]
    found = evaluate_command(model, numbers, tmp_path / "b", balanced=True, limit=20, **QUICK)
    assert found.n == 20 and result(tmp_path / "b")["data"]["classes_without_images"] == []
    whole = evaluate_command(model, numbers, tmp_path / "c", split="all", limit=6, **QUICK)
    assert whole.n == 6 and result(tmp_path / "c")["data"]["split"] == "all"
    with pytest.raises(InputError, match="9 images are fewer than the 10 classes"):
        evaluate_command(model, numbers, tmp_path / "d", balanced=True, limit=9, **QUICK)
    (tmp_path / "rows.txt").write_text("300\n")
    with pytest.raises(InputError, match="index 300, the 1st, is out of range"):
        evaluate_command(
            model, numbers, tmp_path / "e", indices=str(tmp_path / "rows.txt"), **QUICK
        )
    assert not (tmp_path / "e").exists()


def test_other_verbs_choose_alike(model: str, tmp_path: Path) -> None:
    held = data.load("digits")
    named = data.DataSet("digits", NAMES, held.train, held.validation, held.test)
    rows = tmp_path / "rows.json"
    rows.write_text("[5, 2, 9]")
    found = certify_command(
        model, named, tmp_path / "cert", indices=str(rows), sigma=0.25, n0=10, n=50
    )
    assert found.certified
    assert result(tmp_path / "cert")["data"]["indices"] == [5, 2, 9]
    np.savez(tmp_path / "adv.npz", adversarial=held.test.images[[5, 2, 9]] / np.float32(255))
    options = judge.Options(
        model=model, out=tmp_path / "judged", data=named,  # type: ignore[arg-type]
        adversarial=str(tmp_path / "adv.npz"), indices=str(rows), quiet=True,
    )  # fmt: skip
    assert judge.run(options).n == 3
    assert result(tmp_path / "judged")["data"]["indices"] == [5, 2, 9]


def test_verbs_that_need_more_splits_say_so(model: str, own: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has test but no validation folder; --split test or all"):
        uncertainty_command(model, str(own), tmp_path / "u")
    options = train.Options("digits", tmp_path / "t", str(own), quiet=True)
    with pytest.raises(InputError, match="has test but no validation folder"):
        train.run(options)
    with pytest.raises(InputError, match="has test but no train folder"):
        evaluate_command(model, str(own), tmp_path / "e", split="train", **QUICK)
    assert not any((tmp_path / name).exists() for name in "ute")


def test_data_lists_what_there_is_and_what_is_not(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(own, tmp_path / "set")
    (tmp_path / "set" / "annotations").mkdir()
    (tmp_path / "set" / "annotations" / "a.xml").write_text("")
    options = data_verb.Options(data=str(tmp_path / "set"))
    data_verb.show(data_verb.run(options), options)
    told = capsys.readouterr().out
    assert "Test data:  (40, 3, 16, 16)" in told and "no train folder" in told
    assert "beside the images, not read: annotations" in told


def test_a_trained_model_remembers_its_images(tmp_path: Path) -> None:
    """From photographs of several sizes to a verdict, and `--image-size` is said once."""
    for split, n in (("train", 12), ("val", 4), ("test", 4)):
        image_folder(tmp_path / "own" / split, n=n)
        for name in ("cat", "dog"):
            write_image(tmp_path / "own" / split / name / "wide.png", len(name + split), (20, 14))
    dataset = data.load(tmp_path / "own", size=8, grey=True)
    brought = {"size": 8, "grey": True}
    assert dataset.shown == {"height": 8, "width": 8, "channels": 1, "brought": brought}
    from holdfast.models.registry import build
    from holdfast.runs.records import Card

    card = {
        "architecture": "small-cnn",
        "arguments": {"width": 4, "classes": 2},
        "classes": list(dataset.classes),
        "images": dataset.shown,
    }
    assert Card.checked(card, "card").images == dataset.shown
    network = build("small-cnn", card["arguments"])
    folder = save_checkpoint(tmp_path / "model", network, card)
    found = evaluate_command(str(folder), str(tmp_path / "own"), tmp_path / "run", **QUICK)
    assert found.n == 10 and result(tmp_path / "run")["data"]["brought"] == brought
