"""No file runs code or leads out of its folder; only what a person names does.

A module that leaves a mark when it is imported lies where Python finds it, and each file is made
to name it in every place that holds a name.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peak_memory import forget_peak, peak
from run_folders import evaluation_run, training_run
from safetensors.torch import save_file
from verbs import print_leaderboard

import holdfast as hf
from holdfast.certification.run import read_rows
from holdfast.data.extra import load_extra
from holdfast.defences import chain, load_autoencoder, parse, save_autoencoder
from holdfast.errors import InputError
from holdfast.models import build, load_checkpoint, save_checkpoint
from holdfast.models.autoencoder import DenoisingAutoencoder
from holdfast.report import write_report
from holdfast.runs.folder import open_run
from holdfast.runs.lock import claimed
from holdfast.runs.parts import _read as read_stage
from holdfast.search import Journal
from holdfast.training import load_recipe
from holdfast.training.checkpoints import Checkpoints
from holdfast.training.objectives import objective_named

CARD = {
    "architecture": "small-cnn",
    "arguments": {"width": 4},
    "classes": [str(i) for i in range(10)],
    "threat": {"norm": "linf", "eps": 0.1},
}


class Trap:
    """A module `trapdoor`, and whether anything of it has run."""

    def __init__(self, folder: Path):
        self.mark = folder / "sprung"
        (folder / "trapdoor.py").write_text(
            "import pathlib\n"
            f"pathlib.Path({str(self.mark)!r}).write_text('ran')\n"
            "from holdfast.defences import Jpeg\n"
            "class Own(Jpeg):\n    pass\n"
            "def network(*args, **kwargs):\n"
            "    from holdfast.models import build\n"
            "    return build('small-cnn', {'width': 4})\n"
        )

    @property
    def sprung(self) -> bool:
        return self.mark.exists()


@pytest.fixture
def trap(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)  # the current folder is searched too
    sys.modules.pop("trapdoor", None)
    yield Trap(folder)
    sys.modules.pop("trapdoor", None)


@pytest.fixture
def model(tmp_path) -> Path:
    return save_checkpoint(tmp_path / "model", build("small-cnn", {"width": 4}), CARD)


def change_card(folder: Path, **changes) -> Path:
    card = json.loads((folder / "card.json").read_text())
    card.pop("seal", None)  # whoever means ill leaves it out
    (folder / "card.json").write_text(json.dumps({**card, **changes}))
    return folder


# --- what a person types ------------------------------------------------------------------------


def test_a_person_may_name_code(trap):
    assert parse("trapdoor:Own:quality=30").func.__name__ == "Own"
    assert trap.sprung
    assert isinstance(hf.load("trapdoor:network"), torch.nn.Module)


# --- cards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"defences": ["trapdoor:Own"]},
        {"defences": ["trapdoor:Own:quality=3"]},
        {"defences": ["jpeg", "trapdoor:network"]},
        {"defences": ["trapdoor"]},
        {"defences": ["purification:weights=trapdoor:network"]},
        {"defences": ["autoencoder:weights=trapdoor:network"]},
        {"architecture": "trapdoor:network", "arguments": {}},
        {"architecture": "trapdoor.network", "arguments": {}},
        {"architecture": "__class__", "arguments": {}},
        {
            "architecture": "mixture",
            "arguments": {
                "weight": 0.5,
                "robust": {"architecture": "trapdoor:network", "arguments": {}},
                "accurate": {"architecture": "small-cnn", "arguments": {"width": 4}},
            },
        },
        {"arguments": {"width": "trapdoor:network"}},
        {"arguments": {"width": 4, "trapdoor": "trapdoor:network"}},
        {"arguments": {"width": 4, "mean": "trapdoor:network"}},
        {"classes": "trapdoor:network"},
        {"threat": {"norm": "trapdoor:network", "eps": 1}},
        {"threat": "trapdoor:network"},
        {"threat": {"norm": "linf", "eps": 0.1, "table": "trapdoor"}},
        {"schema": "trapdoor:network"},
        {"weights_sha256": "trapdoor:network"},
    ],
)
def test_no_card_runs_code(trap, model, changes):
    change_card(model, **changes)
    with pytest.raises(InputError, match=r"card\.json") as error:
        hf.load(model)
    assert "\n" not in str(error.value)
    assert not trap.sprung


def test_what_a_card_says_besides_is_only_words(trap, model):
    change_card(
        model,
        recipe={"objective": {"name": "trapdoor:network"}},
        figures={"trapdoor:network": "{0.__class__}"},
        data="trapdoor:network",
        source="trapdoor:network",
    )
    hf.load(model)
    assert not trap.sprung


def test_os_abort_is_not_called(model, monkeypatch):
    called = []
    monkeypatch.setattr(os, "abort", lambda: called.append(1))
    for name in ("os:abort", "purification:weights=os:abort", "autoencoder:weights=os:abort"):
        change_card(model, defences=[name])
        with pytest.raises(InputError):
            hf.load(model)
    with pytest.raises(InputError, match="weights folder os:abort does not exist"):
        parse("purification:weights=os:abort")(lambda x: x)  # a folder and nothing else
    with pytest.raises(InputError, match="weights folder os:abort does not exist"):
        parse("autoencoder:weights=os:abort")(lambda x: x)
    assert not called


def autoencoder(folder: Path) -> Path:
    return save_autoencoder(folder, DenoisingAutoencoder(channels=1, width=2))


def test_a_card_names_weights_in_its_own_folder_only(model, tmp_path):
    autoencoder(tmp_path / "elsewhere")
    autoencoder(model / "parts" / "cleaner")
    change_card(model, defences=["autoencoder:weights=parts/cleaner"])
    assert hf.load(model).spec.startswith("autoencoder:weights=")
    (model / "link").symlink_to(tmp_path / "elsewhere")
    for name in (
        "../elsewhere",
        "parts/../../elsewhere",
        str(tmp_path / "elsewhere"),
        "link",
        "link/../../elsewhere",
        "~/elsewhere",
        "nul\0",
    ):
        change_card(model, defences=[f"autoencoder:weights={name}"])
        with pytest.raises(InputError, match=r"card\.json"):
            hf.load(model)
    # A person may say so.
    chain(hf.load(change_card(model, defences=[])), [f"autoencoder:weights={tmp_path}/elsewhere"])


def test_a_card_that_leads_to_itself_ends(model):
    change_card(model, defences=["purification:weights=."])
    with pytest.raises(InputError, match="not a denoising-unet"):
        hf.load(model)
    (model / "model").symlink_to(model)
    assert isinstance(hf.load(change_card(model, defences=[])), torch.nn.Module)


def test_weights_are_never_unpickled(trap, model, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (__import__, ("trapdoor",))

    for content in (
        pickle.dumps({"body.0.weight": Bomb()}),
        torch_file(tmp_path, Bomb()),
    ):
        (model / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            hf.load(model)
    for name in ("extra.npz", "extra.npy"):
        np.savez(tmp_path / "extra.npz", image=np.array([Bomb()], object), label=np.zeros(1, int))
        with pytest.raises(InputError):
            load_extra(tmp_path / name, (3, 4, 4), 10)
    assert not trap.sprung


def torch_file(folder: Path, value: object) -> bytes:
    torch.save(value, folder / "weights.pt")
    return (folder / "weights.pt").read_bytes()


def test_links_of_a_cache_are_followed(model, tmp_path):
    """A model folder may hold links to its own files, as download caches make them."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("card.json", "model.safetensors"):
        (linked / name).symlink_to(model / name)
    hf.load(linked)


