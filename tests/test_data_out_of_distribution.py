"""Out-of-distribution images: generated, from files of any origin, and in the model's shape."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from peak_memory import forget_peak, peak
from PIL import Image

from holdfast.data import out_of_distribution
from holdfast.errors import InputError


@pytest.mark.parametrize("name", ["noise", "textures"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 20, 12)])
def test_generated_images_are_the_same_every_time_and_all_different(name, shape):
    made = out_of_distribution.load(name, shape, 12, seed=3)
    assert made.images.shape == (12, *shape) and made.images.dtype == np.uint8
    assert np.array_equal(made.images, out_of_distribution.load(name, shape, 12, seed=3).images)
    assert np.array_equal(made.images[:5], out_of_distribution.load(name, shape, 5, seed=3).images)
    assert not np.array_equal(made.images, out_of_distribution.load(name, shape, 12, seed=4).images)
    assert len(np.unique(made.images.reshape(12, -1), axis=0)) == 12
    assert made.pixels


def test_textures_are_smooth_and_noise_is_not():
    def roughness(name: str) -> float:
        images = out_of_distribution.load(name, (3, 32, 32), 40).images.astype(float)
        return float(np.abs(np.diff(images, axis=3)).mean() / images.std())

    assert roughness("textures") < 0.5 * roughness("noise")


def test_fitting_by_hand():
    ramp = np.arange(0, 240, 40, dtype=np.uint8)  # 6 columns
    wide = np.broadcast_to(ramp, (1, 1, 4, 6))
    cut = out_of_distribution.fit(wide, (1, 4, 4))  # the middle four columns, untouched
    assert np.array_equal(cut[0, 0, 0], ramp[1:5])
    assert np.array_equal(out_of_distribution.fit(wide, (1, 4, 6)), wide)
    halved = out_of_distribution.fit(np.full((2, 3, 64, 64), 77, np.uint8), (3, 32, 32))
    assert (halved == 77).all() and halved.shape == (2, 3, 32, 32)
    grey = out_of_distribution.fit(np.array([255, 0, 0], np.uint8).reshape(1, 3, 1, 1), (1, 1, 1))
    assert grey.item() == 76  # 0.299 · 255
    colour = out_of_distribution.fit(np.full((1, 1, 8, 8), 9, np.uint8), (3, 8, 8))
    assert (colour == 9).all() and colour.shape == (1, 3, 8, 8)


def test_digits_and_folders_of_images_however_nested(tmp_path):
    shown = out_of_distribution.load("digits", (3, 32, 32), 20)
    assert shown.images.shape == (20, 3, 32, 32)
    assert "resized" in shown.pixels
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").write_text("no image")
    for i in range(5):
        picture = Image.new("RGB", (40 + i, 50), (40 * i, 0, 0))
        picture.save((tmp_path / "deep" / "er" if i % 2 else tmp_path) / f"{i}.png")
    found = out_of_distribution.load(tmp_path, (3, 32, 32), 10)
    assert found.name == tmp_path.name
    assert sorted(found.images[:, 0, 0, 0]) == [0, 40, 80, 120, 160]
    assert len(out_of_distribution.load(tmp_path, (3, 32, 32), 3).images) == 3


def test_cifar100_and_svhn_files(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 3072), dtype=np.uint8)
    hundred = tmp_path / "hundred" / "cifar-100-python"
    hundred.mkdir(parents=True)
    with open(hundred / "test", "wb") as file:
        pickle.dump({"data": pixels, "fine_labels": [1] * 7}, file, protocol=2)
    read = out_of_distribution.load(tmp_path / "hundred", (3, 32, 32), 10)
    assert read.name == "CIFAR-100"
    assert np.array_equal(read.images, pixels.reshape(7, 3, 32, 32))

    house = tmp_path / "house"
    house.mkdir()
    numbers = rng.integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    for compressed in (False, True):
        file = house / "test_32x32.mat"
        scipy.io.savemat(file, {"X": numbers, "y": np.ones((5, 1))}, do_compression=compressed)
        read = out_of_distribution.load(house, (3, 32, 32), 10)
        assert read.name == "SVHN"
        assert np.array_equal(read.images, numbers.transpose(3, 2, 0, 1))


class Bomb:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def write(place: Path, name: str, content: bytes) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(content)
    return place


def test_what_cannot_be_read_is_one_line(tmp_path):
    mat = tmp_path / "shape" / "test_32x32.mat"
    mat.parent.mkdir()
    scipy.io.savemat(mat, {"X": np.zeros((32, 32, 3), np.uint8)})
    real = tmp_path / "real" / "test_32x32.mat"
    real.parent.mkdir()
    scipy.io.savemat(real, {"X": np.zeros((32, 32, 3, 2))})
    (tmp_path / "empty").mkdir()
    ran = tmp_path / "ran"
    small = {"data": np.zeros((2, 12), np.uint8)}
    cases = [
        (write(tmp_path / "hostile", "test", pickle.dumps({"data": Bomb(ran)})), "hostile"),
        (write(tmp_path / "other", "test", pickle.dumps(small, 2)), "(N, 3072)"),
        (write(tmp_path / "list", "test", pickle.dumps([1], 2)), "(N, 3072)"),
        (write(tmp_path / "torn", "test_32x32.mat", b"MATLAB 5.0 torn"), "no readable .mat"),
        (write(tmp_path / "noise", "test_32x32.mat", bytes(range(256)) * 20), "test_32x32.mat"),
        (mat.parent, "uint8 array X"),
        (real.parent, "uint8 array X"),
        (write(tmp_path / "text", "a.png", b"no image"), "a.png"),
        (tmp_path / "empty", "holds no files"),
        (tmp_path / "missing", "no such folder"),
        ("svhn", "noise, textures, digits"),
    ]
    for source, says in cases:
        with pytest.raises(InputError) as error:
            out_of_distribution.load(source, (3, 32, 32), 4)
        assert says in str(error.value), (source, error.value)
        assert "\n" not in str(error.value)
    assert not ran.exists()
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(InputError, match="no such folder"):
            out_of_distribution.load(name, (3, 32, 32), 4)
    for shape, count in (((4, 32, 32), 4), ((3, 32, 32), 0)):
        with pytest.raises(InputError, match="1 or 3 channels"):
            out_of_distribution.load("noise", shape, count)


def test_a_mat_file_that_unpacks_to_gigabytes_does_not(tmp_path):
    """2 GB of zeros in 2 MB: what memory grows by is bounded."""

    def element(kind: int, body: bytes) -> bytes:
        return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)

    head = element(6, struct.pack("<II", 9, 0)) + element(5, struct.pack("<4i", 32, 32, 3, 10**5))
    packer = zlib.compressobj(1)
    packed = packer.compress(struct.pack("<II", 14, 2**31) + head + element(1, b"X"))
    packed += packer.compress(struct.pack("<II", 2, 2**31 - 200))
    packed += b"".join(packer.compress(bytes(2**24)) for _ in range(128)) + packer.flush()
    file = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x100, 0x4D49)
    write(tmp_path, "test_32x32.mat", file + struct.pack("<II", 15, len(packed)) + packed)
    forget_peak()
    before = peak()
    with pytest.raises(InputError, match="no readable"):
        out_of_distribution.load(tmp_path, (3, 8, 8), 4)
    grown = peak() - before
    assert grown < 900_000, f"{grown} KiB"
