"""Every reader of data, given damaged files: one line, no hang, bounded memory."""

from __future__ import annotations

import io
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
import scipy.io
from fuzzing import ODD, damaged, survives
from PIL import Image

from holdfast import data
from holdfast.data import cifar10, download, folder, out_of_distribution
from holdfast.data.arrays import Header, Wrong, map_npy
from holdfast.data.extra import load_extra
from holdfast.data.pickles import parse_pickle
from holdfast.uncertainty.human import read_human

Case = tuple[Any, Callable[[], object]]
Write = Callable[[str, bytes], Path]

RNG = np.random.default_rng(0)
N = data_files.IMAGES_PER_BATCH
LABELS = np.arange(N) % 10


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


# --- pickles --------------------------------------------------------------------------------------

BATCH = data_files.batch(1, 3)
PICKLES = [
    data_files.python2_pickle(BATCH),
    *(pickle.dumps(BATCH, protocol) for protocol in range(6)),
    pickle.dumps({"a": [1.5, None, True, 10**30, b"x", "é", (1, (2,))], "b": np.arange(4.0)}, 4),
]
OPCODES = (
    b"(.012FIJKLMNPQRSTUVXabcdeghijl]opqrstu})\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b"
)
OPCODES += bytes(range(0x8C, 0x99))


def pickles(rng: random.Random, count: int, write: Write) -> Iterator[Case]:
    for i in range(count):
        match i % 4:
            case 0:  # instructions at random
                length = rng.randint(1, 60)
                content = bytes(
                    rng.choice(OPCODES) if rng.random() < 0.7 else rng.randrange(256)
                    for _ in range(length)
                )
            case 1:  # one that repeats
                content = rng.choice((b"(", b"]", b"}", b"2", b"K\x01\x85", b"N\x85", b"](")) * (
                    rng.choice((100, 100_000))
                )
                content += rng.choice((b"", b".", b"t.", b"e.", b"0."))
            case _:
                content = damaged(rng.choice(PICKLES), rng)
        yield content, lambda content=content: parse_pickle(content, "file")


def batches(rng: random.Random, count: int, write: Write) -> Iterator[Case]:
    """CIFAR-10's files, whose values or bytes are odd, and the one of CIFAR-100."""
    whole = data_files.batch(3)
    meta = {"label_names": list(data_files.CLASSES)}
    for i in range(count):
        name, value = ("batches.meta", meta) if i % 3 == 0 else ("data_batch_2", whole)
        if i % 2:
            content = damaged(pickle.dumps(value, 2), rng)
        else:
            odd = dict(value)
            key = rng.choice(list(odd))
            if rng.random() < 0.5 and isinstance(odd[key], list):
                odd[key] = [*odd[key][:-1], rng.choice(ODD)]
            else:
                odd[key] = rng.choice((*ODD, pixels(N, 3), pixels(0), LABELS, np.array("text")))
            content = pickle.dumps(odd, rng.choice((0, 2, 4)))
        path = write(f"cifar/{name}", content)
        yield content, lambda path=path: restored(path, lambda: data.load(path.parent))
        path = write("hundred/test", content)
        yield content, lambda path=path: out_of_distribution.load(path.parent, (3, 8, 8), 4)


def restored(path: Path, read: Callable[[], object]) -> object:
    try:
        return read()
    finally:
        seed = 0 if path.name == "batches.meta" else int(path.name[-1])
        if seed:
            path.write_bytes(data_files.python2_pickle(data_files.batch(seed)))
        else:
            meta = {"label_names": list(data_files.CLASSES)}
            path.write_bytes(data_files.python2_pickle(meta))


# --- images ---------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _pictures() -> list[tuple[str, bytes]]:
    colour = Image.fromarray(pixels(9, 12, 3))
    other = Image.fromarray(pixels(9, 12, 3))
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(24) for _ in range(4))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    made = [
        ("png", encoded(colour, "PNG", exif=turned)),
        ("png", encoded(colour.quantize(8), "PNG", transparency=1)),
        ("png", encoded(colour, "PNG", save_all=True, append_images=[other])),
        (
            "png",
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", deep)
            + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""),
        ),
        ("jpg", encoded(colour, "JPEG", exif=turned, quality=80)),
        ("jpg", encoded(colour, "JPEG", progressive=True)),
        ("jpg", encoded(colour.convert("CMYK"), "JPEG")),
        ("gif", encoded(colour, "GIF", save_all=True, append_images=[other])),
        ("webp", encoded(colour, "WEBP")),
        ("webp", encoded(colour, "WEBP", lossless=True, exif=turned)),
        ("webp", encoded(colour, "WEBP", save_all=True, append_images=[other])),
        ("bmp", encoded(colour, "BMP")),
        ("bmp", encoded(colour.quantize(8), "BMP")),
        ("ppm", encoded(colour, "PPM")),
        ("ppm", b"P3 2 2 255\n" + b"1 2 3 " * 4),
        ("ppm", b"P6 2 2 65535\n" + bytes(24)),
        ("pbm", encoded(colour.convert("1"), "PPM")),
        ("tif", encoded(colour.convert("LA"), "TIFF")),
    ]
    for method in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        made.append(("tif", encoded(colour, "TIFF", compression=method)))
    return made


