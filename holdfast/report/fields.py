"""JSON objects and CSV files as they are read: by kind, with one line for whatever is wrong."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..intervals import clopper_pearson
from ..runs.files import read_text


@dataclass(frozen=True)
class Accuracy:
    """A fraction in [0, 1] of n images and its 95 % interval; None is "has no value"."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def count(self) -> int | None:
        """How many images the fraction stands for."""
        return None if self.value is None or self.n is None else round(self.value * self.n)

    @classmethod
    def of(cls, count: int, n: int) -> Accuracy:
        """`count` of n with its 95 % interval; no value where n is 0."""
        if n == 0:
            return cls(None, n=0)
        low, high = clopper_pearson(count, n)
        return cls(count / n, low, high, n)


class Fields:
    """A JSON object whose fields are read by kind.

    A field that is absent or null has no value (None, or ""); one of the wrong kind is an
    InputError that names the file and the field.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise InputError(f"{where} must be a JSON object, not {shown(value)}")
        self.value, self.where = value, where

    def _wrong(self, name: str, wanted: str) -> InputError:
        return InputError(
            f"{self.where}: {name!r} must be {wanted}, not {shown(self.value.get(name))}"
        )

    def number(self, name: str, low: float = 0, high: float = math.inf) -> float | None:
        value = self.value.get(name)
        if value is None:
            return None
        wanted = f"a number from {low:g} to {high:g}" if high < math.inf else f"a number ≥ {low:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, wanted)
        if isinstance(value, float) and math.isnan(value):
            return None
        if not low <= value <= high or abs(value) > 1e300:
            raise self._wrong(name, wanted)
        return float(value)

    def whole(self, name: str, low: int = 0) -> int | None:
        value = self.value.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
            raise self._wrong(name, f"a whole number ≥ {low}")
        return value

    def truth(self, name: str) -> bool | None:
        value = self.value.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(name, "true or false")

    def text(self, name: str) -> str:
        value = self.value.get(name)
        if value is None or isinstance(value, str):
            return value or ""
        raise self._wrong(name, "text")

    def list(self, name: str) -> list[Any]:
        value = self.value.get(name)
        if value is None or isinstance(value, list):
            return value or []
        raise self._wrong(name, "a list")

    def object(self, name: str) -> Fields:
        return Fields(self.value.get(name) or {}, f"{self.where}: {name!r}")

    def objects(self, name: str) -> Iterator[Fields]:
        for i, item in enumerate(self.list(name)):
            yield Fields(item, f"{self.where}: {name}[{i}]")

    def accuracy(self, name: str, interval: str, n: int | None) -> Accuracy:
        bounds = self.list(interval)
        if bounds and len(bounds) != 2:
            raise self._wrong(interval, "a list of two fractions")
        pair = Fields(dict(zip(("low", "high"), bounds, strict=False)), f"{self.where}: {interval}")
        return Accuracy(
            self.number(name, 0, 1), pair.number("low", 0, 1), pair.number("high", 0, 1), n
        )


def shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def csv_rows(path: Path, needed: tuple[str, ...] = ()) -> list[dict[str, str]] | None:
    """The rows of a CSV file with a header, or None where there is no such file."""
    try:
        if not os.path.lexists(path):
            return None
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        rows = list(reader)
        names = reader.fieldnames or []
    except InputError:
        raise
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}")
    for line, row in enumerate(rows, 2):
        # DictReader files surplus fields under None, and fills absent ones with None.
        if None in row or None in row.values():
            raise InputError(f"{path} line {line} has not the {len(names)} fields of its header")
    return rows


def csv_column(
    path: Path, rows: list[dict[str, str]], name: str, kind: Callable[[str], Any], empty: Any
) -> list[Any]:
    values = []
    for line, row in enumerate(rows, 2):
        text = row[name].strip()
        try:
            values.append(kind(text) if text else empty)
        except (ValueError, OverflowError):
            raise InputError(f"{path} line {line}: {name} is {shown(text)}, not a number") from None
    return values
