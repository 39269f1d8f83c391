"""`holdfast view`: what it answers over HTTP, to friends and to others."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from command_line import command
from run_folders import evaluation_run, training_run, uncertainty_run, write_json

import holdfast as hf
from holdfast.errors import InputError
from holdfast.runs.files import write_json as write_sealed
from holdfast.runs.lock import claimed
from holdfast.runs.progress import ProgressLine
from holdfast.viewer.server import Viewer, is_own_name

EVIL = "<script>alert(1)</script>"


def model(name: str, sha: str = "ab") -> dict[str, str]:
    return {"name": name, "sha256": sha * 32, "architecture": "preact-resnet"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for i in range(3):
        evaluation_run(
            folder / f"run-{i}", n=60, robust=0.3 + i / 10, seed=i, curve=False,
            model=model(f"model-{i}", f"{i}{i}"), labels=np.arange(60) % 10,
        )  # fmt: skip
    training_run(folder / "training")
    uncertainty_run(folder / "uncertainty")
    return folder


@pytest.fixture
def viewer(runs: Path) -> Iterator[Viewer]:
    with hf.view(runs, port=0) as viewer:
        yield viewer


def ask(
    viewer: Viewer, path: str, method: str = "GET", **headers: str
) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, dict(answer.getheaders())


def begun(folder: Path, suite: str = "swift", name: str = "growing") -> Path:
    """A run that has begun, as `open_run` leaves it."""
    folder.mkdir(parents=True)
    asked = {"model": {"name": name}, "suite": suite, "threat": {"norm": "linf", "eps": 8 / 255}}
    write_json(
        folder / "request.json",
        {
            "schema": "holdfast/request/1", "kind": "evaluate", "identity": "ab", "asked": asked,
            "command": ["holdfast", "evaluate", name], "started": "2026-05-04T10:20:30+00:00",
        },
    )  # fmt: skip
    return folder


def later(viewer: Viewer, path: str, wanted: str) -> str:
    """What is said once it holds what is wanted: within ten looks."""
    for _ in range(100):
        _, text, _ = ask(viewer, path)
        if wanted in text:
            return text
        time.sleep(0.1)
    raise AssertionError(f"{wanted!r} is not in {text[:3000]}")


# --- pages ----------------------------------------------------------------------------------------


def test_all_runs_are_there(viewer, runs) -> None:
    status, page, headers = ask(viewer, "/")
    assert status == 200 and headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    for i in range(3):
        assert f"model-{i}" in page
    assert page.index("model-2") < page.index("model-1") < page.index("model-0")
    assert str(runs / "training") in page and str(runs / "uncertainty") in page
    again, text, _ = ask(viewer, "/", **{"If-None-Match": headers["ETag"]})
    assert (again, text) == (304, "")


def test_any_run_and_any_model_has_a_page(viewer, runs) -> None:
    _, page, _ = ask(viewer, "/")
    links = set(re.findall(r'href="(/(?:model|run)\?[^"]+)"', page))
    assert len(links) == 5
    for link in links:
        status, text, _ = ask(viewer, link.replace("&amp;", "&"))
        assert status == 200 and 'href="/"' in text, link


def test_two_are_compared_image_by_image(viewer, runs) -> None:
    chosen = "&".join(f"run={quote(str(runs / f'run-{i}'))}" for i in (0, 2))
    status, page, _ = ask(viewer, f"/compare?{chosen}")
    assert status == 200 and "model-2 beside model-0" in page and "Image by image" in page
    for bad in (
        "/compare",
        f"/compare?run={quote(str(runs / 'run-0'))}",
        f"{'/compare?'}{chosen}x",
    ):
        status, page, _ = ask(viewer, bad)
        assert status == 409 and "<h1>Not shown</h1>" in page


def test_what_changes_is_shown_anew_and_what_does_not_is_not_read_again(
    viewer, runs, monkeypatch
) -> None:
    assert "model-9" not in ask(viewer, "/")[1]
    read: list[Path] = []
    from holdfast.viewer import library

    monkeypatch.setattr(
        library,
        "_read",
        lambda file, stamp, own=library._read: read.append(file) or own(file, stamp),
    )
    evaluation_run(runs / "new", n=60, curve=False, model=model("model-9", "99"))
    later(viewer, "/", "model-9")
    assert {file.parent.name for file in read} == {"new"}
    shutil.rmtree(runs / "new")
    for _ in range(100):
        if "model-9" not in ask(viewer, "/")[1]:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("a run that is gone is still shown")


def test_runs_on_other_images_stand_side_by_side_and_it_is_said_why(viewer, runs) -> None:
    evaluation_run(runs / "l2", n=60, norm="l2", eps=0.5, curve=False)
    later(viewer, "/", "L2 0.5")
    chosen = "&".join(f"run={quote(str(runs / name))}" for name in ("run-0", "l2"))
    status, page, _ = ask(viewer, f"/compare?{chosen}")
    assert status == 200 and "figures of different ones do not compare" in page


# --- runs that are being made ---------------------------------------------------------------------


def test_a_run_under_way_shows_its_progress(viewer, runs) -> None:
    folder = begun(runs / "growing")
    with claimed(folder), ProgressLine("swift", enabled=False, run=folder) as line:
        line.update(
            0.25, "swift: 41 of 60 stand",
            lambda: {"n": 60, "robust_accuracy_interval": (0.1, 0.7)},
        )  # fmt: skip
        said = json.loads(later(viewer, "/live", "41 of 60 stand"))
        assert said["underWay"] == 1
        assert 'value="25"' in said["cards"] and "10.0\u00a0–\u00a070.0" in said["cards"]
        status, page, _ = ask(viewer, f"/run?path={quote(str(folder))}")
        assert status == 200 and "41 of 60 stand" in page and "holdfast evaluate growing" in page
    # The process is gone, the run is not finished.
    said = json.loads(later(viewer, "/live", "interrupted"))
    assert said["underWay"] == 0 and "holdfast evaluate growing" in said["cards"]


def test_looking_never_takes_the_lock(viewer, runs) -> None:
    folder = begun(runs / "growing")
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            ask(viewer, "/live")

    with claimed(folder):
        pass  # leaves the folder
    looking = [threading.Thread(target=look) for _ in range(3)]
    for one in looking:
        one.start()
    for _ in range(200):
        with claimed(folder):  # an InputError if a look had it
            pass
    stop.set()
    for one in looking:
        one.join()


def test_progress_is_removed_with_the_result_and_never_written_beside_one(tmp_path) -> None:
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x, y = torch.rand(8, 1, 2, 2), torch.arange(8) % 3
    hf.evaluate(network, x, y, ("linf", 0.1), suite="apgd", run=tmp_path / "run")
    assert not (tmp_path / "run" / "progress.json").exists()
    ProgressLine("x", enabled=False, run=tmp_path / "run").update(0.5)
    assert not (tmp_path / "run" / "progress.json").exists()
    ProgressLine("x", enabled=False, run=tmp_path / "none").update(0.5)
    assert not (tmp_path / "none").exists()


def test_an_evaluation_says_between_which_bounds_its_figure_will_lie(tmp_path, monkeypatch) -> None:
    import torch

    from holdfast.runs import progress

    written = []
    monkeypatch.setattr(progress, "WRITTEN_SECONDS", 0.0)
    monkeypatch.setattr(
        ProgressLine._write, "__defaults__", (0.0,)
    )  # every step, not once a second
    own = progress.write_json
    monkeypatch.setattr(
        progress, "write_json", lambda path, value: written.append(value) or own(path, value)
    )
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x = torch.rand(40, 1, 4, 4)
    with torch.no_grad():
        y = network(x).argmax(1)
    result = hf.evaluate(network, x, y, ("linf", 0.06), suite="autoattack", run=tmp_path / "run")
    bounds = [w["robust_accuracy_interval"] for w in written if "robust_accuracy_interval" in w]
    assert len(bounds) > 5
    for low, high in bounds:
        assert low <= result.robust_accuracy <= high
    widths = [high - low for low, high in bounds]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]
    assert bounds[-1] == pytest.approx(list(result.robust_accuracy_interval))


def test_a_damaged_run_is_shown_as_damaged_and_the_rest_stays(viewer, runs) -> None:
    (runs / "run-0" / "result.json").write_text('{"schema": "holdfast/evaluation/1"')
    page = later(viewer, "/", "<h2>Damaged</h2>")
    assert "run-0/result.json" in page and "model-1" in page
    result = json.loads((runs / "run-1" / "result.json").read_text())
    write_sealed(runs / "run-1" / "result.json", {**result, "files": {"verdicts.csv": "0" * 64}})
    page = later(viewer, "/", "verdicts.csv is damaged")
    assert "model-1" in page
    begun(runs / "odd")
    (runs / "odd" / "request.json").write_text("[]")
    later(viewer, "/", "odd/request.json")
    status, page, _ = ask(viewer, f"/run?path={quote(str(runs / 'run-1'))}")
    assert status == 409 and "verdicts.csv" in page and "Traceback" not in page


@pytest.mark.parametrize(
    "held",
    [
        {"kind": EVIL, "asked": {"model": {"name": EVIL}, "suite": EVIL, "threat": {"norm": EVIL}}},
        {"kind": "evaluate", "asked": {"model": 3, "threat": 7, "suite": [1]}, "started": "never"},
        {"kind": "train", "asked": {}, "command": [EVIL]},
    ],
)
def test_odd_requests_are_text(viewer, runs, held) -> None:
    folder = begun(runs / "odd")
    write_json(folder / "request.json", {"schema": "holdfast/request/1", **held})
    progress = {"schema": "holdfast/progress/1", "share": 0.5, "word": EVIL, "updated": EVIL}
    write_json(folder / "progress.json", progress)
    page = later(viewer, "/", "interrupted")
    assert EVIL not in page and EVIL not in json.loads(ask(viewer, "/live")[1])["cards"]
    (folder / "progress.json").write_text("{")
    assert ask(viewer, f"/run?path={quote(str(folder))}")[0] == 200


# --- safety ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/run?path=/etc/passwd", "/run?path=../secret", "/run?path=%00", "/run", "/model?name=../x",
     "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/runs/run-0/result.json", "//etc/passwd"],
)  # fmt: skip
def test_no_path_leads_anywhere_else(viewer, path) -> None:
    status, page, _ = ask(viewer, path)
    assert status == 404 and "root:" not in page and "Traceback" not in page


def test_nothing_outside_the_folder_is_read_through_links(viewer, runs, tmp_path) -> None:
    evaluation_run(tmp_path / "private", n=60, model=model("secret model", "77"))
    (runs / "link").symlink_to(tmp_path / "private")
    (runs / "copy").mkdir()
    (runs / "copy" / "result.json").symlink_to(tmp_path / "private" / "result.json")
    evaluation_run(runs / "new", n=60, curve=False, model=model("model-9", "99"))
    assert "secret model" not in later(viewer, "/", "model-9")
    assert ask(viewer, f"/run?path={quote(str(runs / 'copy'))}")[0] == 404


def test_only_this_machine_s_names_are_answered(viewer) -> None:
    assert ask(viewer, "/", Host=f"localhost:{viewer.port}")[0] == 200
    for name in (
        "evil.example",
        f"evil.example:{viewer.port}",
        "127.0.0.1.evil.example",
        "[::1",
        "",
    ):
        status, text, _ = ask(viewer, "/", Host=name)
        assert status == 421 and "model" not in text, name
    assert is_own_name("[::1]:80", "127.0.0.1") and is_own_name("192.168.0.7", "0.0.0.0")
    assert is_own_name("board.example:80", "board.example")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_shows(viewer, method) -> None:
    assert ask(viewer, "/", method)[0] == 405


def test_odd_questions_do_not_end_it(viewer) -> None:
    for raw in (
        b"\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET /run?" + b"path=a&" * 500 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", viewer.port), timeout=10) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
            assert b"Traceback" not in answer and b"200 OK" not in answer.split(b"\r\n")[0]
    assert ask(viewer, "/")[0] == 200


def test_a_fault_is_one_line_on_the_terminal_and_the_page_stays_up(
    viewer, monkeypatch, capsys
) -> None:
    def fails(*_: object) -> str:
        raise RuntimeError("the secret is 42")

    with monkeypatch.context() as patch:
        patch.setattr("holdfast.viewer.pages.overview", fails)
        status, page, _ = ask(viewer, "/")
    assert status == 500 and "secret" not in page and "Traceback" not in page
    assert capsys.readouterr().err == "viewer: RuntimeError: the secret is 42\n"
    assert ask(viewer, "/")[0] == 200


def test_many_at_once(viewer) -> None:
    answers: list[int] = []

    def look() -> None:
        answers.append(ask(viewer, "/")[0])
        answers.append(ask(viewer, "/live")[0])

    people = [threading.Thread(target=look) for _ in range(20)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert answers == [200] * 40


# --- the command ----------------------------------------------------------------------------------


def test_a_port_in_use_is_one_line(viewer, runs, monkeypatch, capsys) -> None:
    assert command(monkeypatch, "view", runs, "--port", viewer.port) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"holdfast: port {viewer.port} is in use") and told.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["/no/such/folder"],
        ["--port", "70000"],
        ["--port", "-1"],
        ["--host", "no such host"],
        ["--host", "203.0.113.7", "--port", "0"],
        ["--robustbench", "/no/such/folder"],
    ],
)
def test_bad_options_are_one_line(tmp_path, monkeypatch, capsys, options) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "view", *options) == 2
    told = capsys.readouterr().err
    assert told.startswith("holdfast: ") and told.count("\n") == 1


def test_who_may_reach_it_is_said() -> None:
    with hf.view(".", host="0.0.0.0", port=0) as viewer:
        assert not viewer.alone
    with hf.view(".", host="localhost", port=0) as viewer:
        assert viewer.alone and ask(viewer, "/live")[0] == 200
    with pytest.raises(InputError):
        hf.view("/no/such/folder")


def test_ctrl_c_ends_quietly(runs) -> None:
    program = [sys.executable, "-m", "holdfast", "view", str(runs), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(hf.__file__).parents[1])}
    viewing = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert viewing.stdout is not None
    line = viewing.stdout.readline()
    assert re.match(r"http://127\.0\.0\.1:\d+/ shows ", line) and "Ctrl-C" in line
    viewing.send_signal(signal.SIGINT)
    out, err = viewing.communicate(timeout=60)
    assert (viewing.returncode, out, err) == (0, "", "")
