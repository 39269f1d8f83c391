"""Folders of images: how they are split, brought to one shape, and refused."""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_files import image_folder, write_image
from PIL import Image

from holdfast import data
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


# --- the order ------------------------------------------------------------------------------


def pictures(dataset: DataSet, split: str) -> list[bytes]:
    return [image.tobytes() for image in dataset.split(split).images]


def test_the_first_images_are_a_sample_whatever_the_classes_and_names(tmp_path: Path) -> None:
    """Names that sort by class, as people's do; classes of different sizes."""
    for label, (name, n) in enumerate((("a", 60), ("b", 30), ("c", 10))):
        for split in ("train", "val", "test"):
            for i in range(n):
                place = tmp_path / split / name / f"{name}_{i:04d}.png"
                write_image(place, seed=1000 * label + i + 10_000 * ("tv".find(split[0]) + 2))
    dataset = folder.load(tmp_path)
    for name in ("train", "validation", "test"):
        shares = np.bincount(dataset.split(name).labels[:40], minlength=3) / 40
        assert np.abs(shares - (0.6, 0.3, 0.1)).max() < 0.2, name


def test_the_order_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    """Renamed classes, another place, another order of creation and listing: the same images in
    the same order, and the same ones held out."""
    source = image_folder(tmp_path / "here", ("cat", "dog", "eel"), n=20)
    before = folder.load(source)
    for old, new in (("cat", "zebra"), ("dog", "1"), ("eel", "Ärger\u0308")):
        target = tmp_path / "there" / "and" / "further" / new
        target.mkdir(parents=True)
        files = list((source / old).iterdir())
        random.Random(old).shuffle(files)
        for file in files:
            shutil.copyfile(file, target / file.name)
    after = folder.load(tmp_path / "there" / "and" / "further")
    for split in ("train", "validation", "test"):
        assert pictures(before, split) == pictures(after, split)
    write_image(source / "cat" / "000.png", seed=77)  # other contents: another place
    changed = folder.load(source)
    assert pictures(changed, "train") != pictures(before, "train")


