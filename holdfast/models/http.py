"""`HttpModel`: a classifier behind an address, asked by HTTP.

One request asks about one batch of images. The formats are described in docs/black-boxes.md; every
answer is checked before it is believed, and what is wrong with it is said in one line.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import HoldfastError, InputError
from ..inputs import real_number, whole_number
from ..parsing import split_options, typed
from ..types import Images
from ..version import VERSION
from .black_box import labels_as_scores

FORMATS = ("float32", "png", "kserve")
LARGEST_ANSWER = 32 * 2**20  # bytes
BATCH = 64  # images a request
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before a request is repeated
PATIENCE = 600.0  # seconds that a server may ask to wait
LEAST_PROBABILITY = 1e-30  # one of 0 has no logarithm
MASKED = "•••"


class _Again(Exception):
    """A request that may succeed if it is repeated.

    Args:
        why: in a few words.
        wait: seconds that the server asks for; None where it says nothing.
        nobody: whether nobody listens there.
    """

    def __init__(self, why: str, wait: float | None = None, nobody: bool = False):
        super().__init__(why)
        self.why, self.wait, self.nobody = why, wait, nobody


def is_address(source: str) -> bool:
    """Whether a model's name is an address.

    Example:
        >>> is_address("http://127.0.0.1:8000/predict"), is_address("package.module:function")
        (True, False)
    """
    return "://" in source


class HttpModel:
    """A classifier behind an address: images go there, scores or labels come back.

    What it answers to a point may be asked again where no answer came; such a repetition counts as
    one query. Gradients there are none.

    Args:
        url: `http://…` or `https://…`, without a user or a password. Redirects are not followed.
        format: of the request: `float32`, exact values; `png`, 8-bit images, rounding being part
            of the model then; `kserve`, the Open Inference Protocol (KServe v2).
        batch_size: images a request, at most.
        timeout: seconds until a request is given up and repeated.
        retries: how often a request is repeated after a timeout, a lost connection, status 429 or
            any from 500 on; with growing pauses, or as long as `Retry-After` says.
        rate: requests a second, at most; None: as many as it answers.
        token: the name of an environment variable. Its value is sent as `Authorization: Bearer …`,
            and is neither kept nor shown.
        headers: further headers.
        classes: how many there are, for endpoints that return labels only.
        output: the name of the output that holds the scores, for `kserve`; by default the first.

    Attributes:
        address: the URL, as it is shown and kept.
        requests, repeated: sent so far, and how many of these again.

    Raises (when made):
        InputError: an address of another kind, a setting outside its range, no such variable.
    Raises (on a call):
        InputError: an answer that makes no sense, a refusal (status 4xx), nobody there.
        HoldfastError: no answer any more, after there had been some.

    Example:
        >>> HttpModel("http://127.0.0.1:8000/predict", batch_size=16, rate=10)
        HttpModel('http://127.0.0.1:8000/predict')
    """

    def __init__(
        self,
        url: str,
        *,
        format: str = "float32",
        batch_size: int = BATCH,
        timeout: float = 30.0,
        retries: int = 5,
        rate: float | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        classes: int | None = None,
        output: str | None = None,
    ):
        self._host, self._port, self._secure, self._path = _checked_address(url)
        self.address = url
        if format not in FORMATS:
            raise InputError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
        self.format, self.output = format, output
        self.batch_size = whole_number("batch_size", batch_size)
        self.timeout = real_number("timeout", timeout, above=0)
        self.retries = whole_number("retries", retries, low=0)
        self._pause = 0.0 if rate is None else 1 / real_number("rate", rate, above=0)
        self.classes = None if classes is None else whole_number("classes", classes, low=2)
        self._headers = _checked_headers(headers or {})
        self._token = token
        if token is not None:
            _token(token)
        self.requests = self.repeated = 0
        self._answered = False  # at least once
        self._form: str | None = None  # of its answers: labels, logits, …
        self._next = 0.0  # when the next request may be sent
        self._connection: http.client.HTTPConnection | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def __call__(self, images: Images) -> Float[Tensor, "n k"]:
        if not len(images):
            raise InputError(f"{self.address}: no images to ask about")
        parts = [self._ask(part) for part in images.detach().cpu().float().split(self.batch_size)]
        if len({part.shape[1] for part in parts}) > 1:
            counts = " and ".join(str(part.shape[1]) for part in parts[:2])
            raise InputError(f"{self.address} answers {counts} classes in turn")
        return torch.cat(parts).to(images.device)

    def _ask(self, images: Images) -> Float[Tensor, "n k"]:
        body = json.dumps(_REQUESTS[self.format](images)).encode()
        answer = self._parsed(self._post(body))
        scores = self._scores(answer, len(images))
        self._answered = True
        return scores

    # -- sending --------------------------------------------------------------------------

    def _post(self, body: bytes) -> bytes:
        """The body of an answer of status 200."""
        for attempt in range(self.retries + 1):
            wait = self._next - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            self._next = time.monotonic() + self._pause
            self.requests += 1
            self.repeated += attempt > 0
            try:
                return self._once(body)
            except _Again as again:
                self._hang_up()
                if again.nobody and not self._answered:
                    raise self._failure(again.why) from None
                pause = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
                if again.wait is not None:
                    if again.wait > PATIENCE:
                        raise self._failure(
                            f"asks to wait for {again.wait:.0f} s; try later"
                        ) from None
                    pause = again.wait
                why = again.why
            except BaseException:
                self._hang_up()  # what is left of an answer must not be read as another
                raise
            if attempt < self.retries:
                time.sleep(pause)
        times = f"{self.retries + 1} times" if self.retries else "once"
        raise self._failure(f"{why}; asked {times}")

    def _failure(self, why: str) -> HoldfastError:
        """Nobody there is bad input; somebody who stops answering is a failure."""
        if self._answered:
            return HoldfastError(f"{self.address} {why}; the same command goes on from here")
        return InputError(f"{self.address} {why}")

    def _once(self, body: bytes) -> bytes:
        deadline = time.monotonic() + self.timeout
        kept = self._connection is not None
        try:
            connection = self._connected()
            connection.request("POST", self._path, body, self._all_headers())
            response = connection.getresponse()
            content = self._read(response, deadline)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._hang_up()
            if kept:  # servers close what they have not heard of for a while
                return self._once(body)
            raise _Again("closed the connection without an answer") from None
        except TimeoutError:
            raise _Again(f"did not answer within {self.timeout:g} s") from None
        except ConnectionRefusedError:
            raise _Again("refuses connections: is a server running there?", nobody=True) from None
        except socket.gaierror:
            raise InputError(f"{self.address}: there is no machine of that name") from None
        except ssl.SSLCertVerificationError as error:
            raise InputError(
                f"{self.address}: its certificate is not trusted ({error.verify_message})"
            ) from None
        except ssl.SSLError as error:
            reason = str(error.reason or "").lower().replace("_", " ")
            raise _Again(f"speaks no TLS that can be understood ({reason})") from None
        except (http.client.HTTPException, OSError) as error:
            raise _Again(f"broke off ({type(error).__name__})") from None
        if response.will_close:
            self._hang_up()
        return self._accepted(response, content)

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            self._connection = kind(self._host, self._port, timeout=self.timeout)
        return self._connection

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _all_headers(self) -> dict[str, str]:
        sent = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"holdfast/{VERSION}",
            **self._headers,
        }
        if self._token is not None:
            sent["Authorization"] = f"Bearer {_token(self._token)}"
        return sent

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        """The whole body, if it is not too long and does not trickle."""
        parts, size = [], 0
        while part := response.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > LARGEST_ANSWER:
                raise InputError(
                    f"{self.address} answers more than {LARGEST_ANSWER // 2**20} MiB to one request"
                )
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        response.close()  # the connection stays, for the next request
        return b"".join(parts)

    def _accepted(self, response: http.client.HTTPResponse, content: bytes) -> bytes:
        status = response.status
        if status == 200:
            return content
        named = f"{status} {response.reason}".strip()
        if status == 429 or status >= 500:
            raise _Again(f"answers status {named}", _wait(response.headers.get("Retry-After")))
        if 300 <= status < 400:
            raise InputError(
                f"{self.address} redirects (status {named}): give the address that it leads to"
            )
        said = " ".join(content[:2000].decode("utf-8", "replace").split())[:200]
        if self._token is not None:
            said = said.replace(_token(self._token), MASKED)
        raise InputError(f"{self.address} refuses: status {named}{f': {said}' if said else ''}")

    # -- understanding --------------------------------------------------------------------

    def _parsed(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            begins = " ".join(content[:200].decode("utf-8", "replace").split())[:60]
            said = f"begins {begins!r}" if begins else "is empty"
            raise InputError(f"{self.address} answers no JSON: the answer {said}") from None

    def _scores(self, answer: Any, count: int) -> Float[Tensor, "n k"]:
        """The answer as logits, or one-hot rows where it holds labels only."""
        kind, value = _held(answer, self.address, self.output)
        who = f"{self.address} ({kind})"
        values = _numbers(value, who)
        form = "labels" if kind == "outputs" and values.ndim == 1 else kind
        if self._form not in (None, form):
            raise InputError(f"{self.address} answered {self._form} before, and {form} now")
        self._form = form
        if form == "labels":
            return labels_as_scores(torch.from_numpy(values), count, self.classes, who)
        if values.ndim != 2 or len(values) != count or values.shape[1] < 2:
            raise InputError(
                f"{who} has shape {tuple(values.shape)} for {count} images; it must be "
                f"({count}, K), K at least 2"
            )
        if not np.isfinite(values).all():
            raise InputError(f"{who} holds NaN or infinite values")
        if kind == "probabilities":
            if (values < 0).any() or (np.abs(values.sum(1) - 1) > 1e-2).any():
                raise InputError(f"{who} holds rows that are no probabilities: they sum to 1")
            values = np.log(values.clip(LEAST_PROBABILITY))
        if np.abs(values).max() > np.finfo(np.float32).max:
            raise InputError(f"{who} holds values that no float32 can hold")
        return torch.from_numpy(values).float()


_SETTINGS: dict[str, tuple[str, type]] = {
    "format": ("format", str),
    "batch": ("batch_size", int),
    "rate": ("rate", float),
    "timeout": ("timeout", float),
    "retries": ("retries", int),
    "token": ("token", str),
    "classes": ("classes", int),
    "output": ("output", str),
}


def settings(text: str, what: str) -> dict[str, Any]:
    """The arguments of `HttpModel` in a text `key=value,key=value`.

    Args:
        what: whose text it is, for errors.

    Raises:
        InputError: an unknown key, or a value of another kind.

    Example:
        >>> settings("format=png,batch=32,rate=0.5", "--http")
        {'format': 'png', 'batch_size': 32, 'rate': 0.5}
    """
    found = {}
    for key, value in split_options(what, text, list(_SETTINGS)).items():
        name, kind = _SETTINGS[key]
        found[name] = typed(what, key, value, kind)
    return found


# -- addresses, headers, tokens ------------------------------------------------------------------


def _checked_address(url: str) -> tuple[str, int, bool, str]:
    """Host, port, whether it is secure, and the path with its query."""
    if not isinstance(url, str):
        raise InputError(f"the address is a {type(url).__name__}: give http://… or https://…")
    if any(ord(letter) <= 32 or ord(letter) == 127 for letter in url):
        raise InputError("the address holds spaces or control characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"the address cannot be understood: {error}") from None
    if "@" in parts.netloc:
        raise InputError(
            "the address holds a user or a password, which would be kept and shown: put a token "
            "into an environment variable, and give its name (--http token=NAME)"
        )
    if parts.scheme not in ("http", "https"):
        raise InputError(f"address {url!r}: only http:// and https:// are spoken")
    if not host:
        raise InputError(f"address {url!r} names no machine")
    secure = parts.scheme == "https"
    try:
        host.encode("idna")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        path.encode("ascii")
    except UnicodeError:
        raise InputError(f"address {url!r} holds letters that are not percent-encoded") from None
    return host, port or (443 if secure else 80), secure, path


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        text = f"{name}{value}"
        if not name or not text.isprintable() or not text.isascii() or ":" in name:
            raise InputError(f"header {name!r} is no header")
    return dict(headers)


def _token(variable: str) -> str:
    value = os.environ.get(variable, "")
    if not value:
        raise InputError(f"the environment variable {variable!r}, for the token, is not set")
    if not value.isprintable() or not value.isascii() or " " in value:
        raise InputError(f"the environment variable {variable!r} holds no token")
    return value


def _wait(text: str | None) -> float | None:
    """Seconds of a `Retry-After`, which may be a date; None where it says nothing."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


