"""Extra images: read without unpickling, refused in one line, mixed in at their share."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import digits, first, one_line, tiny, weights

from holdfast import data, draws
from holdfast.data.augment import Augment
from holdfast.data.extra import load_extra
from holdfast.errors import InputError
from holdfast.training import train
from holdfast.training.batches import Batches

SHAPE = (3, 4, 5)  # (C, H, W)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 4, 5, 3), dtype=np.uint8)
LABELS = np.arange(30) % 10


def archive(folder: Path, compressed: bool = False, **arrays: Any) -> Path:
    file = folder / "extra.npz"
    arrays = {"image": IMAGES, "label": LABELS, **arrays}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file


@pytest.mark.parametrize("compressed", [False, True])
def test_images_and_labels_come_as_they_are(tmp_path, compressed):
    extra = load_extra(archive(tmp_path, compressed), SHAPE, 10)
    assert len(extra) == 30
    assert isinstance(extra.images, np.memmap) is not compressed
    assert np.array_equal(extra.images, IMAGES)
    assert extra.labels.dtype == np.int64
    assert np.array_equal(extra.labels, LABELS)
    taken = extra.take(np.array([7, 3]))
    assert np.array_equal(taken, IMAGES[[7, 3]].transpose(0, 3, 1, 2))
    assert taken.dtype == np.uint8


def test_the_digest_is_of_the_content_alone(tmp_path):
    found = load_extra(archive(tmp_path), SHAPE, 10).digest
    assert load_extra(archive(tmp_path, True), SHAPE, 10).digest == found
    assert load_extra(archive(tmp_path, label=LABELS.astype(np.uint8)), SHAPE, 10).labels.sum() > 0
    other = IMAGES.copy()
    other[29, 3, 4, 2] ^= 1
    assert load_extra(archive(tmp_path, image=other), SHAPE, 10).digest != found
    assert load_extra(archive(tmp_path, label=LABELS[::-1].copy()), SHAPE, 10).digest != found


class Trap:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"label": None}, r"lacks the array 'label' \(it holds image\)"),
        ({"image": None}, r"lacks the array 'image' \(it holds label\)"),
        ({"image": IMAGES.transpose(0, 3, 1, 2).copy()}, r"shape \(30, 4, 5, 3\), not \(30, 3"),
        ({"image": IMAGES[:29]}, r"shape \(30, 4, 5, 3\), not \(29"),
        ({"image": IMAGES.astype(np.float32)}, "'image' must be uint8"),
        ({"image": IMAGES.astype(np.int8)}, "'image' must be uint8"),
        ({"image": np.asfortranarray(IMAGES)}, "column order"),
        ({"label": LABELS[:, None]}, r"'label' must have the shape \(N,\)"),
        ({"label": LABELS.astype(np.float64)}, "'label' must be whole numbers"),
        ({"label": LABELS + 1}, r"label\[9\] is 10; the data has 10 classes"),
        ({"label": LABELS - 1}, r"label\[0\] is -1"),
        ({"label": LABELS.astype(np.uint64) + 2**63}, "beyond int64"),
        ({"label": LABELS[:0], "image": IMAGES[:0]}, "no images"),
        ({"label": LABELS.astype("S2")}, "'label' must be whole numbers"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, arrays, says):
    file = archive(tmp_path, **arrays)
    with pytest.raises(InputError, match=says) as error:
        load_extra(file, SHAPE, 10)
    assert str(file) in one_line(error)


@pytest.mark.parametrize("name", ["image", "label"])
def test_pickled_objects_are_never_loaded(tmp_path, name):
    array = np.array([Trap(tmp_path / "ran")] * 30, object)
    file = archive(tmp_path, **{name: array})
    with pytest.raises(InputError, match="pickled objects"):
        load_extra(file, SHAPE, 10)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_whole_npz(tmp_path):
    whole = archive(tmp_path).read_bytes()
    at = whole.index(IMAGES.tobytes())
    contents = {
        "empty": b"",
        "text": b"once upon a time",
        "truncated": whole[:-30],
        "a bit flipped": whole[: at + 500] + bytes([whole[at + 500] ^ 1]) + whole[at + 501 :],
    }
    for name, content in contents.items():
        file = tmp_path / f"{name}.npz"
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged, or no \.npz file") as error:
            load_extra(file, SHAPE, 10)
        assert str(file) in one_line(error)
    with pytest.raises(InputError, match="no such file"):
        load_extra(tmp_path / "missing.npz", SHAPE, 10)
    with pytest.raises(InputError):
        load_extra(tmp_path, SHAPE, 10)


def test_a_header_that_lies_about_its_length_is_refused(tmp_path):
    def npy(shape: tuple[int, ...], content: bytes) -> bytes:
        stream = io.BytesIO()
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue() + content

    label = io.BytesIO()
    np.save(label, LABELS)
    for content, says in (
        (npy((30, 4, 5, 3), b"short"), "not as long"),
        (npy((30, 4, 5, 3), IMAGES.tobytes() + b"more"), "not as long"),
        (b"\x93NUMPY\x09\x00" + b"x" * 60, "unknown format"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "image|header|parse"),
        (b"no array at all", "magic|image"),
    ):
        file = tmp_path / "lying.npz"
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("label.npy", label.getvalue())
            made.writestr("image.npy", content)
        with pytest.raises(InputError, match=says) as error:
            load_extra(file, SHAPE, 10)
        one_line(error)


# -- batches ------------------------------------------------------------------------------------


def coloured(n: int = 20) -> data.Split:
    images = np.random.default_rng(1).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    return data.Split(images, np.arange(n).astype(str), np.arange(n) % 10, "made up")


def feed(extra=None, share=0.0, batch_size=8, **where) -> Batches:
    still = Augment(crop_padding=0, flip="none")
    split = coloured()
    device = torch.device("cpu")
    return Batches(split, batch_size, still, 5, device, 10, extra=extra, share=share, **where)


def keys(images: torch.Tensor) -> list[bytes]:
    return [(image * 255).round().byte().numpy().tobytes() for image in images]


def test_each_batch_has_its_share_and_passes_are_even(tmp_path):
    extra = load_extra(archive(tmp_path), SHAPE, 10)
    mixed = feed(extra, 0.6)
    assert mixed.steps_per_epoch == 2  # as many images as the data has, extra ones among them
    label_of = dict(zip(keys(data.to_tensor(coloured().images)), coloured().labels, strict=True))
    others = dict(zip(keys(data.to_tensor(extra.take(np.arange(30)))), LABELS, strict=True))
    seen: Counter[bytes] = Counter()
    for step in range(12):  # passes are 6 steps over each kind: 20 // 3 and 30 // 5
        given = mixed.batch(step)
        found = keys(given.images)
        assert sum(key in label_of for key in found) == 3
        assert sum(key in others for key in found) == 5
        both = {**label_of, **others}
        assert [both[key] for key in found] == given.labels.tolist()
        seen.update(found)
    assert all(seen[key] == 2 for key in others)
    assert sum(seen[key] for key in label_of) == 36
    assert max(seen[key] for key in label_of) == 2
    assert len(set(mixed.batch(3).seeds.tolist()) | set(mixed.batch(9).seeds.tolist())) == 16


def test_batches_are_a_function_of_seed_and_step_and_are_shared_out(tmp_path):
    extra = load_extra(archive(tmp_path), SHAPE, 10)
    whole, again = feed(extra, 0.5), feed(extra, 0.5)
    parts = [feed(extra, 0.5, rank=rank, world=2) for rank in (0, 1)]
    for step in (7, 0, 23):
        expected = whole.batch(step)
        assert all(map(torch.equal, expected[:3], again.batch(step)[:3]))
        assert all(map(torch.equal, expected[:3], parts[1].batch(step, whole=True)[:3]))
        assert expected.truth is None  # nothing was mixed
        shared = [key for part in parts for key in keys(part.batch(step).images)]
        assert sorted(shared) == sorted(keys(expected.images))
        assert len(parts[0].batch(step).labels) == 4


def test_without_extra_images_batches_are_what_they_always_were():
    """Checkpoints of earlier runs go on with the same images in the same order."""
    split, plain = coloured(), feed(batch_size=6)
    for step in (0, 4, 7):
        number, place = divmod(step, 3)
        shuffle = torch.Generator().manual_seed(int(draws.item_seeds(5, "order", number)))
        rows = torch.randperm(20, generator=shuffle)[place * 6 : place * 6 + 6]
        given = plain.batch(step)
        assert torch.equal(given.labels, torch.from_numpy(split.labels)[rows])
        assert torch.equal(given.seeds, draws.item_seeds(5, "perturb", number, rows))
        assert torch.equal(given.images, data.to_tensor(split.images[rows.numpy()]))


def test_shares_that_leave_nothing_of_one_kind_are_refused(tmp_path):
    extra = load_extra(archive(tmp_path), SHAPE, 10)
    for share in (0.01, 0.99):
        with pytest.raises(InputError, match=r"extra\.share"):
            feed(extra, share)
    few = load_extra(archive(tmp_path, image=IMAGES[:2], label=LABELS[:2]), SHAPE, 10)
    with pytest.raises(InputError, match="2 extra images, 4 go into a batch"):
        feed(few, 0.5)


def test_a_run_with_extra_images_is_known_by_their_content(tmp_path):
    whole = data.load("digits").train
    more = first(whole, 120)
    images = more.images[60:].transpose(0, 2, 3, 1).copy()
    file = archive(tmp_path, image=images, label=more.labels[60:])
    held = digits()  # whose test images may be compared with the extra ones, and no more
    given = data.DataSet(held.name, held.classes, held.train, held.validation, held.validation)
    recipe = tiny(extra={"file": str(file), "share": 0.5}, epochs=1)
    train(recipe, given, tmp_path / "run", seed=1, device="cpu")
    train(tiny(epochs=1), digits(), tmp_path / "plain", seed=1, device="cpu")
    with_, without = weights(tmp_path / "run"), weights(tmp_path / "plain")
    assert not torch.equal(with_["linear.weight"], without["linear.weight"])
    train(recipe, given, tmp_path / "run", seed=1, device="cpu")  # the same again
    archive(tmp_path, image=images, label=(more.labels[60:] + 1) % 10)
    with pytest.raises(InputError, match="another run"):
        train(recipe, given, tmp_path / "run", seed=1, device="cpu")
    archive(tmp_path, image=images[:, :7], label=more.labels[60:])
    with pytest.raises(InputError, match="'image' must have the shape"):
        train(recipe, given, tmp_path / "other", seed=1, device="cpu")
    assert not (tmp_path / "other").exists()


def test_mixed_batches_have_labels_to_match(tmp_path):
    """Every image has a colour of its own that says what it is a mixture of."""
    images = np.zeros((20, 3, 12, 12), dtype=np.uint8)
    images[:] = (10 * np.arange(20))[:, None, None, None]
    labels = np.arange(20) % 10
    split = data.Split(images, np.arange(20).astype(str), labels, "made up")
    augment = Augment(0, "none", cutmix=0.5)
    given = Batches(split, 20, augment, 5, torch.device("cpu"), 10)
    batch, again = given.batch(3), given.batch(3)
    for one, other in zip(batch, again, strict=True):
        assert one is other is None or torch.equal(one, other)
    assert torch.allclose(batch.truth.sum(1), torch.ones(20))
    assert torch.equal(batch.truth.argmax(1), batch.labels)
    mixed = 0
    for image, truth in zip((batch.images * 255).round().long(), batch.truth, strict=True):
        expected = torch.zeros(10)
        for value, count in zip(*image[0].unique(return_counts=True), strict=True):
            expected[int(value) // 10 % 10] += count / image[0].numel()
        assert torch.allclose(truth, expected, atol=1e-6)
        mixed += int((expected > 0).sum() == 2)
    assert 4 <= mixed <= 16
    still = given.batch(3, strength=0.0)
    assert torch.equal(still.truth, torch.nn.functional.one_hot(still.labels, 10).float())


def test_extra_images_are_mixed_among_themselves_too(tmp_path):
    extra = load_extra(archive(tmp_path), SHAPE, 10)
    augment = Augment(0, "none", mixup=1.0)
    given = Batches(coloured(), 8, augment, 5, torch.device("cpu"), 10, extra=extra, share=0.5)
    batch = given.batch(0)
    assert batch.truth.shape == (8, 10)
    assert float((batch.truth.max(1).values < 1).float().mean()) > 0.5
