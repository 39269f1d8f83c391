"""Black boxes: labels only, `--outputs`, the command line, the report, the server of the page."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from endpoints import answer, in_turn, model_behind, serving
from verbs import evaluate_command

import holdfast as hf
from holdfast.attacks import black_box, suite_named
from holdfast.cli import evaluate as verb
from holdfast.errors import InputError
from holdfast.models.black_box import BlackBox
from holdfast.models.http import HttpModel

ROOT = Path(__file__).parents[1]
NET = models.Net(classes=4)
X = models.images(6)
Y = models.answers(NET, X)
THREAT = hf.Threat("linf", 0.2)


# -- what the attacker sees -----------------------------------------------------------------------


def labels_as(kind):
    """The same model, by answers of other kinds."""
    return {
        "a tensor": lambda x: NET(x).argmax(1),
        "an array": lambda x: NET(x).argmax(1).numpy(),
        "a list": lambda x: NET(x).argmax(1).tolist(),
        "a column": lambda x: NET(x).argmax(1)[:, None],
        "floats": lambda x: NET(x).argmax(1).double(),
        "one-hot rows": lambda x: torch.nn.functional.one_hot(NET(x).argmax(1), 4),
        "scores": NET,
    }[kind]


@pytest.mark.parametrize(
    "kind", ["a tensor", "an array", "a list", "a column", "floats", "one-hot rows", "scores"]
)
def test_labels_may_come_in_any_form(kind):
    result = hf.evaluate(
        labels_as(kind), X, Y, THREAT, suite="black-box", outputs="labels", queries=60
    )
    wanted = hf.evaluate(NET, X, Y, THREAT, suite="black-box", outputs="labels", queries=60)
    assert result.outputs == "labels" and result.standard_accuracy == 1
    assert [(v.broken, v.queries) for v in result.verdicts] == [
        (v.broken, v.queries) for v in wanted.verdicts
    ]
    assert result.broken.any()
    by_name = {cost.name: cost for cost in result.attacks}
    assert by_name["rays"].ran and "needs scores" in by_name["square"].outcome
    # Labels stand as rows that sum to 1, and are no probabilities.
    assert "outputs-look-like-probabilities" not in [f.name for f in result.flags if f.fired]


def test_one_hot_rows_are_recognised_and_square_is_not_tried_in_vain():
    """The model is a function, and nobody has said that it shows labels only."""

    def decides(x):
        with torch.no_grad():
            return torch.nn.functional.one_hot(NET(x).argmax(1), 4).float()

    result = hf.evaluate(decides, X, Y, THREAT, suite="square")
    outcomes = {cost.name: cost.outcome for cost in result.attacks}
    assert result.outputs == "labels" and "needs scores" in outcomes["square"]
    assert outcomes["rays"] == "ran" and result.robust_accuracy < 0.5


def test_scores_hide_gradients():
    result = hf.evaluate(NET, X, Y, THREAT, suite="apgd", outputs="scores")
    assert result.suite == "apgd, gradient-free part" and result.outputs == "scores"
    assert all(cost.backwards == 0 for cost in result.attacks)
    names = [cost.name for cost in result.attacks if cost.ran]
    assert names[0] == "square" and result.broken.any()


@pytest.mark.parametrize(
    ("respond", "said"),
    [
        (lambda x: [0.5] * len(x), "no whole numbers"),
        (lambda x: [9] * len(x), "answered class 9, and there are 4 classes"),
        (lambda x: [-1] * len(x), "answered class -1"),
        (lambda x: [0], r"shape \(1,\) for 6 images"),
        (lambda x: ["cat"] * len(x), "returned a list, not an array of numbers"),
        (lambda x: None, "returned a NoneType"),
        (lambda x: {"labels": [0]}, "returned a dict"),
    ],
)
def test_labels_of_another_kind_are_one_line(respond, said):
    with pytest.raises(InputError, match=said):
        hf.evaluate(respond, X, Y, THREAT, suite="black-box", outputs="labels")


def test_scores_may_be_arrays_and_must_be_scores():
    result = hf.evaluate(
        lambda x: NET(x).detach().numpy().tolist(), X, Y, THREAT, suite="square", outputs="scores"
    )
    assert result.standard_accuracy == 1 and result.broken.any()
    with pytest.raises(InputError, match="out of range; the model has 2 classes"):
        hf.evaluate(lambda x: np.zeros(len(x)), X, Y, THREAT, outputs="scores")
    with pytest.raises(InputError, match=r"outputs must be .*scores or labels.*, not 'logit'"):
        hf.evaluate(NET, X, Y, THREAT, outputs="logit")


def test_a_network_of_labels_is_in_eval_mode_and_comes_back():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(108, 4))
    y = models.answers(net.eval(), X)
    net.train()
    result = hf.evaluate(net, X, y, ("linf", 1e-4), suite="rays", outputs="labels", queries=5)
    assert result.standard_accuracy == 1 and net.training


def test_two_functions_are_two_runs(tmp_path):
    def other(x):
        return NET(x).roll(1, 1)

    arguments = {"suite": "square", "outputs": "scores", "queries": 5, "run": tmp_path / "run"}
    hf.evaluate(BlackBox(lambda x: NET(x)), X, Y, THREAT, **arguments)
    with pytest.raises(InputError, match="holds another run"):
        hf.evaluate(BlackBox(other), X, Y, THREAT, **arguments)


# -- the suite ------------------------------------------------------------------------------------


def test_the_suite_fits_norm_and_budget():
    names = {norm: [s.name for s in black_box(norm=norm).stages] for norm in ("linf", "l1")}
    assert names["linf"] == ["square", "spsa", "rays", "hop-skip-jump"]
    assert names["l1"] == ["square"]
    assert [s.name for s in black_box(norm="spatial").stages] == ["rotation-translation"]
    assert black_box(3).stages[0].attack.iterations == 3
    assert suite_named("black-box").name == "black-box"
    with pytest.raises(InputError, match="no attack that knows the norm l0"):
        black_box(norm="l0")
    with pytest.raises(InputError, match="no attack can judge it by these in l1"):
        hf.evaluate(NET, X, Y, ("l1", 1.0), suite="black-box", outputs="labels")


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_net():
    return models.digits(8)[0]


def test_the_command_asks_an_address_and_shows_what_queries_bought(tmp_path, digits_net, capsys):
    with serving(model_behind(digits_net)) as server:
        options = {"limit": 8, "eps": "0.2", "norm": "linf", "queries": 100}
        result = evaluate_command(server.url, "digits", tmp_path / "run", **options, rate=1000.0)
        asked = server.images
    assert result.suite == "black-box" and asked <= 8 * 101
    verb.show(result, verb.Options(server.url, tmp_path / "run", "digits"))
    out = capsys.readouterr().out
    assert "budget 100 an image" in out and re.search(r"standing after +1: .*10: .*100: ", out)
    record = hf.read(tmp_path / "run")
    assert record.queries == result.queries and record.queries.budget == 100
    assert record.model.source == server.url and record.model.architecture == "HttpModel"
    header, *rows = (tmp_path / "run" / "verdicts.csv").read_text().splitlines()
    column = header.split(",").index("queries")
    assert [int(row.split(",")[column]) for row in rows] == [v.queries for v in result.verdicts]
    # The same command again reads it; the server is not asked more than what it is known by.
    with (
        serving(model_behind(digits_net)) as other,
        pytest.raises(InputError, match="holds another run"),
    ):
        evaluate_command(other.url, "digits", tmp_path / "run", **options)


def test_the_report_has_the_curve(tmp_path):
    hf.evaluate(NET, X, Y, THREAT, suite="square", queries=200, run=tmp_path / "run")
    page = hf.write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "No image was asked about more than 200 times." in page
    assert "queries about each image" in page and page.count("<h3>Queries</h3>") == 1
    hf.evaluate(NET, X, Y, THREAT, suite="fgsm", run=tmp_path / "plain")
    page = hf.write_report([tmp_path / "plain"], tmp_path / "page.html").read_text()
    assert "<h3>Queries</h3>" not in page


def test_a_token_is_in_no_file(tmp_path, digits_net, monkeypatch):
    monkeypatch.setenv("TOKEN_OF_THE_TEST", "whisper-it")
    with serving(model_behind(digits_net)) as server:
        evaluate_command(
            server.url, "digits", tmp_path / "run", limit=3, eps="0.1", queries=5,
            http="token=TOKEN_OF_THE_TEST,batch=2",
        )  # fmt: skip
        assert server.headers[0]["Authorization"] == "Bearer whisper-it"
    for file in (tmp_path / "run").iterdir():
        assert b"whisper-it" not in file.read_bytes()


def test_bad_options_are_one_line(tmp_path):
    def command(model, **options):
        evaluate_command(model, "digits", tmp_path / "run", limit=3, **options)

    with pytest.raises(InputError, match="--http is for a model behind an address"):
        command("digits-linf", http="batch=3")
    with pytest.raises(InputError, match="--rate is for a model behind an address"):
        command("digits-linf", rate=3.0)
    with pytest.raises(InputError, match="--http has no option 'speed'"):
        command("http://127.0.0.1:1/", http="speed=3")
    assert not (tmp_path / "run").exists()


def test_a_server_that_leaves_in_the_middle_is_gone_on_with(tmp_path, digits_net):
    """The journal keeps what was asked; the same command asks only for the rest."""
    whole = model_behind(digits_net)
    left = [25]

    def leaves(asked):
        left[0] -= 1
        return whole(asked) if left[0] >= 0 else answer(503)

    with serving(leaves) as server:

        def command():
            return evaluate_command(
                server.url, "digits", tmp_path / "run", limit=6, eps="0.05", norm="linf",
                queries=60, suite="rays", http="retries=0",
            )  # fmt: skip

        with pytest.raises(hf.HoldfastError, match="the same command goes on from here"):
            command()
        before, left[0] = server.images, 10**9
        result = command()
        assert result.queries.most <= 60
        # Of what came before, only clean predictions, and the batch that got no answer.
        assert server.images <= result.queries.asked + 2 * 6 + 6
        assert before > 60
    plain = hf.evaluate(
        digits_net, *models.digits(6)[1:], ("linf", 0.05), suite="rays", queries=60,
        outputs="labels",
    )  # fmt: skip
    # A batch without an answer costs a query each, and no verdict that another query decides.
    assert sum(v.broken for v in result.verdicts) <= sum(v.broken for v in plain.verdicts)


def test_nonsense_ends_the_command_before_anything_is_written(tmp_path):
    with serving(in_turn(answer(logits=[["a"]]))) as server, pytest.raises(InputError):
        evaluate_command(server.url, "digits", tmp_path / "run", limit=2, eps="0.1", queries=5)
    assert not (tmp_path / "run" / "result.json").exists()


# -- the page -------------------------------------------------------------------------------------


def test_the_server_of_the_page_runs_and_is_short(tmp_path):
    page = (ROOT / "docs" / "black-boxes.md").read_text()
    (code,) = re.findall(r"```python\n# serve\.py\n(.*?)```", page, re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 21
    (tmp_path / "serve.py").write_text(code)
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [sys.executable, "serve.py", "mine:net", str(port)],
        cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        x = models.images(4, (3, 2, 2))
        model = HttpModel(f"http://127.0.0.1:{port}/predict", retries=0)
        for _ in range(600):
            try:
                found = model(x)
                break
            except InputError:
                assert server.poll() is None
                time.sleep(0.2)
        torch.manual_seed(0)
        wanted = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))(x).detach()
        torch.testing.assert_close(found, wanted)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def test_the_functions_of_the_page_run():
    page = (ROOT / "docs" / "black-boxes.md").read_text()
    (code,) = re.findall(r"```python\n(result = hf\.evaluate\(\s*lambda.*?)```", page, re.DOTALL)

    class forest:
        @staticmethod
        def predict(rows):
            return NET(torch.from_numpy(rows).view(-1, *models.SHAPE)).argmax(1).numpy()

    held = {"hf": hf, "forest": forest, "images": X, "labels": Y}
    exec(code, held)
    assert held["result"].outputs == "labels" and json.dumps(held["result"].to_dict())
