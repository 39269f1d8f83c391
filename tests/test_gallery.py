"""Pictures of all images of a run: written small, shown as they are, refused where damaged."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import colour_images, evaluation_run
from safetensors.numpy import load_file, save_file

import holdfast
from holdfast.errors import InputError
from holdfast.evaluation import pictures
from holdfast.evaluation.pictures import FILE, write_pictures
from holdfast.report import gallery, write_report
from holdfast.report.runs import read_run

EPS = 8 / 255


def pair(n: int, size: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and changed ones, no pixel of which is clipped."""
    images = 0.2 + 0.6 * torch.from_numpy(colour_images(n, size, seed))
    sign = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).sign()
    return images, images + EPS * sign


def with_pictures(folder: Path, n: int = 40, **changes: object) -> tuple[Path, torch.Tensor]:
    run = evaluation_run(folder, n=n, **changes)
    images, changed = pair(n)
    write_pictures(run, images, changed, torch.arange(n))
    return run, changed


def decoded(sheet: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.split(",")[1]))).convert("RGB"))


def shown(data: dict, i: int) -> tuple[np.ndarray, np.ndarray]:
    """The clean image and the change, (H, W, 3), as the page's script reads them."""
    w, h, channels = data["width"], data["height"], data["channels"]
    within = i % data["perSheet"]
    column, row = within % data["columns"], within // data["columns"]
    clean, change = (decoded(data[kind][i // data["perSheet"]]) for kind in ("clean", "change"))
    grey = change[row * h : (row + 1) * h, column * w * channels : (column + 1) * w * channels, 0]
    level = np.round((grey.astype(float) - 127.5) / 127.5 * data["levels"])
    planes = level.reshape(h, channels, w).transpose(0, 2, 1) * data["scale"] / data["levels"]
    return clean[row * h : (row + 1) * h, column * w : (column + 1) * w] / 255, planes


def test_every_image_is_there_and_its_change_exact(tmp_path):
    run, changed = with_pictures(tmp_path / "run", n=1100)  # more than one sheet
    data = gallery.gallery(read_run(run)).data
    assert data["index"] == list(range(1100)) and len(data["clean"]) == len(data["change"]) > 1
    images, _ = pair(1100)
    for i in (0, 17, 339, 340, 1099):
        clean, change = shown(data, i)
        assert np.abs(clean - images[i].permute(1, 2, 0).numpy()).mean() < 0.02  # WebP
        delta = (changed[i] - images[i]).permute(1, 2, 0).numpy()
        assert np.abs(change - delta).max() < EPS / 100


def test_rows_are_those_of_the_verdicts(tmp_path):
    run, _ = with_pictures(tmp_path / "run")
    v = read_run(run).verdicts
    data = gallery.gallery(read_run(run)).data
    assert data["label"] == v.label.tolist() and data["after"] == v.adversarial_prediction.tolist()
    for i, (fate, attack) in enumerate(zip(data["fate"], data["attack"], strict=True)):
        name = data["attacks"][attack] if attack >= 0 else ("clean" if fate == 2 else "")
        assert name == v.attack[i]
        assert fate == (2 if v.attack[i] == "clean" else int(v.broken[i]))


def test_an_evaluation_writes_them(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    images, labels = torch.rand(30, 1, 8, 8), torch.arange(30) % 2
    holdfast.evaluate(model, images, labels, ("linf", 0.1), suite="fgsm", run=tmp_path / "run")
    held = load_file(tmp_path / "run" / FILE)
    assert held["images"].dtype == np.uint8 and held["index"].tolist() == list(range(30))
    assert np.abs(held["images"] / 255 - images.numpy()).max() <= 0.5 / 255 + 1e-6
    assert float(held["scale"][0]) == pytest.approx(0.1, rel=0.01)
    html = write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.S)
    assert json.loads(text)["index"] == list(range(30))


def test_large_images_are_shrunk_and_too_many_left_out(tmp_path, monkeypatch):
    images, changed = pair(6, 128)
    monkeypatch.setattr(pictures, "VALUES", 6 * 3 * 64 * 64)
    write_pictures(tmp_path, images, changed, torch.arange(6))
    held = load_file(tmp_path / FILE)
    assert held["images"].shape == (6, 3, 64, 64)
    mean = images.reshape(6, 3, 64, 2, 64, 2).mean((3, 5)).numpy()
    assert np.abs(held["images"] / 255 - mean).max() <= 0.5 / 255 + 1e-6
    monkeypatch.setattr(pictures, "VALUES", 3 * 3 * 32 * 32)
    write_pictures(tmp_path, images, changed, torch.arange(6))
    held = load_file(tmp_path / FILE)
    assert held["images"].shape == (3, 3, 32, 32) and held["index"].tolist() == [0, 1, 2]


def test_images_of_four_channels_write_nothing(tmp_path):
    write_pictures(tmp_path, torch.rand(2, 4, 8, 8), torch.rand(2, 4, 8, 8), torch.arange(2))
    assert not (tmp_path / FILE).exists()


def test_pictures_keep_to_their_budget(tmp_path):
    run = evaluation_run(tmp_path / "run", n=700)
    images, _ = pair(700)
    noise = EPS * (2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 1)
    write_pictures(run, images, images + noise, torch.arange(700))
    whole = gallery.gallery(read_run(run))
    size = sum(map(len, whole.data["clean"] + whole.data["change"]))
    half = gallery.gallery(read_run(run), budget=size * 3 // 8)
    assert half.shown == 700  # less well, rather than fewer
    assert sum(map(len, half.data["clean"] + half.data["change"])) <= size // 2
    few = gallery.gallery(read_run(run), budget=1000)
    assert 0 < few.shown < 700
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "The page holds pictures of" not in page


def test_runs_of_before_show_their_examples(tmp_path):
    data = gallery.gallery(read_run(evaluation_run(tmp_path / "run"))).data
    stored = load_file(tmp_path / "run" / "examples.safetensors")
    _, change = shown(data, 3)
    delta = (stored["adversarial"] - stored["images"])[3].transpose(1, 2, 0)
    assert np.abs(change - delta).max() < EPS / 60 + 1e-4
    page = write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "The page holds pictures of 16 of its 1,000 images." in page


DAMAGE = {
    "garbage": (None, "is damaged"),
    "a tensor lacks": ({"scale": None}, "holds no tensor 'scale'"),
    "kinds": ({"images": np.zeros((2, 3, 8, 8), np.float32)}, "do not belong together"),
    "shapes": ({"change": np.zeros((1, 3, 8, 8), np.int8)}, "do not belong together"),
    "channels": ({"images": np.zeros((2, 2, 8, 8), np.uint8),
                  "change": np.zeros((2, 2, 8, 8), np.int8)}, "do not belong together"),
    "not finite": ({"scale": np.array([np.nan], np.float32)}, "do not belong together"),
    "unknown image": ({"index": np.array([0, 5000])}, "shows image 5000, which has no row"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_pictures_are_named(tmp_path, damage):
    changes, message = DAMAGE[damage]
    run = evaluation_run(tmp_path / "run")
    good = {
        "images": np.zeros((2, 3, 8, 8), np.uint8),
        "change": np.zeros((2, 3, 8, 8), np.int8),
        "scale": np.array([0.1], np.float32),
        "index": np.arange(2),
    }
    if changes is None:
        (run / FILE).write_bytes(b"not tensors")
    else:
        save_file({k: v for k, v in (good | changes).items() if v is not None}, run / FILE)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        write_report([run], tmp_path / "page.html")
    assert FILE in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_ten_thousand_images_fit_a_page_and_half_a_minute(tmp_path):
    run = evaluation_run(tmp_path / "run", n=10_000)
    draw = torch.Generator().manual_seed(0)
    images = torch.from_numpy(colour_images(500)).repeat(20, 1, 1, 1)
    images = (images + 0.05 * torch.randn(images.shape, generator=draw)).clamp(0, 1)
    changed = images + EPS * (2 * torch.rand(images.shape, generator=draw) - 1)
    write_pictures(run, images, changed, torch.arange(10_000))
    begin = time.process_time()
    page = write_report([run], tmp_path / "page.html")
    assert time.process_time() - begin < 30
    assert page.stat().st_size < 15e6
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', page.read_text(), re.S)
    assert len(json.loads(text)["index"]) == 10_000


@pytest.mark.slow
def test_five_hundred_runs_fit_a_page_and_half_a_minute(tmp_path):
    labels, images = np.arange(1000) % 10, colour_images(2)
    runs = [
        evaluation_run(tmp_path / f"r{i}", name=f"model-{i}", seed=i, images=images, labels=labels,
                       robust=0.2 + 0.0005 * i)
        for i in range(500)
    ]  # fmt: skip
    begin = time.process_time()
    page = write_report(runs, tmp_path / "page.html")
    assert time.process_time() - begin < 30
    assert page.stat().st_size < 15e6
    assert page.read_text().count("model-499") > 1
