"""Reading CIFAR-10's pickles as data, without unpickling them.

A pickle is a program, and Python's unpickler runs it. This reader is a small machine of its own
that knows only the instructions which plain data needs. It never imports or calls what a file
names: the few names that array pickles contain are recognised as words, and what they stand for
is built here from checked parts. So a file can yield arrays, strings, numbers and containers or
be refused, and there is nothing else it could do.
"""

from __future__ import annotations

import codecs
import enum
import io
import math
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from ..placeholders import MOST, placeholder

LARGEST_FILE = 256 * 2**20  # bytes; a CIFAR-10 batch has 31 million
MOST_OPCODES = 1_000_000  # a CIFAR-10 batch has about 30,000


class _Refused(Exception):
    """The file asks for something that data does not need."""


class _Name(enum.Enum):
    """The names that array pickles mention: words here, not the things."""

    RECONSTRUCT = enum.auto()  # makes an empty array, for BUILD to fill
    FROM_BUFFER = enum.auto()
    SCALAR = enum.auto()
    NDARRAY = enum.auto()
    DTYPE = enum.auto()
    ENCODE = enum.auto()  # how Python 3 writes bytes into an old-style pickle


_KNOWN_NAMES = {
    "numpy ndarray": _Name.NDARRAY,
    "numpy dtype": _Name.DTYPE,
    "_codecs encode": _Name.ENCODE,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 2 renamed it; files of both kinds exist
    _KNOWN_NAMES[f"{_core}.multiarray _reconstruct"] = _Name.RECONSTRUCT
    _KNOWN_NAMES[f"{_core}.multiarray scalar"] = _Name.SCALAR
    _KNOWN_NAMES[f"{_core}.numeric _frombuffer"] = _Name.FROM_BUFFER


@dataclass
class _DType:
    """A NumPy number or string type, such as `u1`; BUILD sets its byte order."""

    code: str
    order: Literal["<", ">", "|", "="] = "|"

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.code).newbyteorder(self.order)


_TYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,6}")

_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_PUSH_ARGUMENT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
}
_PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}


def read_pickle(path: str | Path) -> Any:
    """What the pickle at `path` holds.

    Args:
        path: a pickle of any protocol made of dictionaries with string keys, lists, tuples,
            strings, numbers, None and NumPy arrays of numbers or strings.

    Returns:
        The object. A Python 2 string comes as a `str` with one character a byte (Latin-1).

    Raises:
        InputError: the file cannot be read, is no whole pickle, or holds anything else.
    """
    return parse_pickle(read_file(path), path)


def read_file(path: str | Path, most: int = LARGEST_FILE) -> bytes:
    """The bytes of a file; by default, of one that may hold a pickle.

    Raises:
        InputError: it is missing, unreadable, no plain file (a pipe would be waited for without
            end), or larger than `most` bytes.
    """
    path = Path(path)
    try:
        if not path.is_file():
            reason = "is not a plain file" if path.exists() else "no such file"
            if path.is_dir():
                reason = "is a folder, not a plain file"
            elif path.is_symlink() and not path.exists():
                reason = "is a link that leads nowhere"
            raise InputError(f"{path}: {reason}")
        if path.stat().st_size > most:
            raise InputError(f"{path}: larger than {most // 2**20} MiB, too large to be read")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if data and (instead := placeholder(data[:MOST])):  # of nothing, others say more
        raise InputError(f"{path}: {instead}")
    return data


def parse_pickle(data: bytes, path: str | Path) -> Any:
    """What a pickle's bytes hold; `path` is for the error message. As `read_pickle`."""
    try:
        return _Machine(data).run()
    except _Refused as refusal:
        raise InputError(
            f"{path}: refused, {refusal} (nothing was run); get this file again from its source"
        ) from None
    # What a damaged program trips over: missing operands, wrong types, impossible sizes.
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError):
        raise InputError(
            f"{path}: damaged or not a pickle; get this file again from its source"
        ) from None


