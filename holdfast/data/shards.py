"""One split in several pieces, each of which lies on other machines.

Every worker reads its own piece. `together` makes one split of them, the same in all workers: in
turn an image of each piece, as long as it lasts, so that the first images are a sample of all. The
pieces stand in the order of their contents' checksums; which worker has which piece changes
nothing, and workers that read the same piece share it.

Pieces that are small are brought to all workers. Of large ones, an image is read by a worker that
has it, whenever somebody asks; its verdict is searched where it lies.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from .. import launchers
from ..distributed import CHUNK, Workers, joined
from ..errors import InputError
from ..runs.identity import digest
from ..stored import IN_MEMORY
from .base import ALL, DataSet, Split

MARKS = ("{rank}", "{local_rank}", "{node}")


def in_pieces(source: Any) -> bool:
    """Whether a path says which worker's piece it is."""
    return isinstance(source, str) and any(mark in source for mark in MARKS)


def own_piece(source: str) -> str:
    """The path of this worker's piece.

    Example:
        >>> own_piece("/scratch/images-{rank}")
        '/scratch/images-0'
    """
    here = launchers.place()
    values = (here.rank, here.local_rank, here.node)
    for mark, value in zip(MARKS, values, strict=True):
        source = source.replace(mark, str(value))
    return source


@dataclass(frozen=True)
class _Piece:
    """What a worker tells the others of its piece."""

    split: str
    checksum: str
    shape: tuple[int, ...]
    labels: Int64[np.ndarray, " n"]
    filenames: np.ndarray
    classes: tuple[str, ...]
    grouped: bool


def together(dataset: DataSet, split_name: str, source: str) -> DataSet:
    """The data set whose split is what all workers have of it.

    All workers call it, inside one `holdfast.distributed.joined` that is open as long as the images
    are used.

    Args:
        dataset: this worker's piece.
        split_name: of the split.
        source: what the pieces are called together.

    Raises:
        InputError: pieces of other classes, or of images of another shape; this process is alone.
    """
    with joined() as workers:
        if workers.size == 1:
            raise InputError(
                f"--data {source} is in pieces, one a worker: start several processes with "
                "torchrun or srun, or name the folder that holds all"
            )
        split = dataset.split(split_name)
        images: Any = split.images
        own = _Piece(
            split_name,
            digest(images, split.labels),
            tuple(images.shape),
            split.labels,
            split.filenames,
            tuple(dataset.classes),
            split.grouped,
        )
        heard: list[_Piece] = workers.share(workers.gather(own))
        _check_alike(heard)
        pieces = {piece.checksum: piece for piece in sorted(heard, key=lambda each: each.checksum)}
        holders = {
            checksum: [rank for rank, each in enumerate(heard) if each.checksum == checksum]
            for checksum in pieces
        }
        order = _in_turn([len(piece.labels) for piece in pieces.values()])
        known = list(pieces.values())
        if 4 * len(order) * prod(images.shape[1:]) <= IN_MEMORY:
            images = _brought(images, workers, holders, order)
        else:
            images = SpreadImages(
                images,
                workers,
                piece=list(pieces).index(own.checksum),
                order=order,
                holders=list(holders.values()),
                shape=own.shape[1:],
            )
        whole = Split(
            images,
            np.array([str(known[piece].filenames[row]) for piece, row in order.tolist()]),
            np.array([int(known[piece].labels[row]) for piece, row in order.tolist()], np.int64),
            split.pixels,
            grouped=any(piece.grouped for piece in known),
        )
        told = (
            f"{source}: {len(order)} images in {len(known)} "
            f"piece{'s' if len(known) > 1 else ''}, an image of each in turn"
        )
        fields: dict[str, Any] = {"everything" if split_name == ALL else split_name: whole}
        name = PurePath(source).name or source
        return replace(dataset, **fields, name=name, told=(*dataset.told, told))


def _check_alike(heard: Sequence[_Piece]) -> None:
    first = heard[0]
    for rank, piece in enumerate(heard):
        if piece.split != first.split:
            raise InputError(
                f"the pieces of --data differ: worker 0 has {first.split} images, worker {rank} "
                f"{piece.split}; --split says which, for all"
            )
        if piece.shape[1:] != first.shape[1:]:
            raise InputError(
                f"the pieces of --data differ: worker 0 has images of shape {first.shape[1:]}, "
                f"worker {rank} of {piece.shape[1:]}; --image-size brings them to one"
            )
        if piece.classes != first.classes:
            other = sorted(set(piece.classes) ^ set(first.classes)) or piece.classes
            raise InputError(
                f"the pieces of --data differ: worker 0 has {len(first.classes)} classes, worker "
                f"{rank} {len(piece.classes)} (not in both, or in another order: "
                f"{', '.join(other[:5])}); --class-order FILE names them for all"
            )


