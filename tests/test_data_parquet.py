"""Parquet and Arrow as Hugging Face stores data sets of images."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from holdfast import data
from holdfast.data import DataSet, LazyImages
from holdfast.data import parquet as reader
from holdfast.errors import InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(0)
CLASSES = ("cat", "dog", "eel")


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pixels_of(n: int, side: int = 6) -> np.ndarray:
    return RNG.integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def table_of(
    pixels: Any, labels: Any, names: Any = CLASSES, image: str = "image", label: str = "label"
) -> Any:
    raw = [each if isinstance(each, bytes) or each is None else png(each) for each in pixels]
    rows = [{"bytes": each, "path": f"pic_{i}.png"} for i, each in enumerate(raw)]
    features = {
        image: {"_type": "Image"},
        label: {"_type": "ClassLabel", "names": list(names)} if names else {"dtype": "int64"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, kind), label: pa.array(labels)})
    return table.replace_schema_metadata(metadata)


def write(path: Path, table: Any, group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
    else:
        pq.write_table(table, path, row_group_size=group)
    return path


def refused(path: Path, **how: Any) -> str:
    with pytest.raises(InputError) as caught:
        data.load(path, **how)
    message = str(caught.value)
    assert "\n" not in message and str(path.parent) in message, message
    return message


def said(dataset: DataSet, words: str) -> bool:
    return any(words in line for line in dataset.told)


@pytest.mark.parametrize("lazy", [False, True])
def test_shards_of_several_splits(
    tmp_path: Path, lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lazy:
        monkeypatch.setattr(reader, "IN_MEMORY", 0)
    train, test = pixels_of(20), pixels_of(7)
    labels = np.arange(20) % 3
    place = tmp_path / "set" / "data"
    write(place / "train-00000-of-00002.parquet", table_of(train[:12], labels[:12]), group=5)
    write(place / "train-00001-of-00002.parquet", table_of(train[12:], labels[12:]))
    write(place / "test-00000-of-00001.parquet", table_of(test, labels[:7]))
    for source in (tmp_path / "set", place):
        read = data.load(source)
        assert read.classes == CLASSES and read.named
        assert (len(read.train), len(read.validation), len(read.test)) == (17, 3, 7)
        assert isinstance(read.test.images, LazyImages) == lazy
        np.testing.assert_array_equal(np.asarray(read.test.images), test.transpose(0, 3, 1, 2))
        assert read.test.labels.tolist() == labels[:7].tolist()
        assert read.test.filenames[3] == "pic_3.png"
        both = read.split("train+validation")
        held = {image.tobytes() for image in np.asarray(both.images)}
        assert held == {image.tobytes() for image in train.transpose(0, 3, 1, 2)}
    rows = np.array([6, 0, 3])
    np.testing.assert_array_equal(
        np.asarray(read.test.rows(rows).images), test[rows].transpose(0, 3, 1, 2)
    )


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_one_file(tmp_path: Path, suffix: str) -> None:
    pixels = pixels_of(5)
    file = write(tmp_path / f"mine{suffix}", table_of(pixels, [2, 0, 1, 1, 2]))
    read = data.load(file)
    assert read.name == "mine" and read.usual(None) == "test" and len(read.split("all")) == 5
    np.testing.assert_array_equal(read.test.images, pixels.transpose(0, 3, 1, 2))
    with pytest.raises(InputError, match="has no train images; --split test or all"):
        read.split("train")


def test_folders_for_splits_and_arrow_files(tmp_path: Path) -> None:
    """As `save_to_disk` and the converted branches of Hugging Face lay them out."""
    for split, n in (("train", 9), ("validation", 4), ("test", 3)):
        write(
            tmp_path / "disk" / split / "data-00000-of-00001.arrow",
            table_of(pixels_of(n), np.arange(n) % 3),
        )
        write(
            tmp_path / "conv" / "default" / split / "0000.parquet",
            table_of(pixels_of(n), np.arange(n) % 3),
        )
    for place in ("disk", "conv"):
        read = data.load(tmp_path / place)
        assert (len(read.train), len(read.validation), len(read.test)) == (9, 4, 3)


@pytest.mark.parametrize(
    ("image", "label"),
    [("img", "label"), ("image", "labels"), ("photograph", "kind"), ("jpg", "fine_label")],
)
def test_other_names_of_columns(tmp_path: Path, image: str, label: str) -> None:
    table = table_of(pixels_of(3), [0, 1, 2], image=image, label=label)
    table = table.append_column("note", pa.array(["a", "b", "c"]))
    read = data.load(write(tmp_path / "t.parquet", table))
    assert read.classes == CLASSES and said(read, "are read, not note")


def test_labels_of_other_kinds(tmp_path: Path) -> None:
    pixels = pixels_of(4)
    for labels, classes in (
        (["b", "a", "c10", "c9"], ("a", "b", "c9", "c10")),
        (pa.array(["b", "a", "c", "a"]).dictionary_encode(), ("a", "b", "c")),
        (pa.array([1, 0, 2, 1], pa.uint8()), ("0", "1", "2")),
        ([True, False, True, True], ("0", "1")),
    ):
        table = table_of(pixels, labels, names=None)
        read = data.load(write(tmp_path / "t.parquet", table))
        assert read.classes == classes
    table = table_of(pixels, [0, 1, 2, 0], label="fine_label").append_column(
        "coarse_label", pa.array([0, 1, 0, 1])
    )
    file = write(tmp_path / "c.parquet", table)
    assert data.load(file, labels="coarse").test.labels.tolist() == [0, 1, 0, 1]
    assert data.load(file, labels="coarse_label").classes == ("0", "1")
    assert "no column of labels 'medium'" in refused(file, labels="medium")


def test_bytes_alone_and_jpeg(tmp_path: Path) -> None:
    raw = [png(each, "JPEG") for each in pixels_of(3)]
    table = pa.table({"image": pa.array(raw, pa.binary()), "label": [0, 1, 1]})
    read = data.load(write(tmp_path / "b.parquet", table))
    want = np.asarray(Image.open(io.BytesIO(raw[1]))).transpose(2, 0, 1)
    np.testing.assert_array_equal(read.test.images[1], want)
    assert read.test.filenames.tolist() == ["test_0", "test_1", "test_2"] and not read.named


def test_class_after_class(tmp_path: Path) -> None:
    file = write(tmp_path / "s.parquet", table_of(pixels_of(60), np.repeat([0, 1, 2], 20)))
    few = data.load(file, limit=12)
    assert len(set(few.test.labels.tolist())) == 3 and said(few, "a sample of 12 taken")


def test_sizes(tmp_path: Path) -> None:
    table = table_of([*pixels_of(2, 6), *pixels_of(2, 9)], [0, 1, 0, 1])
    file = write(tmp_path / "t.parquet", table)
    message = refused(file)
    assert f"{file}: row 2: 9×9 pixels where other images have 6×6" in message
    assert "--image-size" in message
    assert data.load(file, size=5).shape == (3, 5, 5)
    read = data.load(file, like={"height": 4, "width": 4})
    assert read.shape == (3, 4, 4) and said(read, "the size that the model was trained at")


def test_images_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", table_of(pixels_of(4), [0, 1, 2, 0]))
    shard = reader._Shard(tmp_path / "t.parquet")
    again = pickle.loads(pickle.dumps(shard))
    assert again.encoded("image", 3) == shard.encoded("image", 3)


def test_only_a_few_row_groups_are_kept(tmp_path: Path) -> None:
    pixels = pixels_of(40)
    write(tmp_path / "t.parquet", table_of(pixels, np.arange(40) % 3), group=2)
    shard = reader._Shard(tmp_path / "t.parquet")
    for row in np.random.default_rng(1).permutation(40):
        raw = shard.encoded("image", int(row))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(raw))), pixels[row])  # type: ignore[arg-type]
    assert len(shard.kept) == reader.KEPT_GROUPS


# --- what is refused ------------------------------------------------------------------------------


def test_shards_that_are_missing(tmp_path: Path) -> None:
    table = table_of(pixels_of(3), [0, 1, 2])
    write(tmp_path / "train-00000-of-00003.parquet", table)
    write(tmp_path / "train-00002-of-00003.parquet", table)
    assert "shard 00001 of 00003 of 'train' is missing" in refused(tmp_path)
    write(tmp_path / "train-00001-of-00003.parquet", table)
    write(tmp_path / "more.parquet", table)
    assert "more.parquet: names no split, as the files beside it do" in refused(tmp_path)


def test_labels_that_are_unknown(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", table_of(pixels_of(3), [-1, -1, -1]))
    assert "all -1, which stands for unknown" in refused(tmp_path)
    write(tmp_path / "validation.parquet", table_of(pixels_of(3), [0, 1, 2]))
    read = data.load(tmp_path)
    assert read.usual(None) == "validation" and said(read, "all -1")
    with pytest.raises(InputError, match="all -1"):
        read.split("test")


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([0, 3, 1], CLASSES, "labels up to 3, but 3 classes"),
        ([0, -2, 1], CLASSES, "label 1 is -2, out of range"),
        ([0, None, 1], CLASSES, "row 1 has no 'label'"),
        ([0.0, 1.0, 2.0], CLASSES, "'label' holds double; whole numbers or names are labels"),
        ([[0], [1], [2]], CLASSES, "whole numbers or names are labels"),
        ([0, 0, 0], None, "1 class, where a classifier needs at least 2"),
        (["cat", "cow", "dog"], CLASSES, "the label 'cow' is none of the 3 classes"),
        ([0, 1, 2], ("a", "a", "b"), "are no names of classes"),
        ([0, 1, 2], ("a", 7, "b"), "are no names of classes"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: Any, names: Any, words: str) -> None:
    assert words in refused(write(tmp_path / "t.parquet", table_of(pixels_of(3), labels, names)))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"hello", "row 1: no readable image (it has none of these formats)"),
        (b"", "row 1: no readable image (it is empty)"),
        (None, "row 1: has no bytes of an image; store images inside the file"),
        (png(pixels_of(1, 4)[0])[:-40], "row 1: no readable image"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_images_that_are_none(tmp_path: Path, raw: Any, words: str, suffix: str) -> None:
    pixels = pixels_of(3, 4)
    table = table_of([pixels[0], raw, pixels[2]], [0, 1, 2])
    assert words in refused(write(tmp_path / f"t{suffix}", table))


def test_files_that_are_none(tmp_path: Path) -> None:
    file = write(tmp_path / "good.parquet", table_of(pixels_of(4), [0, 1, 2, 0]))
    whole = file.read_bytes()
    for name in ("bad.parquet", "bad.arrow"):
        for content in (b"", b"hello", whole[:-40], whole[: len(whole) // 2], b"PAR1" * 50):
            (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "d" / name).write_bytes(content)
            assert name in refused(tmp_path / "d" / name)
    table = pa.table({"text": ["a"], "label": [1]})
    assert "no column of images" in refused(write(tmp_path / "t.parquet", table))
    table = pa.table({"image": pa.array([b"a"], pa.binary())})
    assert "no column 'label'" in refused(write(tmp_path / "t.parquet", table))
    table = pa.table({"a": pa.array([b"a"]), "b": pa.array([b"b"]), "label": [1]})
    assert "several columns may be the images, a, b" in refused(
        write(tmp_path / "t.parquet", table)
    )
    assert "holds no images" in refused(
        write(tmp_path / "t.parquet", table_of([], pa.array([], pa.int64())))
    )
    (tmp_path / "link.parquet").symlink_to("nowhere")
    assert "no such file" in refused(tmp_path / "link.parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "is no plain file" in refused(tmp_path / "pipe.parquet")


def test_random_damage_is_one_line(tmp_path: Path) -> None:
    """Whatever byte is wrong: refused in one line, or read as images and labels."""
    whole = write(tmp_path / "g.parquet", table_of(pixels_of(6), [0, 1, 2] * 2)).read_bytes()
    rng = np.random.default_rng(7)
    for trial in range(60):
        broken = bytearray(whole)
        for _ in range(1 + trial % 4):
            at = rng.integers(trial % 2 * len(whole) // 2, len(whole))
            broken[at] ^= int(rng.integers(1, 256))
        (tmp_path / "b.parquet").write_bytes(broken)
        try:
            data.load(tmp_path / "b.parquet")
        except InputError as error:
            assert "\n" not in str(error) and "b.parquet" in str(error)


def test_without_pyarrow(tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", table_of(pixels_of(3), [0, 1, 2]))
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from holdfast import data\n"
        "try:\n    data.load(sys.argv[1])\nexcept ValueError as error:\n    print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True
    )
    assert told.stdout.strip() == (
        "Parquet is read by pyarrow, which is not installed: pip install 'holdfast[parquet]'"
    ), told


def test_pyarrow_is_imported_for_nothing_else(tmp_path: Path) -> None:
    program = "import sys, holdfast.data; print('pyarrow' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.stdout.strip() == "False"