def test_the_order_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """Written down once, from files whose bytes no library makes."""
    for label, name in enumerate(("cat", "dog")):
        for split, n in (("train", 4), ("val", 2), ("test", 4)):
            for i in range(n):
                file = tmp_path / split / name / f"{i}.ppm"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"P6 1 1 255\n" + bytes([label, i, len(split)]))
    command = (
        "from holdfast.data import folder; import sys;"
        "print(*folder.load(sys.argv[1]).test.filenames)"
    )
    expected = (
        "test/dog/2.ppm test/dog/3.ppm test/cat/3.ppm test/cat/1.ppm"
        " test/cat/0.ppm test/cat/2.ppm test/dog/0.ppm test/dog/1.ppm"
    )
    for locale in ("C", "C.UTF-8", "tr_TR.UTF-8"):
        told = subprocess.run(
            [sys.executable, "-c", command, str(tmp_path)],
            env={**os.environ, "LC_ALL": locale, "PYTHONHASHSEED": "7"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.strip() == expected


def test_files_of_the_same_contents_have_a_fixed_order(tmp_path: Path) -> None:
    for name in ("cat", "dog", "eel"):
        for split in ("train", "val", "test"):
            for i in range(9):
                write_image(tmp_path / split / name / f"{i}.png", seed=0)
    first, again = folder.load(tmp_path), folder.load(tmp_path)
    assert first.test.filenames.tolist() == again.test.filenames.tolist()
    assert sorted(first.test.filenames) != first.test.filenames.tolist()


def test_what_is_held_out_does_not_favour_a_class_at_the_front(tmp_path: Path) -> None:
    """Were images held out by the same hash that orders them, a class with a lucky lot would
    stand in front."""
    image_folder(tmp_path, ("a", "b"), n=400)
    labels = folder.load(tmp_path).test.labels
    assert 8 <= labels[:40].sum() <= 32 and 8 <= labels[40:].sum() <= 32


# --- the classes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("10", "9", "1", "2", "0"), ("0", "1", "2", "9", "10")),
        (("class10", "class2", "class1"), ("class1", "class2", "class10")),
        (("10_bird", "2_dog", "1_cat"), ("1_cat", "2_dog", "10_bird")),
        (("b", "B", "a", "é", "10"), ("10", "B", "a", "b", "é")),
        (("02", "1", "2", "01"), ("01", "1", "02", "2")),
        (("1" * 200, "2"), ("2", "1" * 200)),
        (("n02", "n01", "n1000"), ("n01", "n02", "n1000")),
    ],
)
def test_numbers_in_class_names_sort_as_numbers(
    tmp_path: Path, names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    dataset = folder.load(image_folder(tmp_path, names, n=3))
    assert dataset.classes == expected
    for name, label in zip(dataset.test.filenames, dataset.test.labels, strict=True):
        assert Path(name).parent.name == expected[label]


def test_the_listing_names_and_counts_classes(tmp_path: Path) -> None:
    image_folder(tmp_path, ("10", "9"), n=20)
    image_folder(tmp_path, ("9",), n=30)
    lines = data.describe_classes(folder.load(tmp_path)).splitlines()
    assert [line.split() for line in lines] == [
        ["class", "train", "validation", "test"],
        ["0", "9", "24", "3", "3"],
        ["1", "10", "16", "2", "2"],
        lines[3].split(),
    ]
    assert lines[3].startswith("note: ") and "a tenth of each class is test" in lines[3]


def test_class_names_that_would_harm_a_terminal(tmp_path: Path) -> None:
    image_folder(tmp_path, ("a\x1b[31m", "b\nc", "d\u202e"), n=3)
    dataset = folder.load(tmp_path)
    assert dataset.classes == ("a\ufffd[31m", "b\ufffdc", "d\ufffd")
    assert all(name.isprintable() for name in dataset.train.filenames)
    image_folder(tmp_path, ("b\tc",), n=3)
    with pytest.raises(InputError, match="called 'b\ufffdc' too"):
        folder.load(tmp_path)


# --- the same image in two splits -----------------------------------------------------------


def test_images_in_several_splits_are_found_by_their_pixels(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        for name in ("cat", "dog"):
            for i in range(5):
                seed = 100 * number + 10 * (name == "dog") + i
                write_image(tmp_path / split / name / f"{split}{i}.png", seed)
    assert folder.load(tmp_path).overlaps == ()
    # The same pixels in another format, under another name and in another class.
    Image.open(tmp_path / "train" / "cat" / "train3.png").save(tmp_path / "test" / "dog" / "x.bmp")
    shutil.copyfile(tmp_path / "train/dog/train0.png", tmp_path / "test/dog/y.png")
    shutil.copyfile(tmp_path / "val/dog/val0.png", tmp_path / "test/dog/z.png")
    dataset = folder.load(tmp_path)
    found = [(each.split, each.other, each.images) for each in dataset.overlaps]
    assert found == [("test", "train", 2), ("test", "validation", 1)]
    line = str(dataset.overlaps[1])
    assert "test/dog/z.png is val/dog/val0.png" in line and "\n" not in line
    assert f"note: {line}" in data.describe_classes(dataset).splitlines()
    assert line in dataset.remarks("test", 5)
    told = dataset.result_fields("test", 5)["overlaps"]
    assert told[1] == {"split": "test", "other": "validation", "images": 1}


def test_one_folder_for_every_split(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", n=5)
    for name in ("test", "val"):
        (tmp_path / name).symlink_to(tmp_path / "train")
    found = folder.load(tmp_path).overlaps
    assert [each.images for each in found] == [10, 10, 10]


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        image_folder(tmp_path / split, ("a", "b", "c"), n=20)
    dataset = folder.load(tmp_path)
    assert dataset.result_fields("test", 60)["classes_without_images"] == []
    first = dataset.classes[dataset.test.labels[0]]
    absent = [name for name in "abc" if name != first]
    assert dataset.result_fields("test", 1)["classes_without_images"] == absent
    assert "2 of 3 classes have no image among the 1 of test" in dataset.remarks("test", 1)[0]
    assert dataset.remarks("test", 1)[0].endswith(": " + ", ".join(absent))


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
    with pytest.raises(InputError, match=r"has train but no test .*; --split train, v.* or all"):
        folder.load(tmp_path).split("test")
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
    few = folder.load(tmp_path)
    for name in ("train", "validation", "test"):
        with pytest.raises(InputError, match=r"'dog' has 2 images, too few .*; --split all has"):
            few.split(name)
    assert len(few.split("all")) == 22
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
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'dog' / 'more'}: is a folder")
    assert "a class folder holds images" in message


def deep_png(channels: int, tail: bytes = b"") -> bytes:
    """A PNG of 2×2 pixels with 16 bits a channel."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + bytes([200, 99] * channels * 2) for _ in range(2))
    return png(struct.pack(">IIBBBBB", 2, 2, 16, kind, 0, 0, 0), rows)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(header: bytes, rows: bytes) -> bytes:
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_tiff(channels: int) -> bytes:
    """An uncompressed TIFF of 2×2 pixels with 16 bits a channel, little-endian."""
    pixels = bytes([200, 99] * channels * 4)
    bits = struct.pack(f"<{channels}H", *[16] * channels)
    at = 8 + len(pixels)
    entries = [
        (256, 3, 1, 2),
        (257, 3, 1, 2),
        (258, 3, channels, at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 3, 1, 2),
        (279, 4, 1, len(pixels)),
        *([(338, 3, 1, 2)] if channels == 4 else []),
    ]
    table = struct.pack("<H", len(entries))
    table += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", at + len(bits)) + pixels + bits + table


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"{n} channels.png", deep_png(n)) for n in (1, 2, 3, 4)),
        ("colour.tif", deep_tiff(3)),
        ("alpha.tif", deep_tiff(4)),
        ("colour.ppm", b"P6 2 2 65535\n" + bytes([200, 99] * 12)),
        ("text.ppm", b"P3 2 2 1000\n" + b"900 " * 12),
        ("grey.pgm", b"P5 2 2 65535\n" + bytes([200, 99] * 4)),
    ],
)
def test_more_than_eight_bits_are_refused_rather_than_cut(
    tmp_path: Path, name: str, content: bytes
) -> None:
    image_folder(tmp_path)
    (tmp_path / "dog" / name).write_bytes(content)
    assert f"{name}: more than 8 bits" in refused(tmp_path)


def test_more_than_eight_bits_of_grey(tmp_path: Path) -> None:
    image_folder(tmp_path)
    for values in (np.full((8, 8), 40_000, np.uint16), np.full((8, 8), 0.5, np.float32)):
        Image.fromarray(values).save(tmp_path / "dog" / "007.tif")
        assert "007.tif: more than 8 bits" in refused(tmp_path)


def test_fewer_than_eight_bits_are_spread(tmp_path: Path) -> None:
    """A 5-6-5 bitmap and a PPM of 16 levels: what they hold reaches from 0 to 255."""
    image_folder(tmp_path, n=3)
    for path in tmp_path.glob("*/*.png"):
        path.unlink()
        path.with_suffix(".ppm").write_bytes(b"P6 1 1 15\n" + bytes([15, 0, 15]))
    assert folder.load(tmp_path).train.images[0].ravel().tolist() == [255, 0, 255]
    head = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    body = struct.pack("<H", 0xF81F) + bytes(2)
    bitmap = b"BM" + struct.pack("<IHHI", 14 + 52 + 4, 0, 0, 66) + head + masks + body
    for path in tmp_path.glob("*/*.ppm"):
        path.write_bytes(bitmap)
    assert folder.load(tmp_path).train.images[0].ravel().tolist() == [255, 0, 255]


def test_how_pictures_become_rgb(tmp_path: Path) -> None:
    """Transparency is dropped, the first picture of several is taken, palettes are looked up."""
    red, blue = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    image_folder(tmp_path, n=3)
    dog = tmp_path / "dog"
    clear.save(dog / "clear.png")
    clear.save(dog / "clear.webp", lossless=True, exact=True)
    red.save(dog / "moving.gif", save_all=True, append_images=[blue])
    red.save(dog / "pages.tif", save_all=True, append_images=[blue])
    red.save(dog / "moving.png", save_all=True, append_images=[blue])
    red.quantize(4).save(dog / "palette.png", transparency=0)
    red.convert("CMYK").save(dog / "print.tif")
    for name in [
        "clear.png",
        "clear.webp",
        "moving.gif",
        "moving.png",
        "pages.tif",
        "palette.png",
        "print.tif",
    ]:
        assert folder.read_image(dog / name, None).reshape(3, -1).T.tolist() == [[255, 0, 0]] * 4, (
            name
        )


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for without end."""
    dog = image_folder(tmp_path) / "dog"
    os.mkfifo(dog / "pipe.png")
    assert "pipe.png: is not a plain file" in refused(tmp_path)
    (dog / "pipe.png").unlink()
    (dog / "device.png").symlink_to("/dev/zero")
    assert "device.png: is not a plain file" in refused(tmp_path)
    (dog / "device.png").unlink()
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(dog / "s"))
        assert "is not a plain file" in refused(tmp_path)
    (dog / "s").unlink()
    (dog / "loop.png").symlink_to("loop.png")
    assert "loop.png: is a link that leads nowhere" in refused(tmp_path)
    (dog / "loop.png").unlink()
    (dog / "good.png").symlink_to("001.png")
    assert len(folder.load(tmp_path).train) + 8 == 41
    (tmp_path / "eel").symlink_to("nowhere")
    assert "eel: is a link that leads nowhere" in refused(tmp_path)
    (tmp_path / "eel").unlink()
    (tmp_path / "eel").symlink_to("eel")
    assert "eel: is a link that leads nowhere" in refused(tmp_path)


def test_images_that_may_not_be_read(tmp_path: Path) -> None:
    image_folder(tmp_path)
    for path, mode in ((tmp_path / "dog" / "003.png", 0o644), (tmp_path / "dog", 0o755)):
        path.chmod(0)
        told = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(tmp_path)], capture_output=True, text=True
        )
        path.chmod(mode)
        assert told.stdout.startswith(f"{path}"), told
        assert "cannot be read (Permission denied)" in told.stdout


