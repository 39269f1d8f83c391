"""CIFAR-10-C and CIFAR-100-C as published: which images are measured, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.data.corruptions import CORRUPTIONS, read_published
from holdfast.data.published_corruptions import NAMES, PublishedCorruptions, open_published
from holdfast.errors import InputError

N = 20
LABELS = np.arange(N) % 4


def publish(folder: Path, names: Any = NAMES, labels: Any = None) -> Path:
    """Images whose first value is their row, and whose second is their severity."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        images = np.zeros((5 * N, 4, 4, 3), np.uint8)
        images[:, 0, 0, 0] = np.tile(np.arange(N), 5)
        images[:, 0, 0, 1] = np.repeat(np.arange(1, 6), N)
        np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", np.tile(LABELS, 5) if labels is None else labels)
    return folder


def opened(folder: Path, rows: Any = (3, 0, 7), **change: Any) -> PublishedCorruptions:
    how = {"test_labels": LABELS, "shape": (3, 4, 4), "rows": np.array(rows), "classes": 4} | change
    return open_published(folder, **how)


def refused(folder: Path, **change: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(folder, **change)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("place", ["", "CIFAR-10-C", "CIFAR-100-C"])
def test_all_nineteen(tmp_path: Path, place: str) -> None:
    publish(tmp_path / place)
    held = opened(tmp_path)
    assert held.names == NAMES and len(NAMES) == 19 and NAMES[:15] == tuple(CORRUPTIONS)
    assert held.told == () and held.labels.tolist() == [3, 0, 3]
    for name in NAMES:
        for severity in range(1, 6):
            images = held.images(name, severity)
            assert images.shape == (3, 3, 4, 4)
            assert images[:, 0, 0, 0].tolist() == [3, 0, 7]
            assert images[:, 1, 0, 0].tolist() == [severity] * 3


def test_labels_in_another_order(tmp_path: Path) -> None:
    """Then the images are judged by the files' own labels, and that is said."""
    publish(tmp_path, labels=np.tile(LABELS[::-1], 5))
    held = opened(tmp_path)
    assert held.labels.tolist() == LABELS[::-1][:3].tolist()
    assert held.images("fog", 1)[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert "not in the order of the test split" in held.told[0]
    more = opened(tmp_path, rows=range(30), test_labels=np.arange(30) % 4)
    assert len(more.labels) == N


def test_corruptions_that_are_not_there_are_named(tmp_path: Path) -> None:
    publish(tmp_path, names=("fog", "saturate"))
    held = opened(tmp_path)
    assert held.names == ("fog", "saturate")
    assert "14 of the benchmark's 15 corruptions are not there" in held.told[0]
    with pytest.raises(InputError, match="has no snow of severity 1"):
        held.images("snow", 1)
    with pytest.raises(InputError, match="has no fog of severity 6"):
        held.images("fog", 6)


def test_what_is_refused(tmp_path: Path) -> None:
    assert "labels.npy is missing" in refused(tmp_path)
    publish(tmp_path, names=())
    assert "holds none of the 19 corruptions" in refused(tmp_path)
    publish(tmp_path, names=("fog",))
    assert "images of 4×4×3; the data has 5×5×3" in refused(tmp_path, shape=(3, 5, 5))
    assert "other than labels 0 … 2" in refused(tmp_path, classes=3)
    for labels, words in (
        (np.roll(np.tile(LABELS, 5), 1) * (np.arange(5 * N) > N), "differs between severities"),
        (np.tile(LABELS, 5).astype(float), "not whole numbers"),
        (np.tile(LABELS, 5)[:-1], "(5·N,)"),
        (np.zeros((5, N), int), "(5·N,)"),
        (np.tile(LABELS, 5) - 1, "label 0 is -1"),
        (np.array([{}] * 5 * N), "pickled objects"),
    ):
        publish(tmp_path, names=("fog",), labels=labels)
        assert words in refused(tmp_path)
    publish(tmp_path, names=("fog",))
    for images, words in (
        (np.zeros((4 * N, 4, 4, 3), np.uint8), "the 100 images of labels.npy"),
        (np.zeros((5 * N, 4, 4, 3)), "not uint8"),
        (np.array([{}]), "pickled objects"),
    ):
        np.save(tmp_path / "fog.npy", images, allow_pickle=True)
        assert words in refused(tmp_path)
    (tmp_path / "fog.npy").unlink()
    (tmp_path / "fog.npy").symlink_to("nowhere.npy")
    assert "fog.npy: no such file" in refused(tmp_path)


def test_one_of_the_other_four_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"spatter\.npy is missing"):
        read_published(tmp_path, "spatter", 1)
    with pytest.raises(InputError, match="severity of"):
        read_published(tmp_path, "spatter", 9)
