"""Folders of images in every arrangement that people keep them in."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import image_folder, write_image

from holdfast import data
from holdfast.data import DataSet, folder
from holdfast.errors import InputError


def refused(path: Path, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        data.load(path, **how)
    message = str(caught.value)
    assert "\n" not in message
    return message


def said(dataset: DataSet, words: str) -> bool:
    assert all("\n" not in line for line in dataset.told)
    return any(words in line for line in dataset.told)


def counts(dataset: DataSet) -> list[int]:
    return [len(getattr(dataset, name)) for name in ("train", "validation", "test")]


# --- splits under any name ------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("val", ["val", "Valid", "validation", "DEV"])
@pytest.mark.parametrize("test", ["test", "Testing", "eval"])
def test_splits_under_any_name(tmp_path: Path, train: str, val: str, test: str) -> None:
    for name, n in ((train, 4), (val, 3), (test, 2)):
        image_folder(tmp_path / name, n=n)
    assert counts(data.load(tmp_path)) == [8, 6, 4]


@pytest.mark.parametrize(
    "names", [("ILSVRC2012_img_train", "ILSVRC2012_img_val"), ("seg_train", "seg_dev")]
)
def test_splits_by_a_word_of_their_name(tmp_path: Path, names: tuple[str, str]) -> None:
    image_folder(tmp_path / names[0], n=4)
    image_folder(tmp_path / names[1] / names[1], n=3)  # one further in, as some archives unpack
    assert counts(data.load(tmp_path)) == [8, 6, 0]


@pytest.mark.parametrize("deeper", ["images", "cifar10", "a/b"])
def test_one_folder_deeper(tmp_path: Path, deeper: str) -> None:
    for name, n in (("train", 4), ("val", 3), ("test", 2)):
        image_folder(tmp_path / deeper / name, n=n)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.xml").write_text("<x/>")
    (tmp_path / "README.md").write_text("about")
    read = data.load(tmp_path)
    assert counts(read) == [8, 6, 4]
    assert said(read, f"read from {deeper}")
    assert said(read, "not read: README.md, annotations")
    assert all(name.startswith(f"{deeper}/") for name in read.test.filenames)


def test_classes_one_folder_deeper(tmp_path: Path) -> None:
    image_folder(tmp_path / "PetImages", n=5)
    (tmp_path / "readme.txt").write_text("")
    read = data.load(tmp_path)
    assert sum(counts(read)) == 10 == len(read.split("all"))
    assert said(read, "read from PetImages") and said(read, "not read: readme.txt")


def test_several_folders_with_classes(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        image_folder(tmp_path / name / "train", n=4)
    assert "several folders hold classes, v1 and v2; give one of them" in refused(tmp_path)


def test_only_a_test_folder(tmp_path: Path) -> None:
    image_folder(tmp_path / "test", n=5)
    read = data.load(tmp_path)
    assert counts(read) == [0, 0, 10] and read.classes == ("cat", "dog")
    assert len(read.split("all")) == 10 and read.usual(None) == "test"
    for name in ("train", "validation"):
        with pytest.raises(InputError, match=f"has test but no {name} folder; --split test or all"):
            read.split(name)
    with pytest.raises(InputError, match=r"no train|only 0 validation"):
        read.split("train+validation")


def test_the_test_folder_itself(tmp_path: Path) -> None:
    """`--data DIR/test` is a test split whole, not a folder to be divided."""
    image_folder(tmp_path / "test", n=5)
    image_folder(tmp_path / "val", n=5)
    read = data.load(tmp_path / "test")
    assert counts(read) == [0, 0, 10] and said(read, "taken as the test split, by its name")
    assert counts(data.load(tmp_path / "val")) == [0, 10, 0]


def test_train_and_validation_alone(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", n=5)
    image_folder(tmp_path / "val", n=3)
    read = data.load(tmp_path)
    assert counts(read) == [10, 6, 0] and read.usual(None) == "validation"
    with pytest.raises(InputError, match=r"no test folder; .*--split train, validation or all"):
        read.split("test")


def test_no_splits(tmp_path: Path) -> None:
    image_folder(tmp_path, n=20)
    read = data.load(tmp_path)
    assert counts(read) == [32, 4, 4] and said(read, "--split all takes every image")
    whole = read.split("all")
    assert len(whole) == 40 == len(set(whole.filenames.tolist()))
    for image, name, label in zip(whole.images, whole.filenames, whole.labels, strict=True):
        np.testing.assert_array_equal(image, folder.read_image(tmp_path / name, None))
        assert Path(name).parent.name == read.classes[label]


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_images_to_hold_some_out(tmp_path: Path, n: int) -> None:
    image_folder(tmp_path, n=n)
    read = data.load(tmp_path)
    assert counts(read) == [0, 0, 0] and read.usual(None) == "all"
    assert len(read.split("all")) == 2 * n == len(data.load(tmp_path, split="all").split("all"))


def test_all_is_a_sample_from_its_beginning(tmp_path: Path) -> None:
    for split, n in (("train", 60), ("test", 20)):
        for name in ("a", "b"):
            for i in range(n):
                write_image(
                    tmp_path / split / name / f"{split}{name}{i}.png", hash((split, i)) % 9999
                )
    whole = data.load(tmp_path).split("all")
    first = whole.filenames[:40]
    assert 4 <= sum(name.startswith("test/") for name in first) <= 20
    assert 10 <= sum("/a/" in name for name in first) <= 30


def test_all_of_more_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path, n=10)
    before = data.load(tmp_path)
    monkeypatch.setattr(folder, "IN_MEMORY", 0)
    after = data.load(tmp_path)
    assert isinstance(after.test.images, data.LazyImages)
    for name in ("train", "test", "all"):
        np.testing.assert_array_equal(
            np.asarray(before.split(name).images), np.asarray(after.split(name).images)
        )


def test_many_gigabytes_are_not_read_to_be_put_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder(tmp_path / "train", n=10)
    image_folder(tmp_path / "test", n=10)
    monkeypatch.setattr(folder, "READ_WHOLE", 100)
    monkeypatch.setattr(folder, "IN_MEMORY", 0)
    opened: list[Path] = []
    from holdfast.data import pictures

    read_file = pictures.read_file
    monkeypatch.setattr(
        pictures, "read_file", lambda path, most: (opened.append(path), read_file(path, most))[1]
    )
    read = data.load(tmp_path)
    assert len(set(opened)) == 1 and said(read, "their order goes by names and lengths")
    assert read.test.filenames.tolist() == data.load(tmp_path).test.filenames.tolist()
    assert 3 <= read.test.labels[:10].sum() <= 7


# --- classes --------------------------------------------------------------------------------------


def test_a_class_called_train_beside_others(tmp_path: Path) -> None:
    image_folder(tmp_path, ("train", "bus", "test tube"), n=10)
    assert data.load(tmp_path).classes == ("bus", "test tube", "train")
    image_folder(tmp_path / "more" / "two", ("train station", "test tube"), n=10)
    assert data.load(tmp_path / "more" / "two").classes == ("test tube", "train station")


def test_numbers_stand_for_themselves(tmp_path: Path) -> None:
    image_folder(tmp_path / "test", tuple(map(str, range(11))), n=1)
    read = data.load(tmp_path)
    assert read.classes == tuple(map(str, range(11))) and not read.named
    for name, label in zip(read.test.filenames, read.test.labels, strict=True):
        assert Path(name).parent.name == str(label)
    image_folder(tmp_path / "other" / "test", ("1", "2", "10"), n=1)
    assert data.load(tmp_path / "other").named


def test_names_that_differ_by_case(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", ("Cat", "dog"), n=4)
    image_folder(tmp_path / "test", ("cat", "DOG"), n=2)
    read = data.load(tmp_path)
    assert read.classes == ("Cat", "dog") and np.bincount(read.test.labels).tolist() == [2, 2]
    assert said(read, "'cat' of test is 'Cat' of train")
    image_folder(tmp_path / "letters" / "test", ("A", "a"), n=2)
    assert said(data.load(tmp_path / "letters"), "'A' and 'a' differ only by case")


def test_what_stands_beside_images_is_said(tmp_path: Path) -> None:
    image_folder(tmp_path / "test", n=3)
    (tmp_path / "test" / "cat" / "boxes.txt").write_text("0 0 1 1")
    (tmp_path / "test" / "cat" / "Thumbs.db").write_bytes(b"\0")
    read = data.load(tmp_path)
    assert len(read.test) == 6
    assert said(read, "no images, so not read: cat/Thumbs.db, cat/boxes.txt")
    (tmp_path / "test" / "eel").mkdir()
    (tmp_path / "test" / "eel" / "notes.txt").write_text("none yet")
    assert "eel: no images in this class" in refused(tmp_path)


def test_links_and_names_of_any_letters(tmp_path: Path) -> None:
    image_folder(tmp_path / "store", ("Katze", "犬", "a\x1bb"), n=3)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test").symlink_to(tmp_path / "store")
    read = data.load(tmp_path / "set")
    assert read.classes == ("Katze", "a\ufffdb", "犬") and len(read.test) == 9
    (tmp_path / "set" / "val").symlink_to("nowhere")
    assert "is a link that leads nowhere" in refused(tmp_path / "set")


def test_the_order_of_classes_from_a_file(tmp_path: Path) -> None:
    image_folder(tmp_path / "test", ("cat", "dog", "eel"), n=2)
    (tmp_path / "order.txt").write_text("eel\nfox\ncat\ndog\n")
    read = data.load(tmp_path, class_order=tmp_path / "order.txt")
    assert read.classes == ("eel", "fox", "cat", "dog")
    for split in ("test", "all"):
        held = read.split(split)
        for name, label in zip(held.filenames, held.labels, strict=True):
            assert Path(name).parent.name == read.classes[label]


# --- Tiny-ImageNet and ImageNet -------------------------------------------------------------------

SYNSETS = ("n02124075", "n01443537", "n04067472")
WORDS = {
    "n01443537": "goldfish, Carassius auratus",
    "n02124075": "Egyptian cat",
    "n04067472": "reel",
    "n00000000": "thing",
}


def tiny_imagenet(root: Path) -> dict[str, str]:
    """As it is published: the true synset of each validation image."""
    (root).mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(SYNSETS) + "\n")
    (root / "words.txt").write_text("".join(f"{s}\t{words}\n" for s, words in WORDS.items()))
    rows, truth = [], {}
    for number, synset in enumerate(SYNSETS):
        for i in range(6):
            write_image(root / "train" / synset / "images" / f"{synset}_{i}.JPEG", 100 * number + i)
        (root / "train" / synset / f"{synset}_boxes.txt").write_text("x\t0\t0\t1\t1\n")
        for i in range(3):
            name = f"val_{3 * i + number}.JPEG"
            write_image(root / "val" / "images" / name, 1000 + 10 * number + i)
            rows.append(f"{name}\t{synset}\t0\t0\t62\t62")
            truth[name] = synset
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    for i in range(4):
        write_image(root / "test" / "images" / f"test_{i}.JPEG", 2000 + i)
    return truth


def test_tiny_imagenet(tmp_path: Path) -> None:
    truth = tiny_imagenet(tmp_path / "tiny-imagenet-200")
    for place in (tmp_path / "tiny-imagenet-200", tmp_path):
        read = data.load(place)
        assert read.classes == ("goldfish", "Egyptian cat", "reel")
        assert counts(read) == [18, 9, 0] and read.usual(None) == "validation"
        for name, label in zip(read.validation.filenames, read.validation.labels, strict=True):
            assert truth[Path(name).name] == sorted(SYNSETS)[label]
        for name, label in zip(read.train.filenames, read.train.labels, strict=True):
            assert Path(name).name.startswith(sorted(SYNSETS)[label])
        assert said(read, "names of the synsets from words.txt")
        assert said(read, "labels from") and said(read, "its images have no labels")
        with pytest.raises(InputError, match=r"no labels; .*--split train, validation or all"):
            read.split("test")
    other = data.load(
        tmp_path / "tiny-imagenet-200", class_order=tmp_path / "tiny-imagenet-200" / "wnids.txt"
    )
    assert other.classes == ("Egyptian cat", "goldfish", "reel")
    for name, label in zip(other.validation.filenames, other.validation.labels, strict=True):
        assert truth[Path(name).name] == SYNSETS[label]


def test_tiny_imagenet_whose_annotations_do_not_fit(tmp_path: Path) -> None:
    root = tmp_path / "t"
    tiny_imagenet(root)
    table = root / "val" / "val_annotations.txt"
    rows = table.read_text().splitlines()
    table.write_text("\n".join(rows[1:]))
    assert "has no label for" in refused(root)
    table.write_text("\n".join([*rows, "val_0.JPEG\tn01443537\t0\t0\t1\t1"]))
    assert "two labels for 'val_0.JPEG'" in refused(root)
    table.write_text("\n".join([rows[0].replace("n02124075", "n99999999"), *rows[1:]]))
    assert "class 'n99999999' is in validation but not in train" in refused(root)
    table.write_text("")
    assert "val_annotations.txt: is empty" in refused(root)


def flat(place: Path, n: int = 6) -> list[str]:
    names = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(n)]
    for i, name in enumerate(names):
        write_image(place / name, i)
    return names


def synset_of(name: str) -> str:
    return sorted(SYNSETS)[int(Path(name).stem[-1]) % 3]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("imagenet_2012_validation_synset_labels.txt", "{synset}\n"),
        ("val.txt", "{name} {number}\n"),
        ("val_map.txt", "{name} {synset}\n"),
        ("LOC_val_solution.csv", "{stem},{synset} 85 1 499 272\n"),
        ("labels.csv", "{name},{synset}\n"),
        ("labels.json", ""),
        ("labels.npy", ""),
        ("mine.tsv", "{name}\t{synset}\n"),
        ("mine.txt", "{number}\n"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_imagenet_flat(tmp_path: Path, file: str, content: str, inside: bool) -> None:
    root = tmp_path / "imagenet"
    names = flat(root / "val")
    table = (root / "val" if inside else root) / file
    rows = [
        {
            "name": name,
            "stem": Path(name).stem,
            "synset": synset_of(name),
            "number": sorted(SYNSETS).index(synset_of(name)),
        }
        for name in names
    ]
    if file.endswith(".json"):
        table.write_text(json.dumps({row["name"]: row["synset"] for row in rows}))
    elif file.endswith(".npy"):
        np.save(table, np.array([row["number"] for row in rows]))
    else:
        if "name" in content or "stem" in content:
            random.Random(0).shuffle(rows)
        head = "ImageId,PredictionString\n" if "LOC" in file else ""
        table.write_text(head + "".join(content.format(**row) for row in rows))
    named = {"labels": table} if file.startswith("mine") else {}
    for place in (root, root / "val"):
        read = data.load(place, **named)
        assert counts(read) == [0, 6, 0]
        for name, label in zip(read.validation.filenames, read.validation.labels, strict=True):
            assert sorted(SYNSETS)[label] == synset_of(name)
        assert read.named == (read.classes[0] != "0") and said(read, f"labels from {table}")


def test_imagenet_flat_beside_train(tmp_path: Path) -> None:
    """Numbers are the synsets in their order; a class without validation images stays."""
    image_folder(tmp_path / "train", SYNSETS, n=2)
    names = flat(tmp_path / "val", 4)
    (tmp_path / "val.txt").write_text(
        "".join(f"{name} {2 * (i % 2)}\n" for i, name in enumerate(names))
    )
    lines = [f"{synset} {words}" for synset, words in WORDS.items()]
    (tmp_path / "LOC_synset_mapping.txt").write_text("\n".join(lines))
    read = data.load(tmp_path)
    assert read.classes == ("goldfish", "Egyptian cat", "reel")
    assert np.bincount(read.validation.labels, minlength=3).tolist() == [2, 0, 2]
    (tmp_path / "val.txt").write_text("".join(f"{name} 3\n" for name in names))
    assert "label 3 of ILSVRC2012_val_00000001.JPEG, of only 3 classes" in refused(tmp_path)


def test_imagenet_by_synset(tmp_path: Path) -> None:
    image_folder(tmp_path / "val", SYNSETS, n=3)
    read = data.load(tmp_path)
    assert counts(read) == [0, 9, 0] and read.classes == tuple(sorted(SYNSETS))
    order = {str(i): [s, WORDS[s].partition(",")[0]] for i, s in enumerate(reversed(SYNSETS))}
    (tmp_path / "order.json").write_text(json.dumps(order))
    after = data.load(tmp_path, class_order=tmp_path / "order.json")
    assert after.classes == tuple(reversed(SYNSETS))
    # Two synsets of one name keep apart.
    (tmp_path / "words.txt").write_text("".join(f"{s}\tcrane\n" for s in SYNSETS))
    assert data.load(tmp_path).classes[0] == "crane (n01443537)"


def test_flat_without_labels(tmp_path: Path) -> None:
    flat(tmp_path / "val")
    for place in (tmp_path, tmp_path / "val"):
        message = refused(place)
        assert "val: holds no class folders" in message and "--labels FILE" in message
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n1000\n3\n4\n5\n6\n")
    assert "are in no order of its synsets" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.txt", "1\n2\n", "2 labels for the 6 images"),
        ("l.txt", "", "is empty"),
        ("l.txt", "-1\n" * 6, ""),
        ("l.csv", "file,label\na.JPEG,cat\n", "has no label for"),
        ("l.csv", "file,label\na.JPEG\n", "line 2 has 1 cells"),
        ("l.json", "{}", "holds no labels"),
        ("l.json", "[1, null]", "a list of labels"),
        ("l.json", "[1", "no JSON"),
        ("l.npy", "hello", "no readable .npy"),
        ("absent.txt", None, "absent.txt"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    flat(tmp_path / "set")
    if content is not None:
        (tmp_path / name).write_text(content)
    assert words in refused(tmp_path / "set", labels=tmp_path / name)


def test_labels_for_images_in_class_folders(tmp_path: Path) -> None:
    image_folder(tmp_path / "test", n=2)
    (tmp_path / "l.txt").write_text("0\n")
    assert "its images are in class folders already" in refused(tmp_path, labels=tmp_path / "l.txt")


def test_a_flat_folder_with_a_table(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        write_image(tmp_path / name, i)
    (tmp_path / "labels.csv").write_text("filename,label\nb.png,dog\na.png,cat\nc.png,polar bear\n")
    (tmp_path / "LICENSE.md").write_text("")
    read = data.load(tmp_path)
    assert read.classes == ("cat", "dog", "polar bear") and counts(read) == [0, 0, 3]
    found = dict(zip(read.test.filenames, read.test.labels.tolist(), strict=True))
    assert found == {"a.png": 0, "b.png": 1, "c.png": 2}
    assert said(read, "not read: LICENSE.md")


def test_a_damaged_picture_is_named_in_every_arrangement(tmp_path: Path) -> None:
    image_folder(tmp_path / "test", n=3)
    bad = tmp_path / "test" / "cat" / "001.png"
    bad.write_bytes(bad.read_bytes()[:50])
    assert refused(tmp_path).startswith(f"{bad}: no readable image")
    shutil.rmtree(tmp_path / "test")
    flat(tmp_path / "set", 3)
    (tmp_path / "set" / "labels.txt").write_text("0\n1\n0\n")
    (tmp_path / "set" / "ILSVRC2012_val_00000002.JPEG").write_bytes(b"no")
    assert "ILSVRC2012_val_00000002.JPEG: no readable image" in refused(tmp_path / "set")


# --- a model's size and classes -------------------------------------------------------------------


def test_images_are_brought_to_what_a_card_remembers(tmp_path: Path) -> None:
    image_folder(tmp_path / "test", n=2)
    for i in range(3):
        write_image(tmp_path / "test" / "cat" / f"wide{i}.png", i, (20, 12))
        write_image(tmp_path / "test" / "dog" / f"wide{i}.png", 10 + i, (20, 12))
    assert "--image-size" in refused(tmp_path)
    card = {"height": 10, "width": 10, "channels": 1}
    read = data.load(tmp_path, like=card)
    assert read.shape == (1, 10, 10) and said(read, "the size that the model was trained at")
    assert read.brought == {"size": 10, "grey": True}
    assert read.shown == {**card, "brought": {"size": 10, "grey": True}}
    assert data.load(tmp_path, like=card, size=4).shape == (1, 4, 4)
    for odd in (
        {},
        {"height": "x", "width": "x"},
        {"height": 10**9, "width": 10**9},
        {"height": 3},
    ):
        assert "--image-size" in refused(tmp_path, like=odd)
    assert data.load("digits", like=card).shape == (1, 8, 8)


def test_classes_that_hold_their_own_splits(tmp_path: Path) -> None:
    for name, seed in (("cat", 0), ("dog", 50)):
        for split, n in (("train", 4), ("test", 2)):
            for i in range(n):
                write_image(tmp_path / name / split / f"{split}{i}.png", seed + 10 * n + i)
    read = data.load(tmp_path)
    assert counts(read) == [6, 2, 4] and read.classes == ("cat", "dog")
    assert said(read, "each class has its own splits")
    for name, label in zip(read.test.filenames, read.test.labels, strict=True):
        assert name.startswith(f"{read.classes[label]}/test/")


def test_flat_splits_are_no_classes(tmp_path: Path) -> None:
    """Images whose class stands in their names only: refused, not two classes train and test1."""
    for i in range(4):
        write_image(tmp_path / "train" / f"cat.{i}.jpg", i)
        write_image(tmp_path / "test1" / f"{i}.jpg", 10 + i)
    assert "holds no class folders" in refused(tmp_path)


@pytest.mark.parametrize("place", ["images", "images/test", "test/images"])
def test_tables_above_their_images(tmp_path: Path, place: str) -> None:
    for i in range(4):
        write_image(tmp_path / place / f"{i}.png", i)
    name = "test.csv" if "test" in place else "labels.csv"
    rows = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(4))
    (tmp_path / name).write_text(f"file,label\n{rows}")
    read = data.load(tmp_path)
    assert counts(read) == [0, 0, 4] and read.classes == ("cat", "dog")
    for file, label in zip(read.test.filenames, read.test.labels, strict=True):
        assert int(Path(file).stem) % 2 == 1 - label


def test_pictures_beside_class_folders_are_said(tmp_path: Path) -> None:
    image_folder(tmp_path / "test", n=2)
    write_image(tmp_path / "test" / "stray.png", 99)
    read = data.load(tmp_path)
    assert len(read.test) == 4 and said(read, "in no class folder, so not read: stray.png")


def test_grey_images_are_not_shown_to_a_model_of_colours(tmp_path: Path) -> None:
    """A normalisation of three channels would spread one without a word."""
    image_folder(tmp_path / "test", n=2)
    colours = {"height": 8, "width": 8, "channels": 3}
    assert data.load(tmp_path, like=colours).shape == (3, 8, 8)
    assert "trained on 3, so leave --grey out" in refused(tmp_path, like=colours, grey=True)