AS_NOBODY = """
import os, sys
from holdfast.data import load
if os.getuid() == 0:
    # Only the files are another's: the way to them stays open.
    import ctypes
    libc = ctypes.CDLL(None)
    class Header(ctypes.Structure): _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
    header, data = Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(ctypes.byref(header), data)
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    data[1] &= ~0b110
    libc.capset(ctypes.byref(header), data)
try:
    load(sys.argv[1])
except ValueError as error:
    print(error)
"""


def test_a_size_that_no_memory_holds(tmp_path: Path) -> None:
    image_folder(tmp_path)
    with pytest.raises(InputError, match="size must be 1 to 7000 pixels, not 1000000"):
        folder.load(tmp_path, 1_000_000)
    for size in (True, 8.5, "8", -1, 10**30):
        with pytest.raises(InputError, match="size must be 1 to 7000 pixels, not"):
            data.load(tmp_path, size=size)


def test_what_is_no_name_of_a_data_set() -> None:
    digits = data.load("digits")
    assert data.load(digits) is digits
    for source in (None, 3, np.zeros((2, 3, 8, 8)), ["a"]):
        with pytest.raises(InputError, match=r"a data set is 'digits', a folder or"):
            data.load(source)  # type: ignore[arg-type]


def test_more_images_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    image_folder(tmp_path)
    monkeypatch.setattr(np, "empty", refuse)
    assert "do not fit into memory; bring all images to one size with --image-size" in refused(
        tmp_path
    )