def _in_turn(sizes: Sequence[int]) -> Int64[np.ndarray, "n 2"]:
    """Piece and row of each image: the first of every piece, then the second, …

    Example:
        >>> _in_turn([2, 1]).tolist()
        [[0, 0], [1, 0], [0, 1]]
    """
    pairs = [(row, piece) for piece, size in enumerate(sizes) for row in range(size)]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)[:, ::-1]


class SpreadImages:
    """Images uint8 (N, C, H, W) of which each worker has a piece, as `LazyImages` is indexed.

    Those of other pieces are asked of a worker that has them.

    Args:
        own: this worker's piece.
        workers: all of them.
        piece: which one it is.
        order: of each image, its piece and its row there.
        holders: of each piece, the workers that have it.
        shape: (C, H, W).

    Attributes:
        readers: int64 (N, W), the workers that have each image; −1 in the places left over.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        own: Any,
        workers: Workers,
        *,
        piece: int,
        order: Int64[np.ndarray, "n 2"],
        holders: Sequence[Sequence[int]],
        shape: tuple[int, ...],
    ):
        self._own, self._workers, self._piece, self._order = own, workers, piece, order
        self._holders, self._size, self._lock = holders, tuple(shape), threading.Lock()
        workers.offer(lambda rows: self._read(np.array(rows, np.int64)).tobytes())

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self._order), *self._size)

    @property
    def nbytes(self) -> int:
        """Of all pixels."""
        return prod(self.shape)

    @property
    def readers(self) -> Int64[Tensor, "n w"]:
        widest = max(map(len, self._holders))
        table = np.array([[*each, *[-1] * (widest - len(each))] for each in self._holders])
        return torch.from_numpy(table[self._order[:, 0]])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return self.part(np.arange(len(self))[rows])
        wanted = self._order[rows]
        if wanted.ndim == 1:
            return self[np.array([rows])][0]
        images = np.empty((len(wanted), *self._size), np.uint8)
        for piece in np.unique(wanted[:, 0]).tolist():
            places = np.flatnonzero(wanted[:, 0] == piece)
            if piece == self._piece:
                images[places] = self._read(wanted[places, 1])
                continue
            together = max(1, CHUNK // prod(self._size))
            for begin in range(0, len(places), together):
                some = places[begin : begin + together]
                held = self._workers.ask(self._holders[piece][0], wanted[some, 1].tolist())
                images[some] = np.frombuffer(held, np.uint8).reshape(len(some), *self._size)
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        everything: np.ndarray = self[np.arange(len(self))]
        return everything if dtype is None else everything.astype(dtype)

    def part(self, rows: Any) -> SpreadImages:
        """Some of the images, which are not read yet."""
        other = object.__new__(SpreadImages)
        other.__dict__.update(self.__dict__)
        other._order = self._order[rows]
        return other

    def prefetch(self, rows: Any) -> None:
        """Those of the own piece are asked for soon."""
        wanted = self._order[rows]
        if hasattr(self._own, "prefetch"):
            self._own.prefetch(wanted[wanted[:, 0] == self._piece, 1])

    def _read(self, rows: Int64[np.ndarray, " m"]) -> UInt8[np.ndarray, "m c h w"]:
        with self._lock:  # whoever asks, and this worker itself
            return np.ascontiguousarray(self._own[rows])


def _brought(
    own: Any,
    workers: Workers,
    holders: dict[str, list[int]],
    order: Int64[np.ndarray, "n 2"],
) -> UInt8[np.ndarray, "n c h w"]:
    """All pieces, in memory."""
    mine = any(ranks[0] == workers.rank for ranks in holders.values())
    heard = workers.share(workers.gather(np.asarray(own) if mine else None))
    parts = [heard[ranks[0]] for ranks in holders.values()]
    images = np.empty((len(order), *own.shape[1:]), np.uint8)
    for piece, part in enumerate(parts):
        images[order[:, 0] == piece] = part
    return images
