"""CIFAR-10 as plain arrays, for notebooks; run as a program, lists what a data folder holds.

    python load_datasets.py [--data DIR] [--figure FILE]

lists the arrays as `holdfast data` does. It needs no installation of Holdfast itself: the
repository root, where this file is, is enough.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np

from holdfast import data
from holdfast.data import cifar10
from holdfast.errors import HoldfastError


def load_cifar_10_data(data_dir: str | Path = "datasets") -> tuple[np.ndarray, ...]:
    """CIFAR-10, as ten arrays.

    Args:
        data_dir: the folder that holds its files, or that holds `cifar-10-batches-py/`.

    Returns:
        Training data, filenames and labels; validation data, filenames and labels; test data,
        filenames and labels; label names. Data is uint8 (N, 3, 32, 32) with N = 40,000, 10,000
        and 10,000; labels are int64 (N,); filenames (N,) and label names (10,) are strings.

    Raises:
        holdfast.errors.InputError: a file is missing, damaged or of the wrong content.
    """
    dataset = cifar10.load(data_dir)
    splits = (dataset.train, dataset.validation, dataset.test)
    arrays = [a for split in splits for a in (split.images, split.filenames, split.labels)]
    return (*arrays, np.array(dataset.classes))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main() -> int:
    parser = _Parser(description="List what a data folder holds, and draw it.")
    parser.add_argument("--data", default="datasets", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR-10 if it is missing")
    parser.add_argument("--figure", metavar="FILE", help="draw 10 random images of each class")
    options = parser.parse_args()
    try:
        dataset = data.load(options.data, download=options.download)
        print(data.describe(dataset))
        if options.figure:
            data.figure(dataset, options.figure)
    except HoldfastError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
