"""The playground: a real server in a process of its own, friendly and hostile questions."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import command, small_checkpoint
from PIL import Image

import holdfast as hf
from holdfast.one_image.picture import drawing_of
from holdfast.playground import guard, panel
from holdfast.playground.guard import Guard, Refused, check_question
from holdfast.playground.workshop import BARE, Stopped, Workshop

ROOT = Path(__file__).resolve().parents[1]


def png(width: int = 8, height: int = 8, mode: str = "L") -> bytes:
    held = io.BytesIO()
    Image.new(mode, (width, height), 128).save(held, "PNG")
    return held.getvalue()


def claimed_png(width: int, height: int) -> bytes:
    """A PNG that says that it is so large, and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rows + chunk(b"IEND", b"")


# --- the guard alone ------------------------------------------------------------------------------


def answered(
    folder: Path, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, str, list[bytes]]:
    """What the guard says to a request: its status and words, and what it let through."""
    let_in: list[bytes] = []
    sent: list[dict[str, Any]] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        let_in.append((await receive()).get("body", b""))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"host": "127.0.0.1:1", **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }
    hosts = frozenset({"127.0.0.1", "localhost"})
    asyncio.run(Guard(behind, folder, hosts)(scope, receive, send))
    assert any(name == b"content-security-policy" for name, _ in sent[0]["headers"])
    return sent[0]["status"], sent[1]["body"].decode(), let_in


def form(content: bytes, name: str = "a.png") -> tuple[bytes, str]:
    """A file as a browser uploads it, and the type of the request."""
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"just words", "no readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no readable"),
        (claimed_png(10_000, 10_000), "24,000,000 pixels"),
        (claimed_png(100_000, 100_000), "24,000,000 pixels"),
        (b"", "it is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no readable image"),
    ],
)
def test_an_upload_is_looked_at_before_it_is_kept(tmp_path: Path, content, says) -> None:
    pytest.importorskip("starlette", reason="the playground needs Gradio")
    body, kind = form(content)
    status, said, let_in = answered(tmp_path, "POST", guard.UPLOAD, body, content_type=kind)
    assert status == 415 and says in said and not let_in and "\n" not in said


def test_a_picture_is_let_in_whatever_it_is_called(tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="the playground needs Gradio")
    for name in ("a.png", "../../etc/passwd", "a.svg"):
        body, kind = form(png(), name)
        status, _, let_in = answered(tmp_path, "POST", guard.UPLOAD, body, content_type=kind)
        assert status == 200 and let_in == [body]
    body, kind = b"--b--\r\n", "multipart/form-data; boundary=b"
    assert answered(tmp_path, "POST", guard.UPLOAD, body, content_type=kind)[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"host": "evil.example"}, 421),
        ("GET", "/", {"host": "localhost:7860"}, 200),
        ("POST", "/gradio_api/queue/join", {"origin": "http://evil.example"}, 403),
        ("POST", "/gradio_api/queue/join", {"origin": "http://127.0.0.1:1"}, 200),
        ("POST", guard.UPLOAD, {"content_length": str(2**40)}, 413),
        ("POST", "/gradio_api/queue/join", {"content_length": str(2**40)}, 413),
        ("GET", "/gradio_api/file=/etc/passwd", {}, 404),
        ("GET", "/gradio_api/file=http://evil.example/x.png", {}, 404),
        ("GET", "/gradio_api/proxy=http://evil.example/", {}, 404),
        ("GET", "/docs", {}, 404),
        ("GET", "/monitoring", {}, 404),
        ("PUT", "/", {}, 404),
        ("POST", "/gradio_api/component_server", {}, 404),
    ],
)
def test_who_may_ask_what(tmp_path: Path, method, path, headers, status) -> None:
    found, said, let_in = answered(tmp_path, method, path, **headers)
    assert found == status and bool(let_in) == (status == 200) and said


def test_a_question_names_no_file_but_uploaded_ones(tmp_path: Path) -> None:
    inside = tmp_path / "x" / "a.png"
    check_question(json.dumps({"data": [{"path": str(inside)}, 1, None]}).encode(), tmp_path)
    (tmp_path / "link").symlink_to("/etc")
    for path in ("/etc/passwd", "http://evil.example/a.png", f"{tmp_path}/../b", "a.png\0", 7,
                 str(tmp_path / "link" / "passwd")):  # fmt: skip
        with pytest.raises(Refused, match="not uploaded here"):
            check_question(json.dumps({"data": [[{"path": path}]]}).encode(), tmp_path)
    for body, says in (
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": [' * 60 + b"1" + b"]}" * 60, "nested too deeply"),
        (b"no json", "no JSON"),
        (b"9" * 10_000, "no JSON"),
        (b"\xff\xfe", "no JSON"),
    ):
        with pytest.raises(Refused, match=says):
            check_question(body, tmp_path)


