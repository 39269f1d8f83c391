"""`serve`: from what was asked for to a page that answers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..terminal import tell
from .guard import MOST_UPLOAD, App, Guard
from .workshop import Workshop

LOOPBACK = "127.0.0.1"
PORT = 7860
CONNECTIONS = 200  # open at once; further ones are told to come back
AFTER = 5.0  # seconds after the start at which models are loaded, if nobody asked for the page yet
# For Gradio and what it brings: nothing leaves this machine.
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def serve(
    workshop: Workshop, host: str = LOOPBACK, port: int = PORT, *, open_browser: bool = False
) -> None:
    """Serve the playground until it is interrupted.

    Args:
        workshop: what stands behind the page.
        host: an address of this machine; anything but 127.0.0.1 or ::1 lets others in.
        port: 0 for any that is free.
        open_browser: show the page in the browser.

    Raises:
        InputError: Gradio is not installed; the address or the port is taken; a model or the data
            cannot be loaded, which is known a while after the page is there.
    """
    with _bound(host, port) as (listening, address), _temporary() as folder:
        app = application(workshop, folder, host)
        import uvicorn

        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,
            server_header=False,
            ws="none",
        )
        server = _Server(config, address, open_browser)
        workshop.failed = server.end
        later = threading.Timer(AFTER, workshop.start)
        later.daemon = True
        later.start()
        if host not in (LOOPBACK, "::1", "localhost"):
            tell(f"note: whoever reaches {host} can use this page; it has no password", error=True)
        # The server ends cleanly, and raises the signal again when it has.
        signal.signal(signal.SIGTERM, _leave)
        with suppress(KeyboardInterrupt):
            server.run([listening])
        if workshop.fault is not None:
            raise InputError(workshop.fault)


def application(workshop: Workshop, folder: Path, host: str = LOOPBACK) -> App:
    """The page and the cards behind the guard, as an ASGI application.

    Args:
        folder: where uploads are kept; `SETTINGS` are in force, and Gradio knows the folder.
        host: as `serve`.
    """
    from . import page as pages

    pages.imported()
    import gradio
    from fastapi import FastAPI, Response
    from starlette.concurrency import run_in_threadpool

    closed: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(**closed)

    @app.get("/card/{name}.png")
    async def card(name: str) -> Any:
        drawn = await run_in_threadpool(workshop.drawn, name)
        if drawn is None:
            return Response("this card is gone: attack once more", 404, media_type="text/plain")
        return Response(drawn, media_type="image/png")

    card.__annotations__["name"] = str
    gradio.mount_gradio_app(
        app,
        pages.page(workshop, folder),
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        app_kwargs=closed,
        show_error=True,
        max_file_size=MOST_UPLOAD,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=pages.theme(),
        css=pages.style(),
    )
    names = {"127.0.0.1", "localhost", "::1"}
    hosts = frozenset(names) if host in names else None
    return Guard(app, folder, hosts, workshop.start)


class _Server:
    """Uvicorn's server, which says where it is once it answers."""

    def __init__(self, config: Any, address: str, open_browser: bool):
        import uvicorn

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                tell(f"playground: {address} (Ctrl-C ends it)")
                if open_browser:
                    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        self.server = Server(config)

    def run(self, sockets: list[socket.socket]) -> None:
        self.server.run(sockets)

    def end(self) -> None:
        """Let it end, from another thread."""
        self.server.should_exit = True


def _leave(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _bound(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket at the address, and how a browser calls it."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port must be from 0 to 65535, not {port}")
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.socket(kind, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot listen at {host}:{port} ({said}): choose another --port, or --port 0"
        ) from None
    with listening:
        named = f"[{host}]" if ":" in host else host
        yield listening, f"http://{named}:{listening.getsockname()[1]}/"


@contextmanager
def _temporary() -> Iterator[Path]:
    """A folder for uploads, which goes when the program does; Gradio is told of it."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="holdfast-play-")))
    os.environ.update(SETTINGS)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