# -- formats -------------------------------------------------------------------------------------


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _float32(images: Images) -> dict[str, Any]:
    values = images.contiguous().numpy().astype("<f4")
    return {"format": "float32", "shape": list(images.shape), "data": _encoded(values.tobytes())}


def _png(images: Images) -> dict[str, Any]:
    from PIL import Image

    if images.shape[1] not in (1, 3, 4):
        raise InputError(f"PNG has no images of {images.shape[1]} channels: use format float32")
    data = []
    for image in (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy():
        content = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(content, "PNG")
        data.append(_encoded(content.getvalue()))
    return {"format": "png", "shape": list(images.shape), "data": data}


def _kserve(images: Images) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": "images",
                "shape": list(images.shape),
                "datatype": "FP32",
                "data": images.flatten().tolist(),
            }
        ]
    }


_REQUESTS: dict[str, Callable[[Images], dict[str, Any]]] = {
    "float32": _float32,
    "png": _png,
    "kserve": _kserve,
}
_KINDS = ("logits", "probabilities", "labels")


def _held(answer: Any, who: str, output: str | None) -> tuple[str, Any]:
    """What kind of answer it is, and its numbers."""
    if not isinstance(answer, dict):
        raise InputError(f"{who} answers {_kind(answer)}, not an object with {' or '.join(_KINDS)}")
    found = [kind for kind in _KINDS if kind in answer]
    if len(found) > 1:
        raise InputError(f"{who} answers {' and '.join(found)}: one of them is wanted")
    if found:
        return found[0], answer[found[0]]
    outputs = answer.get("outputs")
    if isinstance(outputs, list) and outputs and all(isinstance(o, dict) for o in outputs):
        named = [o for o in outputs if output is None or o.get("name") == output]
        if not named:
            names = ", ".join(str(o.get("name")) for o in outputs)
            raise InputError(f"{who} has no output {output!r}; it has {names}"[:500])
        data, shape = named[0].get("data"), named[0].get("shape")
        values = _numbers(data, f"{who} (outputs)")
        try:
            return "outputs", values.reshape([int(size) for size in shape])
        except (ValueError, TypeError):
            raise InputError(
                f"{who} (outputs) has {values.size} values, and says that their shape is "
                f"{str(shape)[:60]}"
            ) from None
    said = answer.get("error")
    because = f": {' '.join(str(said).split())[:200]}" if said else ""
    keys = ", ".join(map(str, answer))[:100] or "nothing"
    raise InputError(f"{who} answers {keys}, none of {', '.join(_KINDS)}{because}")


def _numbers(value: Any, who: str) -> np.ndarray:
    """Lists of numbers as an array, float64 or int64."""
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, list):
        raise InputError(f"{who} holds {_kind(value)}, not a list of numbers")
    try:
        array = np.array(value)
    except ValueError:
        raise InputError(f"{who} holds rows of unequal length") from None
    if array.dtype.kind not in "iuf":
        raise InputError(f"{who} holds {'words' if array.dtype.kind == 'U' else 'no numbers'}")
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float64)


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "text", dict: "an object", bool: "a truth value"}
    return "nothing" if value is None else kinds.get(type(value), "a number")
