"""Servers of models for the tests: honest ones, and hostile ones."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from torch import Tensor

Answer = tuple[int, dict[str, str], bytes]


def images_in(asked: dict[str, Any]) -> Tensor:
    """The images of a request in the format float32 or kserve."""
    if "inputs" in asked:
        (only,) = asked["inputs"]
        return torch.tensor(only["data"]).reshape(only["shape"])
    values = np.frombuffer(base64.b64decode(asked["data"]), "<f4")
    return torch.from_numpy(values.reshape(asked["shape"]).copy())


def answer(status: int = 200, headers: dict[str, str] | None = None, **held: Any) -> Answer:
    return status, headers or {}, json.dumps(held).encode()


class Endpoint:
    """A server at work.

    Attributes:
        url: where.
        asked: the requests so far, as JSON.
        headers: of each.
    """

    def __init__(self, respond: Callable[[dict[str, Any]], Answer]):
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(asked)
                endpoint.headers.append(dict(self.headers))
                status, headers, body = respond(asked)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/predict"

    @property
    def images(self) -> int:
        """How many images were asked about."""
        return sum(len(images_in(asked)) for asked in self.asked)


@contextmanager
def serving(respond: Callable[[dict[str, Any]], Answer]) -> Iterator[Endpoint]:
    """A server that answers each request as `respond` says."""
    endpoint = Endpoint(respond)
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()


def model_behind(model: Callable[[Tensor], Tensor], kind: str = "logits") -> Any:
    """What a server of a model responds: `logits`, `probabilities` or `labels`."""

    def respond(asked: dict[str, Any]) -> Answer:
        with torch.no_grad():
            logits = model(images_in(asked))
        made = {
            "logits": logits,
            "probabilities": logits.double().softmax(1),
            "labels": logits.argmax(1),
        }[kind]
        return answer(**{kind: made.tolist()})

    return respond


def in_turn(*responses: Any) -> Any:
    """Each response once, then the last for ever; exceptions are lost connections."""
    left = list(responses)

    def respond(asked: dict[str, Any]) -> Answer:
        now = left.pop(0) if len(left) > 1 else left[0]
        return now(asked) if callable(now) else now

    return respond


def sleeping(seconds: float, then: Any) -> Any:
    def respond(asked: dict[str, Any]) -> Answer:
        time.sleep(seconds)
        return then(asked) if callable(then) else then

    return respond
