"""CIFAR-10-C and CIFAR-100-C as published: 19 corruptions at 5 severities, read and not run.

Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019 (https://zenodo.org/records/2535967 and 3555552). A folder holds
`NAME.npy`, uint8 (5·N, H, W, 3), severity s in rows (s − 1)·N and on, and `labels.npy` (5·N,).
The benchmark's figures are means over 15 of the corruptions; the other 4 were for choosing models.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ..errors import InputError
from .arrays import Header, Wrong, map_npy
from .corruptions import CORRUPTIONS, EXTRA_PUBLISHED, SEVERITIES
from .label_values import checked_numbers

NAMES = (*CORRUPTIONS, *EXTRA_PUBLISHED)
PLACES = ("", "CIFAR-10-C", "CIFAR-100-C")
LABELS = "labels.npy"


@dataclass(frozen=True, eq=False)
class PublishedCorruptions:
    """A folder of corrupted test images.

    Attributes:
        folder: where the files are.
        names: of the corruptions that are there, those of the benchmark first.
        rows: int64 (n,), which images of each severity are used.
        labels: int64 (n,), theirs.
        told: what a reader must know, one line each.
    """

    folder: Path
    names: tuple[str, ...]
    rows: Int64[np.ndarray, " n"]
    labels: Int64[Tensor, " n"]
    told: tuple[str, ...]
    count: int  # images of a severity

    def images(self, name: str, severity: int) -> UInt8[Tensor, "n c h w"]:
        """The images of one corruption and severity, 1 to 5."""
        if name not in self.names or severity not in SEVERITIES:
            raise InputError(f"{self.folder}: has no {name} of severity {severity}")
        held = _map_images(self.folder / f"{name}.npy", self.count)
        part = held[(severity - 1) * self.count + self.rows]
        return torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2)))


def open_published(
    folder: str | Path,
    test_labels: Int64[np.ndarray, " m"],
    shape: tuple[int, int, int],
    rows: Int64[np.ndarray, " n"],
    classes: int,
) -> PublishedCorruptions:
    """The published corruptions of a test split.

    Args:
        folder: that holds the files, or their `CIFAR-10-C` or `CIFAR-100-C`.
        test_labels: of the whole test split, in its order. Where `labels.npy` has the same order,
            the images are those of `rows`; else as many from the beginning of the files, which are
            judged by the files' own labels.
        shape: (C, H, W) that the model takes.
        rows: which test images are measured.
        classes: how many the data have.

    Raises:
        InputError: no labels, no corruption; files damaged, pickled, or of another shape or type;
            labels out of range, or not the same for every severity. One line.
    """
    place = _place(Path(folder))
    labels = _labels(place / LABELS, classes)
    count = len(labels)
    names = tuple(name for name in NAMES if os.path.lexists(place / f"{name}.npy"))
    if not names:
        raise InputError(f"{place}: holds none of the {len(NAMES)} corruptions, such as fog.npy")
    wanted = (shape[1], shape[2], shape[0])
    for name in names:
        held = _map_images(place / f"{name}.npy", count).shape[1:]
        if held != wanted:
            own, other = ("×".join(map(str, each)) for each in (held, wanted))
            raise InputError(f"{place / name}.npy: images of {own}; the data has {other}")
    told = []
    missing = [name for name in CORRUPTIONS if name not in names]
    if missing:
        told.append(
            f"{place}: {len(missing)} of the benchmark's 15 corruptions are not there, so no mean"
            f" here is the benchmark's: {', '.join(missing)}"
        )
    n = min(len(test_labels), count)
    agree = np.array_equal(labels[:n], test_labels[:n])
    if agree and int(rows.max(initial=-1)) < count:
        chosen = rows
    else:
        chosen = np.arange(min(len(rows), count))
        told.append(
            f"{place / LABELS}: not in the order of the test split, so its first {len(chosen)}"
            " images are judged, by its own labels"
        )
    return PublishedCorruptions(
        place, names, chosen, torch.from_numpy(labels[chosen]), tuple(told), count
    )


def _place(folder: Path) -> Path:
    places = [folder / name for name in PLACES]
    found = next((place for place in places if os.path.lexists(place / LABELS)), None)
    if found is None:
        raise InputError(
            f"{folder / LABELS} is missing: unpack CIFAR-10-C.tar there"
            " (zenodo.org/records/2535967)"
        )
    return found


def _labels(file: Path, classes: int) -> Int64[np.ndarray, " n"]:
    """The labels of one severity, which are those of every one."""

    def check(header: Header) -> None:
        if len(header.shape) != 1 or not header.shape[0] or header.shape[0] % len(SEVERITIES):
            raise Wrong(f"has shape {header.shape}; a label for each image at 5 severities, (5·N,)")
        if header.dtype.kind not in "iu":
            raise Wrong(f"holds {header.dtype}, not whole numbers: download it again")

    labels = checked_numbers(np.asarray(map_npy(file, check)), str(file))
    if labels.max() >= classes:
        raise InputError(f"{file} holds values other than labels 0 … {classes - 1}")
    by_severity = labels.reshape(len(SEVERITIES), -1)
    if (by_severity != by_severity[0]).any():
        raise InputError(f"{file} differs between severities: images and labels are out of order")
    return by_severity[0]


def _map_images(file: Path, count: int) -> np.ndarray:
    total = count * len(SEVERITIES)

    def check(header: Header) -> None:
        if len(header.shape) != 4 or header.shape[0] != total:
            raise Wrong(f"has shape {header.shape}; the {total} images of labels.npy, N×H×W×C")
        if header.dtype != np.uint8:
            raise Wrong(f"holds {header.dtype}, not uint8: download it again")

    return map_npy(file, check)
