"""Images that are not in memory: decoded when they are asked for, a few at a time.

Small data sets are decoded at once. Of a large one, `LazyImages` stands where the array would: it
decodes in threads (decoders work outside Python's lock, and what they make needs no copy from one
process to another), keeps what was decoded last within a bound, and decodes ahead what is likely to
be asked for next.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

IN_MEMORY = 2**29  # bytes of pixels up to which a data set is decoded into memory at once
CACHE = 256 * 2**20  # bytes of decoded images that are kept
AHEAD = 64  # images that are decoded ahead at most
TOGETHER = 128  # images that are decoded into one piece, where somebody wants all of them
MOST_THREADS = 8

Decode = Callable[[int], UInt8[np.ndarray, "c h w"]]


class _Store:
    """Decodes images by number, in threads, and keeps the last ones; shared by all views."""

    def __init__(self, decode: Decode, shape: tuple[int, ...], cache: int):
        self.decode, self.shape = decode, shape
        self.most = max(0, cache // max(1, int(np.prod(shape))))  # images
        self._begin()

    def _begin(self) -> None:
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self.coming: dict[int, Future[np.ndarray]] = {}
        self.lock, self.pool, self.process = threading.Lock(), None, os.getpid()

    def __getstate__(self) -> tuple[Any, ...]:
        return self.decode, self.shape, self.most

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.decode, self.shape, self.most = state
        self._begin()

    pool: ThreadPoolExecutor | None

    def ask(self, rows: Sequence[int]) -> list[Future[np.ndarray]]:
        """Begin to decode whichever of these images are neither kept nor on their way."""
        if self.process != os.getpid():
            self._begin()  # a fork has none of the threads, and perhaps a lock that is never freed
        with self.lock:
            if self.pool is None:
                threads = min(MOST_THREADS, os.cpu_count() or 1)
                self.pool = ThreadPoolExecutor(threads, "holdfast-decode")
            return [self._asked(self.pool, row) for row in rows]

    def _asked(self, pool: ThreadPoolExecutor, row: int) -> Future[np.ndarray]:
        if row in self.kept:
            self.kept.move_to_end(row)
            done: Future[np.ndarray] = Future()
            done.set_result(self.kept[row])
            return done
        if row not in self.coming:
            self.coming[row] = pool.submit(self._decoded, row)
        return self.coming[row]

    def _decoded(self, row: int) -> np.ndarray:
        try:
            image = self.decode(row)
            if image.shape != self.shape or image.dtype != np.uint8:
                raise ValueError(f"image {row} is {image.dtype} {image.shape}, not {self.shape}")
            image = np.ascontiguousarray(image)
        except BaseException:  # whoever asks again, after the file was mended, decodes it anew
            with self.lock:
                self.coming.pop(row, None)
            raise
        with self.lock:
            self.coming.pop(row, None)
            self.kept[row] = image
            while len(self.kept) > self.most:
                self.kept.popitem(last=False)
        return image


class LazyImages:
    """Images as an array uint8 (N, C, H, W) holds them, decoded when they are asked for.

    A slice is lazy too: `images[:1000]` decodes nothing. A number gives one image, (C, H, W), and
    an array of numbers gives these images, (M, C, H, W), in memory; `numpy.asarray` gives all.

    Args:
        decode: gives image number i, uint8 (C, H, W); it is called from several threads at once,
            and raises `InputError` that names the file where it cannot. Such an image can be asked
            for again.
        count: N.
        shape: (C, H, W).
        digests: what tells the images apart without decoding them, one each, such as the SHA-256
            of their files.
        cache: bytes of decoded images that are kept, those that were asked for last.

    Example:
        >>> images = LazyImages(lambda i: np.full((3, 2, 2), i, np.uint8), 100, (3, 2, 2))
        >>> images.shape, images[10:].shape, images[10:][np.array([0, 5])][:, 0, 0, 0]
        ((100, 3, 2, 2), (90, 3, 2, 2), array([10, 15], dtype=uint8))
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        decode: Decode,
        count: int,
        shape: tuple[int, int, int],
        *,
        digests: Sequence[bytes] | None = None,
        cache: int = CACHE,
    ):
        self._store, self._rows = _Store(decode, tuple(shape), cache), np.arange(count)
        self._digests, self._next = digests, -1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        c, h, w = self._store.shape
        return len(self._rows), c, h, w

    @property
    def nbytes(self) -> int:
        """Of all pixels."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "c h w"]]:
        return (image for part in self._parts() for image in part)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        everything = np.empty(self.shape, np.uint8)
        for begin, part in zip(range(0, len(self), TOGETHER), self._parts(), strict=True):
            everything[begin : begin + len(part)] = part
        return everything if dtype is None else everything.astype(dtype)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return self.part(np.arange(len(self))[rows])
        wanted = self._rows[rows]  # whatever an array takes: numbers below 0, a mask, an IndexError
        if wanted.ndim == 0:
            return self._store.ask([int(wanted)])[0].result().copy()
        images = np.empty((len(wanted), *self._store.shape), np.uint8)
        for begin in range(0, len(wanted), TOGETHER):
            asked = self._store.ask(wanted[begin : begin + TOGETHER].tolist())
            if begin + TOGETHER >= len(wanted):
                self._look_ahead(np.arange(len(self))[rows])
            for place, image in enumerate(asked, begin):
                images[place] = image.result()
        return images

    def part(self, rows: Int64[np.ndarray, " m"]) -> LazyImages:
        """Some of the images, still lazy, with one cache for both."""
        other = object.__new__(LazyImages)
        other._store, other._rows, other._next = self._store, self._rows[rows], -1
        other._digests = self._digests
        return other

    def prefetch(self, rows: Int64[np.ndarray, " m"]) -> None:
        """Begin to decode the first of these images, `AHEAD` at most: they are asked for soon."""
        self._store.ask(self._rows[rows[: min(AHEAD, self._store.most // 2)]].tolist())

    @property
    def digests(self) -> list[bytes]:
        """What tells the images apart: what `digests` said, or the SHA-256 of their pixels."""
        if self._digests is not None:
            return [self._digests[row] for row in self._rows.tolist()]
        return [hashlib.sha256(image.data).digest() for image in self]

    def _parts(self) -> Iterator[np.ndarray]:
        for begin in range(0, len(self), TOGETHER):
            yield self[np.arange(begin, min(begin + TOGETHER, len(self)))]

    def _look_ahead(self, rows: Int64[np.ndarray, " m"]) -> None:
        """Decode what follows, where images are asked for one after the other."""
        if len(rows) and rows[0] in (0, self._next) and rows[-1] - rows[0] == len(rows) - 1:
            self._next = int(rows[-1]) + 1
            self.prefetch(np.arange(self._next, len(self)))


ImageArray = np.ndarray | LazyImages  # uint8 (N, C, H, W), in memory or not


def part(images: ImageArray, rows: Int64[np.ndarray, " m"]) -> ImageArray:
    """Some of the images, lazy if they are."""
    return images.part(rows) if isinstance(images, LazyImages) else images[rows]


def joined(parts: Sequence[ImageArray]) -> ImageArray:
    """Images of one shape, one after the other; lazy if any of them are."""
    if not any(isinstance(each, LazyImages) for each in parts):
        return np.concatenate([np.asarray(each) for each in parts])
    ends = np.cumsum([len(each) for each in parts])

    def decode(row: int) -> np.ndarray:
        which = int(np.searchsorted(ends, row, "right"))
        image: np.ndarray = parts[which][row - int(ends[which] - len(parts[which]))]
        return image

    # Each part keeps what it decodes: nothing is kept twice.
    count, shape = int(ends[-1]), parts[0].shape[1:]
    return LazyImages(decode, count, (shape[0], shape[1], shape[2]), cache=0)


def digests(images: ImageArray) -> list[bytes]:
    """What tells images apart, one each: the SHA-256 of their pixels, or of their files."""
    if isinstance(images, LazyImages):
        return images.digests
    return [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]


def fingerprint(images: ImageArray) -> str:
    """12 hex digits that tell images from others: of the SHA-256 of their bytes, (N, C, H, W) in C
    order; of lazy ones, of that of what tells each of them apart."""
    sha = hashlib.sha256()
    if isinstance(images, LazyImages):
        sha.update(b"".join(images.digests))
    else:
        for begin, end in pairwise([*range(0, len(images), TOGETHER), len(images)]):
            sha.update(np.ascontiguousarray(images[begin:end]).data)
    return sha.hexdigest()[:12]
