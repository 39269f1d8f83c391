"""Files that say which class each image of a folder belongs to.

Such a file stands beside images that are in no class folders, as ImageNet's validation images are,
or is named by `--labels`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..runs.files import read_text
from .arrays import Header, Wrong, read_array
from .class_order import SYNSET
from .label_values import MOST_LABELS, checked_numbers, column, printable

# What such files are called, beside the images or in the folder above; {} is the split's folder.
NAMES = (
    "{}_annotations.txt", "{}_labels.txt", "{}_labels.csv", "{}_map.txt", "{}.txt", "{}.csv",
    "LOC_{}_solution.csv", "labels.csv", "labels.txt", "labels.json", "labels.npy",
    "annotations.csv", "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)  # fmt: skip
FILE_HEADS = ("file", "filename", "filepath", "image", "imageid", "path", "name", "id", "img")
LABEL_HEADS = (
    "label", "labels", "class", "classname", "category", "target", "y", "synset", "classid",
    "predictionstring", "species", "breed",
)  # fmt: skip
IDS = 1000  # ImageNet's own numbers of its classes, 1 to 1000, are in no order of the synsets


@dataclass(frozen=True)
class LabelTable:
    """Which class each image belongs to.

    Attributes:
        path: the file.
        of_file: the label of each file, by its name or by its path; None where labels stand in the
            order of the files' names.
        in_order: the labels, one an image, where the files are not named.
        named: labels are names; else numbers.
    """

    path: Path
    of_file: dict[str, str | int] | None
    in_order: Sequence[str | int]
    named: bool

    def labels(self, files: Sequence[Path], folder: Path) -> list[str | int]:
        """The label of each file.

        Raises:
            InputError: a file that the table does not name, or not as many labels as files.
        """
        if self.of_file is None:
            if len(self.in_order) != len(files):
                raise InputError(
                    f"{self.path}: {len(self.in_order)} labels for the {len(files)} images of"
                    f" {folder}"
                )
            return list(self.in_order)
        found = []
        for file in files:
            keys = (file.relative_to(folder).as_posix(), file.name, file.stem)
            label = next((self.of_file[key] for key in keys if key in self.of_file), None)
            if label is None:
                raise InputError(f"{self.path}: has no label for {file}")
            found.append(label)
        return found


def beside(folder: Path, *above: Path) -> Path | None:
    """The file of labels that stands with the images of a folder, or in one of the folders above
    it."""
    for place in dict.fromkeys([folder, *above]):
        for name in NAMES:
            for split in dict.fromkeys([folder.name, folder.name.lower()]):
                file = place / name.format(split)
                if file.is_file():
                    return file
    return None


def read_table(path: str | Path) -> LabelTable:
    """Labels from a file.

    Args:
        path: `.npy`, of whole numbers or names; `.json`, a list or `{file: label}`; else text or
            CSV: a label a line, in the order of the files' names, or a file and its label.

    Raises:
        InputError: no such file, damaged, empty, or none of these. One line.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind in (".npy", ".npz"):
        values = read_array(path, "labels", _check)
        return _table(path, None, column(values, len(values), str(path)).values.tolist())
    text = read_text(path).removeprefix("\ufeff")
    if kind == ".json":
        return _of_json(path, text)
    return _of_text(path, text)


def _check(header: Header) -> None:
    if len(header.shape) not in (1, 2) or header.size > MOST_LABELS:
        raise Wrong(f"shape {header.shape} is none of labels")


def _of_json(path: Path, text: str) -> LabelTable:
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is damaged, or no JSON") from None
    if isinstance(held, list) and all(type(each) in (int, str) for each in held):
        return _table(path, None, held)
    if isinstance(held, dict) and all(type(each) in (int, str) for each in held.values()):
        return _table(path, list(held), list(held.values()))
    raise InputError(f"{path}: a list of labels, or an object of files and labels, is wanted")


def _of_text(path: Path, text: str) -> LabelTable:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: is empty")
    first = lines[0]
    mark = next((mark for mark in ("\t", ",", ";") if mark in first), None)
    if mark is not None:
        rows = list(csv.reader(lines, delimiter=mark))
    else:
        rows = [line.split() for line in lines]
        # A name of two words is no file and its label.
        if not all(len(row) == 2 and re.search(r"\.\w{2,5}$", row[0]) for row in rows):
            rows = [[line.strip()] for line in lines]
    rows = [[cell.strip() for cell in row] for row in rows]
    heads = [re.sub(r"[\W_]+", "", cell.lower()) for cell in rows[0]]
    at_label = next((i for i, head in enumerate(heads) if head in LABEL_HEADS), None)
    at_file = next((i for i, head in enumerate(heads) if head in FILE_HEADS), None)
    headed = at_label is not None and (at_file is not None or len(rows[0]) == 1)
    if headed:
        rows = rows[1:]
    elif len(rows[0]) >= 2:
        at_file, at_label = 0, 1
    else:
        at_file, at_label = None, 0
    assert at_label is not None
    widest = max(at_label, at_file or 0)
    ragged = next((i for i, row in enumerate(rows) if len(row) <= widest), None)
    if ragged is not None:
        raise InputError(f"{path}: line {ragged + 1 + headed} has {len(rows[ragged])} cells")
    labels = [_label(row[at_label]) for row in rows]
    return _table(path, None if at_file is None else [row[at_file] for row in rows], labels)


def _label(cell: str) -> str:
    """`n03995372 85 1 499 272` is a synset with a box."""
    synset = SYNSET.match(cell)
    return synset[0] if synset else cell


def _table(path: Path, files: Sequence[str] | None, labels: Sequence[str | int]) -> LabelTable:
    """The table, with labels as numbers where all of them are."""
    if not len(labels):
        raise InputError(f"{path}: holds no labels")
    numbers = all(type(each) is int or re.fullmatch(r"[0-9]{1,15}", str(each)) for each in labels)
    values: list[str | int]
    if numbers:
        whole = checked_numbers(np.array([int(each) for each in labels]), str(path)).tolist()
        if min(whole) >= 1 and max(whole) == IDS and "ground_truth" in path.name:
            raise InputError(
                f"{path}: ImageNet's own numbers 1 to {IDS} are in no order of its synsets; give a"
                " file with synsets, such as LOC_val_solution.csv, by --labels"
            )
        values = list(whole)
    else:
        values = [printable(str(each)) for each in labels]
        empty = next((i for i, each in enumerate(values) if not each), None)
        if empty is not None:
            raise InputError(f"{path}: label {empty} is empty")
    if files is None:
        return LabelTable(path, None, values, not numbers)
    of_file: dict[str, str | int] = {}
    for file, value in zip(files, values, strict=True):
        if of_file.setdefault(file, value) != value:
            raise InputError(f"{path}: two labels for {file[:100]!r}")
    return LabelTable(path, of_file, (), not numbers)
