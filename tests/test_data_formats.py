"""CIFAR-100's and SVHN's own files, and arrays of NumPy: what is read, and what is refused."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from holdfast import data
from holdfast.data import DataSet
from holdfast.errors import InputError

RNG = np.random.default_rng(0)


def images(n: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


def refused(path: Path, **how: Any) -> str:
    """The message, after checking that it is one line that begins with the place."""
    with pytest.raises(InputError) as caught:
        data.load(path, **how)
    message = str(caught.value)
    assert message.startswith(str(path.parent)) and "\n" not in message, message
    return message


def said(dataset: DataSet, words: str) -> bool:
    return any(words in line for line in dataset.told)


# --- CIFAR-100 ------------------------------------------------------------------------------------


def cifar100_file(path: Path, n: int, **change: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = images(n, 3072)
    content = {
        b"data": x,
        b"fine_labels": [i % 100 for i in range(n)],
        b"coarse_labels": [i % 20 for i in range(n)],
        b"filenames": [f"img_{i}.png".encode() for i in range(n)],
    }
    content |= {key.encode(): value for key, value in change.items()}
    path.write_bytes(pickle.dumps(content, 2))
    return x


def cifar100(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    meta = {
        "fine_label_names": [f"fine{i:02d}" for i in range(100)],
        "coarse_label_names": [f"coarse{i:02d}" for i in range(20)],
    }
    train, test = (cifar100_file(folder / name, n) for name, n in (("train", 500), ("test", 200)))
    (folder / "meta").write_bytes(pickle.dumps(meta, 2))
    return train, test


def test_cifar100(tmp_path: Path) -> None:
    train, test = cifar100(tmp_path / "cifar-100-python")
    read = data.load(tmp_path)
    assert read.name == "cifar100" and read.classes[7] == "fine07" and len(read.classes) == 100
    assert [len(read.split(s)) for s in ("train", "validation", "test")] == [400, 100, 200]
    np.testing.assert_array_equal(read.test.images, test.reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(read.validation.images, train[400:].reshape(-1, 3, 32, 32))
    assert read.test.labels.tolist() == [i % 100 for i in range(200)]
    assert read.test.filenames[3] == "img_3.png"
    assert "not the published CIFAR-100 pixels" in read.test.pixels
    coarse = data.load(tmp_path / "cifar-100-python", labels="coarse")
    assert len(coarse.classes) == 20 and coarse.classes[3] == "coarse03"
    assert coarse.test.labels.tolist() == [i % 20 for i in range(200)]


def test_cifar100_needs_only_what_is_asked_for(tmp_path: Path) -> None:
    cifar100_file(tmp_path / "test", 200)
    read = data.load(tmp_path)
    assert len(read.test) == 200 and not read.named and read.classes[:2] == ("0", "1")
    assert said(read, "meta is missing")
    with pytest.raises(InputError, match="has no train images; --split test or all"):
        read.split("train")


def test_cifar100_that_cannot_be_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    cases = [
        ({"data": Bomb()}, "refused"),
        ({"fine_labels": [0] * 9}, "9 fine_labels for 10 images"),
        ({"fine_labels": [0] * 9 + [100]}, "fine_labels[9] is 100; they are 0 to 99"),
        ({"fine_labels": [0] * 9 + [-1]}, "fine_labels[9] is -1"),
        ({"fine_labels": [0] * 9 + [10**400]}, "fine_labels[9] is out of range"),
        ({"fine_labels": [0] * 9 + [True]}, "fine_labels[9] is out of range"),
        ({"fine_labels": "abc"}, "no fine_labels for 10 images"),
        ({"data": np.zeros((10, 3071), np.uint8)}, "no uint8 images (N, 3072)"),
        ({"data": None}, "no uint8 images (N, 3072)"),
    ]
    for change, words in cases:
        cifar100_file(tmp_path / "c" / "test", 10, **change)
        assert words in refused(tmp_path / "c")
    assert not (tmp_path / "ran").exists()
    cifar100_file(tmp_path / "c" / "test", 10)
    assert "labels fine and coarse, not 'medium'" in refused(tmp_path / "c", labels="medium")
    names = {"fine_label_names": ["same"] * 100}
    (tmp_path / "c" / "meta").write_bytes(pickle.dumps(names, 2))
    assert "the same" in refused(tmp_path / "c")


# --- SVHN -----------------------------------------------------------------------------------------


def svhn_file(path: Path, n: int, y: Any = None, compressed: bool = True) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = images(n, 32, 32, 3)
    labels = (np.arange(n) % 10 + 1)[:, None].astype(np.uint8) if y is None else y
    content = {"X": x.transpose(1, 2, 3, 0), "y": labels}
    scipy.io.savemat(path, content, do_compression=compressed)
    return x.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("kind", [np.uint8, np.float64, np.int64])
@pytest.mark.parametrize("compressed", [False, True])
def test_svhn(tmp_path: Path, kind: type, compressed: bool) -> None:
    y = (np.arange(40) % 10 + 1)[:, None].astype(kind)
    test = svhn_file(tmp_path / "test_32x32.mat", 40, y, compressed)
    svhn_file(tmp_path / "train_32x32.mat", 100)
    (tmp_path / "extra_32x32.mat").write_bytes(b"")
    read = data.load(tmp_path)
    assert read.name == "svhn" and read.classes == tuple("0123456789")
    np.testing.assert_array_equal(read.test.images, test)
    assert read.test.labels.tolist() == [(i % 10 + 1) % 10 for i in range(40)]
    assert len(read.train) == 90 and np.bincount(read.validation.labels).tolist() == [1] * 10
    assert said(read, "the label 10 of its files is the digit 0")
    assert said(read, "extra_32x32.mat is not read")
    assert said(read, "10 of the 100 training images are validation")


def test_svhn_with_only_a_test_file(tmp_path: Path) -> None:
    svhn_file(tmp_path / "svhn" / "test_32x32.mat", 10)
    read = data.load(tmp_path)
    assert len(read.test) == 10 and len(read.split("all")) == 10
    for name in ("train", "validation", "train+validation"):
        with pytest.raises(InputError, match=r"has no (train|validation) images|only 0 validation"):
            read.split(name)


def test_svhn_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "d" / "test_32x32.mat"
    cases = [
        (np.ones((9, 1), np.uint8), "9 labels y for 10 images"),
        (np.full((10, 1), 11, np.uint8), "label 0 is 11; SVHN's are 1 to 10"),
        (np.array([[1.0]] * 9 + [[np.nan]]), "label 9 is nan"),
        (np.array([[1.0]] * 9 + [[2.5]]), "label 9 is 2.5"),
        (np.array([["a"] * 10]), "none labels y"),
    ]
    for y, words in cases:
        svhn_file(file, 10, y)
        assert words in refused(file.parent)
    svhn_file(file, 10)
    whole = file.read_bytes()
    for length in (0, 100, 130, 400, len(whole) - 5):
        file.write_bytes(whole[:length])
        assert "test_32x32.mat" in refused(file.parent)
    file.write_bytes(whole[:200] + bytes(64) + whole[264:])
    assert "test_32x32.mat" in refused(file.parent)
    file.write_bytes(bytes(512) + b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "version 7.3; save it with -v7" in refused(file.parent)


def test_a_mat_file_that_unpacks_to_more_than_memory(tmp_path: Path) -> None:
    file = tmp_path / "d" / "test_32x32.mat"
    svhn_file(file, 2)
    import zlib

    head, bomb = file.read_bytes()[:128], zlib.compress(bytes(2**26), 9)
    import holdfast.data.mat as mat

    file.write_bytes(head + (15).to_bytes(4, "little") + len(bomb).to_bytes(4, "little") + bomb)
    limit, mat.LARGEST_ARRAY = mat.LARGEST_ARRAY, 2**20
    try:
        assert "test_32x32.mat" in refused(file.parent)
    finally:
        mat.LARGEST_ARRAY = limit


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("images", "labels"),
        ("x_test", "y_test"),
        ("X", "y"),
        ("testX", "testY"),
        ("test_images", "test_labels"),
        ("data", "targets"),
        ("arr_0", "arr_1"),
        ("Xtest", "ytest"),
        ("pictures_of_cats", "what_they_are"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_names_that_people_give(tmp_path: Path, x: str, y: str, save: Any) -> None:
    pixels, labels = images(12, 5, 4, 3), np.arange(12) % 3
    save(tmp_path / "set.npz", **{x: pixels, y: labels})
    read = data.load(tmp_path / "set.npz")
    assert read.name == "set" and read.classes == ("0", "1", "2") and not read.named
    np.testing.assert_array_equal(read.test.images, pixels.transpose(0, 3, 1, 2))
    assert read.test.labels.tolist() == labels.tolist() and len(read.split("all")) == 12
    assert said(read, "N×H×W×C")


def test_several_splits_in_a_file(tmp_path: Path) -> None:
    """As MedMNIST has them: labels (N, 1), and grey images."""
    counts = {"train": 20, "val": 6, "test": 8}
    arrays = {}
    for split, n in counts.items():
        arrays[f"{split}_images"] = images(n, 7, 7)
        arrays[f"{split}_labels"] = (np.arange(n) % 2)[:, None]
    np.savez_compressed(tmp_path / "pathmnist.npz", **arrays)
    read = data.load(tmp_path / "pathmnist.npz")
    assert [len(read.split(s)) for s in ("train", "validation", "test")] == [20, 6, 8]
    assert read.shape == (1, 7, 7)
    np.testing.assert_array_equal(read.validation.images[:, 0], arrays["val_images"])


@pytest.mark.parametrize(
    "names",
    [
        ("x_test.npy", "y_test.npy"),
        ("images.npy", "labels.npy"),
        ("test/images.npy", "test/labels.npy"),
        ("test_x.npy", "test_y.npy"),
        ("test.npy", "test_labels.npy"),
    ],
)
def test_a_folder_of_arrays(tmp_path: Path, names: tuple[str, str]) -> None:
    place = tmp_path / "set"
    for name, array in zip(names, (images(9, 3, 6, 6), np.arange(9) % 3), strict=True):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(place / name, array)
    read = data.load(place)
    assert read.name == "set" and len(read.test) == 9 and read.shape == (3, 6, 6)
    assert not len(read.train)
    if "/" not in names[0]:  # the file of images alone: its labels stand beside it
        alone = data.load(place / names[0])
        np.testing.assert_array_equal(alone.test.images, read.test.images)


def test_a_folder_of_archives(tmp_path: Path) -> None:
    for split, n in (("train", 20), ("test", 6)):
        np.savez(tmp_path / f"{split}.npz", images=images(n, 4, 4, 1), labels=np.arange(n) % 2)
    read = data.load(tmp_path)
    assert (len(read.train), len(read.validation), len(read.test)) == (18, 2, 6)
    assert said(read, "2 of the 20 training images are validation")
    assert np.bincount(read.validation.labels).tolist() == [1, 1]


def test_arrays_stay_in_their_file(tmp_path: Path) -> None:
    """Uncompressed bytes are mapped, and nothing that is done to them changes the file."""
    np.savez(tmp_path / "a.npz", images=images(9, 6, 6, 3), labels=np.arange(9) % 3)
    before = (tmp_path / "a.npz").read_bytes()
    read = data.load(tmp_path / "a.npz")
    base: Any = read.test.images
    while not isinstance(base, np.memmap) and getattr(base, "base", None) is not None:
        base = base.base
    assert isinstance(base, np.memmap)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.to_tensor(read.test.images).shape == (9, 3, 6, 6)
    read.test.images[:] = 0
    assert (tmp_path / "a.npz").read_bytes() == before


def test_floats(tmp_path: Path) -> None:
    levels = images(6, 4, 4, 3)
    labels = np.arange(6) % 2
    for values, words in (
        ((levels / 255).astype(np.float32), "float32 in [0, 1], whole levels of 1/255"),
        (levels.astype(np.float64), "float64 from 0 to 255, divided by 255, whole levels"),
        (levels.astype(np.int32), "int32 from 0 to 255"),
        (levels / 255 + 0.3 / 255 * (levels < 255), "rounded to 8 bits (by 0.0012 at most)"),
    ):
        np.savez(tmp_path / "f.npz", images=values, labels=labels)
        read = data.load(tmp_path / "f.npz")
        np.testing.assert_array_equal(read.test.images, levels.transpose(0, 3, 1, 2))
        assert said(read, words), read.told


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((4, 3, 4, 4), np.nan), "image 0 holds NaN or infinity"),
        (np.r_[np.zeros(143), np.inf, np.zeros(48)].reshape(4, 3, 4, 4), "image 2 holds NaN"),
        (np.linspace(-2, 2, 192).reshape(4, 3, 4, 4), "undo the normalisation"),
        (np.linspace(0, 1.5, 192).reshape(4, 3, 4, 4), "floats from 0 to 1.5 are no pixels"),
        (np.linspace(0, 1000, 192).reshape(4, 3, 4, 4), "floats from 0 to 1000"),
        (np.arange(192).reshape(4, 3, 4, 4) - 1, "whole numbers from -1 to 190"),
        (np.arange(192).reshape(4, 3, 4, 4) + 100, "whole numbers from 100 to 291"),
        (np.zeros((4, 3, 4, 4), complex), "complex128 are no pixels"),
        (np.zeros((4, 3, 4, 4), bool), "bool are no pixels"),
        (np.zeros((4, 4, 4, 4), np.uint8), "alpha is to be dropped"),
        (np.zeros((4, 5, 6, 7), np.uint8), "shape 4×5×6×7 is none of images"),
        (np.zeros((4, 48), np.uint8), "shape 4×48 is none of images"),
        (np.zeros((4, 3, 0, 4), np.uint8), "sides that images do not have"),
        (np.zeros((0, 3, 4, 4), np.uint8), "0 images"),
        (np.array([object()] * 4), "pickled objects, which are never loaded"),
        (np.array(["a"] * 4), "none of images"),
    ],
)
def test_what_are_no_images(tmp_path: Path, values: np.ndarray, words: str) -> None:
    np.savez(tmp_path / "w.npz", images=values, labels=np.arange(4) % 2)
    assert words in refused(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(3), "3 labels for 4 images"),
        (np.array(1), "1 labels for 4 images"),
        (np.array([0, 1, -1, 0]), "label 2 is -1, out of range"),
        (np.array([0, 1, 10**12, 0]), "label 2 is 1000000000000, out of range"),
        (np.array([0, 1, 2**64 - 1, 0], np.uint64), "out of range"),
        (np.array([0, 1, np.nan, 0]), "label 2 is nan, no whole number"),
        (np.array([0, 1, 1.5, 0]), "label 2 is 1.5, no whole number"),
        (np.zeros(4, int), "1 class, where a classifier needs at least 2"),
        (np.full((4, 3), 1 / 3), "row 0 is not one-hot"),
        (np.eye(3)[[0, 1, 2, 0]] + np.eye(3)[[0, 1, 2, 1]], "row 0 is not one-hot"),
        (np.zeros((4, 2, 2), int), "labels of shape 4×2×2"),
        (np.array([{}] * 4), "pickled objects, which are never loaded"),
        (np.zeros(4, complex), "complex128 are no labels"),
    ],
)
def test_what_are_no_labels(tmp_path: Path, labels: np.ndarray, words: str) -> None:
    np.savez(tmp_path / "w.npz", images=images(4, 4, 4, 3), labels=labels)
    assert words in refused(tmp_path / "w.npz")


def test_labels_in_other_forms(tmp_path: Path) -> None:
    want = [2, 0, 1, 2]
    for labels, classes, words in (
        (np.eye(3)[want], ("0", "1", "2"), "one-hot rows taken as 3 classes"),
        (np.eye(5, dtype=bool)[want], ("0", "1", "2", "3", "4"), "one-hot rows"),
        (np.array(want, np.float32), ("0", "1", "2"), ""),
        (np.array(["x10", "x1", "x2", "x10"]), ("x1", "x2", "x10"), ""),
        (np.array([b"x10", b"x1", b"x2", b"x10"]), ("x1", "x2", "x10"), ""),
    ):
        np.savez(tmp_path / "l.npz", images=images(4, 4, 4, 3), labels=labels)
        read = data.load(tmp_path / "l.npz")
        assert read.test.labels.tolist() == want and read.classes == classes
        assert said(read, words) or not words
        assert read.named == (labels.dtype.kind in "US")


def test_names_of_classes(tmp_path: Path) -> None:
    def save(**more: Any) -> Path:
        np.savez(
            tmp_path / "n.npz", images=images(4, 4, 4, 3), labels=np.array([2, 0, 1, 2]), **more
        )
        return tmp_path / "n.npz"

    read = data.load(save(class_names=np.array(["cat", "dog", "Ärger"])))
    assert read.classes == ("cat", "dog", "Ärger") and read.named
    assert "labels up to 2, but 2 classes" in refused(save(classes=np.array(["a", "b"])))
    assert "named twice" in refused(save(classes=np.array(["a", "a", "b"])))
    np.savez(
        tmp_path / "n.npz",
        images=images(3, 4, 4, 3),
        labels=np.array([1, 2, 3]),
        classes=np.array(["a", "b", "c"]),
    )
    assert "they begin at 1: take 1 off" in refused(tmp_path / "n.npz")


def test_several_that_may_be_meant(tmp_path: Path) -> None:
    x = images(4, 4, 4, 3)
    coarse, fine = np.array([0, 1, 0, 1]), np.array([0, 1, 2, 3])
    np.savez(tmp_path / "s.npz", images=x, fine_labels=fine, coarse_labels=coarse)
    assert "several may be the labels: fine_labels, coarse_labels" in refused(
        tmp_path / "s.npz"
    ).replace("s/", "")
    assert data.load(tmp_path / "s.npz", labels="coarse").test.labels.tolist() == [0, 1, 0, 1]
    assert "no labels called 'third'" in refused(tmp_path / "s.npz", labels="third")
    np.savez(tmp_path / "s.npz", images=x, x=x, labels=fine)
    assert "several may be the images" in refused(tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", images=x, images_adversarial=x, labels=fine, note=np.zeros(7))
    assert said(data.load(tmp_path / "s.npz"), "not used: images_adversarial, note") or said(
        data.load(tmp_path / "s.npz"), "not used: s/images_adversarial, s/note"
    )


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    good = io.BytesIO()
    np.savez_compressed(good, images=images(4, 4, 4, 3), labels=np.arange(4) % 2)
    file = tmp_path / "h.npz"
    for content in (b"", b"hello", good.getvalue()[:-30], pickle.dumps({"images": 1})):
        file.write_bytes(content)
        assert str(file) in refused(file)
    (tmp_path / "dir.npz").mkdir()
    assert "dir.npz" in refused(tmp_path / "dir.npz")
    (tmp_path / "link.npy").symlink_to("nowhere.npy")
    assert "no such file" in refused(tmp_path / "link.npy")
    assert "no such folder" in refused(tmp_path / "absent.npz")
    np.savez(file, labels=np.arange(4))
    assert "no images with labels; call them images and labels" in refused(file)
    np.savez(file, images=images(4, 4, 4, 3))
    assert "no images with labels" in refused(file)


def test_an_archive_that_unpacks_to_more_than_memory(tmp_path: Path) -> None:
    """A header that claims 10 GiB of zeros, packed into a few bytes."""
    file = tmp_path / "bomb.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (3_500_000, 32, 32, 3)}
    )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(1000))
        labels = io.BytesIO()
        np.save(labels, np.zeros(3_500_000, np.uint8))
        archive.writestr("labels.npy", labels.getvalue())
    assert "not as long as its shape" in refused(file)


def test_splits_of_several_shapes(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "m.npz",
        x_train=images(8, 4, 4, 3),
        y_train=np.arange(8) % 2,
        x_test=images(4, 5, 5, 3),
        y_test=np.arange(4) % 2,
    )
    assert "images of test are 3×5×5, those of train 3×4×4" in refused(tmp_path / "m.npz")


# --- grey, sizes, choosing ------------------------------------------------------------------------


def test_grey_is_what_pillow_calls_grey(tmp_path: Path) -> None:
    from PIL import Image

    pixels = images(5, 6, 6, 3)
    np.savez(tmp_path / "g.npz", images=pixels, labels=np.arange(5) % 2)
    read = data.load(tmp_path / "g.npz", grey=True)
    assert read.shape == (1, 6, 6) and read.brought == {"grey": True}
    for made, colours in zip(read.test.images, pixels, strict=True):
        np.testing.assert_array_equal(made[0], np.asarray(Image.fromarray(colours).convert("L")))
    assert "grey" in read.test.pixels and data.load("digits", grey=True).brought == {}


def test_a_size_for_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", images=images(5, 6, 9, 3), labels=np.arange(5) % 2)
    read = data.load(tmp_path / "g.npz", size=4)
    assert read.shape == (3, 4, 4) and read.brought == {"size": 4}
    assert "centre cut and resized" in read.test.pixels


def test_class_after_class(tmp_path: Path) -> None:
    """The first images of such an array are no sample of it."""
    labels = np.repeat(np.arange(4), 25)
    np.savez(tmp_path / "c.npz", images=images(100, 4, 4, 3), labels=labels)
    few = data.load(tmp_path / "c.npz", limit=20)
    assert len(few.test) == 20 and len(set(few.test.labels.tolist())) == 4
    assert said(few, "class after class: a sample of 20 taken")
    again = data.load(tmp_path / "c.npz", limit=20)
    assert few.test.filenames.tolist() == again.test.filenames.tolist()
    assert few.result_fields("test", 20)["indices"] == few.test.indices.tolist()  # type: ignore[union-attr]
    same = data.load(tmp_path / "c.npz", indices=few.test.indices)
    np.testing.assert_array_equal(same.test.images, few.test.images)


def test_a_validation_split_that_stands_class_after_class(tmp_path: Path) -> None:
    """Its first images choose models: they have to be a sample."""
    labels = np.repeat(np.arange(4), 25)
    np.savez(
        tmp_path / "c.npz",
        x_train=images(100, 4, 4, 3),
        y_train=labels,
        x_val=images(100, 4, 4, 3),
        y_val=labels,
    )
    read = data.load(tmp_path / "c.npz")
    assert len(set(read.validation.labels[:12].tolist())) == 4
    assert said(read, "validation stood class after class")
    assert (
        read.validation.filenames.tolist()
        == data.load(tmp_path / "c.npz").validation.filenames.tolist()
    )


def test_what_a_data_set_without_train_holds_is_listed_and_drawn(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", images=images(9, 6, 6, 3), labels=np.arange(9) % 3)
    read = data.load(tmp_path / "t.npz")
    lines = data.describe_classes(read).splitlines()
    assert lines[1].split() == ["0", "0", "0", "0", "3"]
    assert any("has no train images" in line for line in lines)
    assert "Training data:  (0, 3, 6, 6)" in data.describe(read)
    data.figure(read, tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["mine.npy", "mine.csv", "mine.txt", "mine.json"])
def test_labels_in_a_file_of_their_own(tmp_path: Path, name: str) -> None:
    labels = np.array([1, 0, 2, 1])
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "pictures.npy", images(4, 5, 5, 3))
    file = tmp_path / name
    if name.endswith("npy"):
        np.save(file, labels)
    elif name.endswith("json"):
        file.write_text("[1, 0, 2, 1]")
    else:
        file.write_text(("label\n" if name.endswith("csv") else "") + "1\n0\n2\n1\n")
    for source in (tmp_path / "a", tmp_path / "a" / "pictures.npy"):
        assert data.load(source, labels=file).test.labels.tolist() == labels.tolist()
    np.save(tmp_path / "a" / "pictures.npy", images(5, 5, 5, 3))
    with pytest.raises(InputError, match="4 labels for 5 images"):
        data.load(tmp_path / "a", labels=file)
