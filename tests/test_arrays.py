"""Arrays in files of anybody's: read as they are, or one line and nothing in memory."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.data.arrays import Header, Wrong, map_npy, read_array
from holdfast.data.corruptions import read_published
from holdfast.data.extra import load_extra
from holdfast.errors import InputError
from holdfast.uncertainty.human import read_human

N = 40
LABELS = np.arange(N) % 10
PEOPLE = np.eye(10)[LABELS]


def npy(header: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin-1") + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + content


def whole(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def described(shape: str = "(40, 10)", kind: str = "'<f8'", order: str = "False") -> str:
    return f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"


CONTENT = PEOPLE.tobytes()
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "truncated": whole(PEOPLE)[:-9],
    "longer": whole(PEOPLE) + b"x",
    "a trillion elements": npy(described("(1000000000000,)"), CONTENT),
    "more than int64": npy(described(f"({10**30}, 10)"), CONTENT),
    "a number of 5,000 digits": npy(described(f"({'9' * 5000},)"), CONTENT),
    "negative": npy(described("(-40, -10)"), CONTENT),
    "booleans as sides": npy(described("(40, True, 10)"), CONTENT),
    "a float as side": npy(described("(40.0, 10)"), CONTENT),
    "no tuple": npy(described("400"), CONTENT),
    "no dimensions": npy(described("()"), bytes(8)),
    "100 dimensions": npy(described("(" + "1, " * 100 + ")"), bytes(8)),
    "objects": whole(PEOPLE.astype(object)),
    "objects in a record": npy(described(kind="[('a', '|O')]"), CONTENT),
    "a record": npy(described(kind="[('a', '<f4'), ('b', '<f4')]"), CONTENT),
    "strings": whole(PEOPLE.astype("S8")),
    "complex": whole(PEOPLE.astype(complex)),
    "dates": whole(np.zeros((40, 10), "M8[s]")),
    "booleans": whole(PEOPLE.astype(bool)),
    "no bytes an element": npy(described("(1000000000000, 10)", "'|V0'")),
    "an unknown type": npy(described(kind="'<q99'"), CONTENT),
    "code for a type": npy(described(kind="__import__('os').abort()"), CONTENT),
    "code for a header": npy("__import__('os').abort()", CONTENT),
    "deeply nested": npy("(" * 3000 + ")" * 3000, CONTENT),
    "a long header": npy(described() + " " * 60_000, CONTENT),
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 500,
    "another version": b"\x93NUMPY\x07\x00" + bytes(200),
    "no text": npy("\xff\xfe\x00", CONTENT),
    "lacks a key": npy("{'descr': '<f8', 'shape': (40, 10)}", CONTENT),
    "text": b"0.5 0.5\n" * 100,
    "a zip's head": b"PK\x03\x04 torn",
    "another shape": whole(PEOPLE[:39]),
    "another order": whole(PEOPLE[:, ::-1].copy()),
    "NaN": whole(PEOPLE * np.nan),
    "infinite": whole(np.where(PEOPLE > 0, np.inf, 0)),
}


def one_line(call: Callable[..., Any], *arguments: Any) -> str:
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert time.monotonic() - began < 20
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_array_is_one_line(tmp_path: Path, name: str) -> None:
    """Alone, and inside an archive, stored and compressed."""
    file = tmp_path / "human.npy"
    file.write_bytes(DAMAGED[name])
    assert str(file) in one_line(read_human, file, LABELS)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        archive = tmp_path / "human.npz"
        with zipfile.ZipFile(archive, "w", method) as made:
            made.writestr("probs.npy", DAMAGED[name])
        assert str(archive) in one_line(read_human, archive, LABELS)
        with zipfile.ZipFile(archive, "w", method) as made:
            made.writestr("label.npy", whole(LABELS))
            made.writestr("image.npy", DAMAGED[name])
        assert str(archive) in one_line(load_extra, archive, (10, 1, 1), 10)
        with zipfile.ZipFile(archive, "w", method) as made:
            made.writestr("label.npy", DAMAGED[name])
            made.writestr("image.npy", whole(np.zeros((N, 4, 4, 3), np.uint8)))
        assert str(archive) in one_line(load_extra, archive, (3, 4, 4), 10)
    (tmp_path / "fog.npy").write_bytes(DAMAGED[name])
    assert "fog.npy" in one_line(read_published, tmp_path, "fog", 1)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2"])
def test_every_layout_of_a_good_array_is_read(tmp_path: Path, order: Any, kind: str) -> None:
    array = np.asarray(PEOPLE.astype(kind), order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", probs=array)
    np.savez_compressed(tmp_path / "c.npz", probs=array)
    for name in ("a.npy", "b.npz", "c.npz"):
        assert np.array_equal(read_human(tmp_path / name, LABELS), PEOPLE)
    passed: list[Header] = []
    assert np.array_equal(map_npy(tmp_path / "a.npy", passed.append), array)
    assert passed[0].shape == (N, 10) and passed[0].dtype == np.dtype(kind)


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for place in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "loop"):
        assert str(place) in one_line(read_human, place, LABELS)
        assert str(place) in one_line(load_extra, place, (3, 4, 4), 10)
    os.rename(tmp_path / "pipe", tmp_path / "fog.npy")
    assert "no plain file" in one_line(read_published, tmp_path, "fog", 1)


def test_an_archive_that_numpy_did_not_write(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as made:
            made.writestr("probs.npy", whole(PEOPLE))
        assert "NumPy does not write" in one_line(read_human, tmp_path / "a.npz", LABELS)


def test_the_check_comes_before_the_content(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PEOPLE)

    def refuse(header: Header) -> None:
        raise Wrong("no")

    file = tmp_path / "a.npy"
    assert one_line(read_array, file, "probs", refuse).endswith("a.npy: no")
    assert one_line(map_npy, file, refuse).endswith("a.npy: no")


BOMB = """
import sys, zipfile
import numpy as np
from holdfast.data.extra import load_extra
from holdfast.uncertainty.human import read_human
from peak_memory import peak
before = peak()
for call in (
    lambda: read_human(sys.argv[1], np.arange(40) % 10),
    lambda: load_extra(sys.argv[1], (3, 4, 4), 10),
):
    try:
        call()
    except ValueError as error:
        print(error)
print((peak() - before) // 1024)
"""


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """1 GB of zeros in 1 MB, under each name that is read; an image array that claims 48 GB."""
    rows = 2**30 // 80
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        for name, kind, shape, size in (
            ("probs", "'<f8'", f"({rows}, 10)", rows * 80),
            ("label", "'|i1'", f"({2**30},)", 2**30),
        ):
            with made.open(f"{name}.npy", "w", force_zip64=True) as stream:
                stream.write(npy(described(shape, kind)))
                left = size
                while left:
                    left -= stream.write(bytes(min(left, 2**24)))
        made.writestr("image.npy", npy(described(f"({2**30}, 4, 4, 3)", "'|u1'")))
    assert bomb.stat().st_size < 3_000_000
    told = subprocess.run(
        [sys.executable, "-c", BOMB, str(bomb)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    *said, grown = told.stdout.splitlines()
    assert len(said) == 2 and int(grown) < 200, told.stdout  # MiB
    assert "shape" in said[0] and "not as long" in said[1]
