"""The viewer's server: it reads, never writes, and answers this machine alone unless told."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import json
import os
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..errors import InputError
from ..inputs import whole_number
from ..terminal import tell
from . import pages
from .library import Library, Look

PORT = 8741
LOOPBACK = "127.0.0.1"
SILENCE = 30  # seconds after which a connection on which nothing is asked is closed
MOST_PAGES = 8  # that are kept
LONGEST = 8192  # characters of an address
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest stands in each page
    "Cache-Control": "no-cache",
}
HTML, JSON, TEXT = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"


def view(
    folder: Path | str = "runs",
    *,
    host: str = LOOPBACK,
    port: int = PORT,
    robustbench: Sequence[Path | str] | Path | str = (),
) -> Viewer:
    """Show the runs below a folder in a browser, live.

    Runs appear while they are being made, with their progress and the bounds between which the
    robust accuracy will lie. Any of them is opened as `holdfast report` shows it, and any two are
    compared image by image. Nothing is written, and nothing outside the folder is read.

    Args:
        folder: that holds run folders, or will.
        host: the address to answer on: this machine alone by default. There is no password:
            whoever reaches another address sees the runs.
        port: 0 … 65535; 0 is one that is free.
        robustbench: folders with RobustBench's published entries, shown as measured elsewhere.

    Returns:
        the viewer, which answers in threads of its own until it is closed; also at the end of a
        `with`. `wait()` returns when it is closed, or at Ctrl-C.

    Raises:
        InputError: no such folder; the port is in use, or may not be used; no such host.

    Example:
        >>> import os, holdfast as hf
        >>> os.makedirs("runs", exist_ok=True)
        >>> with hf.view("runs", port=0) as viewer:
        ...     viewer.address.startswith("http://127.0.0.1:")
        True
    """
    places = (robustbench,) if isinstance(robustbench, str | Path) else tuple(robustbench)
    return Viewer(Path(folder), host, port, tuple(Path(place) for place in places))


class Viewer:
    """A server that shows runs; see `view`.

    Attributes:
        address: where a browser finds it.
        folder: what it shows.
        alone: whether nobody but this machine reaches it.
    """

    def __init__(self, folder: Path, host: str, port: int, others: Sequence[Path] = ()):
        for place in (folder, *others):
            if not os.path.isdir(place):
                raise InputError(f"folder {place} does not exist")
        port = whole_number("port", port, 0, 65535)
        self.folder = folder
        self._server = _bound(host, port)
        self._server.library = Library(folder, others)
        self._server.host = host
        self._server.folder = folder
        shown = f"[{host}]" if ":" in host else host
        anywhere = host in ("0.0.0.0", "::", "")
        if anywhere:
            shown = socket.gethostname()
        self.port = self._server.server_address[1]
        self.address = f"http://{shown}:{self.port}/"
        self.alone = not anywhere and _is_loopback(str(self._server.server_address[0]))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.2)

    def wait(self) -> None:
        """Until it is closed; Ctrl-C closes it."""
        try:
            while self._thread.is_alive():
                self._thread.join(0.5)
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        """Answer no more; on connections that are open neither."""
        self._server.over = True
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    library: Library
    folder: Path
    host: str
    over = False  # it was closed

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self._pages: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._guard = threading.Lock()
        self._making: dict[tuple[str, ...], threading.Lock] = {}

    def kept(self, key: tuple[str, ...], made: Callable[[], str]) -> bytes:
        """A page, made once however many ask for it."""
        with self._guard:
            alone = self._making.setdefault(key, threading.Lock())
        with alone:
            try:
                with self._guard:
                    if key in self._pages:
                        self._pages.move_to_end(key)
                        return self._pages[key]
                page = made().encode("utf-8", "replace")
                with self._guard:
                    self._pages[key] = page
                    while len(self._pages) > MOST_PAGES:
                        self._pages.popitem(last=False)
                return page
            finally:
                with self._guard:
                    self._making.pop(key, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a connection that broke off: nobody is there to be told."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            tell(f"viewer: {type(error).__name__}: {error}", error=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _bound(host: str, port: int) -> _Server:
    try:
        kind = _Server6 if ":" in host else _Server
        return kind((host, port), _Handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} is in use: give another --port, or --port 0 for one that is free"
            ) from None
        if error.errno == errno.EACCES:
            raise InputError(f"port {port} may not be used: give a --port above 1023") from None
        raise InputError(f"cannot answer on host {host!r}: {error.strerror or error}") from None
    except (UnicodeError, ValueError, OverflowError) as error:
        raise InputError(f"cannot answer on host {host!r}: {error}") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_own_name(named: str, host: str) -> bool:
    """Whether a `Host` that a browser names is one of this server's.

    A page of somebody else's may let its own name lead to this machine (DNS rebinding), and would
    then be taken for ours. So names count only if they are this machine's; numbers cannot be bent.

    Args:
        host: which the server was told to answer on.
    """
    name = urlsplit(f"//{named}").hostname or ""
    machine = socket.gethostname().lower()
    own = {"localhost", host.lower(), machine, f"{machine}.local", socket.getfqdn().lower()}
    if name in own - {""}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Holdfast", ""
    timeout = SILENCE

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _refuse(self) -> None:
        self.close_connection = True
        self._send(
            HTTPStatus.METHOD_NOT_ALLOWED, b"The viewer only shows.\n", TEXT, {"Allow": "GET"}
        )

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal says where the page is, and no more."""

    def _answer(self) -> None:
        if self.server.over:
            self.close_connection = True
            return None
        try:
            named = self.headers.get("Host", "")
            if not _names_itself(named, self.server.host):
                return self._send(
                    HTTPStatus.MISDIRECTED_REQUEST, b"The viewer does not go by that name.\n", TEXT
                )
            if len(self.path) > LONGEST:
                return self._sorry(HTTPStatus.REQUEST_URI_TOO_LONG, "The address is too long.")
            self._route()
        except (BrokenPipeError, ConnectionError, TimeoutError):
            self.close_connection = True
        except InputError as error:
            self._sorry(HTTPStatus.CONFLICT, str(error))
        except Exception as error:  # whatever it is, the page stays up and tells no secrets
            tell(f"viewer: {type(error).__name__}: {error}", error=True)
            with contextlib.suppress(OSError):
                self._sorry(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    "This cannot be shown; the viewer's terminal says why.",
                )
        return None

    def _route(self) -> None:
        asked = urlsplit(self.path)
        query = parse_qs(asked.query, keep_blank_values=True, max_num_fields=100)
        look = self.server.library.look()
        names = [query.get(key, [""])[0] for key in ("path", "name")]
        match asked.path:
            case "/":
                key = ("/", look.board, look.live)
                self._page(key, lambda: pages.overview(look, self.server.folder))
            case "/live":
                self._live(look, names[0])
            case "/run":
                self._page(
                    ("/run", names[0], look.board, look.live), lambda: pages.of_run(look, names[0])
                )
            case "/model":
                self._page(("/model", names[1], look.board), lambda: pages.of_model(look, names[1]))
            case "/compare":
                chosen = query.get("run", [])
                self._page(
                    ("/compare", *chosen, look.board), lambda: pages.of_comparison(look, chosen)
                )
            case "/favicon.ico":
                self._send(HTTPStatus.NO_CONTENT, b"", TEXT)
            case _:
                self._sorry(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _page(self, key: tuple[str, ...], made: Callable[[], str | None]) -> None:
        page = self.server.kept(key, lambda: made() or "")
        if not page:
            return self._sorry(HTTPStatus.NOT_FOUND, "There is no such run here.")
        tag = f'"{hashlib.sha256(page).hexdigest()[:32]}"'
        if self.headers.get("If-None-Match") == tag:
            return self._send(HTTPStatus.NOT_MODIFIED, b"", HTML, {"ETag": tag})
        return self._send(HTTPStatus.OK, page, HTML, {"ETag": tag})

    def _live(self, look: Look, one: str) -> None:
        chosen = [run for run in look.unfinished if not one or str(run.folder) == one]
        cards = pages.under_way(chosen)
        told = {
            "board": look.board,
            "live": look.live,
            "underWay": sum(run.under_way for run in look.unfinished),
            "cards": cards,
        }
        self._send(HTTPStatus.OK, json.dumps(told).encode(), JSON)

    def _sorry(self, status: HTTPStatus, line: str) -> None:
        page = pages.sorry(status.phrase if status != HTTPStatus.CONFLICT else "Not shown", line)
        self._send(status, page.encode("utf-8", "replace"), HTML)

    def _send(
        self, status: HTTPStatus, content: bytes, kind: str, more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        if content:
            self.send_header("Content-Type", kind)
        if status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _names_itself(named: str, host: str) -> bool:
    try:
        return bool(named) and is_own_name(named, host)
    except ValueError:
        return False
