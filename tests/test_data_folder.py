"""Folders of images: how they are split, brought to one shape, and refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_files import image_folder, write_image
from PIL import Image

from holdfast.data import DataSet, folder
from holdfast.errors import InputError


def refused(path: Path, size: int | None = None) -> str:
    """The message, after checking that it is one line that names the folder or a file in it."""
    with pytest.raises(InputError) as caught:
        folder.load(path, size)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def members(dataset: DataSet) -> dict[str, set[str]]:
    return {name: set(dataset.split(name).filenames) for name in ("train", "validation", "test")}


# --- one folder a class ---------------------------------------------------------------------


def test_images_labels_and_names(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets", ("dog", "Katze im Sack", "犬"), n=10)
    (tmp_path / "pets" / ".hidden").mkdir()
    (tmp_path / "pets" / "dog" / ".DS_Store").write_text("hidden")
    (tmp_path / "pets" / "README.md").write_text("beside the classes")
    dataset = folder.load(tmp_path / "pets")
    assert dataset.name == "pets" and dataset.classes == ("Katze im Sack", "dog", "犬")
    assert dataset.train.images.shape == (24, 3, 8, 8)
    for split in (dataset.train, dataset.validation, dataset.test):
        assert "8×8, as in the files" in split.pixels
        for image, name, label in zip(split.images, split.filenames, split.labels, strict=True):
            assert Path(name).parent.name == dataset.classes[label]
            pixels = np.asarray(Image.open(tmp_path / "pets" / name))
            np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))


def test_a_tenth_of_each_class_is_held_out_twice(tmp_path: Path) -> None:
    dataset = folder.load(image_folder(tmp_path, ("a", "b", "c"), n=20))
    for name, count in (("train", 16), ("validation", 2), ("test", 2)):
        assert np.bincount(dataset.split(name).labels).tolist() == [count] * 3
    parts = members(dataset)
    assert len(set.union(*parts.values())) == 60


def test_the_split_does_not_depend_on_place_order_or_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder.load(image_folder(tmp_path / "here"))
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: reversed(sorted(iterdir(path))))
    after = folder.load(image_folder(tmp_path / "there"))
    assert members(before) == members(after)
    assert before.train.filenames.tolist() == after.train.filenames.tolist()
    # By the hash of the path, not its place in the listing.
    assert members(before)["test"] != {f"{c}/{i:03d}.png" for c in ("cat", "dog") for i in (0, 1)}


def test_a_class_called_train(tmp_path: Path) -> None:
    dataset = folder.load(image_folder(tmp_path, ("train", "bus"), n=10))
    assert dataset.classes == ("bus", "train")


# --- one folder a split ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val", "validation"])
def test_splits_as_they_are_given(tmp_path: Path, name: str) -> None:
    for split, n in (("train", 5), (name, 3), ("test", 2)):
        image_folder(tmp_path / split, n=n)
    dataset = folder.load(tmp_path)
    assert [len(dataset.split(s)) for s in ("train", "validation", "test")] == [10, 6, 4]
    assert all(f.startswith(f"{name}/") for f in dataset.validation.filenames)


def test_validation_comes_from_train_if_it_is_absent(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", n=30)
    image_folder(tmp_path / "test", n=2)
    dataset = folder.load(tmp_path)
    assert np.bincount(dataset.validation.labels).tolist() == [3, 3]
    assert all(name.startswith("train/") for name in dataset.validation.filenames)
    assert not members(dataset)["train"] & members(dataset)["validation"]
    assert len(dataset.train) == 54 and len(dataset.test) == 4


def test_splits_that_do_not_fit(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", ("a", "b"), n=3)
    assert "no test folder" in refused(tmp_path)
    image_folder(tmp_path / "test", ("a", "c"), n=3)
    assert "class 'b' is in train but not in test" in refused(tmp_path)
    image_folder(tmp_path / "test", ("b",), n=3)
    assert "class 'c' is in test but not in train" in refused(tmp_path)
    image_folder(tmp_path / "train", ("c",), n=3)
    image_folder(tmp_path / "val", ("a", "b", "c"), n=3)
    assert folder.load(tmp_path).classes == ("a", "b", "c")
    (tmp_path / "validation").mkdir()
    assert "both validation and val" in refused(tmp_path)


# --- shapes ---------------------------------------------------------------------------------


def test_a_size_cuts_the_centre(tmp_path: Path) -> None:
    image_folder(tmp_path, n=3)
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (10, 200, 30)  # the square in the middle
    for name in ("cat", "dog"):
        for i in range(3):
            Image.fromarray(wide).save(tmp_path / name / f"{i:03d}.png")
    assert "20×60" in folder.load(tmp_path).train.pixels
    dataset = folder.load(tmp_path, size=5)
    assert dataset.train.images.shape == (2, 3, 5, 5)
    assert (dataset.train.images.transpose(0, 2, 3, 1) == (10, 200, 30)).all()
    assert "5×5, centre cut and resized" in dataset.train.pixels


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    image_folder(tmp_path)
    write_image(tmp_path / "dog" / "007.png", size=(9, 8))
    message = refused(tmp_path)
    assert message.startswith(str(tmp_path / "dog" / "007.png")) and "8×9" in message
    assert folder.load(tmp_path, size=8).train.images.shape[2:] == (8, 8)
    with pytest.raises(InputError, match="not 0"):
        folder.load(tmp_path, size=0)


def test_every_colour_mode_becomes_rgb(tmp_path: Path) -> None:
    image_folder(tmp_path, n=8)
    grey = Image.fromarray(np.full((8, 8), 77, np.uint8))
    for i, mode in enumerate(("L", "P", "RGBA", "1", "LA", "CMYK")):
        kind = "jpg" if mode == "CMYK" else "png"
        grey.convert(mode).save(tmp_path / "cat" / f"9{i}.{kind}")
    assert folder.load(tmp_path).train.images.shape[1] == 3


def test_a_photograph_stands_upright(tmp_path: Path) -> None:
    image_folder(tmp_path, n=3)
    left_red = np.zeros((8, 8, 3), np.uint8)
    left_red[:, :4, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise: left becomes top
    for path in tmp_path.glob("*/*.png"):
        Image.fromarray(left_red).save(path, exif=exif)
    images = folder.load(tmp_path).train.images
    assert (images[:, 0, :4] == 255).all() and (images[:, 0, 4:] == 0).all()


# --- what is refused ------------------------------------------------------------------------


def test_too_few_classes_or_images(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "none")
    image_folder(tmp_path, ("cat",))
    assert "1 class folders" in refused(tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / ".hidden.png").write_text("")
    assert refused(tmp_path).startswith(f"{tmp_path / 'dog'}: no images")
    image_folder(tmp_path, ("dog",), n=2)
    assert "'dog' has 2 images" in refused(tmp_path)
    image_folder(tmp_path, ("dog",), n=3)
    assert len(folder.load(tmp_path).test) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\x89PNG\r\n\x1a\nbroken",
    ],
    ids=["empty", "text", "postscript", "png"],
)
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    image_folder(tmp_path)
    (tmp_path / "dog" / "notes.png").write_bytes(content)
    assert refused(tmp_path).startswith(f"{tmp_path / 'dog' / 'notes.png'}: no readable image")


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    path = image_folder(tmp_path) / "dog" / "005.png"
    path.write_bytes(path.read_bytes()[:-40])
    assert refused(tmp_path).startswith(f"{path}: no readable image")


def test_a_folder_inside_a_class_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "dog" / "more").mkdir()
    assert refused(tmp_path).startswith(f"{tmp_path / 'dog' / 'more'}: is a folder")


def test_more_than_eight_bits_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    image_folder(tmp_path)
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    deep.save(tmp_path / "dog" / "007.png")
    assert "007.png: more than 8 bits" in refused(tmp_path)


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_decompression_bombs(tmp_path: Path, side: int) -> None:
    """A few bytes that claim 100 million (Pillow warns) or 900 million pixels (Pillow refuses)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    image_folder(tmp_path)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (tmp_path / "dog" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bomb)
    assert "bomb.png: more than 50,000,000 pixels" in refused(tmp_path)
