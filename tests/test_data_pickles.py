"""The pickle reader reads what plain data needs, and refuses everything else without running it."""

from __future__ import annotations

import contextlib
import copyreg
import os
import pickle
import struct
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.data import pickles
from holdfast.data.pickles import parse_pickle, read_pickle
from holdfast.errors import InputError


def refused(data: bytes, path: Path) -> str:
    """The message, after checking that it names the file in one line."""
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


# --- what is read ---------------------------------------------------------------------------


def test_a_python_2_batch_is_read_as_pickle_reads_it(tmp_path: Path) -> None:
    data = data_files.python2_pickle(data_files.batch(3))
    (tmp_path / "data_batch_1").write_bytes(data)
    ours, theirs = read_pickle(tmp_path / "data_batch_1"), pickle.loads(data, encoding="latin1")
    assert_same(ours, theirs)
    np.testing.assert_array_equal(ours["data"], data_files.batch(3)["data"])


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(min_size=1),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text() | st.binary(min_size=1), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(plain, st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_plain_data_of_every_protocol(value: Any, protocol: int) -> None:
    assert_same(parse_pickle(pickle.dumps(value, protocol=protocol), "file"), value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(-3, 3, dtype=">i4"),
        np.array([True, False]),
        np.array(["frog.png", "é"]),
        np.array(["frog.png"], dtype=">U9"),
        np.array([b"frog.png", b"x"]),
        np.array(5.0),
        np.int64(7),
        np.float32(0.25),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays_of_every_protocol(array: Any, protocol: int) -> None:
    twice = pickle.dumps([array, array], protocol=protocol)  # the second refers to the first
    first, second = parse_pickle(twice, "file")
    assert first is second
    assert_same(first, pickle.loads(twice)[0])
    np.testing.assert_array_equal(first, array)


def test_a_python_2_protocol_0_batch_with_escaped_array_bytes() -> None:
    data = (
        b"(dp1\nS'data'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n"
        b"(I0\ntS'b'\ntRp5\n(I1\n(I4\ntcnumpy\ndtype\np6\n(S'u1'\nI0\nI1\ntRp7\n(I3\nS'|'\nNNN"
        b"I-1\nI-1\nI0\ntbI00\nS'\\xff\\x00\\'a'\ntbsS'labels'\np8\n(lp9\nI6\naL9L\nas."
    )
    ours = parse_pickle(data, "file")
    assert_same(ours, pickle.loads(data, encoding="latin1"))
    assert ours["data"].tolist() == [255, 0, ord("'"), ord("a")] and ours["labels"] == [6, 9]


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, strict=True)
        ours.flat[0] = ours.flat[0]  # writable
    else:
        assert ours == theirs


# --- what would run -------------------------------------------------------------------------


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def payloads(witness: Path) -> dict[str, bytes]:
    """Pickles that create the file `witness` when Python loads them, in many spellings."""
    touch = f"touch {witness}"
    code = f"open({str(witness)!r}, 'w')"
    deep = f"__import__('os').system({touch!r})"
    return {
        "os.system": b"cos\nsystem\n" + text(touch) + b"\x85R.",
        "posix.system": b"cposix\nsystem\n(" + text(touch) + b"tR.",
        "protocol 0": f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
        "eval": b"c__builtin__\neval\n" + text(code) + b"\x85R.",
        "builtins.exec": b"cbuiltins\nexec\n" + text(code) + b"\x85R.",
        "stack global": b"\x80\x04"
        + text("os")
        + text("system")
        + b"\x93"
        + text(touch)
        + b"\x85R.",
        "dotted stack global": (
            b"\x80\x04" + text("pathlib") + text("os.system") + b"\x93" + text(touch) + b"\x85R."
        ),
        "inst": b"(" + text(touch) + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + text(touch) + b"o.",
        "Popen": b"csubprocess\nPopen\n](" + text("touch") + text(str(witness)) + b"e\x85R.",
        "getattr": (
            b"cbuiltins\ngetattr\ncos\n__dict__\nX\x03\x00\x00\x00get\x86R"
            + text("system")
            + b"\x85R"
            + text(touch)
            + b"\x85R."
        ),
        "numpy's own helper": (
            b"cnumpy.testing._private.utils\nrunstring\n" + text(code) + b"}\x86R."
        ),
        "extension registry": b"\x80\x02\x82\xf0" + text(touch) + b"\x85R.",
        "python's pickler": pickle.dumps(Reduced(os.system, touch)),
        "inside a batch": (
            b"\x80\x02}(U\x06labelscos\nsystem\n" + text(touch) + b"\x85RU\x04dataNu."
        ),
        "state of an array": (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            b"c__builtin__\neval\n" + text(f"[{deep}, (1, (0,), 'u1', False, b'')][1]") + b"\x85Rb."
        ),
        "array of objects": pickle.dumps(np.array([Reduced(os.system, touch)], dtype=object)),
    }


@pytest.fixture
def extension() -> Iterator[None]:
    """os.system as number 240 of the extension registry."""
    copyreg.add_extension("os", "system", 240)
    yield
    copyreg.remove_extension("os", "system", 240)
    copyreg.clear_extension_cache()


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("spelling", payloads(Path("x")))
def test_a_malicious_file_runs_nothing(spelling: str, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    payload = payloads(witness)[spelling]
    refused(payload, tmp_path / "data_batch_1")
    assert not witness.exists()

    # The payload is armed: Python's own reader runs it (though it may fail afterwards).
    with contextlib.suppress(Exception):
        result = pickle.loads(payload)
        if isinstance(result, subprocess.Popen):
            result.wait()
    assert witness.exists()


def test_the_message_names_what_the_file_asks_for(tmp_path: Path) -> None:
    message = refused(payloads(tmp_path / "w")["posix.system"], tmp_path / "data_batch_1")
    assert "posix.system" in message and "nothing was run" in message


@pytest.mark.parametrize(
    "data",
    [
        b"Pname\n.",
        b"U\x04nameQ.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"cnumpy\nndarray\n}b.",
        b"cnumpy.core.multiarray\n_reconstruct\n}U\x0b__defaults__(tsb.",
        b"]}b.",
        b"\x80\x04\x8f(K\x01\x90.",
        b"cnumpy.core.multiarray\nfromstring\n.",
    ],
    ids=[
        "persid",
        "binpersid",
        "newobj",
        "build-type",
        "build-function",
        "build-list",
        "set",
        "other",
    ],
)
def test_other_instructions_that_data_does_not_need(data: bytes, tmp_path: Path) -> None:
    refused(data, tmp_path / "data_batch_1")


# --- what would fill the memory -------------------------------------------------------------

ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
U1 = (
    b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"abc.",
        b"T\xff\xff\xff\x7fabc.",
        b"T\xff\xff\xff\xffabc.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x8b\xff\xff\xff\x7fabc.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N",
        b"Nr\xff\xff\xff\x7f" + b"Nr\xfe\xff\xff\x7f0",
        b"cnumpy\nndarray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85\x85R.",
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01b\x87R"
        b"(K\x01J\xff\xff\xff\x7f\x85" + U1 + b"\x89U\x00tb.",
        ARRAY
        + b"(K\x01"
        + b"("
        + b"\x8a\x08"
        + b"\xff" * 7
        + b"\x7f"
        + b"K\x02t"
        + U1
        + b"\x89U\x00tb.",
        ARRAY + b"(K\x01(J\xff\xff\xff\xffK\x01t" + U1 + b"\x89U\x01atb.",
        ARRAY + b"(K\x01K\x02\x85" + U1.replace(b"u1", b"O8") + b"\x89](NNetb.",
        ARRAY + b"(K\x01K\x02\x85" + U1.replace(b"U\x02u1", b"U\x09V99999999") + b"\x89U\x02aatb.",
        b"(" + b")\x85" * 3 + b"N" + b"d.",
        b"}" + b")" + b"\x85" * 50_000 + b"Ns.",
    ],
    ids=[
        *("bytes8", "bytes8-sign", "string", "string-sign", "bytearray8", "long", "frame"),
        *("memo", "ndarray-call", "reconstruct", "overflow", "negative", "objects", "void"),
        *("dict", "nested"),
    ],
)
def test_huge_claims_are_refused_without_huge_memory(data: bytes, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        refused(data, tmp_path / "data_batch_1")
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_a_string_used_for_many_arrays_is_refused(tmp_path: Path) -> None:
    body = b"T" + struct.pack("<I", 10**6) + bytes(10**6)
    one = ARRAY + b"(K\x01J" + struct.pack("<i", 10**6) + b"\x85" + U1 + b"\x89h\x00tb"
    bomb = b"](" + body + b"q\x00" + one * 500 + b"e."
    assert "unfolds" in refused(bomb, tmp_path / "data_batch_1")


def test_an_endless_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_OPCODES", 1000)
    assert "longer" in refused(b"N0" * 1000 + b"N.", tmp_path / "data_batch_1")


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: takes no space
    with pytest.raises(InputError, match=r"data_batch_1: larger than 256 MiB"):
        read_pickle(path)


# --- what is damaged ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"N",
        b"NN.",
        b"N.N",
        b"(N.",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        b"\x1f\x8b\x08",
        b"h\x07.",
    ],
)
def test_what_is_no_pickle(data: bytes, tmp_path: Path) -> None:
    refused(data, tmp_path / "data_batch_1")


