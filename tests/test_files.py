"""Files appear whole or not at all; nothing else is left behind."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from holdfast.errors import InputError
from holdfast.parsing import nearest
from holdfast.runs import files
from holdfast.runs.files import make_folder, read_json, write_atomically, write_json
from holdfast.runs.progress import ProgressLine, clock


def entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.mark.parametrize("content", [b"", b"\0\xff", "ünïcode ∞\n", "x" * 300_000])
def test_what_was_written_is_there(tmp_path, content):
    file = tmp_path / "a.bin"
    for _ in range(2):  # over itself too
        write_atomically(file, content)
        assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert entries(tmp_path) == {"a.bin"}
    assert os.stat(file).st_mode & 0o777 == 0o644


@pytest.mark.parametrize("fault", ["fdopen", "fsync", "chmod", "replace"])
@pytest.mark.parametrize("there", [True, False])
def test_a_failure_at_any_point_leaves_the_old_file_and_no_temporary(
    tmp_path, monkeypatch, fault, there
):
    file = tmp_path / "a.txt"
    if there:
        file.write_text("old")

    def fails(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, fault, fails)
    with pytest.raises(InputError) as error:
        write_atomically(file, "new")
    assert str(error.value) == f"cannot write {file}: No space left on device"
    assert entries(tmp_path) == ({"a.txt"} if there else set())
    assert not there or file.read_text() == "old"


def test_an_interruption_passes_through_and_leaves_no_temporary(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", "new")
    assert entries(tmp_path) == set()


def test_the_new_name_is_given_only_to_flushed_bytes(tmp_path, monkeypatch):
    file, order = tmp_path / "a.txt", []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def noted(*arguments, name=name, real=real):
            order.append(name)
            if name == "fsync":
                assert os.fstat(arguments[0]).st_size == 3
            return real(*arguments)

        monkeypatch.setattr(files.os, name, noted)
    write_atomically(file, "new")
    assert order == ["fsync", "replace"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for place in ("file/a.txt", "missing/a.txt", "folder", "x" * 300):
        with pytest.raises(InputError, match="cannot write") as error:
            write_atomically(tmp_path / place, "new")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"/proc/a\.txt"):
        write_atomically(Path("/proc/a.txt"), "new")
    assert entries(tmp_path) == {"file", "folder"}
    for place in (tmp_path / "file", tmp_path / "file" / "deep", Path("/proc/holdfast")):
        with pytest.raises(InputError, match=f"cannot write in folder {place}"):
            make_folder(place)


def test_make_folder_makes_parents_and_leaves_nothing_in_them(tmp_path):
    folder = make_folder(tmp_path / "a" / "b")
    assert make_folder(folder) == folder
    assert entries(folder) == set()


def test_json_comes_back(tmp_path):
    value = {"name": "größe ∞", "list": [1, 2.5, None, True], "nested": {"a": {}}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")
    assert "größe" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_never_written(tmp_path, number):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": number})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert entries(tmp_path) == {"a.json"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b'{"a":' * 100_000, b"9" * 5000]
)
def test_what_is_no_json_object_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_at_all(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_nearest():
    assert nearest("epoch", ["epochs", "seed"]) == "; did you mean 'epochs'?"
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0:00"),
        (42, "0:42"),
        (59.6, "1:00"),
        (725, "12:05"),
        (3599.7, "1:00:00"),
        (11220, "3:07:00"),
    ],
)
def test_clock(seconds, words):
    assert clock(seconds) == words


def test_progress_is_plain_lines_on_standard_error_with_an_estimate(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("holdfast.runs.progress.time.monotonic", lambda: now[0])
    with ProgressLine("work", interval=10) as line:
        for k in range(31):
            now[0] = k
            line.update(0.5 + k / 100, "fine")  # half of it was done before this process began
        line.say("[done]")
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines == [
        "work:  60%, 0:10, 0:40 left  fine",
        "work:  70%, 0:20, 0:30 left  fine",
        "work:  80%, 0:30, 0:20 left  fine",
        "[done]",
    ]


def test_progress_that_is_off_says_nothing(capsys):
    with ProgressLine("work", enabled=False, interval=0) as line:
        line.update(0.5)
        line.say("hello")
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""