@pytest.mark.parametrize("name", ["card.json", "model.safetensors"])
def test_a_pipe_or_device_in_a_model_folder_is_refused_at_once(model, name):
    for place in ("pipe", "/dev/zero"):
        (model / name).unlink()
        if place == "pipe":
            os.mkfifo(model / name)
        else:
            (model / name).symlink_to(place)
        with pytest.raises(InputError, match=r"no regular file|holds no model"):
            hf.load(model)
        with pytest.raises(InputError, match="no regular file"):
            load_checkpoint(model)


def test_a_pipe_in_a_run_folder_is_waited_for_by_nobody(tmp_path):
    def piped(file: Path) -> Path:
        file.unlink(missing_ok=True)
        os.mkfifo(file)
        return file

    files = ("result.json", "request.json", "verdicts.csv")
    for name in (*files, "examples.safetensors", "pictures.safetensors"):
        run = evaluation_run(tmp_path / f"run-{name}")
        piped(run / name)
        with pytest.raises(InputError, match="no regular file"):
            write_report([run], tmp_path / "page.html")
    run = training_run(tmp_path / "train")
    piped(run / "metrics.csv")
    with pytest.raises(InputError, match="no regular file"):
        write_report([run], tmp_path / "page.html")
    points = Checkpoints(tmp_path)
    piped(points.file("latest"))
    for read in (
        lambda: points.load("latest", []),
        lambda: read_stage(points.file("latest")),
        lambda: read_rows(piped(tmp_path / "certificates.csv")),
        lambda: load_recipe(tmp_path),
    ):
        with pytest.raises(InputError, match=r"no regular file|cannot be read"):
            read()


