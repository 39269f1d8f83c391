"""Images that are decoded when they are asked for: what an array would give, within a bound."""

from __future__ import annotations

import gc
import pickle
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from holdfast import InputError, data
from holdfast.data import base, folder, images
from holdfast.data.images import LazyImages, digests, fingerprint, joined, part
from holdfast.runs.identity import digest

SHAPE = (3, 4, 5)
EVERY = np.random.default_rng(0).integers(0, 256, (300, *SHAPE), dtype=np.uint8)


class Decoder:
    """Gives images of `EVERY`, and counts how often each is asked for."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, row: int) -> np.ndarray:
        self.calls.append(row)
        return EVERY[row]


def settled(lazy: LazyImages) -> None:
    """Wait until nothing is decoded ahead any more."""
    while lazy._store.coming:
        time.sleep(0.001)


def test_it_is_indexed_as_an_array_is() -> None:
    lazy = LazyImages(Decoder(), len(EVERY), SHAPE)
    assert lazy.shape == EVERY.shape and lazy.ndim == 4 and lazy.dtype == np.uint8
    assert len(lazy) == 300 and lazy.nbytes == EVERY.nbytes
    mask = np.arange(300) % 7 == 0
    for rows in (np.array([5, 3, -1, 5]), mask, [4, 2], np.array([], np.int64)):
        assert np.array_equal(lazy[rows], EVERY[rows])
    assert np.array_equal(lazy[-3], EVERY[-3])
    assert np.array_equal(np.asarray(lazy), EVERY)
    assert np.array_equal(list(lazy), EVERY)
    assert np.array_equal(lazy[10:200:3][np.array([1, -1])], EVERY[10:200:3][[1, -1]])
    with pytest.raises(IndexError):
        lazy[np.array([300])]


def test_slices_and_parts_decode_nothing() -> None:
    decoder = Decoder()
    lazy = LazyImages(decoder, len(EVERY), SHAPE)
    view = lazy[100:].part(np.array([7, 0]))
    assert decoder.calls == [] and view.shape == (2, *SHAPE)
    assert np.array_equal(view, EVERY[[107, 100]]) and decoder.calls == [107, 100]
    assert np.array_equal(lazy[np.array([100])], EVERY[[100]])  # they share what was decoded
    settled(lazy)
    assert decoder.calls.count(100) == 1


def test_the_cache_keeps_the_last_ones_within_its_bound() -> None:
    decoder, each = Decoder(), int(np.prod(SHAPE))
    lazy = LazyImages(decoder, len(EVERY), SHAPE, cache=10 * each + each // 2)
    made: list[weakref.ref[np.ndarray]] = []

    def decode(row: int) -> np.ndarray:
        image = decoder(row).copy()
        made.append(weakref.ref(image))
        return image

    lazy._store.decode = decode
    for begin in range(0, 300, 25):
        assert np.array_equal(lazy[np.arange(begin, begin + 25)], EVERY[begin : begin + 25])
    settled(lazy)
    gc.collect()
    assert len(lazy._store.kept) == 10
    assert len([image for image in made if image() is not None]) == 10
    before = len(decoder.calls)
    lazy[np.array([299, 295])]
    assert len(decoder.calls) == before
    lazy[np.array([0])]
    assert 0 in decoder.calls[before:]


def test_what_follows_is_decoded_ahead() -> None:
    decoder = Decoder()
    lazy = LazyImages(decoder, len(EVERY), SHAPE)
    lazy[np.arange(10)]
    settled(lazy)
    assert sorted(decoder.calls) == list(range(10 + images.AHEAD))
    lazy[np.array([200, 50])]  # in no order: nothing is guessed
    settled(lazy)
    assert len(decoder.calls) == 10 + images.AHEAD + 1
    lazy.prefetch(np.array([250, 251]))
    settled(lazy)
    assert sorted(decoder.calls)[-2:] == [250, 251]


def test_several_threads_decode_at_once() -> None:
    together = threading.Barrier(2, timeout=20)

    def decode(row: int) -> np.ndarray:
        together.wait()
        return EVERY[row]

    if images.MOST_THREADS < 2 or (images.os.cpu_count() or 1) < 2:
        pytest.skip("one processor")
    assert np.array_equal(LazyImages(decode, 4, SHAPE, cache=0)[np.arange(4)], EVERY[:4])


def test_an_image_that_cannot_be_decoded_can_be_asked_for_again() -> None:
    broken = {7}

    def decode(row: int) -> np.ndarray:
        if row in broken:
            raise InputError(f"pictures/{row}.png: no readable image")
        return EVERY[row]

    lazy = LazyImages(decode, len(EVERY), SHAPE)
    assert np.array_equal(lazy[np.arange(5)], EVERY[:5])  # number 7 is decoded ahead: no error yet
    settled(lazy)
    for _ in range(2):
        with pytest.raises(InputError, match=r"pictures/7\.png"):
            lazy[np.arange(5, 10)]
    broken.clear()
    assert np.array_equal(lazy[np.arange(5, 10)], EVERY[5:10])


def test_what_decodes_into_another_shape_is_refused() -> None:
    lazy = LazyImages(lambda row: EVERY[row][:, 1:], 3, SHAPE)
    with pytest.raises(ValueError, match=r"image 0 is uint8 \(3, 3, 5\), not \(3, 4, 5\)"):
        lazy[0]


def test_they_go_to_another_process_without_what_is_kept() -> None:
    lazy = LazyImages(Decoder(), len(EVERY), SHAPE)[:50]
    lazy[np.arange(50)]
    other = pickle.loads(pickle.dumps(lazy))
    assert len(pickle.dumps(lazy)) < 5000 + 8 * 300
    assert np.array_equal(other, EVERY[:50])


def test_what_tells_them_apart_needs_no_decoding() -> None:
    decoder, names = Decoder(), [b"%03d" % row for row in range(300)]
    lazy = LazyImages(decoder, len(EVERY), SHAPE, digests=names)
    assert digests(lazy[5:7]) == [b"005", b"006"]
    assert fingerprint(lazy[:9]) != fingerprint(lazy[:10])
    assert decoder.calls == []
    assert digests(LazyImages(decoder, len(EVERY), SHAPE)) == digests(EVERY)


def test_digests_of_pixels_are_those_of_arrays() -> None:
    lazy = LazyImages(Decoder(), len(EVERY), SHAPE)
    assert digest(lazy) == digest(EVERY)
    assert digest(lazy[:65]) == digest(EVERY[:65]) != digest(EVERY[:64])
    # Known from before images could be lazy: fingerprints do not change.
    assert fingerprint(np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4)) == "4dbdc2b2b62c"


def test_parts_and_joins_stay_lazy() -> None:
    decoder = Decoder()
    lazy = LazyImages(decoder, len(EVERY), SHAPE)
    both = joined([lazy[:100], EVERY[:50], lazy[250:]])
    assert isinstance(both, LazyImages) and decoder.calls == []
    assert np.array_equal(both, np.concatenate([EVERY[:100], EVERY[:50], EVERY[250:]]))
    assert isinstance(joined([EVERY[:2], EVERY[:1]]), np.ndarray)
    assert isinstance(part(lazy, np.array([2])), LazyImages)
    split = base.Split(lazy, np.arange(300).astype(str), np.zeros(300, np.int64), "p")
    taken = split.rows(np.array([4, 9]))
    assert isinstance(taken.images, LazyImages) and list(taken.filenames) == ["4", "9"]
    assert isinstance(split.first(5).images, LazyImages)
    assert isinstance(split.in_memory().images, np.ndarray)


# --- folders ----------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for split in ("train", "validation", "test"):
        for name in ("cat", "dog"):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path


def lazily(monkeypatch: pytest.MonkeyPatch, place: Path, **options: int) -> data.DataSet:
    with monkeypatch.context() as patch:
        patch.setattr(folder, "IN_MEMORY", 0)
        return folder.load(place, **options)


def test_a_large_folder_is_the_same_folder(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, lazy = folder.load(pictures), lazily(monkeypatch, pictures)
    for name in base.SPLITS:
        ours, theirs = lazy.split(name), at_once.split(name)
        assert isinstance(ours.images, LazyImages) and isinstance(theirs.images, np.ndarray)
        assert np.array_equal(ours.images, theirs.images)
        assert np.array_equal(ours.labels, theirs.labels)
        assert list(ours.filenames) == list(theirs.filenames)
        assert "sha256 of the files" in ours.pixels and "of the images" in theirs.pixels
    assert np.array_equal(data.to_tensor(lazy.test.images), data.to_tensor(at_once.test.images))
    small = lazily(monkeypatch, pictures, size=8)
    assert np.array_equal(small.train.images, folder.load(pictures, size=8).train.images)
    assert data.describe(lazy) == data.describe(at_once)


def test_its_overlaps_are_found_by_their_files(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "test/cat/copy.png").write_bytes((pictures / "train/cat/0.png").read_bytes())
    assert [str(each) for each in lazily(monkeypatch, pictures).overlaps] == [
        str(each) for each in folder.load(pictures).overlaps
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "no readable image"),
        (lambda path: Image.new("RGB", (16, 17)).save(path), "17×16 pixels where other images"),
        (lambda path: path.unlink(), "no such file"),
    ],
)
def test_a_picture_damaged_midway_is_named(
    damage, said: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = lazily(monkeypatch, pictures).train
    path = pictures / str(split.filenames[5])
    whole = path.read_bytes()
    damage(path)
    assert split.images[np.arange(5)].shape == (5, 3, 16, 16)
    with pytest.raises(InputError) as caught:
        split.images[np.arange(12)]
    assert str(caught.value).startswith(str(path)) and said in str(caught.value)
    path.write_bytes(whole)
    assert np.array_equal(split.images, folder.load(pictures).train.images)
