"""Which images of a split are used, and in which order the classes stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast import data
from holdfast.data import DataSet, choose
from holdfast.data.base import seen_in_training
from holdfast.data.choosing import read_indices
from holdfast.data.class_order import in_order, read_class_order
from holdfast.errors import InputError

DIGITS = data.load("digits")


def line(caught: pytest.ExceptionInfo[InputError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def refused(**how: Any) -> str:
    with pytest.raises(InputError) as caught:
        choose(DIGITS, "test", **how)
    return line(caught)


@pytest.mark.parametrize("kind", ["txt", "json", "npy", "list"])
def test_indices_keep_their_order(tmp_path: Path, kind: str) -> None:
    rows = [7, 3, 299, 0]
    file = tmp_path / f"rows.{kind}"
    given: Any = file
    if kind == "txt":
        file.write_text("# chosen by hand\n7\n\n 3,\n299  # the last\n+0\n")
    elif kind == "json":
        file.write_text(json.dumps(rows))
    elif kind == "npy":
        np.save(file, np.array(rows, np.uint16))
    else:
        given = rows
    few = choose(DIGITS, "test", indices=given)
    np.testing.assert_array_equal(few.test.images, DIGITS.test.images[rows])
    assert few.test.filenames.tolist() == DIGITS.test.filenames[rows].tolist()
    assert few.test.labels.tolist() == DIGITS.test.labels[rows].tolist()
    assert few.result_fields("test", 4)["indices"] == rows and few.test.reach == 300
    assert any("4 of the 300 images of test, in its order" in told for told in few.told)
    assert len(few.validation) == 300 and len(DIGITS.test) == 300
    assert choose(DIGITS, "test", indices=given, limit=2).test.indices.tolist() == [7, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([0, 300], "index 300, the 2nd, is out of range; the split has 300 images, 0 to 299"),
        ([-1], "index -1, the 1st, is out of range"),
        ([5, 6, 5], "index 5 stands there 2 times"),
        ([], "names no image"),
        ([0.5], "not whole"),
        ([float("nan")], "not whole"),
        ([[1, 2]], "whole numbers, one an image"),
        (["a"], "whole numbers, one an image"),
        ([10**30], "whole numbers, one an image"),
        ([True, False], "whole numbers, one an image"),
        (np.array([2**64 - 1], np.uint64), "out of range"),
    ],
)
def test_indices_that_are_none(rows: Any, words: str) -> None:
    assert words in refused(indices=rows)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"1\nzwei\n", "line 2: 'zwei' is no whole number"),
        ("a.txt", b"1.5\n", "line 1: '1.5'"),
        ("a.txt", b"\xff\xfe1", "cannot be read"),
        ("a.txt", b"", "names no image"),
        ("a.json", b"{}", "a list of whole numbers"),
        ("a.json", b"[1, true]", "a list of whole numbers"),
        ("a.json", b"[1", "is damaged, or no JSON"),
        ("a.json", b"[" * 100_000, "is damaged, or no JSON"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "a.json"),
        ("a.npy", b"hello", "no readable .npy"),
    ],
)
def test_files_of_indices_that_are_none(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in refused(indices=tmp_path / name)


def test_an_array_of_objects_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="pickled objects, which are never loaded"):
        read_indices(tmp_path / "o.npy")
    with pytest.raises(InputError, match=r"absent\.txt"):
        read_indices(tmp_path / "absent.txt")


def test_balanced() -> None:
    few = choose(DIGITS, "test", limit=25, balanced=True)
    assert np.bincount(few.test.labels).tolist() == [2] * 10
    assert any("2 images of each of 10 classes, 20 in all" in told for told in few.told)
    for label in range(10):  # the first of each class, in the order of the split
        own = np.flatnonzero(DIGITS.test.labels == label)[:2].tolist()
        assert [i for i in few.test.indices.tolist() if DIGITS.test.labels[i] == label] == own  # type: ignore[union-attr]
    assert few.test.indices.tolist() == sorted(few.test.indices.tolist())  # type: ignore[union-attr]
    uneven = choose(DIGITS, "test", indices=np.flatnonzero(DIGITS.test.labels <= 2)[:31])
    least = int(np.bincount(uneven.test.labels)[:3].min())
    even = choose(uneven, "test", balanced=True)
    assert np.bincount(even.test.labels).tolist() == [least] * 3
    assert "9 images are fewer than the 10 classes" in refused(limit=9, balanced=True)
    for limit in (0, -1, 2.5, True):
        assert "--limit must be at least 1" in refused(limit=limit)


def test_what_was_seen_in_training_goes_by_the_furthest_image() -> None:
    few = choose(DIGITS, "validation", indices=[5, 250])
    assert few.validation.reach == 251
    assert not seen_in_training("train+validation-251", "validation", few.validation.reach)
    assert seen_in_training("train+validation-250", "validation", few.validation.reach)


def test_every_image() -> None:
    whole = DIGITS.split("all")
    assert len(whole) == 1797 == len(set(whole.filenames.tolist()))
    assert len(choose(DIGITS, "all", limit=5).split("all")) == 5
    assert DIGITS.usual(None) == "test" and DIGITS.usual("train") == "train"


# --- the order of the classes ---------------------------------------------------------------------


def small() -> data.Split:
    test = DIGITS.test
    rows = np.flatnonzero(test.labels < 3)[:9]
    return data.Split(test.images[rows], test.filenames[rows], test.labels[rows], test.pixels)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("o.txt", "bee\ngreat white shark\nant\n"),
        ("o.txt", "\ufeffBee\nGreat_White_Shark\n\n# last\nANT"),
        ("o.txt", "0 bee\n1 great white shark\n2 ant"),
        ("o.csv", "1,bee\n3,ant\n2,great white shark"),
        ("o.json", '["bee", "great white shark", "ant"]'),
        ("o.json", '{"bee": 0, "ant": 2, "great white shark": 1}'),
        ("o.json", '{"0": "bee", "2": "ant", "1": "great white shark"}'),
        (
            "o.json",
            '{"0": ["n02206856", "bee"], "2": ["n02219486", "ant"],'
            ' "1": ["n01484850", "great_white_shark"]}',
        ),
        ("o.txt", "n02206856 bee\nn01484850 great white shark, white shark\nn02219486 ant, emmet"),
        ("o.txt", "n02206856\tbee\nn01484850\twhite shark, great white shark\nn02219486\tant"),
    ],
)
def test_the_order_of_classes(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    before = DataSet("own", ("ant", "bee", "great white shark"), small(), small(), small())
    after = in_order(before, tmp_path / name)
    assert after.classes == ("bee", "great white shark", "ant")
    assert after.test.labels.tolist() == [{0: 2, 1: 0, 2: 1}[i] for i in before.test.labels]
    assert any("the order of the 3 classes" in told for told in after.told)


def test_an_order_of_more_classes_than_the_data_have(tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text("eel\nbee\ncod\ngreat white shark\nant\n")
    before = DataSet("own", ("ant", "bee", "great white shark"), small(), small(), small())
    after = in_order(before, tmp_path / "o.txt")
    assert after.classes == ("eel", "bee", "cod", "great white shark", "ant")
    assert set(after.test.labels.tolist()) == {1, 3, 4}
    assert after.absent(after.test.labels) == ["eel", "cod"]
    assert any("2 of which the data do not have" in told for told in after.told)


def test_names_for_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 4, 4), np.uint8), labels=[0, 1, 2, 1])
    (tmp_path / "o.txt").write_text("cat\ndog\neel\nfox\n")
    read = data.load(tmp_path / "a.npz", class_order=tmp_path / "o.txt")
    assert read.classes == ("cat", "dog", "eel", "fox") and read.named
    assert read.test.labels.tolist() == [0, 1, 2, 1]
    (tmp_path / "o.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match="2 classes, but a has labels up to 2"):
        data.load(tmp_path / "a.npz", class_order=tmp_path / "o.txt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "names no class"),
        ("bee\nant\n", "does not name the class 'great white shark'"),
        ("bee\nant\nbee\n", "'bee' stands there twice, as class 0 and 2"),
        (
            "bees\nant\ngreat white shark",
            "the class 'bee' of own; did you mean 'bees'",
        ),
        ("0 bee\n2 ant\n3 eel", "class 1 is left out"),
        ("0 bee\n0 ant", "a number stands there twice"),
        ("[1, 2]", "a list of names"),
        ('{"a": "b"}', "a list of names"),
        ('{"0": []}', "class 0 has no name"),
        ("[" * 100_000, "no JSON"),
        ('["a"', "no JSON"),
    ],
)
def test_orders_that_are_none(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "o.txt").write_text(content)
    before = DataSet("own", ("ant", "bee", "great white shark"), small(), small(), small())
    with pytest.raises(InputError) as caught:
        in_order(before, tmp_path / "o.txt")
    assert words in line(caught)


def test_a_synset_has_several_names(tmp_path: Path) -> None:
    (tmp_path / "o.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    assert read_class_order(tmp_path / "o.txt") == (
        ("n01440764", "tench, Tinca tinca", "tench", "Tinca tinca"),
        ("n01443537", "goldfish"),
    )