# --- what stands behind the page ------------------------------------------------------------------


def workshop(tmp_path: Path, **changes: Any) -> Workshop:
    model = str(small_checkpoint(tmp_path / "m"))
    return Workshop([model], hf.load, "digits", **changes)


def run(shop: Workshop, **changes: Any) -> Any:
    import threading

    asked = {
        "label": None, "norm": "linf", "eps": 0.1, "attack": None, "steps": 3, "closest": False,
        "told": lambda share, word: None, "stop": threading.Event(),
        "sides": [(shop.models[0], BARE)], "picture": shop.examples[0].picture, **changes,
    }  # fmt: skip
    return shop.run(**asked)


def test_examples_models_and_cards(tmp_path: Path, monkeypatch) -> None:
    shop = workshop(tmp_path, defences=("jpeg:quality=50",))
    shop.wait()
    test = hf.data.load("digits").test
    assert [each.name for each in shop.examples] == [str(y) for y in test.labels[:12]]
    np.testing.assert_array_equal(shop.examples[3].picture.pixels, test.images[3])
    assert shop.offered()[:2] == [BARE, "jpeg:quality=50"] and "median" in shop.offered()
    sides = [(shop.models[0], BARE), (shop.models[0], "jpeg:quality=50")]
    heard: list[tuple[float | None, str]] = []
    trials, name = run(
        shop, label="0", sides=sides, told=lambda share, word: heard.append((share, word))
    )
    assert [trial.defences for trial in trials] == [(), ("jpeg:quality=50",)]
    assert trials[0].label == 0 and trials[0].label_given
    assert trials[0].calibration.conformal is not None
    shares = [share for share, _ in heard if share is not None]
    assert shares == sorted(shares) and shares[-1] > 0.5
    drawn = shop.drawn(name)
    assert drawn is not None and Image.open(io.BytesIO(drawn)).width == 1800
    assert shop.drawn("another") is None
    monkeypatch.setattr("holdfast.playground.workshop.CARDS", 1)
    run(shop)
    assert shop.drawn(name) is None  # the oldest go


def test_a_job_stops_when_asked_and_after_its_time(tmp_path: Path, monkeypatch) -> None:
    import threading

    shop = workshop(tmp_path)
    shop.wait()
    stop = threading.Event()

    def told(share: float | None, word: str) -> None:
        if "step 2" in word:
            stop.set()

    with pytest.raises(Stopped, match="as you asked"):
        run(shop, told=told, stop=stop, steps=10_000)
    monkeypatch.setattr("holdfast.playground.workshop.MOST_SECONDS", 0.0)
    with pytest.raises(Stopped, match="others get their turn"):
        run(shop)


def test_what_is_not_on_the_page_is_refused(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    shop.wait()
    with pytest.raises(hf.InputError, match="none of those on this page"):
        run(shop, sides=[("os:system", BARE)])
    with pytest.raises(hf.InputError, match="none of those on this page"):
        run(shop, sides=[(shop.models[0], "os:system")])
    bad = Workshop(["no-such-model"], hf.load)
    with pytest.raises(hf.HoldfastError, match="no-such-model"):
        bad.wait()


def test_names_are_harmless_on_the_page(tmp_path: Path) -> None:
    x = torch.rand(1, 8, 8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    evil = "<script>alert(1)</script>"
    found = hf.try_image(model, x, ("linf", 0.1), classes=[evil, "b"], name=evil, source=evil)
    page = str(panel.panel([found, found], "card"))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<b>" not in str(panel.fault("<b>x</b>"))
    assert page.count("data:image/png;base64,") == 6


def test_a_drawing_is_on_white_paper() -> None:
    held = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(held, "PNG")
    assert (drawing_of(held.getvalue(), "d").pixels == 255).all()
    assert (drawing_of(held.getvalue(), "d", negative=True).pixels == 0).all()


def test_without_gradio_a_line_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert command(monkeypatch, "play", "--port", 0) == 2
    assert "pip install 'holdfast[play]'" in capsys.readouterr().err


def test_the_documentation_states_what_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "playground.json").read_text())
    said = " ".join((ROOT / "docs" / "play.md").read_text().split())
    page, (first, second) = found["first_page"], found["attacks"]
    took = [start["seconds"] for start in page["starts"]]
    assert f"first page: {page['median_seconds']:.1f} s, the median of {len(took)} starts" in said
    assert f"({min(took):.1f} to {max(took):.1f})" in said
    assert f"PGD of {first['steps']} steps on one image: {first['seconds']:.2f} s" in said
    assert f"{second['seconds']:.2f} s with `{second['model']}`" in said
    assert found["load"] < 1 and "otherwise idle" in said


