"""Data sets by name or folder: the listing, the figure, the digits, and `load_datasets.py`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import data_files
import numpy as np
import pytest
import torch
from PIL import Image

import load_datasets
from holdfast import data
from holdfast.data import DataSet, Split, cifar10, contact_sheet
from holdfast.errors import InputError

N = data_files.IMAGES_PER_BATCH
ROOT = Path(load_datasets.__file__).parent

LISTING = """\
Training data:  (40000, 3, 32, 32)
Training filenames:  (40000,)
Training labels:  (40000,)
Validation data:  (10000, 3, 32, 32)
Validation filenames:  (10000,)
Validation labels:  (10000,)
Test data:  (10000, 3, 32, 32)
Test filenames:  (10000,)
Test labels:  (10000,)
Label names:  (10,)"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with CIFAR-10 as published, but small batches."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", N)
    return data_files.published_layout(tmp_path / "datasets")


def zeros(n: int, shape: tuple[int, ...] = (3, 32, 32)) -> Split:
    images = np.broadcast_to(np.uint8(0), (n, *shape))  # takes no memory
    return Split(images, np.full(n, "a.png"), np.zeros(n, np.int64), "made up")


def test_the_listing_is_exactly_that_of_cifar10() -> None:
    names = tuple("abcdefghij")
    dataset = DataSet("cifar10", names, zeros(40_000), zeros(10_000), zeros(10_000))
    assert data.describe(dataset) == LISTING


# --- splits ---------------------------------------------------------------------------------


def test_a_split_refuses_what_does_not_fit_together() -> None:
    images, names, labels = np.zeros((2, 1, 8, 8), np.uint8), np.array(["a", "b"]), np.array([0, 1])
    Split(images, names, labels, "")
    for wrong, words in (
        ((images[0], names, labels), "images must be uint8"),
        ((images.astype(np.float32), names, labels), "images must be uint8"),
        ((images, names[:1], labels), "filenames"),
        ((images, names, labels[:1]), "labels"),
        ((images, names, labels.astype(np.int32)), "labels"),
    ):
        with pytest.raises(InputError, match=words):
            Split(*wrong, "")


def test_splits_by_name() -> None:
    digits = data.load("digits")
    assert digits.split("test") is digits.test
    both = digits.split("train+validation")
    assert len(both) == 1497 and both.pixels == digits.train.pixels
    np.testing.assert_array_equal(both.labels[1197:], digits.validation.labels)
    with pytest.raises(InputError, match=r"'valid' is unknown; .* validation"):
        digits.split("valid")


def test_to_tensor() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    tensor = data.to_tensor(images)
    assert tensor.dtype == torch.float32
    # As exact as float32 is: what numpy gets in float64, rounded once.
    assert tensor.flatten().tolist() == (np.arange(256) / 255).astype(np.float32).tolist()
    assert data.to_tensor(np.broadcast_to(images[:, :, :1], (3, 1, 16, 16))).shape == (3, 1, 16, 16)
    with pytest.raises(InputError, match="float64"):
        data.to_tensor(images / 255)


# --- digits ---------------------------------------------------------------------------------


def test_digits() -> None:
    digits = data.load("digits")
    sizes = [len(split) for split in (digits.train, digits.validation, digits.test)]
    assert sizes == [1197, 300, 300] and digits.classes == tuple("0123456789")
    assert digits.train.images.shape == (1197, 1, 8, 8) and digits.train.images.dtype == np.uint8
    assert set(np.unique(digits.train.images)) == {round(level * 255 / 16) for level in range(17)}
    for split in (digits.validation, digits.test):
        assert np.bincount(split.labels).tolist() == [30] * 10
    names = [n for s in (digits.train, digits.validation, digits.test) for n in s.filenames]
    assert sorted(names) == [f"digit_{i:04d}" for i in range(1797)]


def test_digits_keep_their_split() -> None:
    # Figures in documents hold for this split and no other.
    test = data.load("digits").test
    digest = hashlib.sha256("".join(test.filenames).encode()).hexdigest()[:12]
    assert digest == "54ee03dfbc16"


def test_digits_keep_image_and_label_together() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    validation = data.load("digits").validation
    for name, image, label in zip(
        validation.filenames, validation.images, validation.labels, strict=True
    ):
        index = int(name.removeprefix("digit_"))
        assert labels[index] == label
        np.testing.assert_allclose(image.ravel() * (16 / 255), images[index], atol=0.04)


# --- load -----------------------------------------------------------------------------------


def test_load_tells_cifar10_from_a_folder_of_images(small: Path, tmp_path: Path) -> None:
    assert data.load(small).name == "cifar10"
    assert data.load(str(small.parent / "datasets")).train.images.shape == (4 * N, 3, 32, 32)
    assert data.load(data_files.image_folder(tmp_path / "pets")).name == "pets"