# --- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "model: {architecture: 'trapdoor:network'}",
        "model: {architecture: trapdoor.network}",
        "objective: {name: 'trapdoor:network'}",
        "objective: {name: hat, arguments: {helper: /etc}}",
        "objective: {name: hat, arguments: {helper: ../model}}",
        "objective: {name: trades, arguments: {beta: 'trapdoor:network'}}",
        "optimiser: {name: 'trapdoor:network'}",
        "augment: {flip: 'trapdoor:network'}",
        "threat: {norm: 'trapdoor:network'}",
        "threat: {eps: '__import__(\"trapdoor\")'}",
        "budget: __import__('trapdoor')",
        "precision: 'trapdoor:network'",
        "train_on: 'trapdoor:network'",
        "extra: {file: /etc/passwd}",
        "extra: {file: a/../../b.npz}",
        "!!python/object/apply:trapdoor.network []",
        "model: !!python/name:trapdoor.network",
        "model: !!python/module:trapdoor",
        "model: !!python/object/new:trapdoor.Own {}",
        "__class__: {}",
        "model: {__class__: 1}",
        "model: {arguments: {__init__: 1}, architecture: small-cnn}\ntrapdoor: x",
    ],
)
def test_no_recipe_runs_code(trap, tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        load_recipe(tmp_path / "r.yaml")
    assert "r.yaml" in str(error.value) and "\n" not in str(error.value)
    assert not trap.sprung


def test_a_helper_that_a_recipe_names_is_no_code(trap, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "objective: {name: hat, arguments: {helper: 'trapdoor:network'}}"
    )
    spec = load_recipe(tmp_path / "r.yaml").objective
    objective = objective_named(spec.name, spec.arguments)
    with pytest.raises(InputError, match="a file may name no code"):
        objective.prepare(torch.rand(2, 1, 8, 8), 10)
    assert not trap.sprung


def test_a_person_may_name_files_anywhere(tmp_path):
    (tmp_path / "r.yaml").write_text("extra: {file: near.npz}")
    assert load_recipe(tmp_path / "r.yaml").extra.file == "near.npz"
    for far in ("/far/away.npz", "../away.npz"):
        assert load_recipe(tmp_path / "r.yaml", [f"extra.file={far}"]).extra.file == far


# --- results and requests -----------------------------------------------------------------------


def everywhere(value, word):
    """A JSON value with every piece of text replaced."""
    if isinstance(value, dict):
        return {key: everywhere(inner, word) for key, inner in value.items()}
    if isinstance(value, list):
        return [everywhere(inner, word) for inner in value]
    return word if isinstance(value, str) else value


@pytest.mark.parametrize(
    "word",
    ["trapdoor:network", "{{ cycler.__init__.__globals__.os.abort() }}", "{0.__class__}", "%s%n"],
)
def test_no_result_or_request_runs_code(trap, tmp_path, word, capsys):
    run = evaluation_run(tmp_path / "runs" / "run")
    result = json.loads((run / "result.json").read_text())
    kept = {key: result[key] for key in ("schema", "status", "identity", "threat") if key in result}
    (run / "result.json").write_text(json.dumps({**everywhere(result, word), **kept}))
    request = json.loads((run / "request.json").read_text())
    kept = {key: request[key] for key in ("schema", "identity") if key in request}
    (run / "request.json").write_text(json.dumps({**everywhere(request, word), **kept}))
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "trapdoor" not in word or word in page
    assert "{{" not in word or "{{ cycler" in page  # shown, not rendered
    print_leaderboard(tmp_path / "runs")
    capsys.readouterr()
    assert not trap.sprung


def test_a_page_shows_no_run_from_elsewhere(tmp_path, capsys):
    training_run(tmp_path / "private" / "train", data={"name": "secret data"})
    near = tmp_path / "shared"
    for name in ("../../private/train", str(tmp_path / "private" / "train"), "link", "a\0b"):
        shutil.rmtree(near, ignore_errors=True)
        run = evaluation_run(near / "run", training_run=name)
        (run / "link").symlink_to(tmp_path / "private" / "train")
        assert "secret" not in write_report([run], tmp_path / "page.html").read_text()
    training_run(near / "train", data={"name": "our data"})
    shutil.rmtree(near / "run")
    run = evaluation_run(near / "run", training_run="../train")
    assert "our data" in write_report([run], tmp_path / "page.html").read_text()
    # One that is odd and that nobody asked for is left out, and said.
    (near / "train" / "result.json").write_text("{")
    assert "our data" not in write_report([run], tmp_path / "page.html").read_text()
    assert capsys.readouterr().err.startswith("left out: ")


def test_an_exchanged_request_rebuilds_nothing(trap, tmp_path):
    run = tmp_path / "run"
    open_run(run, "evaluate", "me", {"asked": {"suite": "apgd"}})
    for held in (
        {"kind": "evaluate", "identity": "other", "asked": {"suite": "trapdoor:network"}},
        {"kind": "trapdoor:network", "identity": "me"},
        {"kind": ["evaluate"], "identity": {"me": 1}, "asked": ["trapdoor:network"]},
        {},
    ):
        (run / "request.json").write_text(json.dumps(held))
        with pytest.raises(InputError, match=r"holds another run|'kind' must be text"):
            open_run(run, "evaluate", "me", {"asked": {"suite": "apgd"}})
    held = {"kind": "evaluate", "identity": "me", "asked": {"model": "trapdoor:network"}}
    (run / "request.json").write_text(json.dumps(held))
    assert open_run(run, "evaluate", "me", {}) == (run, True)
    assert not trap.sprung


def test_a_lock_that_is_a_link_changes_nothing_elsewhere(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="lock"), claimed(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


# --- journals -----------------------------------------------------------------------------------

TRICKS = {
    "trigger": "CREATE TRIGGER t AFTER INSERT ON clean BEGIN DELETE FROM broken; END",
    "view in place of a table": "DROP TABLE broken; CREATE VIEW broken AS SELECT 1",
    "endless view": (
        "DROP TABLE run; CREATE VIEW run AS WITH RECURSIVE n(i) AS "
        "(SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS identity FROM n"
    ),
    "other table": "CREATE TABLE more (a)",
    "index": "CREATE INDEX i ON clean (confidence)",
    "changed table": "DROP TABLE spent; CREATE TABLE spent (session, worker, stage)",
    "generated column": "DROP TABLE run; CREATE TABLE run (a, identity TEXT AS (upper('me')))",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_journal_holds_its_tables_and_nothing_that_runs(tmp_path, trick):
    path = tmp_path / "journal.sqlite"
    Journal(path, "me").close()
    with sqlite3.connect(path) as db:
        db.executescript(TRICKS[trick])
    db.close()
    with pytest.raises(InputError, match="tables are not those of a journal") as error:
        Journal(path, "me")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="tables are not those of a journal"):
        Journal(None, "me").absorb(path)


def test_a_journal_that_is_a_link_is_not_followed(tmp_path):
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE precious (a)")
    db.close()
    before = other.read_bytes()
    (tmp_path / "journal.sqlite").symlink_to(other)
    with pytest.raises(InputError, match="no regular file"):
        Journal(tmp_path / "journal.sqlite", "me")
    assert other.read_bytes() == before
    os.mkfifo(tmp_path / "pipe.sqlite")
    with pytest.raises(InputError, match="no regular file"):
        Journal(tmp_path / "pipe.sqlite", "me")


# --- bounded memory -----------------------------------------------------------------------------


def test_a_network_is_not_built_before_its_weights_are_known_to_fit(model):
    forget_peak()
    before = peak()
    mean = [0.5]
    for architecture, arguments in (
        ("small-cnn", {"width": 10**6}),
        ("small-cnn", {"width": 4, "classes": 10**9}),
        ("small-cnn", {"width": 2**62}),
        ("preact-resnet", {"depth": 2 + 8 * 10**8, "width": 4, "mean": mean, "std": mean}),
        ("preact-resnet", {"depth": 18, "width": 10**6}),
        ("preact-resnet", {"depth": 2 + 2 * 10**9, "stages": 10**9}),
        ("wide-resnet", {"depth": 4 + 6 * 10**8}),
        ("wide-resnet", {"widen": 10**7}),
        ("denoising-unet", {"levels": 10**9}),
        ("denoising-unet", {"blocks": 10**9}),
        ("denoising-autoencoder", {"width": 10**7}),
        ("interval-cnn", {"width": 10**6}),
    ):
        change_card(model, architecture=architecture, arguments=arguments)
        with pytest.raises(InputError, match=r"card\.json|another architecture"):
            hf.load(model)
    assert peak() - before < 300_000  # KiB; a width of 10⁶ would take terabytes


def test_weights_of_another_kind_are_refused(model):
    weights = build("small-cnn", {"width": 4}).state_dict()
    card = json.loads((model / "card.json").read_text())
    card.pop("weights_sha256"), card.pop("seal", None)
    (model / "card.json").write_text(json.dumps(card))
    whole = {name: value.double() for name, value in weights.items() if "num_" not in name}
    save_file({**weights, **whole}, model / "model.safetensors")
    hf.load(model)  # as float32
    for name, value in (
        ("linear.bias", torch.zeros(10, dtype=torch.int64)),
        ("linear.bias", torch.zeros(10, dtype=torch.complex64)),
        ("linear.bias", torch.zeros(10, dtype=torch.bool)),
        ("linear.bias", torch.full((10,), 1e300, dtype=torch.float64)),
        ("body.1.num_batches_tracked", torch.tensor(1.5)),
    ):
        save_file({**weights, name: value}, model / "model.safetensors")
        with pytest.raises(InputError, match=name):
            hf.load(model)


def test_an_autoencoder_is_as_bounded(tmp_path):
    folder = change_card(autoencoder(tmp_path / "ae"), arguments={"channels": 1, "width": 10**7})
    with pytest.raises(InputError, match="another architecture"):
        load_autoencoder(folder)
