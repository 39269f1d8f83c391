"""`ClassMap`: which of a model's outputs stand for which class of the data.

A model of ImageNet's 1,000 classes is asked about 200 of them, or about `bird` and `dog`, each of
which many of its outputs stand for. A file says which; its forms are in docs/models.md.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..parsing import nearest, one_line

LARGEST_FILE = 16 * 2**20  # bytes
SHOWN = 3  # names in a message

Outputs = tuple[int, ...]


@dataclass(frozen=True)
class ClassMap:
    """The outputs of a model that stand for each class of the data.

    Attributes:
        outputs: for each class one or several outputs, by number.
        names: of the classes, where the file names them.
        said: what it does, as a line.
        total: how many outputs the model must have, where the file lists all; None: at least
            those that are named.
    """

    outputs: tuple[Outputs, ...]
    names: tuple[str, ...] = ()
    said: str = ""
    total: int | None = None

    def __post_init__(self) -> None:
        if len(self.outputs) < 2:
            raise InputError("classes: a model must have at least 2")
        seen: dict[int, int] = {}
        for number, outputs in enumerate(self.outputs):
            if not outputs:
                raise InputError(f"classes: no output stands for class {self._named(number)}")
            for output in outputs:
                if seen.setdefault(output, number) != number:
                    raise InputError(
                        f"classes: output {output} stands for both {self._named(seen[output])} and "
                        f"{self._named(number)}"
                    )

    def _named(self, number: int) -> str:
        return repr(self.names[number]) if self.names else str(number)

    def named(self, model: Sequence[str] | None) -> tuple[str, ...]:
        """Names of the classes: their own, else those of their outputs in the model."""
        if self.names or model is None or self.least > len(model):
            return self.names or tuple(map(str, range(len(self.outputs))))
        return tuple("/".join(model[o] for o in outputs) for outputs in self.outputs)

    @property
    def least(self) -> int:
        """How many outputs a model must have."""
        return 1 + max(max(outputs) for outputs in self.outputs)


class ByClass(nn.Module):
    """Logits of a model's outputs → logits of the data's classes: log-sum-exp over the outputs that
    stand for one.

    Example:
        >>> ByClass(ClassMap(((2,), (0, 1))))(torch.tensor([[0.0, 0.0, 1.0]]))
        tensor([[1.0000, 0.6931]])
    """

    rows: Tensor

    def __init__(self, classes: ClassMap):
        super().__init__()
        widest = max(len(outputs) for outputs in classes.outputs)
        self.least, self.total, self.single = classes.least, classes.total, widest == 1
        # A row too short is filled up by an output that is added at the end, of −∞.
        filled = [[*outputs, *[-1] * (widest - len(outputs))] for outputs in classes.outputs]
        self.register_buffer("rows", torch.tensor(filled))

    def forward(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n c"]:
        _check_outputs(logits, self.least, self.total)
        if self.single:
            return logits[:, self.rows[:, 0]]
        nothing = torch.full_like(logits[:, :1], -torch.inf)
        return torch.cat([logits, nothing], 1)[:, self.rows].logsumexp(-1)


@torch.fx.wrap
def _check_outputs(logits: Tensor, least: int, total: int | None) -> None:
    if total is not None and logits.shape[1] != total:
        raise InputError(
            f"classes: a list of {total} names, in the order of the model's outputs, and the model "
            f"has {logits.shape[1]}"
        )
    if logits.shape[1] < least:
        raise InputError(
            f"classes: output {least - 1} is named, and the model has {logits.shape[1]}, counted "
            "from 0"
        )


# --- reading -------------------------------------------------------------------------------------


def class_map(
    given: Any, data: Sequence[str] | None = None, model: Sequence[str] | None = None
) -> ClassMap:
    """The map that a file, a list or a dictionary says.

    Args:
        given: a file (JSON, or text with a line a class), or what JSON would hold.
        data: names of the data's classes, in order; None: unknown.
        model: names of the model's outputs, in order; None: unknown.

    Raises:
        InputError: it cannot be read, or says something else.

    Example:
        >>> class_map({"cat": [281, 282], "dog": 151}, data=["dog", "cat"]).outputs
        ((151,), (281, 282))
    """
    where = "classes"
    if isinstance(given, str | Path):
        where = f"classes {given}"
        given = _read(Path(given), where)
    try:
        found = _mapped(where, given, data, model)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(where) else f"{where}{text[7:]}") from None
    if data is not None and len(found.outputs) != len(data):
        raise InputError(f"{where}: of {len(found.outputs)} classes, the data has {len(data)}")
    return found


def by_name(data: Sequence[str], model: Sequence[str]) -> ClassMap | None:
    """The map by names alone; None where some class is no output's name, or the order is the same.

    Example:
        >>> by_name(["dog", "Tabby_cat"], ["tabby cat, tabby", "ship", "dog"]).outputs
        ((2,), (0,))
    """
    known = _numbers(model)
    outputs = [known.get(_plain(name)) for name in data]
    if None in outputs or len(set(outputs)) < len(outputs):
        return None
    if outputs == list(range(len(model))):
        return None
    said = f"by name, the data's {len(data)} classes are {len(data)} of the model's {len(model)}"
    return ClassMap(tuple((o,) for o in outputs if o is not None), tuple(data), said)


def _read(file: Path, where: str) -> Any:
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise InputError(f"{where}: larger than {LARGEST_FILE >> 20} MiB")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: cannot be read: {one_line(error)[:150]}") from None
    if file.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: no JSON: {one_line(error)[:150]}") from None
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return _of_lines(lines, where)


_NUMBERS = re.compile(r"\d+(?:[\s,;]+\d+)*")
_NAMED = re.compile(r"(.*\S)\s*[:=\t]\s*(\d+(?:[\s,;]+\d+)*)")


def _of_lines(lines: list[str], where: str) -> Any:
    """What lines of text say, as JSON would."""
    if not lines:
        raise InputError(f"{where}: empty")
    if all(_NUMBERS.fullmatch(line) for line in lines):
        return [_integers(line) for line in lines]
    named = [_NAMED.fullmatch(line) for line in lines]
    if all(named):
        told = {m[1].strip(): _integers(m[2]) for m in named if m}
        if len(told) < len(lines):
            raise InputError(f"{where}: a name stands there twice")
        return told
    table = _of_table(lines, where)  # last: `cat: 281, 282` has commas, too
    return lines if table is None else table


def _of_table(lines: list[str], where: str) -> Any:
    """What a table of names and numbers of outputs says (CSV, with or without a heading), as JSON
    would; None where it is none."""
    mark = next((mark for mark in "\t;," if all(mark in line for line in lines)), None)
    if mark is None:
        return None
    try:
        read = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark)]
    except csv.Error:  # a cell of 128 KiB
        return None
    rows = [[cell for cell in row if cell] for row in read]
    if not all(rows):
        return None
    kinds = [tuple(_is_number(cell) for cell in row) for row in rows]
    if len(rows) > 1 and not any(kinds[0]):  # a heading, if what follows has numbers
        if all(len(kind) > 1 and all(kind) for kind in kinds[1:]):
            raise InputError(
                f"{where}: numbers alone under the heading {lines[0]!r:.40}: write a line for each "
                "class, in the data's order, with the numbers of its outputs; or names beside them"
            )
        if all(map(any, kinds[1:])):
            rows, kinds = rows[1:], kinds[1:]
    if all(kind[0] and not any(kind[1:]) for kind in kinds):  # number, name, …
        values: list[list[Any]] = [row[1:] for row in rows]
    elif all(not kind[0] and all(kind[1:]) for kind in kinds):  # name, number, …
        values = [[int(n) for n in row[1:]] for row in rows]
    else:
        return None
    keys = [row[0] for row in rows]
    if len(set(keys)) < len(keys):
        raise InputError(f"{where}: {_twice(keys)!r} stands there twice")
    return dict(zip(keys, values, strict=True))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d{1,9}", text) is not None


def _twice(values: Sequence[str]) -> str:
    return next(value for i, value in enumerate(values) if value in values[:i])


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _mapped(
    where: str, given: Any, data: Sequence[str] | None, model: Sequence[str] | None
) -> ClassMap:
    if isinstance(given, Tensor):
        given = given.tolist()
    if isinstance(given, Mapping):
        return _of_mapping(where, {str(k): v for k, v in given.items()}, data, model)
    if not isinstance(given, list | tuple) or not given:
        raise InputError(f"{where}: a list or a dictionary of classes is wanted, not {given!r:.60}")
    if all(isinstance(item, str) for item in given):
        return _of_names(where, list(given), data, model)
    outputs = tuple(_outputs(where, f"class {i}", item, model) for i, item in enumerate(given))
    return ClassMap(outputs, tuple(data or ()), _said(outputs, model))


def _of_mapping(
    where: str, given: dict[str, Any], data: Sequence[str] | None, model: Sequence[str] | None
) -> ClassMap:
    keys = [int(key) if re.fullmatch(r"\d{1,9}", key) else None for key in given]
    numbered = None not in keys and not (data is not None and set(data) <= given.keys())
    if numbered and all(_is_names(value) for value in given.values()):
        # Number → name: of the model's outputs, or of outputs for the data's classes.
        if data is not None and (found := _of_output_names(given, data)):
            return found
        if model is None:
            raise InputError(
                f"{where}: its names are no classes of the data"
                + ("" if data is None else f" ({', '.join(data[:SHOWN])}, …)")
            )
    if numbered:
        ordered = sorted(given, key=int)
        if [int(key) for key in ordered] != list(range(len(ordered))):
            raise InputError(f"{where}: its numbers are not 0 to {len(ordered) - 1}")
        names, items = tuple(data or ()), [given[key] for key in ordered]
    elif data is None:
        names, items = tuple(given), list(given.values())
    else:
        missing = [name for name in data if name not in given]
        if missing:
            raise InputError(
                f"{where}: no output stands for {_few(missing)}{nearest(missing[0], given)[:120]}"
            )
        names, items = tuple(data), [given[name] for name in data]
    told = names or [str(i) for i in range(len(items))]
    outputs = tuple(
        _outputs(where, repr(name), item, model) for name, item in zip(told, items, strict=False)
    )
    return ClassMap(outputs, names, _said(outputs, model))


def _of_names(
    where: str, given: list[str], data: Sequence[str] | None, model: Sequence[str] | None
) -> ClassMap:
    """A list of names: the model's outputs in order, among which the data's classes are found; or
    an output for each class, by the name that the model itself gives it."""
    if data is not None:
        found = _of_output_names({str(i): name for i, name in enumerate(given)}, data)
        if found is not None:
            return replace(found, total=len(given))
    if model is not None:
        known = _numbers(model)
        outputs = tuple(
            (_output_named(where, f"class {i}", name, known),) for i, name in enumerate(given)
        )
        return ClassMap(outputs, tuple(data or given), _said(outputs, model))
    if data is None:
        raise InputError(
            f"{where}: a list of names, and it is not known what the data's classes are called: "
            "give data_classes, or numbers"
        )
    known = _numbers(given)
    missing = [name for name in data if _plain(name) not in known]
    raise InputError(f"{where}: {_few(missing)} of the data is not among its names")


def _of_output_names(given: Mapping[str, Any], data: Sequence[str]) -> ClassMap | None:
    """The map where the file names every output of the model; None where a class is not there."""
    known: dict[str, int] = {}
    for key, names in given.items():
        for name in [names] if isinstance(names, str) else names:
            for said in _ways(name):
                known.setdefault(said, int(key))
    if not all(_plain(name) in known for name in data):
        return None
    outputs = tuple((known[_plain(name)],) for name in data)
    return ClassMap(outputs, tuple(data), _said(outputs, given))


def _outputs(where: str, which: str, item: Any, model: Sequence[str] | None) -> Outputs:
    """One class's outputs, by number or name."""
    items = list(item) if isinstance(item, list | tuple) else [item]
    found = []
    for one in items:
        if isinstance(one, str) and re.fullmatch(r"\d{1,9}", one):
            one = int(one)
        if isinstance(one, str):
            if model is None:
                raise InputError(f"{where}: {which} is {one!r}, and the model names no outputs")
            one = _output_named(where, which, one, _numbers(model))
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**31:
            raise InputError(f"{where}: {which} is {one!r:.40}, no number of an output")
        found.append(one)
    return tuple(dict.fromkeys(found))