# --- what is said where no images are ---------------------------------------------------------


def test_an_empty_or_unsuitable_folder_says_what_helps(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            data.load(path)
        message = str(caught.value)
        assert message.startswith(str(path)) and "\n" not in message
        return message

    for place, word in ((tmp_path / "none", "no such folder"), (tmp_path, "is empty")):
        message = said(place)
        assert word in message and f"`holdfast data --data {place} --download`" in message
        assert "one folder a class" in message
    (tmp_path / "a.png").write_bytes(b"")
    assert "holds no class folders" in said(tmp_path) and "download" not in said(tmp_path)
    assert "is no folder" in said(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()

    # Folders are there already, so "one folder a class" alone would not help.
    for name in ("train", "test"):
        write_image(tmp_path / "flat" / name / "1.png")
    assert said(tmp_path / "flat" / "test").startswith(str(tmp_path / "flat" / "test"))
    with pytest.raises(InputError, match=r"flat/test: holds no class folders; .*flat/test/cat"):
        data.load(tmp_path / "flat")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    assert "holds no class folders" in refused_below(tmp_path / "bare")
    with pytest.raises(InputError, match="cannot be read"):
        data.load("a" * 300)
    with pytest.raises(InputError):
        data.load("a\0b")


def refused_below(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        data.load(path)
    return str(caught.value)


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_decompression_bombs(tmp_path: Path, side: int) -> None:
    """A few bytes that claim 100 million (Pillow warns) or 900 million pixels (Pillow refuses)."""
    image_folder(tmp_path)
    bomb = png(struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), bytes(100))
    (tmp_path / "dog" / "bomb.png").write_bytes(bomb)
    assert "bomb.png: more than 50,000,000 pixels" in refused(tmp_path)