# --- a real server --------------------------------------------------------------------------------


class Served:
    """A playground in a process of its own."""

    def __init__(self, folder: Path):
        self.model = small_checkpoint(folder / "small")
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        words = ["play", str(self.model), "--data", "digits", "--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "holdfast", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.told: list[str] = []
        for line in self.process.stdout:
            self.told.append(line)
            if found := re.search(r"playground: (\S+)", line):
                self.address = found[1]
                break
        else:
            pytest.fail("".join(self.told))

    @property
    def stands(self) -> bool:
        return self.process.poll() is None

    def upload(self, content: bytes, name: str = "a.png") -> Any:
        import httpx

        files = {"files": (name, content)}
        return httpx.post(f"{self.address}gradio_api/upload", files=files, timeout=60)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("gradio", reason="the playground needs Gradio")
    folder = tmp_path_factory.mktemp("served")
    server = Served(folder)
    yield server
    server.end()
    assert not list(folder.glob("holdfast-play-*"))  # nothing of an upload is left


def test_the_page_answers_and_names_no_other_host(served) -> None:
    import httpx

    answer = httpx.get(served.address, timeout=60)
    assert answer.status_code == 200 and "Holdfast playground" in answer.text
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    fetched = re.findall(r"<(?:script|link|img|iframe)[^>]+?(?:src|href)=\"([^\"]+)", answer.text)
    assert fetched and not [each for each in fetched if "//" in each.replace(served.address, "")]
    theme = httpx.get(f"{served.address}theme.css", timeout=60).text
    assert not re.findall(r"url\(['\"]?https?:", theme)


def test_hostile_uploads_are_refused_and_the_process_stays_up(served, tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")  # 100 megapixels
    hostile = {
        "huge.png": (bomb.getvalue(), 415, "24,000,000 pixels"),
        "text.png": (b"this is no picture", 415, "no readable image"),
        "x.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", 415, "no "),
        "large.png": (png() + bytes(21 * 2**20), 413, "20 MiB"),
    }
    for name, (content, status, says) in hostile.items():
        answer = served.upload(content, name)
        assert answer.status_code == status and says in answer.text, name
    kept = served.upload(png(), "../../../../tmp/escaped.png")
    assert kept.status_code == 200
    path = Path(kept.json()[0])
    assert (
        path.is_file() and "holdfast-play-" in str(path) and not Path("/tmp/escaped.png").exists()
    )
    assert served.stands


def test_hostile_questions_are_refused_and_the_process_stays_up(served) -> None:
    import httpx

    where = f"{served.address}gradio_api/queue/join"
    for body, status in (
        (b'{"data": [' + b"[" * 100_000, 400),
        (b'{"data": ["' + b"x" * (2**20 + 1) + b'"]}', 413),
        (b'{"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}', 400),
        (
            b'{"data": [{"path": "http://127.0.0.1:9/x", "meta": {"_type": "gradio.FileData"}}]}',
            400,
        ),
    ):
        answer = httpx.post(where, content=body, timeout=60)
        assert answer.status_code == status and answer.text.count("\n") == 0
    evil = httpx.get(served.address, headers={"host": "evil.example"}, timeout=60)
    assert evil.status_code == 421
    assert served.stands


def asked(served: Served, image: Path) -> Any:
    from gradio_client import Client, handle_file

    client = Client(served.address, verbose=False, httpx_kwargs={"timeout": 90})
    return client.predict(
        handle_file(str(image)), str(served.model), "linf", "", "", 0.1, 3, api_name="/try_image"
    )


def test_a_program_asks_as_a_person_would(served, tmp_path: Path) -> None:
    import httpx

    (tmp_path / "a.png").write_bytes(png(20, 16))
    found = asked(served, tmp_path / "a.png")
    assert found["fitting"].startswith("20×16 pixels: the middle 16×16 cut out, resized to 8×8")
    assert found["threat"] == {"norm": "linf", "eps": 0.1} and found["conformal"]["alpha"] == 0.1
    card = httpx.get(served.address.rstrip("/") + found["card"], timeout=60)
    assert card.status_code == 200 and card.content.startswith(b"\x89PNG")
    assert httpx.get(f"{served.address}card/other.png", timeout=60).status_code == 404


def test_fifty_requests_at_once_wait_for_their_turn_or_are_told_so(served, tmp_path: Path) -> None:
    import httpx

    kept = served.upload(png()).json()[0]
    config = httpx.get(f"{served.address}config", timeout=60).json()
    number = next(each["id"] for each in config["dependencies"] if each["api_name"] == "try_image")
    data = [
        {"path": kept, "meta": {"_type": "gradio.FileData"}},
        str(served.model), "linf", "", "", 0.1, 3,
    ]  # fmt: skip

    def ask(session: int) -> str:
        question = {"data": data, "fn_index": number, "session_hash": f"visitor{session}"}
        joined = httpx.post(f"{served.address}gradio_api/queue/join", json=question, timeout=90)
        if joined.status_code != 200:
            return joined.text
        address = f"{served.address}gradio_api/queue/data?session_hash=visitor{session}"
        with httpx.stream("GET", address, timeout=90) as events:
            for line in events.iter_lines():
                if "process_completed" in line:
                    told = json.loads(line.removeprefix("data: "))
                    return "done" if told["success"] else line
        return "nothing"

    with ThreadPoolExecutor(50) as visitors:
        outcomes = list(visitors.map(ask, range(50)))
    done = outcomes.count("done")
    told = [each for each in outcomes if each != "done"]
    assert done >= 20 and all("full" in each.lower() for each in told), set(told)
    assert served.stands and httpx.get(served.address, timeout=60).status_code == 200


def test_a_taken_port_is_one_line(served, monkeypatch, capsys) -> None:
    port = served.address.rsplit(":", 1)[1].rstrip("/")
    assert command(monkeypatch, "play", "--port", port) == 2
    said = capsys.readouterr().err
    assert "cannot listen" in said and said.count("\n") == 1


def test_in_a_browser(served, browser, tmp_path: Path) -> None:
    """Upload, move ε, press the button, draw, take the card; nobody else is asked for anything."""
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.set_default_timeout(90_000)
    asked_for, faults = set(), []
    page.on("request", lambda request: asked_for.add(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: said.type == "error" and faults.append(said.text))
    page.goto(served.address)
    page.locator(".hf-model, .hf-fault").first.wait_for()
    assert not page.locator(".hf-fault").all_inner_texts()
    assert page.locator(".hf-model").count() == 2
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 400
    assert page.get_by_text("digits, test image 0").is_visible()
    page.get_by_role("button", name="Attack, and find").click()
    page.get_by_text("press “Attack”").first.wait_for(state="detached")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the card").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "a.png").write_bytes(png(20, 16))
    page.get_by_role("tab", name="Upload").click()
    page.set_input_files("input[type=file]", str(tmp_path / "a.png"))
    page.get_by_text("your image: 20×16 pixels").wait_for()
    page.get_by_role("tab", name="Draw").click()
    board = page.locator(".hf-board canvas")
    board.wait_for()
    box = board.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 200, steps=3)
    page.mouse.up()
    page.get_by_text("your drawing: 280×280 pixels").wait_for()
    outside = [url for url in asked_for if not url.startswith((served.address, "data:", "blob:"))]
    assert not outside and not faults
    page.close()


def test_a_model_that_cannot_be_loaded_ends_it_with_a_line(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the playground needs Gradio")
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "play", "cifar10-linf-slm", "--port", "0"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert (
        done.stderr
        == "holdfast: model 'cifar10-linf-slm' is unknown; did you mean 'cifar10-linf-slim'?\n"
    )


def test_it_ends_cleanly(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the playground needs Gradio")
    began = time.monotonic()
    server = Served(tmp_path)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0 and time.monotonic() - began < 120
    assert server.process.stdout is not None and "Traceback" not in server.process.stdout.read()
    assert not list(tmp_path.glob("holdfast-play-*"))