class _Machine:
    """The stack machine of the pickle format, less everything that calls, imports or persists."""

    def __init__(self, data: bytes) -> None:
        self.stream = io.BytesIO(data)
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark, outermost first
        self.memo: dict[int, Any] = {}
        # One long string may be used for many arrays; together they must stay near the file's size.
        self.room = 4 * len(data)

    def run(self) -> Any:
        for name, argument in self._opcodes():
            if name in _PUSH_ARGUMENT:
                self.stack.append(argument)
            elif name in _PUSH_NEW:
                self.stack.append(_PUSH_NEW[name]())
            else:
                self._execute(name, argument)
        (result,) = self.stack
        if self.below or self.stream.read(1):
            raise ValueError("something is left over")
        return result

    def _opcodes(self) -> Iterator[tuple[str, Any]]:
        """Each instruction and its argument, up to the end mark (which is not yielded)."""
        for _ in range(MOST_OPCODES):
            opcode = _OPCODES[self.stream.read(1)]
            if opcode.name == "STOP":
                return
            if opcode.name == "STRING":  # pickletools takes only ASCII here; array bytes are not
                yield opcode.name, _unquoted(self.stream.readline())
            else:
                reader = opcode.arg and opcode.arg.reader
                yield opcode.name, reader(self.stream) if reader else None
        raise _Refused("it is longer than any data batch")

    def _execute(self, name: str, argument: Any) -> None:
        stack, memo = self.stack, self.memo
        match name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "POP_MARK":
                self._since_mark()
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                if len(stack) < size:
                    raise IndexError
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE" | "LIST":
                items = self._since_mark()
                self.stack.append(tuple(items) if name == "TUPLE" else items)
            case "DICT":
                items = self._since_mark()
                self.stack.append({})
                self._set_items(items)
            case "APPEND":
                item = stack.pop()
                self._top(list).append(item)
            case "APPENDS":
                items = self._since_mark()
                self._top(list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._since_mark())
            case "GLOBAL":
                stack.append(_recognised(argument))
            case "STACK_GLOBAL":
                match stack.pop(), stack.pop():
                    case str() as attribute, str() as module:
                        stack.append(_recognised(f"{module} {attribute}"))
                    case _:
                        raise TypeError
            case "INST":
                raise _Refused(f"it makes an object of {_shown(argument)}")
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._made(function, arguments))
            case "BUILD":
                state = stack.pop()
                self._fill(stack[-1], state)
            case "PROTO" | "FRAME":
                pass
            case _:
                raise _Refused(f"it uses the instruction {name}, which plain data does not need")

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise TypeError
        return self.stack[-1]

    def _set_items(self, items: list[Any]) -> None:
        # Only strings: hashing a deeply nested tuple would overflow the stack.
        if len(items) % 2 or not all(type(key) in (str, bytes) for key in items[::2]):
            raise TypeError
        self._top(dict).update(zip(items[::2], items[1::2], strict=True))

    def _made(self, function: Any, arguments: Any) -> Any:
        """What calling a known name would have returned."""
        match function, arguments:
            case _Name.RECONSTRUCT, (_Name.NDARRAY, _, _):
                return np.empty(0, np.uint8)
            case _Name.DTYPE, (str() as code, *_):
                if not _TYPE_CODE.fullmatch(code):
                    raise _Refused(f"it holds an array of type {code[:20]!r}")
                return _DType(code)
            case _Name.ENCODE, (str() as text, "latin1" | "latin-1"):
                return self._claimed(text)
            case _Name.SCALAR, (_DType() as dtype, raw):
                kind, content = self._checked((), dtype, raw)
                return np.frombuffer(content, kind)[0]
            case _Name.FROM_BUFFER, (raw, _DType() as dtype, shape, "C" | "F" as order):
                kind, content = self._checked(shape, dtype, raw)
                return np.frombuffer(content, kind).reshape(shape, order=order).copy("K")
            case _Name(), _:
                raise _Refused("it uses an array function in a way that no array needs")
        raise TypeError

    def _fill(self, target: Any, state: Any) -> None:
        """Does what `target.__setstate__(state)` would have done."""
        match target, state:
            case _DType(), (3, "<" | ">" | "|" | "=" as order, None, None, None, _, _, _):
                target.order = order
            case np.ndarray(), (1, shape, _DType() as dtype, bool() | 0 | 1 as fortran, raw):
                kind, content = self._checked(shape, dtype, raw)
                # In place, for the memo may hold the array already; every part is checked.
                target.__setstate__((1, shape, kind, bool(fortran), content))  # type: ignore[arg-type]
            case _:
                raise TypeError

    def _checked(self, shape: Any, dtype: _DType, raw: Any) -> tuple[np.dtype[Any], bytes]:
        """The type and content of an array, if `raw` is exactly as long as shape and type say."""
        if type(shape) is not tuple or len(shape) > 8:
            raise TypeError
        if not all(type(size) is int and 0 <= size <= LARGEST_FILE for size in shape):
            raise ValueError
        kind, content = dtype.numpy(), self._claimed(raw)
        if len(content) != math.prod(shape) * kind.itemsize:
            raise ValueError
        if kind.kind == "U" and (np.frombuffer(content, f"{kind.byteorder}u4") > 0x10FFFF).any():
            raise ValueError("no such character")
        return kind, content

    def _claimed(self, raw: Any) -> bytes:
        """The bytes of a string, counted against the room that is left."""
        if not isinstance(raw, str | bytes | bytearray):
            raise TypeError
        self.room -= len(raw)
        if self.room < 0:
            raise _Refused("it unfolds to more than it holds")
        return raw.encode("latin-1") if isinstance(raw, str) else bytes(raw)


def _recognised(name: str) -> _Name:
    if name not in _KNOWN_NAMES:
        raise _Refused(f"it asks for {_shown(name)}, which data does not need")
    return _KNOWN_NAMES[name]


def _shown(name: str) -> str:
    return repr(name[:60].replace(" ", "."))


def _unquoted(line: bytes) -> str:
    """A Python 2 string literal, with one character a byte."""
    quote, quoted, end = line[:1], line[1:-2], line[-2:]
    if quote not in (b"'", b'"') or end != quote + b"\n":
        raise ValueError
    text: bytes = codecs.escape_decode(quoted)[0]
    return text.decode("latin-1")