PICTURES = _pictures()


def images(rng: random.Random, count: int, write: Write) -> Iterator[Case]:
    for _ in range(count):
        kind, whole = rng.choice(PICTURES)
        content = damaged(whole, rng)
        if kind == "png" and rng.random() < 0.5:
            content = mended(content)  # or the checksum would hide most damage
        path = write(f"image.{kind}", content)
        size = rng.choice((None, 5))
        yield content, lambda path=path, size=size: folder.read_image(path, size)


def mended(content: bytes) -> bytes:
    """A PNG whose chunks have right checksums, as far as it has chunks."""
    out, at = content[:8], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : at + 8 + length]
        out += content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out


# --- arrays ---------------------------------------------------------------------------------------

PEOPLE = np.eye(10)[LABELS]
PHOTOS = pixels(N, 4, 4, 3)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def odd_header(rng: random.Random) -> bytes:
    descr = rng.choice(
        ("'<f8'", "'|O'", "'|V0'", "'|S0'", "[('a','<f8')]", "'<f8,<i4'", "('<f8',3)")
    )
    order = rng.choice(("False", "True", "None", "'x'"))
    sides = [rng.choice(("0", "1", "10", str(N), "-1", "10**12", "1000000000000", "True", "2.5"))]
    sides += [str(rng.choice(ODD))[:300] for _ in range(rng.choice((0, 0, 1)))]
    sides += [rng.choice(("10", "4", "1_0", "0x10", "9" * rng.choice((20, 5000))))]
    shape = f"({', '.join(sides)},)"
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode(
        "utf-8", "surrogatepass"
    )
    version = rng.choice((b"\1\0", b"\2\0", b"\3\0", b"\0\1"))
    size = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + size + text + bytes(rng.choice((0, 8, 1600)))


def zipped(rng: random.Random, **members: bytes) -> bytes:
    file = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return file.getvalue()


def arrays(rng: random.Random, count: int, write: Write) -> Iterator[Case]:
    def check(header: Header) -> None:
        if header.shape != PHOTOS.shape or header.dtype != np.uint8:
            raise Wrong("another")

    kinds = (np.float64, np.float32, ">f8", np.int64, object, "S3", complex)
    for i in range(count):
        people = npy(PEOPLE.astype(rng.choice(kinds)))
        people = odd_header(rng) if i % 3 == 0 else damaged(people, rng)
        file = write("people.npy", people)
        yield people, lambda file=file: read_human(file, LABELS)
        photos = npy(PHOTOS)
        photos = odd_header(rng) if i % 3 == 1 else damaged(photos, rng)
        file = write("photos.npy", photos)
        yield photos, lambda file=file: map_npy(file, check)
        label = odd_header(rng) if i % 3 == 2 else npy(LABELS.astype(rng.choice(kinds)))
        content = zipped(rng, probs=people, image=rng.choice((photos, npy(PHOTOS))), label=label)
        content = rng.choice((content, damaged(content, rng)))
        file = write("all.npz", content)
        yield content, lambda file=file: read_human(file, LABELS)
        yield content, lambda file=file: load_extra(file, (3, 4, 4), 10)


# --- .mat and .tar.gz -----------------------------------------------------------------------------


def mats(rng: random.Random, count: int, write: Write) -> Iterator[Case]:
    whole = []
    for compressed in (False, True):
        file = io.BytesIO()
        held = {"X": pixels(32, 32, 3, 2), "y": np.ones((2, 1))}
        scipy.io.savemat(file, held, do_compression=compressed)
        whole.append(file.getvalue())
    for _ in range(count):
        content = rng.choice(whole)
        # Headers are where it hurts: 128 bytes of the file's, and those of each array.
        head = rng.choice((128, 200, 300))
        content = damaged(content[:head], rng) + content[head:]
        path = write("house/test_32x32.mat", content)
        yield content, lambda path=path: out_of_distribution.load(path.parent, (3, 8, 8), 4)


def tars(rng: random.Random, count: int, write: Write) -> Iterator[Case]:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name in (*data_files.PUBLISHED, "test_batch", "batches.meta"):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = 900
            tar.addfile(member, io.BytesIO(bytes(900)))
    for i in range(count):
        content = plain.getvalue()
        content = zlib.compress(damaged(content[:3000], rng) + content[3000:], wbits=31)
        path = write("a.tar.gz", content if i % 2 else damaged(content, rng))
        target = path.parent / f"unpacked-{i}"
        yield content, lambda path=path, target=target: download._unpack(path, target)


READERS = [pickles, batches, images, arrays, mats, tars]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", N)
    data_files.published_layout(tmp_path / "cifar")

    def put(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    return put


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_some_damaged_files(reader: Callable[..., Iterator[Case]], write: Write) -> None:
    assert survives(reader(random.Random(1), 120, write)) >= 120


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_ten_thousand_damaged_files(
    reader: Callable[..., Iterator[Case]], seed: int, write: Write
) -> None:
    assert survives(reader(random.Random(seed), 500, write)) >= 500
