"""The guard in front of the page: it lets in small questions and pictures, and nothing out.

- Pictures are looked at before anything keeps or decodes them: bytes, kind and pixels, by the
  header.
- Other requests are small JSON. A file that they name is one that was uploaded: no path on this
  machine, no address elsewhere.
- A page of another site can neither ask nor show this one, and the browser is told to ask nobody
  else.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_UPLOAD = 20 * 2**20  # bytes of one upload
MOST_QUESTION = 2**20  # bytes of any other request
MOST_PIXELS = 24_000_000  # of one picture
MOST_FILES = 2  # of one upload
HINT = "; a picture is PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"
# Of what is too large so much is read and forgotten: who is cut off hears no answer.
MOST_DRAINED = 64 * 2**20
AT_ONCE = 4  # uploads that are held in memory together
SECONDS = 30.0  # in which a request has to arrive
UPLOAD = "/gradio_api/upload"
# What the page needs. Everything else that the library offers is closed.
READ = (
    "/assets/", "/static/", "/theme.css", "/config", "/favicon.ico", "/robots.txt",
    "/manifest.json", "/svelte/", "/card/", "/gradio_api/info", "/gradio_api/queue/data",
    "/gradio_api/heartbeat/", "/gradio_api/file=", "/gradio_api/upload_progress",
    "/gradio_api/startup-events", "/gradio_api/app_id", "/gradio_api/queue/status",
)  # fmt: skip
WRITE = (
    UPLOAD,
    "/gradio_api/run/predict",
    "/gradio_api/queue/join",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)
HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Refused(Exception):
    """A request that is not let in: the HTTP status, and why, in a line."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class Guard:
    """An ASGI application in front of another.

    Args:
        app: what it guards.
        folder: where uploads are kept.
        hosts: the names by which a browser may call this machine; None: any.
        served: called once the first page has gone out.
    """

    def __init__(
        self,
        app: App,
        folder: Path,
        hosts: frozenset[str] | None,
        served: Callable[[], None] = lambda: None,
    ):
        self.app, self.folder, self.hosts, self.served = app, folder, hosts, served
        self.uploads = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no need of web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in
                       scope["headers"]}  # fmt: skip
            self._check_address(scope, headers)
            if scope["method"] == "POST" and scope["path"] == UPLOAD:
                async with self.uploads:
                    body = await _body(receive, headers, MOST_UPLOAD)
                    await check_upload(scope, body)
                    await self.app(scope, _again(body, receive), _hardened(send))
            elif scope["method"] == "POST":
                body = await _body(receive, headers, MOST_QUESTION)
                check_question(body, self.folder)
                await self.app(scope, _again(body, receive), _hardened(send))
            else:
                await self.app(scope, receive, _hardened(send))
                if scope["path"] == "/":
                    self.served()
        except Refused as refusal:
            await _refuse(send, refusal)

    def _check_address(self, scope: Scope, headers: Mapping[str, str]) -> None:
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD"):
            known = path == "/" or path.startswith(READ)
        else:
            known = method == "POST" and path in WRITE
        if not known:
            raise Refused(404, "there is nothing of that name here")
        if path.startswith("/gradio_api/file=") and not _inside(
            path.removeprefix("/gradio_api/file="), self.folder
        ):
            raise Refused(404, "there is nothing of that name here")
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise Refused(421, "this page answers to its own address only: 127.0.0.1 or localhost")
        origin = headers.get("origin")
        if method == "POST" and origin is not None and urlsplit(origin).netloc != host:
            raise Refused(403, "a page of another site may not ask this one")


def _name(host: str) -> str:
    return urlsplit(f"//{host}").hostname or ""


async def _body(receive: Receive, headers: Mapping[str, str], most: int) -> bytes:
    """All of a request, if it is no larger than allowed and comes in time."""
    too_large = Refused(413, f"larger than {most // 2**20} MiB, which is the most that is taken")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MOST_DRAINED:
        raise too_large
    held, size = [], 0
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the request ended before it was whole")
                part = message.get("body", b"")
                size += len(part)
                if size > MOST_DRAINED:
                    raise too_large
                if size <= most:
                    held.append(part)
                else:
                    held.clear()
                if not message.get("more_body", False):
                    if size > most:
                        raise too_large
                    return b"".join(held)
    except TimeoutError:
        raise Refused(408, f"the request took longer than {SECONDS:.0f} s to arrive") from None


def _again(body: bytes, receive: Receive) -> Receive:
    """A request that was read, to be read again."""
    left = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


def _hardened(send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message.get("headers", ()), *own]
        await send(message)

    return answer


async def _refuse(send: Send, refusal: Refused) -> None:
    said = str(refusal).encode()
    headers = {"content-type": "text/plain; charset=utf-8", "connection": "close", **HEADERS}
    await send(
        {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": said})


async def check_upload(scope: Scope, body: bytes) -> None:
    """Whether an upload holds pictures and nothing else, by their headers.

    Raises:
        Refused: it does not.
    """
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    async def whole() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(scope, whole).form(max_files=MOST_FILES, max_fields=1) as form:
            parts = [each for _, each in form.multi_items()]
            if not parts:
                raise Refused(400, "the upload holds no picture")
            for part in parts:
                if isinstance(part, str):
                    raise Refused(400, "the upload holds something else than files")
                await asyncio.to_thread(check_picture, await part.read())
    except HTTPException as error:
        raise Refused(400, f"the upload cannot be read: {error.detail}") from None


def check_picture(raw: bytes) -> None:
    """Whether bytes are a picture of a kind and size that is taken; nothing of it is decoded.

    Raises:
        Refused: they are not.
    """
    from ..picture_files import check_opens  # and with it Pillow

    try:
        check_opens(raw, "the upload", HINT, MOST_PIXELS)
    except InputError as error:
        raise Refused(415, str(error)) from None


def check_question(body: bytes, folder: Path) -> None:
    """Whether a request is JSON that names no file but uploaded ones.

    Raises:
        Refused: it is not.
    """
    if not body:
        return
    try:
        value = json.loads(body)
        for each in _objects(value):
            path = each.get("path")
            if path is not None and not (isinstance(path, str) and _inside(path, folder)):
                raise Refused(400, "a question names a file that was not uploaded here")
    except RecursionError:
        raise Refused(400, "the question is nested too deeply") from None
    except ValueError as error:
        said = " ".join(str(error).split())[:100]
        raise Refused(400, f"the question is no JSON ({said})") from None


def _objects(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Every JSON object inside a value."""
    if depth > 50:
        raise RecursionError
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _objects(inner, depth + 1)


def _inside(path: str, folder: Path) -> bool:
    """Whether a path is of a file in the folder, links followed."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError):
        return False
