"""Files that users name: only Holdfast's own are overwritten, links stay, pipes are written."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from run_folders import evaluation_run

from holdfast import cli, data
from holdfast.data.base import DataSet, Split
from holdfast.errors import InputError
from holdfast.report import write_report
from holdfast.runs.files import write_named, write_result

SPLIT = Split(np.zeros((2, 3, 8, 8), np.uint8), np.array(list("ab")), np.array([0, 1]), "made up")
DATA = DataSet("two", ("a", "b"), SPLIT, SPLIT, SPLIT)


def page(folder: Path, out: Path) -> None:
    if not (folder / "run").exists():
        evaluation_run(folder / "run")
    write_report([folder / "run"], out)


def picture(folder: Path, out: Path) -> None:
    data.figure(DATA, out)


def result(folder: Path, out: Path) -> None:
    write_result(out, {"schema": "holdfast/benchmark/1"})


WRITERS = {"report.html": page, "figure.png": picture, "figure.svg": picture, "result.json": result}


@pytest.fixture(params=WRITERS)
def writer(request, tmp_path):
    """(what writes, the path it is given)"""
    folder = tmp_path / "material"
    folder.mkdir()
    return lambda out: WRITERS[request.param](folder, out), tmp_path / "out" / request.param


def test_a_file_of_holdfasts_own_is_replaced(writer):
    write, out = writer
    write(out)
    first = out.read_bytes()
    write(out)
    assert out.read_bytes()[:20] == first[:20]
    assert [entry.name for entry in out.parent.iterdir()] == [out.name]
    out.write_bytes(b"")  # an empty file is nobody's work
    write(out)
    assert out.read_bytes()[:20] == first[:20]


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"<!doctype html>\n<title>my own page</title>",
        b"{}",
        b'{"schema": "mine"}',
        b"\x89PNG\r\n\x1a\n",
        b"\0" * 5000,
        b"Holdfast report",
        b"[" * 100_000,
    ],
)
def test_no_other_file_is_touched(writer, content):
    write, out = writer
    out.parent.mkdir()
    out.write_bytes(content)
    with pytest.raises(InputError, match="did not write there") as error:
        write(out)
    assert str(out) in str(error.value)
    assert out.read_bytes() == content
    out.unlink()
    (out.parent / "notes").write_bytes(content)
    out.symlink_to(out.parent / "notes")  # nor through a link
    with pytest.raises(InputError, match="did not write there"):
        write(out)
    assert (out.parent / "notes").read_bytes() == content


def test_links_stay_and_lead_to_what_is_written(writer):
    write, out = writer
    out.parent.mkdir()
    target = out.parent / "deep" / f"target{out.suffix}"
    out.symlink_to(os.path.join("deep", target.name))  # dangling at first
    for _ in range(2):
        write(out)
        assert out.is_symlink() and not target.is_symlink()
        assert target.stat().st_size > 10
    chain = out.parent / f"chain{out.suffix}"
    chain.symlink_to(out)
    write(chain)
    assert chain.is_symlink() and out.is_symlink()
    loop = out.parent / f"loop{out.suffix}"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="cannot write"):
        write(loop)


def test_pipes_are_written_to(writer):
    write, out = writer
    out.parent.mkdir()
    os.mkfifo(out)
    got = []
    reader = threading.Thread(target=lambda: got.append(out.read_bytes()))
    reader.start()
    write(out)
    reader.join(timeout=30)
    assert len(got[0]) > 10
    assert stat.S_ISFIFO(out.stat().st_mode)


def test_devices_are_written_to():
    device = os.stat("/dev/null")
    write_named(Path("/dev/null"), b"away", lambda held: False)
    assert os.stat("/dev/null").st_ino == device.st_ino
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(InputError, match=r"cannot write /dev/full: No space left"):
        write_named(Path("/dev/full"), b"away", lambda held: False)


def test_standard_output_may_be_named(tmp_path, capfd, monkeypatch):
    evaluation_run(tmp_path / "run")
    write_report([tmp_path / "run"], "/dev/stdout")
    assert capfd.readouterr().out.startswith("<!doctype html>")


@pytest.mark.parametrize("place", ["folder", "file/x", "nul\0", "x" * 300, "/proc/nothing/x"])
def test_places_that_cannot_be_written_are_one_line(writer, place):
    write, out = writer
    out.parent.mkdir()
    (out.parent / "file").write_text("in the way")
    (out.parent / f"folder{out.suffix}").mkdir()
    path = out.parent / f"{place}{out.suffix}"
    with pytest.raises(InputError) as error:
        write(path)
    assert "\n" not in str(error.value)
    assert (out.parent / "file").read_text() == "in the way"


def test_a_refusal_comes_before_the_work(tmp_path, monkeypatch):
    evaluation_run(tmp_path / "run")
    (tmp_path / "notes.html").write_text("mine")
    monkeypatch.setattr("holdfast.report.page.read_run", lambda run: pytest.fail("read already"))
    with pytest.raises(InputError, match="did not write"):
        write_report([tmp_path / "run"], tmp_path / "notes.html")


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    evaluation_run(tmp_path / "run")
    (tmp_path / "notes.html").write_text("mine")
    for name, status in (("notes.html", 2), ("page.html", 0), ("page.html", 0)):
        monkeypatch.setattr(
            sys,
            "argv",
            ["holdfast", "report", str(tmp_path / "run"), "--out", str(tmp_path / name)],
        )
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert (end.value.code or 0) == status
        assert capsys.readouterr().err.count("\n") == (status != 0)
    assert (tmp_path / "notes.html").read_text() == "mine"


def test_every_benchmark_writes_its_result_by_that_function():
    """Where a user names a file with --out, no other way of writing is used."""
    for file in sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py")):
        text = file.read_text()
        assert "write_json(options.out" not in text and "write_json(out" not in text, file
