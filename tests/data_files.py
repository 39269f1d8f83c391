"""Small data folders in the forms that Holdfast reads, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGES_PER_BATCH = 20  # tests set `holdfast.data.cifar10.IMAGES_PER_BATCH` to this
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PUBLISHED = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")


def python2_pickle(value: Any) -> bytes:
    """The value as Python 2's cPickle writes it with protocol 2, which Python 3 cannot write."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    match value:
        case dict():
            items = b"".join(_python2(key) + _python2(item) for key, item in value.items())
            return b"}(" + items + b"u"
        case list():
            return b"](" + b"".join(map(_python2, value)) + b"e"
        case str():
            return _python2(value.encode("latin-1"))
        case bytes() if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        case bytes():
            return b"T" + len(value).to_bytes(4, "little") + value
        case int() if 0 <= value < 256:
            return b"K" + bytes([value])
        case int():
            return b"J" + value.to_bytes(4, "little", signed=True)
        case np.ndarray():
            shape = b"(" + b"".join(map(_python2, value.shape)) + b"t"
            code = value.dtype.str
            order, kind = _python2(code[0]), _python2(code[1:])
            return (
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
                b"(K\x01"
                + shape
                + b"cnumpy\ndtype\n"
                + kind
                + b"K\x00K\x01\x87R(K\x03"
                + order
                + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
                + _python2(value.tobytes())
                + b"tb"
            )
    raise TypeError(type(value))


def batch(seed: int, n: int = IMAGES_PER_BATCH) -> dict[str, Any]:
    """A CIFAR-10 batch of n random images; every class occurs if n ≥ 10."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) + seed) % 10
    return {
        "batch_label": f"batch {seed}",
        "labels": labels.tolist(),
        "data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        "filenames": [f"{CLASSES[label]}_s_{seed}_{i:06d}.png" for i, label in enumerate(labels)],
    }


def images_of(seed: int, n: int = IMAGES_PER_BATCH) -> np.ndarray:
    """The images of `batch(seed)`, uint8 (n, 3, 32, 32)."""
    return batch(seed, n)["data"].reshape(n, 3, 32, 32)


def write_cifar10(folder: Path, seeds: dict[str, int], n: int = IMAGES_PER_BATCH) -> Path:
    """`batches.meta` and, for each name, the batch made from its seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in seeds.items():
        (folder / name).write_bytes(python2_pickle(batch(seed, n)))
    meta = {"num_cases_per_batch": n, "label_names": list(CLASSES), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return folder


def published_layout(folder: Path, n: int = IMAGES_PER_BATCH) -> Path:
    """`data_batch_1..5` from the seeds 1..5, and `test_batch` from the seed 6."""
    names = (*PUBLISHED, "test_batch")
    return write_cifar10(folder, {name: seed for seed, name in enumerate(names, 1)}, n)


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """A random RGB picture of (width, height); the format is the file name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def image_folder(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), n: int = 20) -> Path:
    """`folder/CLASS/IMAGE.png`, n different pictures a class."""
    for label, name in enumerate(classes):
        for i in range(n):
            write_image(folder / name / f"{i:03d}.png", seed=1000 * label + i)
    return folder
