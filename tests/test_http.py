"""Models behind an address: what is sent, what is believed, and what is said of a bad server."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import socket
import threading
import time

import models
import numpy as np
import pytest
import torch
from endpoints import answer, images_in, in_turn, model_behind, serving, sleeping
from PIL import Image

import holdfast as hf
import holdfast.models.http as http
from holdfast.errors import HoldfastError, InputError
from holdfast.models.http import HttpModel, settings

SHAPE = (3, 6, 6)
X = models.images(5, SHAPE)
NET = models.Net(classes=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.01)


# -- what is sent and what comes back -------------------------------------------------------------


def test_images_arrive_bit_for_bit_and_so_do_logits():
    with serving(model_behind(NET)) as server:
        model = HttpModel(server.url, batch_size=2)
        logits = model(X)
        assert torch.equal(logits, NET(X).detach()) and logits.dtype == torch.float32
        assert [len(images_in(asked)) for asked in server.asked] == [2, 2, 1]
        assert torch.equal(torch.cat([images_in(asked) for asked in server.asked]), X)
        assert (model.requests, model.repeated) == (3, 0)


def test_probabilities_become_logits_and_labels_one_hot_rows():
    with serving(model_behind(NET, "probabilities")) as server:
        found = HttpModel(server.url)(X)
    torch.testing.assert_close(found, NET(X).detach().log_softmax(1), rtol=1e-4, atol=1e-4)
    with serving(model_behind(NET, "labels")) as server:
        found = HttpModel(server.url, classes=4)(X)
        assert found.sum(1).tolist() == [1.0] * 5
        assert torch.equal(found.argmax(1), NET(X).argmax(1))
        with pytest.raises(InputError, match="say how many classes"):
            HttpModel(server.url)(X)


def test_a_probability_of_zero_is_a_low_logit():
    with serving(in_turn(answer(probabilities=[[1.0, 0.0]]))) as server:
        (row,) = HttpModel(server.url)(X[:1])
    assert row.isfinite().all() and row[0] - row[1] > 50


def test_the_open_inference_protocol():
    def respond(asked):
        logits = NET(images_in(asked)).detach()
        shape = list(logits.shape)
        return answer(
            model_name="net",
            outputs=[
                {"name": "other", "shape": [1], "datatype": "FP32", "data": [0.0]},
                {"name": "scores", "shape": shape, "datatype": "FP32",
                 "data": logits.flatten().tolist()},
            ],
        )  # fmt: skip

    with serving(respond) as server:
        found = HttpModel(server.url, format="kserve", output="scores")(X)
        torch.testing.assert_close(found, NET(X).detach())
        (sent,) = server.asked[0]["inputs"]
        assert sent["datatype"] == "FP32" and sent["shape"] == [5, *SHAPE]
        with pytest.raises(InputError, match="no output 'logits'; it has other, scores"):
            HttpModel(server.url, format="kserve", output="logits")(X)
        with pytest.raises(InputError, match=r"shape \(1,\) for 5 images"):
            HttpModel(server.url, format="kserve", classes=4)(X)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_images_are_those_of_eight_bits(channels):
    x = models.images(2, (channels, 4, 5))

    def respond(asked):
        pictures = [Image.open(io.BytesIO(base64.b64decode(p))) for p in asked["data"]]
        seen = np.stack([np.asarray(p).reshape(4, 5, channels) for p in pictures])
        assert asked["shape"] == [2, channels, 4, 5]
        return answer(logits=seen.reshape(2, -1).astype(float).tolist())

    with serving(respond) as server:
        found = HttpModel(server.url, format="png")(x)
    wanted = (x * 255).round().permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(found, wanted)


def test_a_token_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_TEST", "tell-nobody")
    said = answer(401, error="no such token: tell-nobody")
    with serving(in_turn(model_behind(NET), said)) as server:
        model = HttpModel(server.url, token="SECRET_OF_THE_TEST", headers={"X-Team": "red"})
        model(X)
        assert server.headers[0]["Authorization"] == "Bearer tell-nobody"
        assert server.headers[0]["X-Team"] == "red"
        assert "tell-nobody" not in repr(model) and "tell-nobody" not in str(vars(model))
        with pytest.raises(InputError, match="refuses: status 401") as error:
            model(X)
        assert "tell-nobody" not in str(error.value)
    with pytest.raises(InputError, match="'NOT_THERE_AT_ALL', for the token, is not set"):
        HttpModel("http://127.0.0.1:1/", token="NOT_THERE_AT_ALL")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://127.0.0.1/x", "only http:// and https://"),
        ("file:///etc/passwd", "only http:// and https://"),
        ("http://", "names no machine"),
        ("http://:80/", "names no machine"),
        ("http://me:secret@127.0.0.1/", "user or a password"),
        ("http://127.0.0.1:99999/", "cannot be understood"),
        ("http://127.0.0.1:eighty/", "cannot be understood"),
        ("http://[::1/", "cannot be understood"),
        ("http://127.0.0.1/a b", "spaces or control"),
        ("http://127.0.0.1/\r\nX: y", "spaces or control"),
        ("http://127.0.0.1/ä", "percent-encoded"),
    ],
)
def test_other_addresses_are_one_line(url, said):
    with pytest.raises(InputError, match=said) as error:
        hf.load(url)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"format": "gif"}, "format must be one of"),
        ({"batch_size": 0}, "batch_size"),
        ({"timeout": 0}, "timeout"),
        ({"rate": -1}, "rate"),
        ({"retries": -1}, "retries"),
        ({"classes": 1}, "classes"),
        ({"headers": {"A\r\nB": "c"}}, "is no header"),
    ],
)
def test_settings_out_of_range_are_one_line(wrong, said):
    with pytest.raises(InputError, match=said):
        HttpModel("http://127.0.0.1:1/", **wrong)


def test_settings_of_the_command_line():
    assert settings("batch=8,token=NAME,output=scores", "--http") == {
        "batch_size": 8,
        "token": "NAME",
        "output": "scores",
    }
    with pytest.raises(InputError, match="--http has no option 'bach'; did you mean 'batch'"):
        settings("bach=8", "--http")
    with pytest.raises(InputError, match="is not a whole number"):
        settings("batch=many", "--http")


# -- servers that answer nonsense -----------------------------------------------------------------

NONSENSE = {
    "a page": ((200, {}, b"<html>Hello</html>"), "no JSON: the answer begins '<html>Hello"),
    "nothing": ((200, {}, b""), "no JSON: the answer is empty"),
    "a deep list": ((200, {}, b"[" * 100_000), "no JSON"),
    "a list": ((200, {}, b"[1, 2]"), "answers a list, not an object"),
    "another key": (answer(result=[[1, 2]]), "answers result, none of logits"),
    "an error": (answer(error="no GPU left"), "none of logits.*no GPU left"),
    "two kinds": (answer(logits=[[1, 2]], labels=[1]), "logits and labels: one of them"),
    "one image too few": (answer(logits=[[1.0, 2.0]]), r"\(1, 2\) for 2 images"),
    "one class": (answer(logits=[[1.0], [2.0]]), r"\(2, 1\) for 2 images"),
    "numbers in a row": (answer(logits=[1.0, 2.0]), r"\(2,\) for 2 images"),
    "words": (answer(logits=[["cat", "dog"], ["dog", "cat"]]), "holds words"),
    "ragged rows": (answer(logits=[[1.0, 2.0], [1.0]]), "rows of unequal length"),
    "nulls": (answer(logits=[[None, 2.0], [1.0, 2.0]]), "no numbers"),
    "truth values": (answer(logits=[[True, False], [True, False]]), "no numbers"),
    "text": (answer(logits="1 2"), "holds text, not a list"),
    "NaN": ((200, {}, b'{"logits": [[NaN, 1], [1, 2]]}'), "NaN or infinite"),
    "infinity": ((200, {}, b'{"logits": [[Infinity, 1], [1, 2]]}'), "NaN or infinite"),
    "too large": (answer(logits=[[1e300, 0.0], [0.0, 1.0]]), "no float32"),
    "no probabilities": (answer(probabilities=[[2.0, 3.0], [0.5, 0.5]]), "sum to 1"),
    "negative ones": (answer(probabilities=[[1.5, -0.5], [0.5, 0.5]]), "sum to 1"),
    "half a label": (answer(labels=[0.5, 1.0]), "no whole numbers"),
    "a label beyond": (answer(labels=[0, 7]), "answered class 7, and there are 4 classes"),
    "a label below": (answer(labels=[0, -1]), "answered class -1"),
    "labels too many": (answer(labels=[0, 1, 2]), r"\(3,\) for 2 images"),
    "a redirect": ((302, {"Location": "file:///etc/passwd"}, b""), "redirects"),
    "not found": ((404, {}, b"no model here"), "refuses: status 404 Not Found: no model here"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_one_line_and_is_not_asked_for_again(kind):
    response, said = NONSENSE[kind]
    with serving(in_turn(response)) as server:
        with pytest.raises(InputError, match=said) as error:
            HttpModel(server.url, classes=4)(X[:2])
        assert server.url in str(error.value) and "\n" not in str(error.value)
        assert len(server.asked) == 1


def test_an_answer_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(http, "LARGEST_ANSWER", 2**16)
    with (
        serving(in_turn((200, {}, b" " * 2**20))) as server,
        pytest.raises(InputError, match="more than 0 MiB"),
    ):
        HttpModel(server.url)(X)


def test_another_number_of_classes_in_the_middle_is_one_line():
    rows = [[1.0, 2.0]], [[1.0, 2.0, 3.0]]
    with (
        serving(in_turn(answer(logits=rows[0]), answer(logits=rows[1]))) as server,
        pytest.raises(InputError, match="2 and 3 classes in turn"),
    ):
        HttpModel(server.url, batch_size=1)(X[:2])


FORMS = {
    "logits": {"logits": [[1.0, 2.0]]},
    "probabilities": {"probabilities": [[0.4, 0.6]]},
    "labels": {"labels": [1]},
    "outputs": {"outputs": [{"shape": [1, 2], "data": [1.0, 2.0]}]},
}


@pytest.mark.parametrize(("before", "now"), itertools.permutations(FORMS, 2))
def test_another_form_of_answer_in_the_middle_is_one_line(before, now):
    turns = in_turn(*(answer(**FORMS[form]) for form in (before, before, now)))
    with serving(turns) as server:
        model = HttpModel(server.url, classes=2, batch_size=1)
        assert len(model(X[:2])) == 2  # the same form again is believed
        with pytest.raises(InputError, match=f"answered {before} before, and {now} now"):
            model(X[:1])


# -- servers that are busy, slow or away ----------------------------------------------------------


def test_a_busy_server_is_asked_again():
    busy = [answer(503), answer(429, {"Retry-After": "0.2"}), answer(500)]
    with serving(in_turn(*busy, model_behind(NET))) as server:
        model, began = HttpModel(server.url), time.monotonic()
        assert torch.equal(model(X), NET(X).detach())
        assert time.monotonic() - began >= 0.2  # as long as it asked for
        assert len(server.asked) == 4 and (model.requests, model.repeated) == (4, 3)
        assert server.asked[0] == server.asked[-1]


def test_pauses_grow_and_retries_end(monkeypatch):
    pauses = []
    monkeypatch.setattr(http.time, "sleep", pauses.append)
    with serving(in_turn(answer(503))) as server:
        with pytest.raises(InputError, match=r"status 503 .*; asked 4 times"):
            HttpModel(server.url, retries=3)(X)
        assert len(server.asked) == 4
    assert pauses == [0.01, 0.02, 0.04]


def test_a_server_that_asks_for_days_is_not_waited_for():
    with (
        serving(in_turn(answer(429, {"Retry-After": "86400"}))) as server,
        pytest.raises(InputError, match="asks to wait for 86400 s"),
    ):
        HttpModel(server.url)(X)


def test_a_slow_server_is_given_up():
    with serving(in_turn(sleeping(1.0, model_behind(NET)))) as server:
        began = time.monotonic()
        with pytest.raises(InputError, match=r"did not answer within 0\.1 s; asked 2 times"):
            HttpModel(server.url, timeout=0.1, retries=1)(X)
        assert time.monotonic() - began < 0.9


def test_a_lost_connection_is_made_again():
    with serving(in_turn(lambda asked: 1 / 0, model_behind(NET))) as server:
        assert torch.equal(HttpModel(server.url)(X), NET(X).detach())


def test_a_connection_that_was_closed_meanwhile_costs_no_retry():
    closing = answer(headers={"Connection": "keep-alive"}, logits=NET(X).tolist())

    def closes(asked):
        return closing

    with serving(closes) as server:
        model = HttpModel(server.url, retries=0)
        model(X)
        model._connection.sock.shutdown(socket.SHUT_RDWR)  # as if the server had
        assert model(X).shape == (5, 4) and model.repeated == 0


def test_an_answer_that_breaks_off_is_asked_for_again():
    short = (200, {"Content-Length": "1000", "Connection": "close"}, b'{"logits"')
    with serving(in_turn(short, model_behind(NET))) as server:
        found = HttpModel(server.url, timeout=0.5)(X)
        assert torch.equal(found, NET(X).detach()) and len(server.asked) == 2


def test_nobody_there_is_bad_input_and_somebody_who_leaves_a_failure():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(InputError, match="refuses connections: is a server running there"):
        HttpModel(f"http://127.0.0.1:{port}/")(X)
    assert time.monotonic() - began < 1  # a wrong address is said at once
    once = answer(headers={"Connection": "close"}, logits=NET(X).tolist())
    with serving(in_turn(once)) as server:
        model = HttpModel(server.url, retries=1)
        model(X)
    with pytest.raises(HoldfastError, match="the same command goes on from here") as error:
        model(X)
    assert not isinstance(error.value, InputError)


def test_no_more_requests_a_second_than_asked_for():
    with serving(model_behind(NET)) as server:
        began = time.monotonic()
        HttpModel(server.url, batch_size=1, rate=20)(X)
        assert time.monotonic() - began >= 4 / 20


def test_a_trickle_is_a_timeout():
    """A server that sends one byte after the other, each in time."""
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle():
        connection, _ = listener.accept()
        with connection:
            connection.recv(2**20)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            with contextlib.suppress(OSError):  # nobody reads it to the end
                for _ in range(40):
                    connection.sendall(b" ")
                    time.sleep(0.05)

    threading.Thread(target=trickle, daemon=True).start()
    port = listener.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(InputError, match=r"did not answer within 0\.3 s; asked once"):
        HttpModel(f"http://127.0.0.1:{port}/", timeout=0.3, retries=0)(X)
    assert time.monotonic() - began < 1.5
    listener.close()


# -- evaluations ----------------------------------------------------------------------------------


def digits_behind(kind="logits"):
    net, x, y = models.digits(6)
    return net, x, y, serving(model_behind(net, kind))


def test_an_evaluation_of_an_address_is_that_of_the_model():
    net, x, y, server = digits_behind()
    threat = hf.Threat("linf", 0.1)
    with server as at:
        far = hf.evaluate(hf.load(at.url), x, y, threat, suite="black-box", queries=60)
        asked = at.images
    near = hf.evaluate(net, x, y, threat, suite="black-box", queries=60)
    assert (far.suite, far.outputs) == ("black-box", None)
    assert [v.broken for v in far.verdicts] == [v.broken for v in near.verdicts]
    assert asked == far.queries.asked + far.queries.outside
    assert far.queries.outside == len(x) and far.queries.most <= 60


def test_an_endpoint_of_labels_is_recognised_and_attacked_by_decisions():
    _, x, y, server = digits_behind("labels")
    with server as at:
        result = hf.evaluate(hf.load(at.url), x, y, ("linf", 0.3), suite="black-box", queries=150)
    assert result.outputs == "labels"
    outcomes = {cost.name: cost.outcome for cost in result.attacks}
    assert outcomes["rays"] == "ran"
    assert "needs scores" in outcomes["square"] and "needs scores" in outcomes["spsa"]
    assert result.robust_accuracy < result.standard_accuracy


def test_an_endpoint_that_changes_its_mind_is_flagged():
    generator = torch.Generator().manual_seed(0)

    def respond(asked):
        x = images_in(asked)
        return answer(logits=torch.randn(len(x), 10, generator=generator).tolist())

    _, x, y = models.digits(6)
    with serving(respond) as at:
        square = hf.attacks.Square(queries=10)
        result = hf.evaluate(HttpModel(at.url), x, y, ("linf", 0.1), suite=square)
    flags = {flag.name: flag for flag in result.flags}
    assert flags["outputs-change-between-calls"].fired


def test_json_of_the_request_is_as_documented():
    with serving(model_behind(NET)) as server:
        HttpModel(server.url)(X)
        (asked,) = server.asked
    assert set(asked) == {"format", "shape", "data"} and asked["format"] == "float32"
    assert json.dumps(asked)