def test_load_of_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError) as caught:
            data.load(folder)
        message = str(caught.value)
        assert message.startswith(str(folder)) and "\n" not in message
        assert "--download" in message and "data_batch_1 to 5, test_batch, batches.meta" in message


def test_a_size_is_for_images_of_ones_own(small: Path) -> None:
    assert data.load(small, size=32).train.images.shape[2:] == (32, 32)
    with pytest.raises(InputError, match=r"size 64 is for images of your own; .*32×32"):
        data.load(small, size=64)


# --- figure ---------------------------------------------------------------------------------


def test_the_figure_shows_ten_images_of_each_class(small: Path, tmp_path: Path) -> None:
    dataset = data.load(small)
    path = tmp_path / "pictures" / "classes.png"
    data.figure(dataset, path)
    page = np.asarray(Image.open(path).convert("RGB"))
    assert page.shape[0] > 10 * 32 and page.shape[1] > 10 * 32
    first = path.read_bytes()
    data.figure(dataset, path)
    assert path.read_bytes() == first  # the seed decides
    data.figure(dataset, path, seed=1)
    assert path.read_bytes() != first
    assert [p.name for p in path.parent.iterdir()] == ["classes.png"]


def test_each_row_of_the_figure_holds_images_of_its_class(tmp_path: Path) -> None:
    shades = np.arange(4, dtype=np.uint8) * 50 + 40  # one grey a class
    labels = np.repeat(np.arange(4), 12)
    images = np.broadcast_to(shades[labels][:, None, None, None], (48, 1, 8, 8))
    split = Split(images, np.full(48, "a"), labels, "")
    data.figure(DataSet("greys", ("a", "b", "c", "d"), split, split, split), tmp_path / "f.png")
    page = np.asarray(Image.open(tmp_path / "f.png").convert("L"))
    last = -1
    for shade in shades:
        # Ten whole tiles of 96 × 96 pixels in one row (and a few pixels of the lettering).
        rows = np.nonzero((page == shade).sum(1) >= 960)[0]
        assert len(rows) == 96 == np.ptp(rows) + 1
        assert abs((page == shade).sum() - 10 * 96 * 96) < 200
        assert rows[0] > last
        last = rows[-1]


def test_figures_of_few_large_and_many_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheet, "MOST_CLASSES", 3)
    few = zeros(2, (3, 300, 150))
    data.figure(DataSet("few", ("a" * 200, "b"), few, few, few), tmp_path / "few.pdf")
    many = zeros(3, (1, 8, 8))
    data.figure(DataSet("many", tuple("abcdef"), many, many, many), tmp_path / "many.png")
    assert 3 * 96 < Image.open(tmp_path / "many.png").height < 5 * 96


def test_figures_that_cannot_be_written(tmp_path: Path) -> None:
    digits = data.load("digits")
    for name in ("figure", "figure.xyz"):
        with pytest.raises(InputError, match=r"name a picture file, ending in .*png"):
            data.figure(digits, tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        data.figure(digits, tmp_path / "file" / "f.png")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# --- load_datasets.py -----------------------------------------------------------------------


def test_the_ten_arrays(small: Path) -> None:
    arrays = load_datasets.load_cifar_10_data(small)
    n = (4 * N, N, N)
    shapes = [s for k in n for s in ((k, 3, 32, 32), (k,), (k,))]
    assert [array.shape for array in arrays] == [*shapes, (10,)]
    assert all(isinstance(array, np.ndarray) for array in arrays)
    assert [array.dtype.kind for array in arrays] == [*"uUi" * 3, "U"]
    np.testing.assert_array_equal(arrays[3], data_files.images_of(5))
    np.testing.assert_array_equal(arrays[6], data_files.images_of(6))
    assert arrays[8].tolist() == data_files.batch(6)["labels"]
    assert tuple(arrays[9]) == data_files.CLASSES


def test_the_program_lists_and_draws(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "f.png"
    argv = ["load_datasets.py", "--data", str(small), "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", argv)
    assert load_datasets.main() == 0
    assert capsys.readouterr().out == data.describe(data.load(small)) + "\n"
    assert Image.open(figure).format == "PNG"


def test_the_program_looks_in_datasets(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(small.parent)
    monkeypatch.setattr(sys, "argv", ["load_datasets.py"])
    assert load_datasets.main() == 0
    assert capsys.readouterr().out.startswith("Training data:  (80, 3, 32, 32)\n")
    monkeypatch.setattr(sys, "argv", ["load_datasets.py", "--dta", "x"])
    with pytest.raises(SystemExit) as caught:
        load_datasets.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_program_on_a_missing_folder(tmp_path: Path) -> None:
    # From elsewhere, isolated from the environment: the repository root alone must do.
    program = [sys.executable, str(ROOT / "load_datasets.py"), "--data", "none"]
    result = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("load_datasets.py: none: no such folder; ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
