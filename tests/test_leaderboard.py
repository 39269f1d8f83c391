"""`holdfast leaderboard`: the site, the tables for papers, and figures that others published."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import command
from run_folders import evaluation_run, training_run

import holdfast as hf
from holdfast.errors import InputError
from holdfast.leaderboard.found import find
from holdfast.leaderboard.pages import pareto
from holdfast.leaderboard.rows import tables
from holdfast.runs.records import LeaderboardRecord

EVIL = "<script>alert(1)</script>"


def entry(folder: Path, stem: str = "Some2024Paper", **changes: Any) -> Path:
    """An entry as RobustBench publishes it, made up."""
    held = {
        "link": "https://example.org/paper",
        "name": "A paper on robustness",
        "authors": "A. Body, S. Else",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "Somewhere 2024",
        "architecture": "WideResNet-28-10",
        "eps": "8/255",
        "clean_acc": "91.50",
        "reported": "",
        "autoattack_acc": "61.24",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.json"
    path.write_text(json.dumps({**held, **changes}))
    return path


def ranked(folder: Path, *others: Path) -> list[Any]:
    return tables(find(folder, others), folder)


def model(name: str, sha: str = "ab") -> dict[str, Any]:
    return {"name": name, "sha256": sha * 32, "architecture": "preact-resnet"}


# --- what is ranked -------------------------------------------------------------------------------


def test_a_model_has_one_row_with_the_lowest_figure_and_the_suite_that_found_it(tmp_path) -> None:
    for suite, robust in (("apgd", 0.45), ("autoattack", 0.42), ("swift", 0.43)):
        evaluation_run(tmp_path / suite, suite=suite, robust=robust)
    evaluation_run(tmp_path / "other", name="other", robust=0.5, model=model("other", "cd"))
    (table,) = ranked(tmp_path)
    first, second = (m.row for m in table.models)
    assert (first.model, first.robust_accuracy) == ("other", 0.5)
    assert (second.suite, second.robust_accuracy) == ("autoattack", 0.42)
    assert second.runs[0] == second.run == str(tmp_path / "autoattack")
    assert len(second.runs) == 3


def test_fewer_images_decide_only_where_it_is_no_chance(tmp_path) -> None:
    evaluation_run(tmp_path / "many", n=1000, robust=0.45)
    evaluation_run(tmp_path / "few", n=100, robust=0.40, suite="autoattack")
    (table,) = ranked(tmp_path)
    assert table.models[0].row.n == 1000
    evaluation_run(tmp_path / "clear", n=200, robust=0.20, suite="swift")
    (table,) = ranked(tmp_path)
    assert (table.models[0].row.n, table.models[0].row.suite) == (200, "swift")


def test_a_table_is_of_one_threat_model_one_data_set_one_goal(tmp_path) -> None:
    for i, changes in enumerate(
        [{}, {"eps": 4 / 255}, {"norm": "l2", "eps": 0.5}, {"data": "svhn"}, {"goal": "target"}]
    ):
        evaluation_run(tmp_path / str(i), **changes)
    titles = {table.title for table in ranked(tmp_path)}
    assert titles == {
        "cifar10 test, L∞ 8/255", "cifar10 test, L∞ 4/255", "cifar10 test, L2 0.5",
        "svhn test, L∞ 8/255", "cifar10 test, L∞ 8/255, one class wanted",
    }  # fmt: skip


def test_hidden_gradients_flags_and_training_are_told(tmp_path) -> None:
    flags = [{"name": "hidden-gradients", "fired": True, "detail": "hidden"}]
    evaluation_run(tmp_path / "hides", flags=flags, model=model("hides", "11"))
    repairs = [{"what": "round", "where": "forward"}]
    evaluation_run(tmp_path / "mended", flags=flags, repairs=repairs, model=model("mended", "22"))
    clear = evaluation_run(tmp_path / "clear", fired=(), model={**model("clear"), "parameters": 7})
    training_run(clear / "training")
    rows = {m.row.model: m.row for table in ranked(tmp_path) for m in table.models}
    assert rows["hides"].gradients == "hidden" and rows["hides"].flags == ("hidden-gradients",)
    assert rows["mended"].gradients == "hidden, repaired"
    assert rows["clear"].gradients == "none hidden" and rows["clear"].flags == ()
    assert rows["clear"].parameters == 7
    assert rows["clear"].training_seconds == pytest.approx(24 * 149.2)
    assert rows["clear"].trained_on == "cifar10 train"
    assert rows["hides"].training_seconds is None


def test_a_training_is_found_by_the_models_source_and_nothing_is_read_from_elsewhere(
    tmp_path,
) -> None:
    board = tmp_path / "board"
    training_run(board / "train")
    training_run(tmp_path / "private", data={"name": "secret"})
    source = {**model("m"), "source": str(board / "train" / "model")}
    evaluation_run(board / "own", model=source)
    source = {**model("n", "cd"), "source": str(tmp_path / "private")}
    evaluation_run(board / "other", model=source, training_run="../../private")
    rows = {m.row.model: m.row for table in ranked(board) for m in table.models}
    assert rows["m"].trained_on == "cifar10 train"
    assert rows["n"].trained_on is None


def test_evaluations_say_how_many_parameters_the_model_has(tmp_path) -> None:
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x, y = torch.rand(8, 1, 2, 2), torch.arange(8) % 3
    hf.evaluate(network, x, y, ("linf", 0.1), suite="fgsm", run=tmp_path / "run")
    assert hf.read(tmp_path / "run").model.parameters == 15
    assert ranked(tmp_path)[0].models[0].row.parameters == 15


def test_the_pareto_front() -> None:
    points = [(0.8, 0.4), (0.9, 0.3), (0.7, 0.3), (0.95, 0.0), (0.9, 0.2), (0.8, 0.4)]
    assert pareto(points) == [(0.8, 0.4), (0.9, 0.3), (0.95, 0.0)]


# --- RobustBench ----------------------------------------------------------------------------------


def test_published_entries_are_rows_measured_elsewhere(tmp_path) -> None:
    info = tmp_path / "model_info"
    entry(info / "cifar10" / "Linf", "A")
    entry(info / "cifar10" / "Linf", "B", external="58.5", unreliable=True, additional_data=True)
    footnote = "It uses additional 1M synthetic images in training."
    made = {"clean_acc": 90, "autoattack_acc": 60.5, "eps": 0.031, "footnote": footnote}
    entry(info / "cifar10" / "Linf", "C", **made)
    entry(info / "cifar10" / "L2", "D", eps="0.5", autoattack_acc="0.0", external="", reported=None)
    entry(info / "imagenet" / "Linf", "E", eps="4/255", dataset="imagenet", unreliable=False)
    entry(info / "cifar10" / "corruptions", "F", corruptions_acc="80", eps=None)
    (info / "cifar10" / "corruptions" / "F.json").write_text(
        json.dumps({"clean_acc": "90", "corruptions_acc": "80", "eps": None})
    )
    found = find(tmp_path)
    assert not found.left_out and found.corruptions == 1
    rows = {m.row.model: (t.title, m.row) for t in tables(found, tmp_path) for m in t.models}
    assert rows["A"][0] == "cifar10 test, L∞ 8/255"
    a, b = rows["A"][1], rows["B"][1]
    assert (a.standard_accuracy, a.robust_accuracy) == (0.915, pytest.approx(0.6124))
    assert a.measured_by == "RobustBench" and a.n is None and a.robust_accuracy_interval is None
    assert (a.suite, a.flags, a.link) == ("autoattack", (), "https://example.org/paper")
    assert (b.suite, b.robust_accuracy) == ("external", 0.585)
    assert "unreliable" in b.flags[0] and b.trained_on == "with extra data"
    assert rows["C"][1].trained_on == "cifar10, synthetic images"
    assert rows["C"][0] == "cifar10 test, L∞ 0.031"
    assert rows["D"][1].robust_accuracy == 0.0
    assert rows["E"][0] == "imagenet validation, L∞ 4/255"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clean_acc": "ninety"}, "'clean_acc'"),
        ({"clean_acc": None}, "'clean_acc'"),
        ({"clean_acc": True}, "'clean_acc'"),
        ({"autoattack_acc": "161.0"}, "'autoattack_acc'"),
        ({"autoattack_acc": "nan"}, "'autoattack_acc'"),
        ({"external": [3]}, "'external'"),
        ({"eps": "eight"}, "'eps'"),
        ({"eps": None}, "'eps'"),
        ({"eps": -1}, "'eps'"),
        ({"eps": {"a": 1}}, "'eps'"),
    ],
)
def test_a_bad_entry_is_one_line_and_the_rest_is_shown(tmp_path, changes, said, capsys) -> None:
    entry(tmp_path / "Linf", "good")
    bad = entry(tmp_path / "Linf", "bad", **changes)
    hf.write_leaderboard(tmp_path, tmp_path / "out.json")
    told = capsys.readouterr().err
    assert told.startswith(f"left out: {bad}") and said in told and told.count("\n") == 1
    assert [row["model"] for row in json.loads((tmp_path / "out.json").read_text())] == ["good"]


def test_an_entry_without_a_norm_says_what_to_do(tmp_path) -> None:
    entry(tmp_path / "entries")
    (line,) = find(tmp_path).left_out
    assert "keep it in a folder named Linf" in line


def test_a_link_that_is_no_https_is_none(tmp_path) -> None:
    entry(tmp_path / "Linf", link="javascript:alert(1)", name=EVIL, venue=EVIL, architecture=EVIL)
    page = (hf.write_leaderboard(tmp_path, tmp_path / "site") / "index.html").read_text()
    assert "javascript:" not in page and EVIL not in page


# --- the site -------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for i in range(3):
        evaluation_run(
            tmp_path / "runs" / f"run-{i}", n=50, robust=0.3 + i / 10, seed=i, curve=False,
            model=model(f"model-{i}", f"{i}{i}"),
        )  # fmt: skip
    entry(tmp_path / "runs" / "model_info" / "cifar10" / "Linf")
    return tmp_path / "runs"


def test_the_site_holds_all_models_and_a_page_of_each(runs, tmp_path) -> None:
    site = hf.write_leaderboard(runs, tmp_path / "site")
    page = (site / "index.html").read_text()
    record = hf.read(site / "leaderboard.json")
    assert isinstance(record, LeaderboardRecord)
    assert [row.model for row in record.rows] == ["Some2024Paper", "model-2", "model-1", "model-0"]
    links = re.findall(r'href="(models/[^"]+)"', page)
    assert len(links) == 3 == len(list((site / "models").iterdir()))
    for row in record.rows[1:]:
        own = (site / row.page).read_text()
        assert row.model in own and "How to make it again" in own and "holdfast evaluate" in own
        assert 'href="../index.html"' in own
    assert "measured elsewhere" in page and "RobustBench" in page
    again = {f: f.read_bytes() for f in site.rglob("*") if f.is_file()}
    hf.write_leaderboard(runs, site)
    assert {f: f.read_bytes() for f in site.rglob("*") if f.is_file()} == again


def test_a_site_is_written_anew_and_models_that_are_gone_go(runs, tmp_path) -> None:
    site = hf.write_leaderboard(runs, tmp_path / "site")
    (site / "CNAME").write_text("example.org")
    shutil.rmtree(runs / "run-0")
    hf.write_leaderboard(runs, site)
    assert len(list((site / "models").iterdir())) == 2
    assert "model-0" not in (site / "index.html").read_text()
    assert (site / "CNAME").read_text() == "example.org"


@pytest.mark.parametrize("what", ["a file in it", "a file", "somebody's page", "a result"])
def test_nothing_of_somebody_elses_is_overwritten(runs, tmp_path, what) -> None:
    out = tmp_path / "site"
    if what == "a file":
        out.write_text("mine")
    elif what == "a file in it":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    elif what == "a result":
        evaluation_run(out)
    else:
        hf.write_leaderboard(runs, out)
        (out / "index.html").write_text("<!doctype html>mine")
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(InputError):
        hf.write_leaderboard(runs, out)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_a_site_whose_writing_was_cut_off_is_finished_by_the_same_command(
    runs, tmp_path, monkeypatch
) -> None:
    def dies(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("holdfast.leaderboard.site.index", dies)
        with pytest.raises(KeyboardInterrupt):
            hf.write_leaderboard(runs, tmp_path / "site")
    assert not (tmp_path / "site" / "index.html").exists()
    hf.write_leaderboard(runs, tmp_path / "site")
    assert (tmp_path / "site" / "index.html").is_file()


def test_damaged_runs_are_one_line_each_and_on_the_page(runs, tmp_path, capsys) -> None:
    (runs / "run-0" / "result.json").write_text("{")
    (runs / "run-1" / "verdicts.csv").write_text("index\n1\n")
    page = (hf.write_leaderboard(runs, tmp_path / "site") / "index.html").read_text()
    told = capsys.readouterr().err
    assert told.count("\n") == 2
    assert "left out: " in told and "run-0" in told
    assert "shown without its images: " in told and "verdicts.csv" in told
    assert "run-0" in page and "model-1" in page and "model-2" in page


def test_a_site_below_the_folder_is_no_run_of_it(runs) -> None:
    hf.write_leaderboard(runs, runs / "site")
    before = len(find(runs).evaluations)
    hf.write_leaderboard(runs, runs / "site")
    assert len(find(runs).evaluations) == before == 3 and not find(runs).left_out


def test_names_in_runs_are_text_on_the_pages(tmp_path) -> None:
    evil = {"name": EVIL, "data": EVIL, "pixels": EVIL, "suite": EVIL}
    evaluation_run(tmp_path / "runs" / "run", n=50, **evil)
    site = hf.write_leaderboard(tmp_path / "runs", tmp_path / "site")
    for page in site.rglob("*.html"):
        assert EVIL not in page.read_text()
    assert all(re.fullmatch(r"[a-z0-9-]+\.html", p.name) for p in (site / "models").iterdir())


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_the_site(runs, tmp_path, monkeypatch, capsys) -> None:
    assert command(monkeypatch, "leaderboard", runs, "--out", tmp_path / "site") == 0
    assert f"written: {tmp_path / 'site' / 'index.html'}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["md", "csv", "json", "tex"])
def test_tables_for_papers(runs, tmp_path, monkeypatch, capsys, kind) -> None:
    assert command(monkeypatch, "leaderboard", runs, "--format", kind) == 0
    printed = capsys.readouterr().out
    out = tmp_path / f"table.{kind}"
    assert command(monkeypatch, "leaderboard", runs, "--out", out) == 0
    assert out.read_text() == printed
    if kind == "json":
        rows = json.loads(printed)
        assert rows[1]["robust_accuracy"] == 0.5 and rows[1]["run"] == str(runs / "run-2")
    elif kind == "csv":
        rows = list(csv.DictReader(io.StringIO(printed)))
        assert [row["measured_by"] for row in rows] == ["RobustBench", *["holdfast"] * 3]
        assert float(rows[1]["robust_accuracy"]) == 0.5 and rows[0]["robust_low"] == ""
    else:
        assert "model-2" in printed and "RobustBench" in printed and "61.2" in printed
    assert command(monkeypatch, "leaderboard", runs, "--out", out) == 0  # over itself
    out.write_text("mine")
    assert command(monkeypatch, "leaderboard", runs, "--out", out) == 2
    assert out.read_text() == "mine"


def test_text_keeps_what_was_published_apart(runs, monkeypatch, capsys) -> None:
    assert command(monkeypatch, "leaderboard", runs) == 0
    printed = capsys.readouterr().out
    assert "published by RobustBench, measured elsewhere: cifar10 test, L∞ 8/255" in printed
    assert printed.index("model-2") < printed.index("published by RobustBench")
    assert command(monkeypatch, "leaderboard", runs, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in listed} == {"model-0", "model-1", "model-2"}


def test_entries_of_another_folder(runs, tmp_path, monkeypatch, capsys) -> None:
    entry(tmp_path / "published" / "cifar10" / "Linf", "Other2024")
    asked = ["leaderboard", runs, "--format", "csv", "--robustbench", tmp_path / "published"]
    assert command(monkeypatch, *asked) == 0
    assert "Other2024" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "xml"],
        ["--format", "md", "--out", "table.csv"],
        ["--out", "page.html"],
        ["--robustbench", "/no/such/folder"],
        ["--json", "--format", "tex"],
    ],
)
def test_what_does_not_fit_is_one_line(runs, monkeypatch, capsys, options, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "leaderboard", runs, *options) == 2
    told = capsys.readouterr().err
    assert told.startswith("holdfast: ") and told.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_a_folder_without_anything_to_rank(tmp_path, monkeypatch, capsys) -> None:
    assert command(monkeypatch, "leaderboard", tmp_path, "--out", tmp_path / "site") == 2
    assert "holds no finished evaluation" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()
