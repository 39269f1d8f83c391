"""Every reader of Holdfast's own files, given damaged ones: one line, no hang, bounded memory."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fuzzing import ODD, changed, damaged, survives
from run_folders import colour_images, evaluation_run, training_run
from safetensors.torch import save
from verbs import print_leaderboard, print_zoo

import holdfast as hf
from holdfast import cli
from holdfast.attacks.suites import suite_named
from holdfast.certification.run import read_rows
from holdfast.defences import chain, parse
from holdfast.evaluation.cards import threat_of
from holdfast.models import build, save_checkpoint
from holdfast.parsing import parse_number, parse_seconds
from holdfast.report import write_report
from holdfast.runs.files import read_json
from holdfast.runs.folder import open_run
from holdfast.runs.parts import Done, _read, _written
from holdfast.runs.progress import ProgressLine
from holdfast.search import Journal, Ledger
from holdfast.search.batch import StoredItem
from holdfast.search.journal import _CHECKED, FinishedItem, _checksum
from holdfast.threat import Threat
from holdfast.training import load_recipe
from holdfast.training.checkpoints import Checkpoints

HERE = Path(__file__).parents[1]
Case = tuple[Any, Callable[[], object]]
CARD = {
    "architecture": "small-cnn",
    "arguments": {"width": 4, "classes": 3, "mean": [0.3], "std": [0.4]},
    "classes": ["a", "b", "c"],
    "threat": {"norm": "linf", "eps": 0.1},
    "defences": ["jpeg:quality=75", "median"],
    "trained_on": "train",
    "recipe": {"objective": {"name": "pgd"}},
}


def variants(text: str, value: Any, rng: random.Random, count: int) -> Iterator[bytes]:
    """A JSON file damaged in its bytes, or in its values."""
    for i in range(count):
        if i % 3 == 0:
            yield damaged(text.encode(), rng)
        else:
            yield json.dumps(changed(value, rng)).encode("utf-8", "surrogatepass")


def unsealed(file: Path) -> tuple[str, dict[str, Any]]:
    """A JSON file without the seal that would show every change: who means ill leaves it out."""
    value = json.loads(file.read_text())
    value.pop("seal", None)
    file.write_text(json.dumps(value))
    return file.read_text(), value


# --- models -------------------------------------------------------------------------------------


def cards(folder: Path, rng: random.Random, count: int) -> Iterator[Case]:
    for name in ("small-cnn", "preact-resnet", "interval-cnn", "denoising-unet", "mixture"):
        part = {"architecture": "small-cnn", "arguments": CARD["arguments"]}
        arguments = {
            "preact-resnet": {"depth": 10, "width": 2, "classes": 3},
            "mixture": {"robust": part, "accurate": part, "weight": 0.5, "scale": 2.0},
            "denoising-unet": {"width": 4, "levels": 2, "blocks": 1},
            "interval-cnn": {"width": 2, "classes": 3},
        }.get(name, CARD["arguments"])
        card = {**CARD, "architecture": name, "arguments": arguments}
        place = save_checkpoint(folder / name, build(name, arguments), card)
        text, card = unsealed(place / "card.json")
        for content in variants(text, card, rng, count // 5):

            def read(place: Path = place, content: bytes = content) -> None:
                (place / "card.json").write_bytes(content)
                model = hf.load(place)
                threat_of(None, None, model.card)

            yield content, read


def weights(folder: Path, rng: random.Random, count: int) -> Iterator[Case]:
    place = save_checkpoint(folder / "model", build("small-cnn", {"width": 4, "classes": 3}), CARD)
    card = json.loads((place / "card.json").read_text()) | {
        "weights_sha256": None,
        "seal": None,
        "arguments": {"width": 4, "classes": 3},
    }
    card.pop("seal")
    (place / "card.json").write_text(json.dumps(card))
    for content in tensors((place / "model.safetensors").read_bytes(), rng, count):

        def read(content: bytes = content) -> None:
            (place / "model.safetensors").write_bytes(content)
            model = hf.load(place)
            assert all(bool(value.isfinite().all()) for value in model.state_dict().values())

        yield content, read


def tensors(whole: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """A safetensors file damaged in its bytes, its header, or the length of that."""
    (length,) = struct.unpack("<Q", whole[:8])
    header, content = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    for i in range(count):
        if i % 3 == 0:
            yield damaged(whole, rng)
            continue
        other = changed(header, rng)
        if i % 3 == 1 and other:
            entry = other[rng.choice(list(other))]
            if isinstance(entry, dict):
                entry |= rng.choice(
                    (
                        {
                            "dtype": rng.choice(
                                ("F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X")
                            )
                        },
                        {"shape": [rng.choice((0, 1, 3, 2**40, -1, 10**18))] * rng.randint(0, 5)},
                        {
                            "data_offsets": [
                                rng.choice((0, 4, 2**60, -4)),
                                rng.choice((0, 40, 2**60)),
                            ]
                        },
                    )
                )
        said = json.dumps(other).encode("utf-8", "surrogatepass")
        stated = rng.choice((len(said), len(said), len(said), 0, 2**63, len(said) + 8, 10**9))
        yield struct.pack("<Q", stated) + said + content


# --- recipes ------------------------------------------------------------------------------------

YAML = [
    "1e-2", "1e3", "0o8", "0o17", "010", "1_000", ".inf", "-.inf", ".nan", "yes", "no", "on", "~",
    "2020-01-01", "1:30", "0x1F", "9" * 5000, "0x" + "f" * 5000, "1e999", "!!int 3", "&a 1", "*a",
    "!!python/object/apply:os.system [ls]", "{a: 1, a: 2}", "[" * 2000, "|\n  x", "'1e-2'", "\t1",
    "? x", "- 1", "<<: {a: 1}", "=", "%", "@", "`", "\x00", "8/255", "1/0", "nan", "{}", "[1, [2]]",
]  # fmt: skip


def recipes(folder: Path, rng: random.Random, count: int) -> Iterator[Case]:
    originals = [file.read_text() for file in sorted((HERE / "recipes").glob("*.yaml"))]
    for i in range(count):
        text = rng.choice(originals)
        overrides = []
        if i % 3 == 0:
            content = damaged(text.encode(), rng)
        elif i % 3 == 1:
            value = changed(yaml.safe_load(text), rng)
            content = yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
        else:
            lines = text.splitlines()
            at = rng.randrange(len(lines))
            lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(YAML)}"
            content = "\n".join(lines).encode()
            key = rng.choice(
                ("epochs", "optimiser.learning_rate", "extra", "a.b", "objective.", "")
            )
            overrides = [f"{key}={rng.choice(YAML)}"]

        def read(content: bytes = content, overrides: list[str] = overrides) -> None:
            (folder / "r.yaml").write_bytes(content)
            load_recipe(folder / "r.yaml", overrides).to_dict()

        yield (content, overrides), read


# --- results, requests, tables ------------------------------------------------------------------


def run_of(kind: str, folder: Path) -> Path:
    """A small finished run."""
    if kind == "training":
        return training_run(folder, epochs=3)
    if kind == "evaluation":
        return evaluation_run(
            folder,
            n=20,
            images=colour_images(3, 8),
            unaware={"attack": "PGD", "n": 20, "robust_accuracy": 0.5},
            draws=[{"kind": "average", "draws": 3, "standard_accuracy": 0.8}],
        )
    folder.mkdir(parents=True)
    results = HERE / "benchmarks" / "results"
    file = {
        "certification": results / "certificates-interval" / "result.json",
        "uncertainty": results / "uncertainty-cifar10-standard-cpu.json",
    }[kind]
    shutil.copy(file, folder / "result.json")
    unsealed(folder / "result.json")
    return folder


def results(folder: Path, rng: random.Random, count: int) -> Iterator[Case]:
    kinds = ["evaluation"] * 3 + ["training", "certification", "uncertainty"]
    for number, kind in enumerate(kinds):
        place = run_of(kind, folder / f"{kind}{number}" / "run")
        write_report([place], folder / "page.html")
        files = [file for file in sorted(place.iterdir()) if file.is_file()]
        kept = {file: file.read_bytes() for file in files}
        names = {file.name: file for file in files}
        for _ in range(count // len(kinds)):
            name = rng.choice([*names, "result.json"])
            file, whole = names[name], kept[names[name]]
            if name.endswith(".json"):
                (content,) = (
                    variants(whole.decode(), json.loads(whole), rng, 1)
                    if (rng.random() < 0.3)
                    else (
                        json.dumps(changed(json.loads(whole), rng)).encode(
                            "utf-8", "surrogatepass"
                        ),
                    )
                )
            elif name.endswith(".safetensors"):
                (content,) = list(tensors(whole, rng, rng.choice((1, 2, 3))))[-1:]
            else:
                content = damaged(whole, rng)

            def read(
                file: Path = file,
                whole: bytes = whole,
                content: bytes = content,
                place: Path = place,
            ) -> None:
                file.write_bytes(content)
                try:
                    print_leaderboard_if_any(place.parent)
                    write_report([place], folder / "page.html")
                finally:
                    file.write_bytes(whole)

            yield (kind, name, content), read


def print_leaderboard_if_any(folder: Path) -> None:
    try:
        print_leaderboard(folder)
    except hf.InputError as error:
        assert "holds no finished evaluation" in str(error)


def requests(folder: Path, rng: random.Random, count: int) -> Iterator[Case]:
    run = folder / "run"
    asked = {"asked": {"model": {"sha256": "a"}, "suite": "apgd", "seed": 0}}
    open_run(run, "evaluate", "me", asked)
    text, request = unsealed(run / "request.json")
    for content in variants(text, request, rng, count):

        def read(content: bytes = content) -> None:
            (run / "request.json").write_bytes(content)
            open_run(run, "evaluate", "me", asked)

        yield content, read


def stored(folder: Path, rng: random.Random, count: int) -> Iterator[Case]:
    """What survives a kill: checkpoints, stages, certificates."""
    points = Checkpoints(folder)
    points.save("latest", {"model.a": torch.ones(3)}, {"steps": 3, "rows": []})
    stage = folder / "stage.safetensors"
    _written(stage, Done({"a": 1}, {"t": torch.ones(4)}, 1.0))
    rows = folder / "certificates.csv"
    rows.write_text(
        "index,label,prediction,radius,broken,seconds\n0,1,1,0.5,0,0.1\n1,1,1,0,1,0.1\n"
    )
    kept = {file: file.read_bytes() for file in (points.file("latest"), stage, rows)}
    readers: dict[Path, Callable[[], object]] = {
        points.file("latest"): lambda: points.load("latest", ["steps", "rows"]),
        stage: lambda: _read(stage),
        rows: lambda: read_rows(rows),
    }
    for i in range(count):
        file = list(kept)[i % 3]
        content = (
            damaged(kept[file], rng)
            if file == rows
            else list(tensors(kept[file], rng, rng.choice((1, 2, 3))))[-1]
        )

        def read(file: Path = file, content: bytes = content) -> None:
            file.write_bytes(content)
            readers[file]()

        yield (file.name, content), read


# --- journals -----------------------------------------------------------------------------------


def journals(folder: Path, rng: random.Random, count: int) -> Iterator[Case]:
    x, labels = torch.rand(4, 1, 3, 3), torch.zeros(4, dtype=torch.int64)
    ledger = Ledger.of(x, labels, torch.arange(4))
    ledger.clean_confidence[:], ledger.score[:] = 0.5, 0.5
    path = folder / "journal.sqlite"
    journal = Journal(path, "me")
    with journal.transaction():
        journal.clean(ledger, torch.arange(4))
        journal.finished(FinishedItem(0, 0, 1, 0, 5, 5, 0.5))
        journal.strongest(ledger, 1)
        journal.broken(ledger, 2)
        journal.spend(0, 1.0, 5, 5)
        journal.fly(0, 0, {(0, 3): StoredItem(1, 1, 0.5, {"point": torch.zeros(1, 3, 3)})})
    journal.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    tables = {
        table: [row[1] for row in journal.db.execute(f"PRAGMA table_info({table})")]
        for (table,) in journal.db.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall()
    }
    journal.close()
    whole = path.read_bytes()
    for i in range(count):
        table = rng.choice(list(tables))
        column, value = rng.choice(tables[table]), rng.choice(ODD)
        content = damaged(whole, rng) if i % 2 else whole

        def read(
            content: bytes = content, table: str = table, column: str = column, value: Any = value
        ) -> None:
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            path.write_bytes(content)
            if content is whole:
                with sqlite3.connect(path) as db:
                    try:
                        db.execute(f"UPDATE {table} SET {column} = ?", (value,))
                        for row in db.execute(f"SELECT * FROM {table}").fetchall():
                            if table in _CHECKED:  # whoever means ill makes them anew
                                last = tables[table][-1]
                                db.execute(f"UPDATE {table} SET {last} = ?", (_checksum(row[:-1]),))
                    except (sqlite3.Error, OverflowError, UnicodeEncodeError):
                        return  # SQLite itself does not take it
                db.close()
            held = Journal(path, "me")
            try:
                held.restore(Ledger.of(x, labels, torch.arange(4)))
                held.broken_images(), held.items(0), held.flying(0, 0), held.cost(0)
            finally:
                held.close()

        yield (table, column, value, content if content is not whole else ""), read


# --- arguments ----------------------------------------------------------------------------------

WORDS = [
    "", " ", "-", "--", "=", ":", ",", "a:b", "a:b:c", "jpeg:", "jpeg:quality", "jpeg:quality=",
    "jpeg:quality=9" + "9" * 5000, "jpeg:quality=1,quality=2", "noise:sigma=nan",
    "noise:sigma=1e999",
    "purification:weights=", "autoencoder:weights=/", "autoencoder:weights=/dev/null", "é:é",
    "a\nb",
    "torchattacks:X", "foolbox:PGD:steps=x", "apgd:", "8/255", "8/0", "1/2/3", "0x10", "1e999",
    "-1", "nan", "inf", "٣", "9" * 5000, "60", "60s", "1h30m", "1h 30 m", "m", "h1", "." * 50,
    "\udcff",
    "x" * 10_000, "../..", "/dev/zero", "/dev/stdin/x", "C:\\x", "~", "%s", "{0}", "\x1b[2J",
    "os:abort",
]  # fmt: skip


def arguments(folder: Path, rng: random.Random, count: int) -> Iterator[Case]:
    identity = torch.nn.Identity()
    readers: list[Callable[[str], object]] = [
        parse_number,
        parse_seconds,
        suite_named,
        lambda text: parse(text)(identity),
        lambda text: chain(identity, ["median", text]),
        lambda text: Threat(text, 0.1),
        lambda text: Threat("linf", text),  # type: ignore[arg-type]
        lambda text: threat_of(text, None, {}),
        lambda text: threat_of("l2", text, {}),
        lambda text: hf.load(text),
        lambda text: load_recipe(text),
        lambda text: read_json(Path(text)),
        lambda text: write_report([text], folder / "page.html"),
        lambda text: print_leaderboard(Path(text)),
    ]
    for _ in range(count):
        text = rng.choice(WORDS)
        if rng.random() < 0.5:
            text = damaged(text.encode("utf-8", "surrogateescape"), rng).decode("utf-8", "replace")
        text = text.replace("os:", "no:").replace("\0", "0")  # a person's own code may run
        text = text.strip("/ ") if not text.strip("/. ") else text  # nor is the whole disk searched
        reader = rng.choice(readers)
        yield (readers.index(reader), text), lambda reader=reader, text=text: reader(text)


# --- together -----------------------------------------------------------------------------------

READERS = [cards, weights, recipes, results, requests, stored, journals, arguments]


@pytest.fixture(autouse=True)
def quiet(monkeypatch, capsys, tmp_path):
    (tmp_path / "deep" / "er" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er" / "here")  # `../..` is no large place
    yield
    capsys.readouterr()


@pytest.mark.parametrize("reader", READERS)
def test_some_damaged_files(tmp_path, reader):
    assert survives(reader(tmp_path, random.Random(1), 60)) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_ten_thousand_damaged_files(tmp_path, reader):
    assert survives(reader(tmp_path, random.Random(2), 10_000 // len(READERS) + 6)) >= 1250


OPTIONS = {
    "evaluate": ["--suite", "--norm", "--eps", "--limit", "--split", "--seed", "--batch-size",
                 "--precision", "--image-size", "--device", "--samples", "--defence", "--data"],
    "certify": ["--sigma", "--n0", "--n", "--alpha", "--radius", "--eps", "--limit", "--seed"],
    "uncertainty": ["--attack", "--calibration", "--alpha", "--risk", "--radius",
                    "--ood", "--human"],
    "train": ["--budget", "--set", "--seed", "--device", "--log"],
    "data": ["--data", "--figure", "--image-size"],
    "report": ["--out"],
    "leaderboard": ["--nothing"],
}  # fmt: skip
BAD = ["nonsense", "9" * 5000, "-" + "9" * 400, "", "1e-999999", "\x1b[2J", "a\nb", "/dev/full/x"]


@pytest.mark.parametrize("command", OPTIONS)
def test_bad_values_on_the_command_line(tmp_path, monkeypatch, capsys, command):
    """Whatever an option is given, the command ends with one line and status 2 (or 1), or works
    with it as with any other value: then it got as far as the work, which is not done here."""

    class Worked(BaseException):
        pass

    def works(*_: object, **__: object) -> None:
        raise Worked

    # The work begins where a network is first asked.
    monkeypatch.setattr("holdfast.models.small_cnn.SmallCNN.forward", works)
    monkeypatch.setattr("holdfast.canvas.write_named", works)
    arguments_ = CARD["arguments"] | {"classes": 10}
    card = {**CARD, "arguments": arguments_, "classes": [str(i) for i in range(10)], "defences": []}
    model = save_checkpoint(tmp_path / "model", build("small-cnn", arguments_), card)
    needed = {
        "train": [str(HERE / "recipes" / "digits-gaussian.yaml"), "--data", "digits"],
        "data": [],
        "report": [str(model)],
        "leaderboard": [str(tmp_path)],
    }.get(command, [str(model), "--data", "digits"])
    for option in OPTIONS[command]:
        for value in BAD:
            out = [] if command in ("report", "data", "leaderboard") else ["--out", "OUT"]
            monkeypatch.chdir(tmp_path)
            argv = ["holdfast", command, *needed, option, value, *out]
            monkeypatch.setattr(sys, "argv", argv)
            try:
                cli.main()
            except Worked:
                shutil.rmtree(tmp_path / "OUT", ignore_errors=True)
                continue
            except SystemExit as end:
                said = capsys.readouterr().err
                assert end.code in (0, 1, 2), argv
                assert end.code == 0 or (said.startswith("holdfast: ") and said.count("\n") == 1), (
                    argv,
                    said,
                )
                assert "\x1b" not in said and len(said) < 3000
            assert not (tmp_path / "OUT").exists(), argv


# --- one odd file among several -----------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "3", "", "null", '"x"', '{"schema": 3}', '{"schema": "other/1"}', "\x00",
        '{"schema": "holdfast/evaluation/1"}',
        '{"schema": "holdfast/evaluation/1", "status": "complete"}',
        '{"schema": "holdfast/evaluation/1", "status": "complete", "n": "1", "threat": []}',
        '{"a":' * 10_000 + "1" + "}" * 10_000, "9" * 5000,
    ],
)  # fmt: skip
def test_one_odd_result_is_one_line_and_the_table_of_all_others(tmp_path, content, capsys):
    evaluation_run(tmp_path / "runs" / "good", name="the good one")
    (tmp_path / "runs" / "odd").mkdir()
    (tmp_path / "runs" / "odd" / "result.json").write_text(content)
    (tmp_path / "runs" / "others.json").write_text("[]")  # other people's files say nothing
    print_leaderboard(tmp_path / "runs")
    shown = capsys.readouterr()
    assert "the good one" in shown.out
    assert shown.err.startswith("left out: ") and shown.err.count("\n") == 1
    assert str(tmp_path / "runs" / "odd" / "result.json") in shown.err


@pytest.mark.parametrize(
    "key", ["robust_accuracy", "n", "threat", "suite", "flags", "model", "data"]
)
@pytest.mark.parametrize("value", [None, "x", -1, [3], {"name": [1]}, 10**400, float("nan"), True])
def test_any_odd_field_leaves_the_others_in_the_table(tmp_path, key, value, capsys):
    evaluation_run(tmp_path / "good", name="the good one")
    odd = evaluation_run(tmp_path / "odd", name="the odd one")
    result = json.loads((odd / "result.json").read_text())
    (odd / "result.json").write_text(json.dumps({**result, key: value}))
    print_leaderboard(tmp_path)
    shown = capsys.readouterr()
    assert "the good one" in shown.out
    assert shown.err.count("\n") <= 1


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"architecture": 3}', '{"threat": []}'])
def test_one_odd_card_is_one_line_and_the_table_of_all_others(
    tmp_path, content, capsys, monkeypatch
):
    monkeypatch.setenv("HOLDFAST_ZOO", str(tmp_path / "zoo"))
    model = build("small-cnn", CARD["arguments"])
    save_checkpoint(tmp_path / "zoo" / "good", model, CARD)
    odd = save_checkpoint(tmp_path / "zoo" / "odd", model, CARD)
    (odd / "card.json").write_text(content)
    print_zoo()
    shown = capsys.readouterr()
    assert "good" in shown.out and "odd" not in shown.out
    assert shown.err.startswith("left out: ") and shown.err.count("\n") == 1


def test_a_report_of_several_runs_names_the_odd_one_and_writes_nothing(tmp_path):
    """Whoever names a run wants it on the page: a page that lacks it would say too little."""
    good, odd = evaluation_run(tmp_path / "good"), evaluation_run(tmp_path / "odd")
    (odd / "result.json").write_text("{")
    with pytest.raises(hf.InputError, match="odd"):
        write_report([good, odd], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_progress_takes_any_words():
    with ProgressLine("a", interval=0) as line:
        for word in WORDS:
            line.update(0.5, word)


def test_a_safetensors_file_that_states_terabytes_is_not_allocated(tmp_path):
    place = save_checkpoint(tmp_path / "m", build("small-cnn", {"width": 4, "classes": 3}), CARD)
    file = place / "model.safetensors"
    whole = save({"body.0.weight": torch.zeros(4, 1, 3, 3)})
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    header["body.0.weight"] = {"dtype": "F32", "shape": [2**20, 2**18], "data_offsets": [0, 2**40]}
    said = json.dumps(header).encode()
    with file.open("wb") as stream:  # a sparse file of a terabyte
        stream.write(struct.pack("<Q", len(said)) + said)
        stream.truncate(8 + len(said) + 2**40)
    with pytest.raises(hf.InputError):
        hf.load(place)