def test_missing_folder_and_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in (
        (tmp_path / "none", "no such file"),
        (tmp_path, "not a plain file"),
        (tmp_path / "fifo", "not a plain file"),
    ):
        with pytest.raises(InputError, match=reason):
            read_pickle(path)


SMALL = data_files.python2_pickle(data_files.batch(0, n=3))
HEAD = SMALL[:150]  # the part that is structure rather than pixels
PYTHON_3 = pickle.dumps(
    {"data": np.zeros((2, 3), np.uint8), b"labels": [np.int64(3), 4]}, protocol=2
)


@pytest.mark.parametrize("cut", [1, 2, 10, 100, 1000, len(SMALL) - 1])
def test_truncated(cut: int, tmp_path: Path) -> None:
    refused(SMALL[:cut], tmp_path / "data_batch_1")


@given(
    st.sampled_from([SMALL, PYTHON_3, pickle.dumps(data_files.batch(0, n=2), protocol=5)]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_flipped_bytes_give_data_or_one_error(
    data: bytes, flips: list[tuple[int, int]], in_head: bool
) -> None:
    damaged = bytearray(data)
    for place, value in flips:
        damaged[place % (len(HEAD) if in_head else len(data))] = value
    try:
        parse_pickle(bytes(damaged), "data_batch_1")
    except InputError as error:
        assert str(error).startswith("data_batch_1: ")


@given(
    st.lists(
        st.sampled_from([bytes([i]) for i in range(256)] + [ARRAY, U1, b"U\x02ab"]), max_size=40
    )
)
@settings(max_examples=300, deadline=None)
def test_random_programs_give_data_or_one_error(parts: list[bytes]) -> None:
    try:
        parse_pickle(b"".join(parts) + b".", "data_batch_1")
    except InputError as error:
        assert str(error).startswith("data_batch_1: ")