def _output_named(where: str, which: str, name: str, known: Mapping[str, int]) -> int:
    if _plain(name) not in known:
        raise InputError(
            f"{where}: {which} is {name!r}, no output of the model"
            f"{nearest(_plain(name), known)[:120]}"
        )
    return known[_plain(name)]


def _numbers(names: Sequence[str]) -> dict[str, int]:
    """Numbers of outputs by all that they are called; a name of two outputs goes to the first."""
    known: dict[str, int] = {}
    for whole in (True, False):
        for number, name in enumerate(names):
            ways = list(_ways(name))
            for said in ways[:1] if whole else ways[1:]:
                known.setdefault(said, number)
    return known


def _ways(name: str) -> Iterator[str]:
    """What a line may name: all of it, its synset (`n01440764 tench, …`), each of its synonyms."""
    yield _plain(name)
    synset = re.match(r"(n\d{8})\b\s*", name)
    if synset:
        yield synset[1]
        name = name[synset.end() :]
        yield _plain(name)
    if "," in name:
        yield from (_plain(part) for part in name.split(",") if part.strip())


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _is_names(value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return bool(values) and all(
        isinstance(v, str) and not re.fullmatch(r"\d{1,9}", v) for v in values
    )


def _said(outputs: Sequence[Outputs], of: Any) -> str:
    used = sum(len(each) for each in outputs)
    more = "" if used == len(outputs) else ", log-sum-exp over those of one class"
    known = "" if of is None else f" of the model's {len(of)}"
    return f"{len(outputs)} classes, for which {used}{known} outputs stand{more}"


def _few(names: Sequence[str]) -> str:
    told = ", ".join(repr(name) for name in names[:SHOWN])
    return told + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
