"""CIFAR-10 in every layout of the contract, and what is said when something is wrong with it."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast import data
from holdfast.data import cifar10
from holdfast.errors import InputError

N = data_files.IMAGES_PER_BATCH
FIVE = {f"data_batch_{i}": i for i in range(1, 6)}
FOUR = {f"data_batch_{i}": i for i in range(1, 5)}
FOUR_TRAIN = {f"train_batch_{i}": i for i in range(1, 5)}
VALIDATION, TEST = {"val_batch": 7}, {"test_batch": 8}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", N)


def refused(folder: Path) -> str:
    """The message, after checking that it is one line that names the folder or a file in it."""
    with pytest.raises(InputError) as caught:
        cifar10.load(folder)
    message = str(caught.value)
    assert message.startswith(str(folder)) and "\n" not in message
    return message


# --- layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-py"])
@pytest.mark.parametrize(
    ("seeds", "validation", "test"),
    [
        (FIVE | TEST, 5, 8),
        (FIVE | VALIDATION, 7, 5),
        (FOUR | VALIDATION | TEST, 7, 8),
        (FOUR_TRAIN | VALIDATION | TEST, 7, 8),
        (FOUR_TRAIN | VALIDATION | {"data_batch_5": 5}, 7, 5),
        (FOUR | VALIDATION | {"data_batch_6": 6}, 7, 6),
        # More batches, but none with other images.
        (FIVE | {"val_batch": 5} | TEST, 5, 8),
        (FOUR | FOUR_TRAIN | VALIDATION | TEST, 7, 8),
        (FIVE | FOUR_TRAIN | VALIDATION, 7, 5),
        (FOUR | VALIDATION | {"data_batch_5": 5, "train_batch_5": 5}, 7, 5),
        (FIVE | TEST | {"data_batch_6": 8}, 5, 8),
    ],
)
def test_layouts(
    tmp_path: Path, subfolder: str, seeds: dict[str, int], validation: int, test: int
) -> None:
    data_files.write_cifar10(tmp_path / subfolder, seeds)
    (tmp_path / "readme.html").write_text("not a batch")
    dataset = cifar10.load(tmp_path)
    assert dataset.classes == data_files.CLASSES
    for split, parts in (
        (dataset.train, [1, 2, 3, 4]),
        (dataset.validation, [validation]),
        (dataset.test, [test]),
    ):
        batches = [data_files.batch(seed) for seed in parts]
        np.testing.assert_array_equal(
            split.images, np.concatenate([b["data"] for b in batches]).reshape(-1, 3, 32, 32)
        )
        assert split.labels.tolist() == [label for b in batches for label in b["labels"]]
        assert split.filenames.tolist() == [name for b in batches for name in b["filenames"]]
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("seeds", "named"),
    [
        (FIVE | VALIDATION | TEST, ["data_batch_5"]),
        (FIVE | TEST | {"data_batch_6": 6, "train_batch_9": 9}, ["data_batch_6", "train_batch_9"]),
        (FOUR | {"train_batch_2": 12} | VALIDATION | TEST, ["train_batch_2"]),
        (FIVE | VALIDATION | {"data_batch_6": 6}, ["data_batch_5", "data_batch_6"]),
    ],
)
def test_more_batches_with_other_images_are_named(
    tmp_path: Path, seeds: dict[str, int], named: list[str]
) -> None:
    message = refused(data_files.write_cifar10(tmp_path, seeds))
    extra = message.split("need: ")[1].split(" beside")[0]
    assert extra.split(", ") == named


@pytest.mark.parametrize(
    ("seeds", "named"),
    [
        (FIVE | {"test_batch": 2}, ["data_batch_2", "test_batch"]),
        (FOUR | {"val_batch": 8} | TEST, ["val_batch", "test_batch"]),
        (FIVE | {"val_batch": 5}, ["test_batch", "data_batch_5"]),
    ],
)
def test_splits_that_would_share_their_images(
    tmp_path: Path, seeds: dict[str, int], named: list[str]
) -> None:
    message = refused(data_files.write_cifar10(tmp_path, seeds))
    assert all(name in message for name in named)


@pytest.mark.parametrize(
    ("seeds", "missing"),
    [
        (FIVE, ["test_batch"]),
        (FOUR | VALIDATION, ["test_batch"]),
        (FOUR | TEST, ["data_batch_5"]),
        (
            {"data_batch_1": 1, "data_batch_3": 3} | VALIDATION | TEST,
            ["data_batch_2", "data_batch_4"],
        ),
        ({}, [*FIVE, "test_batch"]),
    ],
)
def test_missing_batches_are_named(
    tmp_path: Path, seeds: dict[str, int], missing: list[str]
) -> None:
    message = refused(data_files.write_cifar10(tmp_path, seeds))
    assert f"incomplete, {', '.join(missing)} missing" in message
    assert str(tmp_path / "cifar-10-batches-py") in message and "--download" in message


def test_missing_label_names(tmp_path: Path) -> None:
    data_files.published_layout(tmp_path)
    (tmp_path / "batches.meta").unlink()
    assert "batches.meta missing" in refused(tmp_path)


def test_a_complete_subfolder_wins_over_leftovers(tmp_path: Path) -> None:
    data_files.write_cifar10(tmp_path, {"data_batch_1": 9})
    data_files.published_layout(tmp_path / "cifar-10-batches-py")
    np.testing.assert_array_equal(cifar10.load(tmp_path).train.images[:N], data_files.images_of(1))


def test_the_folder_of_the_files_itself(tmp_path: Path) -> None:
    folder = data_files.published_layout(tmp_path / "cifar-10-batches-py")
    assert len(cifar10.load(folder).train) == 4 * N


# --- content --------------------------------------------------------------------------------


def spoiled(**changes: Any) -> dict[str, Any]:
    return {
        key: value for key, value in (data_files.batch(3) | changes).items() if value is not None
    }


LABELS = data_files.batch(3)["labels"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (spoiled(data=np.zeros((N - 1, 3072), np.uint8)), "uint8 (19, 3072)"),
        (spoiled(data=np.zeros((N, 1024), np.uint8)), "uint8 (20, 1024)"),
        (spoiled(data=np.zeros((N, 3, 32, 32), np.uint8)), "uint8 (20, 3, 32, 32)"),
        (spoiled(data=np.zeros((N, 3072), np.float32)), "float32 (20, 3072)"),
        (spoiled(data=[1, 2]), "data is no array"),
        (spoiled(data=None), "no 'data'"),
        (spoiled(labels=None), "no 'labels'"),
        (spoiled(filenames=None), "no 'filenames'"),
        (spoiled(labels=[*LABELS[:5], 10, *LABELS[6:]]), "label 5 is 10"),
        (spoiled(labels=[*LABELS[:5], -1, *LABELS[6:]]), "label 5 is -1"),
        (spoiled(labels=[*LABELS[:5], 2**70, *LABELS[6:]]), "label 5 is out of range"),
        (spoiled(labels=[*LABELS[:5], 1 << 50_000, *LABELS[6:]]), "label 5 is out of range"),
        (spoiled(labels=[*LABELS[:5], 1.5, *LABELS[6:]]), "label 5 is 1.5"),
        (spoiled(labels=[*LABELS[:5], True, *LABELS[6:]]), "label 5 is out of range"),
        (spoiled(labels=[*LABELS[:5], "3", *LABELS[6:]]), "label 5 is out of range"),
        (spoiled(labels=np.full(N, 0.5)), "label 0 is 0.5"),
        (spoiled(labels=LABELS[:-1]), "19 labels where there must be 20"),
        (spoiled(labels={}), "labels are no list"),
        (spoiled(filenames=["a.png"]), "1 filenames where there must be 20"),
        (spoiled(filenames=["a.png"] * (N - 1) + [7]), "filename 19 is no text"),
        (spoiled(filenames=["a.png"] * (N - 1) + ["x" * 10**6]), "filename 19 is no text"),
        ([1, 2], "no dictionary"),
    ],
)
def test_a_batch_of_the_wrong_content(tmp_path: Path, content: Any, words: str) -> None:
    data_files.published_layout(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(content))
    message = refused(tmp_path)
    assert message.startswith(str(tmp_path / "data_batch_3")) and words in message


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat"] * 10, "two label names are the same"),
        (list(data_files.CLASSES[:9]), "9 label names where there must be 10"),
        ([*data_files.CLASSES[:9], 3], "label name 9 is no text"),
        (None, "no 'label_names'"),
    ],
)
def test_label_names_of_the_wrong_content(tmp_path: Path, names: Any, words: str) -> None:
    data_files.published_layout(tmp_path)
    content = {} if names is None else {"label_names": names}
    (tmp_path / "batches.meta").write_bytes(pickle.dumps(content))
    assert words in refused(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    data_files.published_layout(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert refused(tmp_path).startswith(str(tmp_path / name))


WHOLE = data_files.python2_pickle(data_files.batch(9))
STRUCTURE = [*range(300), *range(len(WHOLE) - 900, len(WHOLE))]  # what is not pixels


@given(st.lists(st.tuples(st.sampled_from(STRUCTURE), st.integers(0, 255)), min_size=1, max_size=3))
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_batch_with_flipped_bytes_is_whole_or_refused(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    damaged = bytearray(WHOLE)
    for place, value in flips:
        damaged[place] = value
    folder = tmp_path / "batches"
    if not folder.exists():
        data_files.write_cifar10(folder, FOUR | VALIDATION)
    (folder / "test_batch").write_bytes(damaged)
    try:
        test = cifar10.load(folder).test
    except InputError as error:
        assert str(error).startswith(str(folder / "test_batch"))
    else:
        assert test.images.shape == (N, 3, 32, 32) and test.filenames.shape == (N,)
        assert test.labels.min() >= 0 and test.labels.max() <= 9


@pytest.mark.parametrize("protocol", range(6))
def test_a_batch_that_went_through_python_3(tmp_path: Path, protocol: int) -> None:
    data_files.published_layout(tmp_path)
    batch = data_files.batch(6)
    again = {
        b"data": batch["data"],
        b"labels": np.array(batch["labels"]),
        b"filenames": [name.encode() for name in batch["filenames"]],
    }
    (tmp_path / "test_batch").write_bytes(pickle.dumps(again, protocol=protocol))
    test = cifar10.load(tmp_path).test
    np.testing.assert_array_equal(test.images, data_files.images_of(6))
    assert test.labels.tolist() == batch["labels"]
    assert test.filenames.tolist() == batch["filenames"]


def test_control_characters_in_file_names_are_made_harmless(tmp_path: Path) -> None:
    data_files.published_layout(tmp_path)
    names = ["\x1b[2Jcat.png"] * N
    (tmp_path / "test_batch").write_bytes(
        data_files.python2_pickle(data_files.batch(6) | {"filenames": names})
    )
    assert cifar10.load(tmp_path).test.filenames[0] == "\ufffd[2Jcat.png"


# --- what the pixels are --------------------------------------------------------------------


def test_pixels_are_named_after_the_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_files.published_layout(tmp_path)
    sha256 = hashlib.sha256(data_files.images_of(6).tobytes()).hexdigest()[:12]
    expected = f"not the published CIFAR-10 pixels (sha256 of the images: {sha256})"
    assert cifar10.load(tmp_path).test.pixels == expected

    md5s = {
        hashlib.md5((tmp_path / f"data_batch_{i}").read_bytes()).hexdigest() for i in range(2, 6)
    }
    monkeypatch.setattr(cifar10, "PUBLISHED_MD5", md5s)
    dataset = cifar10.load(tmp_path)
    assert dataset.validation.pixels == "original CIFAR-10 pixels"
    assert dataset.train.pixels.startswith("not the published")  # data_batch_1 is another
    assert dataset.split("train+validation").pixels.startswith("train: not the published")


# --- the real thing -------------------------------------------------------------------------


@pytest.mark.skipif(
    "HOLDFAST_DATA" not in os.environ, reason="set HOLDFAST_DATA to a folder with CIFAR-10"
)
def test_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", 10_000)
    dataset = data.load(os.environ["HOLDFAST_DATA"])
    assert dataset.classes == data_files.CLASSES
    assert data.describe(dataset).splitlines()[0] == "Training data:  (40000, 3, 32, 32)"
    for split, n in ((dataset.train, 40_000), (dataset.validation, 10_000), (dataset.test, 10_000)):
        assert len(split) == n
        assert abs(np.bincount(split.labels, minlength=10) - n / 10).max() < 0.03 * n
        # The mean of CIFAR-10's pixels, in every one of its splits: 0.473.
        assert abs(split.images.mean() / 255 - 0.473) < 0.01
    assert (np.bincount(dataset.test.labels) == 1000).all()
