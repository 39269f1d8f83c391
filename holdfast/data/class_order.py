"""The order of the classes, from a file: which label each class has for a model.

A class may be called by several words, such as ImageNet's `n01440764` and `tench`; a data set finds
it by any of them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..parsing import nearest
from ..runs.files import read_text
from .base import DataSet, Split

MOST_CLASSES = 100_000
SYNSET = re.compile(r"n[0-9]{8}")
_NUMBERED = re.compile(r"([0-9]{1,6})\s*[,;:\t ]\s*(\S.*)")
_LONGEST_NAME = 255

Words = tuple[str, ...]  # what one class may be called, the clearest first


def read_class_order(path: str | Path) -> tuple[Words, ...]:
    """What each class is called, in the order of the labels.

    Args:
        path: text, a class a line: a name, a synset, a synset and names behind it, or a number and
            a name; or JSON: a list of names, `{"0": name}`, `{"0": [synset, name]}` or
            `{name: 0}`.

    Raises:
        InputError: no such file, damaged, empty, a class twice, or numbers that leave one out.
    """
    path = Path(path)
    text = read_text(path).removeprefix("\ufeff")
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{"):
        try:
            entries = _of_json(json.loads(text), path)
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: is damaged, or no JSON") from None
    else:
        lines = [line.strip() for line in text.splitlines()]
        entries = _of_lines([line for line in lines if line and not line.startswith("#")], path)
    if not entries:
        raise InputError(f"{path}: names no class")
    if len(entries) > MOST_CLASSES:
        raise InputError(f"{path}: {len(entries):,} classes, of which there are {MOST_CLASSES:,}")
    seen: dict[str, int] = {}
    for number, words in enumerate(entries):
        if words[0] in seen:
            raise InputError(
                f"{path}: {words[0]!r} stands there twice, as class {seen[words[0]]} and {number}"
            )
        seen[words[0]] = number
    return tuple(entries)


def _of_lines(lines: Sequence[str], path: Path) -> list[Words]:
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if lines and all(numbered):
        pairs = [(int(match[1]), match[2]) for match in numbered if match]
        return _in_order({number: _words(name) for number, name in pairs}, len(pairs), path)
    return [_words(line) for line in lines]


def _of_json(held: Any, path: Path) -> list[Words]:
    if isinstance(held, list) and all(isinstance(each, str) and each.strip() for each in held):
        return [_words(each) for each in held]
    if isinstance(held, dict) and all(type(value) is int for value in held.values()):
        return _in_order({held[name]: _words(name) for name in held}, len(held), path)
    if isinstance(held, dict) and all(re.fullmatch(r"[0-9]{1,6}", key) for key in held):
        named: dict[int, Words] = {}
        for key, value in held.items():
            words = value if isinstance(value, list) else [value]
            if not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise InputError(f"{path}: class {key} has no name")
            several = tuple(_clean(word) for word in words)
            named[int(key)] = several if len(several) > 1 else _words(words[0])
        return _in_order(named, len(held), path)
    raise InputError(
        f"{path}: a list of names, or an object of names and numbers, is wanted, such as"
        ' ["cat", "dog"] or {"0": "cat", "1": "dog"}'
    )


def _in_order(named: dict[int, Words], count: int, path: Path) -> list[Words]:
    if len(named) < count:
        raise InputError(f"{path}: a number stands there twice; one class each")
    begin = min(named, default=0)
    missing = [number for number in range(begin, begin + count) if number not in named]
    if missing or begin not in (0, 1):
        raise InputError(
            f"{path}: class {missing[0] if missing else 0} is left out; numbers are 0, 1, 2, …"
        )
    return [named[number] for number in range(begin, begin + count)]


def _words(line: str) -> Words:
    """`n01440764 tench, Tinca tinca` is a class of several words; any other line is one."""
    line = line.strip()
    synset = SYNSET.match(line)
    if synset is None:
        return (_clean(line),)
    rest = line[synset.end() :].strip(" \t,;:")
    if not rest:
        return (line,)
    return tuple(dict.fromkeys([synset[0], _clean(rest), *map(_clean, rest.split(","))]))


def _clean(name: str) -> str:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name.strip())
    return shown[:_LONGEST_NAME]


def _simple(name: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def in_order(dataset: DataSet, path: str | Path) -> DataSet:
    """The data set with its classes in the order of a file.

    A file may name more classes than the data have, as that of a model of 1,000 classes does.
    Classes that have only numbers take the names.

    Raises:
        InputError: as `read_class_order`; a class of the data that the file does not name.
    """
    order = read_class_order(path)
    if not dataset.named:
        return renamed(dataset, [words[-1] for words in order], str(path))
    return among(dataset, order, str(path))


def among(dataset: DataSet, order: Sequence[Words], source: str) -> DataSet:
    """The data set with its classes, found by their names, as those of an order.

    Args:
        order: what each class is called.
        source: of the order, for messages.

    Raises:
        InputError: a class of the data is not among them, or two are the same.
    """
    exact = {word: label for label, words in enumerate(order) for word in reversed(words)}
    simple = {_simple(word): label for word, label in exact.items()}
    table = np.empty(len(dataset.classes), np.int64)
    names = [words[0] for words in order]
    for old, name in enumerate(dataset.classes):
        called = (name, *dataset.also.get(name, ()))
        of = (exact.get(word, simple.get(_simple(word))) for word in called)
        label = next((each for each in of if each is not None), None)
        if label is None:
            raise InputError(
                f"{source}: does not name the class {name!r} of {dataset.name}"
                f"{nearest(name, list(exact))}"
            )
        table[old] = label
        names[label] = name
    if len(set(table.tolist())) < len(table):
        twice = np.bincount(table).argmax()
        both = [name for name, label in zip(dataset.classes, table, strict=True) if label == twice]
        raise InputError(f"{source}: the classes {both[0]!r} and {both[1]!r} are one class there")
    more = len(order) - len(dataset.classes)
    told = f"{source}: the order of the {len(order)} classes" + (
        f", {more} of which the data do not have" if more else ""
    )
    return _with(dataset, tuple(names), told, table)


def renamed(dataset: DataSet, names: Sequence[str], source: str) -> DataSet:
    """A data set whose classes are only numbers, with names.

    Raises:
        InputError: fewer names than classes.
    """
    if len(names) < len(dataset.classes):
        raise InputError(
            f"{source}: {len(names)} classes, but {dataset.name} has labels up to"
            f" {len(dataset.classes) - 1}"
        )
    told = f"{dataset.name}: labels 0 to {len(names) - 1} are the classes of {source}, in its order"
    return _with(dataset, tuple(names), told)


def _with(
    dataset: DataSet, classes: tuple[str, ...], told: str, table: np.ndarray | None = None
) -> DataSet:
    """Other classes, and labels as a table says."""

    def relabelled(split: Split) -> Split:
        return split if table is None else replace(split, labels=table[split.labels])

    whole = dataset.everything
    return replace(
        dataset,
        classes=classes,
        train=relabelled(dataset.train),
        validation=relabelled(dataset.validation),
        test=relabelled(dataset.test),
        everything=None if whole is None else relabelled(whole),
        told=(*dataset.told, told),
        named=True,
    )
